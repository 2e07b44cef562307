"""Views of a mesh: camera, rasteriser and shading put together."""

from __future__ import annotations

import hashlib
from functools import reduce
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddclip_cli.render.camera import FOCAL, Camera, camera_positions, look_at_origin
from ddclip_cli.render.raster import EMPTY, project, rasterize, triangle_of
from ddclip_cli.render.scene import Scene, load_scene
from ddclip_cli.render.shade import Surface, shade, shadow_map

SAMPLES = 2  # a side: every pixel is the mean of SAMPLES^2 points


def render_mesh(
    path: str | Path,
    *,
    num_views: int = 12,
    image_size: int = 512,
    seed: int = 0,
    camera: Camera = "zero123",
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """Render a mesh file to (F, H, W, 4) uint8 RGBA with transparent background (straight alpha).

    The cameras depend on (seed, file name without suffix) alone. Raises UserError for a file that is no mesh.
    """
    poses = poses_of(Path(path).stem, num_views=num_views, seed=seed, camera=camera)
    return render_scene(load_scene(path), poses, image_size=image_size, device=device)


def poses_of(object_id: str, *, num_views: int, seed: int, camera: Camera = "zero123") -> np.ndarray:
    """(F, 3, 4) float64 world-to-camera matrices of an object's views."""
    digest = hashlib.sha256(object_id.encode()).digest()
    rng = np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])
    return look_at_origin(camera_positions(num_views, camera, rng))


@torch.no_grad()
def render_scene(scene: Scene, poses: np.ndarray, *, image_size: int, device: str | torch.device = "cpu") -> np.ndarray:
    """Views (F, H, W, 4) uint8 of a scene through world-to-camera matrices (F, 3, 4)."""
    surface = Surface.of(scene, device)
    cameras = torch.from_numpy(poses).to(surface.vertices)
    eyes = -(cameras[:, :, :3].mT @ cameras[:, :, 3:])[..., 0]  # (F, 3)
    size = image_size * SAMPLES
    projected = project(surface.vertices, cameras, FOCAL, size)
    keys = rasterize(projected, surface.faces, size)
    shadows = shadow_map(surface.vertices, surface.faces)

    keys = keys.flatten()
    seen = torch.nonzero(keys != EMPTY)[:, 0]  # (P,) flat positions in the views
    view, pixel = seen // size**2, seen % size**2
    triangle = triangle_of(keys[seen])
    on_screen = projected.flatten(0, 1)[view[:, None] * len(scene.vertices) + surface.faces[triangle]]  # (P, 3, xyw)
    weights = _barycentric(on_screen, pixel % size + 0.5, pixel // size + 0.5)
    samples = torch.zeros(len(keys), 4, device=device)
    samples[seen] = F.pad(shade(surface, shadows, triangle, weights, eyes[view]), (0, 1), value=1.0)

    grid = samples.view(len(poses), image_size, SAMPLES, image_size, SAMPLES, 4)
    mean = reduce(torch.add, [grid[:, :, i, :, j] for i in range(SAMPLES) for j in range(SAMPLES)]) / SAMPLES**2
    alpha = mean[..., 3:]  # the colour is premultiplied by it here
    rgb = mean[..., :3] / alpha.clamp(min=1 / SAMPLES**2)
    return (torch.cat([rgb, alpha], dim=-1) * 255 + 0.5).to(torch.uint8).cpu().numpy()


def _barycentric(corners: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Perspective-correct weights (P, 3) of the corners (P, 3, xyw) at pixel positions (P,)."""
    cx, cy, w = corners.unbind(-1)
    dx, dy = cx - x[:, None], cy - y[:, None]
    area = torch.stack(
        [
            dx[:, 1] * dy[:, 2] - dx[:, 2] * dy[:, 1],
            dx[:, 2] * dy[:, 0] - dx[:, 0] * dy[:, 2],
            dx[:, 0] * dy[:, 1] - dx[:, 1] * dy[:, 0],
        ],
        dim=1,
    )
    total = area.sum(1, keepdim=True)
    weights = (area / torch.where(total == 0, torch.ones_like(total), total)).clamp(min=0) * w
    whole = weights.sum(1, keepdim=True)
    return torch.where(whole > 0, weights / whole.clamp(min=1e-20), torch.full_like(weights, 1 / 3))
