"""From display values to light and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

GREY = 0.8  # linear, of surfaces that say nothing: Blender's own


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB values in [0, 1] as linear light (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((np.maximum(srgb, 0) + 0.055) / 1.055) ** 2.4)


def filmic(light: Tensor) -> Tensor:
    """Linear light as display values in [0, 1]: Blender's filmic curve, fitted per channel (error below 0.0036)."""
    stops = torch.log2(light.clamp(min=1e-6) / 0.18)
    return (-0.00875 + 1.0465 / (1 + torch.exp(-0.5587 * (stops - 0.6082))) ** 0.8223).clamp(0, 1)
