"""Views as people have them (arrays, tensors, PIL pictures) -> uint8 tensors, RGB, channels first."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddclip_cli.errors import UserError

ACCEPTED = "a uint8 array (H, W, 3), (F, H, W, 3) or (B, F, H, W, 3), RGBA too, or PIL images"


def read_views(views: Any) -> tuple[list[Tensor], int]:
    """The views as uint8 tensors, and how many dimensions stand before a picture in the input: 0, 1 or 2.

    One picture or the views of one object: a tensor (3, H, W) for each view, sizes may differ (a list of pictures).
    A batch: one tensor (F, 3, H, W) for each object. RGBA is composited on white. Raises UserError for anything else.
    """
    if _is_pil(views):
        return [_from_pil(views)], 0
    if isinstance(views, (list, tuple)):
        if not views:
            raise UserError("there are no views to encode")
        pictures = [_from_pil(view) if _is_pil(view) else _from_array(view) for view in views]
        if any(picture.ndim != 3 for picture in pictures):
            raise UserError("a list of views holds pictures of one object, (H, W, 3) each")
        return pictures, 1
    array = _from_array(views)
    return ([array], 0) if array.ndim == 3 else (list(array), array.ndim - 3)


def _is_pil(value: Any) -> bool:
    from PIL.Image import Image

    return isinstance(value, Image)


def _from_pil(image: Any) -> Tensor:
    """(3, H, W) uint8"""
    has_alpha = "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info
    try:
        pixels = np.array(image.convert("RGBA" if has_alpha else "RGB"))
    except OSError as error:
        raise UserError(f"unreadable image {getattr(image, 'filename', '') or ''}: {error}") from error
    return _from_array(pixels)


def _from_array(array: Any) -> Tensor:
    """Channels last (numpy's way) or first (torch's way) -> (..., 3, H, W) uint8; last if both would do."""
    if not isinstance(array, (np.ndarray, Tensor)):
        raise UserError(f"views are {ACCEPTED}, not {type(array).__name__}")
    if str(array.dtype).removeprefix("torch.") != "uint8":
        raise UserError(f"views are uint8, 0 to 255, not {str(array.dtype).removeprefix('torch.')}")
    shape = tuple(array.shape)
    if not 3 <= len(shape) <= 5 or (shape[-1] not in (3, 4) and shape[-3] not in (3, 4)):
        raise UserError(f"views are {ACCEPTED}, not an array of shape {shape}")
    if 0 in shape:
        raise UserError(f"there are no pixels in an array of shape {shape}")
    tensor = array if isinstance(array, Tensor) else torch.from_numpy(np.require(array, requirements=["C", "W"]))
    if shape[-1] in (3, 4):
        tensor = tensor.movedim(-1, -3)
    return on_white(tensor) if tensor.shape[-3] == 4 else tensor


def on_white(rgba: Tensor) -> Tensor:
    """(..., 4, H, W) uint8 -> (..., 3, H, W) uint8: what lies before a white wall."""
    colour, alpha = rgba[..., :3, :, :].int(), rgba[..., 3:, :, :].int()
    return ((colour * alpha + 255 * (255 - alpha)) // 255).to(torch.uint8)
