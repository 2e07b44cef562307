"""The light that comes from what is seen: Lambert shading with Zero123's lights and a shadow map."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ddclip_cli.render.camera import look_at_origin
from ddclip_cli.render.raster import inverse_depth_of, project
from ddclip_cli.render.surface import Hits, Surface
from ddclip_cli.render.visibility import nearest_solid

LIGHT = (4.08, 1.0, 5.9)
KEY = 25.33  # a lamp of 1000 W: P / (4 pi^2), divided by the squared distance at each point
AMBIENT = 0.0508
TOP = 0.3  # a soft light from above, of which a little comes back from below
BOUNCE = 0.2
SHADOW_SIZE = 512
SHADOW_BIAS = 0.012  # in object sizes
_SHADOW_FOCAL = 0.5 / math.tan(math.asin(0.88 / math.hypot(*LIGHT)))  # the unit box fills the light's picture


def shadow_map(surface: Surface) -> Tensor:
    """1/depth of what the light sees, (SHADOW_SIZE, SHADOW_SIZE) float32; what one sees through throws no shadow."""
    return inverse_depth_of(nearest_solid(surface, _seen_by_light(surface.vertices), SHADOW_SIZE))[0]


def shade(surface: Surface, shadows: Tensor, hits: Hits, eye: Tensor) -> Tensor:
    """Linear light and alpha (4, P) of the points of `hits`, seen from `eye` (3, P)."""
    a, b, c = (surface.vertices.index_select(1, corner) for corner in hits.corners)
    point = a * hits.weights[0] + b * hits.weights[1] + c * hits.weights[2]
    normal = _normalized(_cross(b - a, c - a))
    normal = torch.where(_dot(normal, eye - point) < 0, -normal, normal)  # every face has two sides
    if surface.normals is not None:
        smooth = hits.mix(surface.normals)
        given = _dot(smooth, smooth) > 0.01
        smooth = _normalized(torch.where(_dot(smooth, normal) < 0, -smooth, smooth))
        normal = torch.where(given, smooth, normal)

    towards = torch.tensor(LIGHT, device=point.device)[:, None] - point
    squared = _dot(towards, towards)
    facing = (_dot(normal, towards) / squared.sqrt()).clamp_(min=0)
    key = KEY * facing / squared * _lit(shadows, point + SHADOW_BIAS * normal)
    light = key + TOP * (BOUNCE + (1 - BOUNCE) * (0.5 + 0.5 * normal[2])) + AMBIENT

    colour = surface.colour(hits)
    if surface.unlit.any():
        light = torch.where(surface.is_unlit(hits), 1.0, light)
    colour[:3] *= light
    if surface.emissive.any():
        colour[:3] += surface.emission(hits)
    return colour


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([a[i] * b[j] - a[j] * b[i] for i, j in ((1, 2), (2, 0), (0, 1))])


def _normalized(a: Tensor) -> Tensor:
    return a / _dot(a, a).sqrt().clamp(min=1e-20)


def _seen_by_light(points: Tensor) -> Tensor:
    pose = torch.from_numpy(look_at_origin(np.array([LIGHT]))).to(points)
    return project(points, pose, _SHADOW_FOCAL, SHADOW_SIZE)


def _lit(shadows: Tensor, point: Tensor) -> Tensor:
    """How much of the lamp reaches each point (3, P), in [0, 1]: the mean of four taps, weighted by nearness."""
    x, y, w = _seen_by_light(point)[0]
    x, y = x - 0.5, y - 0.5
    left, above = x.floor(), y.floor()
    fx, fy = x - left, y - above
    first = above.long().clamp_(0, SHADOW_SIZE - 2) * SHADOW_SIZE + left.long().clamp_(0, SHADOW_SIZE - 2)
    farthest = 1 / w - SHADOW_BIAS
    lit = [
        (shadows.view(-1).index_select(0, first + step).clamp_(min=1e-6) * farthest < 1).float()
        for step in (0, 1, SHADOW_SIZE, SHADOW_SIZE + 1)
    ]
    return torch.lerp(torch.lerp(lit[0], lit[1], fx), torch.lerp(lit[2], lit[3], fx), fy)
