"""Where the views of an object are taken from.

`zero123` follows the renders that Duoduo CLIP was trained on: directions of points uniform in a cube, over the whole
sphere, from 1.5 to 2.2 times the object's longest side away, looking at its centre, 49.134 degrees wide.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

FOCAL = 35 / 32  # in image widths: a 35 mm lens before a 32 mm sensor
NEAREST, FARTHEST = 1.5, 2.2

Camera = Literal["zero123", "ring", "sphere"]


def camera_positions(num_views: int, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """(F, 3) float64 positions around an object whose bounding box is centred and has a longest side of 1; z is up."""
    if camera == "zero123":
        directions = rng.uniform(-1, 1, (num_views, 3))
        distances = rng.uniform(NEAREST, FARTHEST, (num_views, 1))
        return directions / np.linalg.norm(directions, axis=1, keepdims=True) * distances
    turn = np.arange(num_views)
    if camera == "ring":  # once around, slightly from above
        azimuth = 2 * np.pi * turn / num_views
        height = np.full(num_views, np.sin(np.radians(20)))
    else:  # the Fibonacci lattice: even over the sphere
        azimuth = turn * np.pi * (3 - np.sqrt(5))
        height = 1 - (2 * turn + 1) / num_views
    radius = np.sqrt(1 - height**2)
    directions = np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), height], axis=1)
    return directions * (NEAREST + FARTHEST) / 2


def look_at_origin(positions: np.ndarray) -> np.ndarray:
    """(F, 3, 4) float64 world-to-camera matrices in Blender's axes: x right, y up, looking along -z."""
    backward = positions / np.linalg.norm(positions, axis=1, keepdims=True)
    right = np.cross([0.0, 0.0, 1.0], backward)
    length = np.linalg.norm(right, axis=1, keepdims=True)
    right = np.where(length > 1e-9, right / np.maximum(length, 1e-9), [1.0, 0.0, 0.0])  # straight from above or below
    up = np.cross(backward, right)
    rotation = np.stack([right, up, backward], axis=1)  # (F, 3, 3)
    return np.concatenate([rotation, -rotation @ positions[:, :, None]], axis=2)
