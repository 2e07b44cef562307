"""The colour of what is seen: Lambert shading with Zero123's lights, a shadow map, and the filmic tone curve."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddclip_cli.render.camera import look_at_origin
from ddclip_cli.render.materials import to_linear
from ddclip_cli.render.raster import inverse_depth_of, project, rasterize
from ddclip_cli.render.scene import Scene

LIGHT = (4.08, 1.0, 5.9)
KEY = 25.33  # a lamp of 1000 W: P / (4 pi^2), divided by the squared distance at each point
AMBIENT = 0.0508
TOP = 0.3  # a soft light from above, of which a little comes back from below
BOUNCE = 0.2
SHADOW_SIZE = 512
SHADOW_BIAS = 0.012  # in object sizes
_SHADOW_FOCAL = 0.5 / math.tan(math.asin(0.88 / math.hypot(*LIGHT)))  # the unit box fills the light's picture


@dataclass(frozen=True)
class Surface:
    """A scene's triangles on the device of the renderer, one row of attributes for each of their corners."""

    vertices: Tensor  # (V, 3)
    faces: Tensor  # (T, 3)
    corners: Tensor  # (T, 3, 14): position, normal, the face's own normal, linear colour, texture coordinates
    texture: Tensor  # (T,)
    textures: list[Tensor]  # (H, W, 3) float32 linear

    @classmethod
    def of(cls, scene: Scene, device: str | torch.device) -> Surface:
        vertices, faces, normals, colours, uv, texture = (
            torch.from_numpy(values).to(device)
            for values in (scene.vertices, scene.faces, scene.normals, scene.colours, scene.uv, scene.texture)
        )
        a, b, c = vertices[faces].unbind(1)
        flat = torch.linalg.cross(b - a, c - a)
        flat = flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-20)
        corners = torch.cat(
            [vertices[faces], normals[faces], flat[:, None].expand(-1, 3, -1), colours[faces], uv[faces]], dim=2
        )
        linear = torch.from_numpy(to_linear(np.arange(256) / 255)).float()
        textures = [linear[torch.from_numpy(picture.astype(np.int64))].to(device) for picture in scene.textures]
        return cls(vertices, faces, corners, texture, textures)


def shadow_map(vertices: Tensor, faces: Tensor) -> Tensor:
    """1/depth of what the light sees, (SHADOW_SIZE, SHADOW_SIZE) float32."""
    return inverse_depth_of(rasterize(_seen_by_light(vertices), faces, SHADOW_SIZE))[0]


def shade(surface: Surface, shadows: Tensor, triangle: Tensor, weights: Tensor, eye: Tensor) -> Tensor:
    """Display colours (P, 3) in [0, 1] of the points `weights` (P, 3) of triangles (P,), seen from `eye` (P, 3)."""
    a, b, c = surface.corners[triangle].unbind(1)  # (P, 14) each
    mixed = a * weights[:, :1] + b * weights[:, 1:2] + c * weights[:, 2:]
    point, smooth, flat, albedo, uv = mixed.split((3, 3, 3, 3, 2), dim=1)
    length = smooth.norm(dim=1, keepdim=True)
    normal = torch.where(length > 0.1, smooth / length.clamp(min=1e-6), flat)
    normal = torch.where((normal * (eye - point)).sum(1, keepdim=True) < 0, -normal, normal)  # every face has two sides

    texture = surface.texture[triangle]
    for index, picture in enumerate(surface.textures):
        mine = torch.nonzero(texture == index)[:, 0]
        if len(mine):
            albedo[mine] = albedo[mine] * _bilinear(picture, uv[mine])

    towards = torch.tensor(LIGHT, device=point.device) - point
    distance = towards.norm(dim=1, keepdim=True)
    facing = (normal * towards / distance).sum(1, keepdim=True).clamp(min=0)
    key = KEY * facing / distance**2 * _lit(shadows, point + SHADOW_BIAS * normal)
    top = TOP * (BOUNCE + (1 - BOUNCE) * (0.5 + 0.5 * normal[:, 2:]))
    return _filmic(albedo * (key + top + AMBIENT))


def _seen_by_light(points: Tensor) -> Tensor:
    pose = torch.from_numpy(look_at_origin(np.array([LIGHT]))).to(points)
    return project(points, pose, _SHADOW_FOCAL, SHADOW_SIZE)


def _lit(shadows: Tensor, point: Tensor) -> Tensor:
    """How much of the lamp reaches each point, (P, 1) in [0, 1]: the mean of four taps, weighted by nearness."""
    x, y, w = _seen_by_light(point)[0].unbind(-1)
    x, y = x - 0.5, y - 0.5
    lit = torch.zeros_like(w)
    for dx in (0, 1):
        for dy in (0, 1):
            column, row = x.floor() + dx, y.floor() + dy
            seen = shadows[row.long().clamp(0, SHADOW_SIZE - 1), column.long().clamp(0, SHADOW_SIZE - 1)]
            behind = 1 / w - 1 / seen.clamp(min=1e-6)
            lit += (behind < SHADOW_BIAS) * (1 - (x - column).abs()) * (1 - (y - row).abs())
    return lit[:, None]


def _bilinear(picture: Tensor, uv: Tensor) -> Tensor:
    """Texture (H, W, 3) at coordinates (P, 2), repeated outside [0, 1]; v runs up."""
    height, width, _ = picture.shape
    x, y = uv[:, 0] * width - 0.5, (1 - uv[:, 1]) * height - 0.5
    x0, y0 = x.floor(), y.floor()
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    columns = [(x0.long() + step) % width for step in (0, 1)]
    rows = [(y0.long() + step) % height for step in (0, 1)]
    above = picture[rows[0], columns[0]] * (1 - fx) + picture[rows[0], columns[1]] * fx
    below = picture[rows[1], columns[0]] * (1 - fx) + picture[rows[1], columns[1]] * fx
    return above * (1 - fy) + below * fy


def _filmic(light: Tensor) -> Tensor:
    """Linear light as display values in [0, 1]: Blender's filmic curve, fitted per channel (error below 0.0036)."""
    stops = torch.log2(light.clamp(min=1e-6) / 0.18)
    return (-0.00875 + 1.0465 / (1 + torch.exp(-0.5587 * (stops - 0.6082))) ** 0.8223).clamp(0, 1)
