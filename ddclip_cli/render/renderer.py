"""Views of a mesh: camera, rasteriser and shading put together."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddclip_cli.errors import UserError
from ddclip_cli.render.camera import FOCAL, Camera, camera_positions, look_at_origin
from ddclip_cli.render.load import Up, load_scene
from ddclip_cli.render.raster import EMPTY, TooManyLayers, batch_size, project, triangle_of
from ddclip_cli.render.scene import Scene
from ddclip_cli.render.shade import shade, shadow_map
from ddclip_cli.render.surface import Surface
from ddclip_cli.render.tone import filmic
from ddclip_cli.render.visibility import hits_at, nearest_solid, see_through

SAMPLES = 2  # a side: every pixel is the mean of SAMPLES^2 points


def render_mesh(
    path: str | Path,
    *,
    num_views: int = 12,
    image_size: int = 512,
    seed: int = 0,
    camera: Camera = "zero123",
    up: Up = "auto",
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """Render a mesh file to (F, H, W, 4) uint8 RGBA with transparent background (straight alpha).

    The cameras depend on (seed, file name without suffix) alone. `up` is the axis that points up in the file; `auto`
    goes by its format. Raises UserError for a file that is no mesh.
    """
    poses = poses_of(Path(path).stem, num_views=num_views, seed=seed, camera=camera)
    return render_file(path, poses, image_size=image_size, up=up, device=device)


def render_file(
    path: str | Path, poses: np.ndarray, *, image_size: int, up: Up = "auto", device: str | torch.device = "cpu"
) -> np.ndarray:
    """Views (F, H, W, 4) uint8 of a mesh file through world-to-camera matrices (F, 3, 4).

    Raises UserError, in one sentence that begins with the path, whatever is wrong with the file.
    """
    scene = load_scene(path, up=up)
    try:
        return render_scene(scene, poses, image_size=image_size, device=device)
    except TooManyLayers as error:
        raise UserError(f"{path}: {error}") from None
    except (MemoryError, RuntimeError) as error:  # the memory of the machine or of its GPU
        why = str(error).split("\n")[0] or type(error).__name__
        raise UserError(f"{path}: cannot be drawn ({why})") from error


def poses_of(object_id: str, *, num_views: int, seed: int, camera: Camera = "zero123") -> np.ndarray:
    """(F, 3, 4) float64 world-to-camera matrices of an object's views."""
    digest = hashlib.sha256(object_id.encode()).digest()
    rng = np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])
    return look_at_origin(camera_positions(num_views, camera, rng))


@torch.no_grad()
def render_scene(scene: Scene, poses: np.ndarray, *, image_size: int, device: str | torch.device = "cpu") -> np.ndarray:
    """Views (F, H, W, 4) uint8 of a scene through world-to-camera matrices (F, 3, 4)."""
    surface = Surface(scene, device)
    shadows = shadow_map(surface)
    cameras = torch.from_numpy(poses).to(surface.vertices)
    # A few views at a time: what is drawn together stays in a processor's cache, or fills a GPU.
    together = max(1, batch_size(surface.vertices.device) // (image_size * SAMPLES) ** 2)
    views = [_draw(surface, shadows, some, image_size).cpu() for some in cameras.split(together)]
    return torch.cat(views).numpy()


def _draw(surface: Surface, shadows: Tensor, cameras: Tensor, image_size: int) -> Tensor:
    """(F, H, W, 4) uint8 on the device."""
    size = image_size * SAMPLES
    points = project(surface.vertices, cameras, FOCAL, size)
    eyes = -(cameras[:, :, :3].mT @ cameras[:, :, 3:])[..., 0].T  # (3, F)
    solid = nearest_solid(surface, points, size)
    light = torch.zeros(4, solid.numel(), device=solid.device)  # linear, premultiplied by alpha
    for layer in (*see_through(surface, points, size, solid), solid):  # from the front to the back
        keys = layer.view(-1)
        for pixel in torch.nonzero(keys != EMPTY)[:, 0].split(batch_size(solid.device)):
            hits = hits_at(surface, points, size, pixel, triangle_of(keys.index_select(0, pixel)))
            colour = shade(surface, shadows, hits, eyes.index_select(1, pixel // size**2))
            alpha = torch.ones_like(colour[3:]) if layer is solid else colour[3:].clamp(0, 1)
            before = light.index_select(1, pixel)
            behind = torch.cat([colour[:3] * alpha, alpha]) * (1 - before[3])
            light.index_copy_(1, pixel, before + behind)
    alpha = light[3]
    display = torch.cat([filmic(light[:3] / alpha.clamp(min=1e-6)) * alpha, light[3:]])
    grid = display.view(4, len(cameras), image_size, SAMPLES, image_size, SAMPLES)
    mean = torch.zeros_like(grid[:, :, :, 0, :, 0])
    for i in range(SAMPLES):  # several times faster than one `mean` over both
        for j in range(SAMPLES):
            mean += grid[:, :, :, i, :, j] / SAMPLES**2
    rgb = mean[:3] / mean[3].clamp(min=1e-6)  # straight alpha
    return (torch.cat([rgb, mean[3:]]).clamp(0, 1) * 255 + 0.5).to(torch.uint8).permute(1, 2, 3, 0)
