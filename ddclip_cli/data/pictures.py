"""Picture files -> (3, S, S) uint8 views, byte for byte as the reference packs them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
"""What is read, whatever a file is called: PIL knows others that start a program."""


def read_render(file: Path | BinaryIO, size: int) -> np.ndarray:
    """A Zero123 render: resized with its alpha by PIL's default filter, then laid on white."""
    with Image.open(file, formats=FORMATS) as image:
        return _on_white(image.convert("RGBA").resize((size, size)))


def read_video_frame(file: Path | BinaryIO, size: int) -> np.ndarray:
    """An MVImgNet frame, resized whole. Those files include truncated JPEGs, which count as far as they go."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        with Image.open(file, formats=FORMATS) as image:
            return _channels_first(image.convert("RGB").resize((size, size)))
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def read_photo(file: Path | BinaryIO, size: int) -> np.ndarray:
    """Any picture: turned upright as its camera noted, resized whole, transparency laid on white."""
    with Image.open(file, formats=FORMATS) as image:
        transparent = image.has_transparency_data
        upright = ImageOps.exif_transpose(image)
        resized = upright.convert("RGBA" if transparent else "RGB").resize((size, size))
    return _on_white(resized) if transparent else _channels_first(resized)


def _on_white(image: Image.Image) -> np.ndarray:
    rgba = np.asarray(image)
    # (S, S, 4) -> (S, S, 3) -> (3, S, S)
    return np.ascontiguousarray(_white_table()[rgba[..., :3], rgba[..., 3:]].transpose(2, 0, 1))


@cache
def _white_table() -> np.ndarray:
    """(256, 256) uint8 of [colour, alpha]: the reference's float64 `(c*a + (1-a)) * 255`, truncated, as a lookup."""
    unit = np.arange(256) / 255
    colour, alpha = unit[:, None], unit[None, :]
    return ((colour * alpha + (1 - alpha)) * 255).astype(np.uint8)


def _channels_first(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
