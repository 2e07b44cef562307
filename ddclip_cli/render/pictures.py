"""Pictures of textures, decoded with care: small files claim any size, and decoders raise whatever they come upon."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

MAX_PIXELS = 8192 * 8192
MAX_SIDE = 1024  # pixels; larger pictures are reduced when they are decoded
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "TGA")  # Pillow knows others that run programs


class TooManyPixels(Exception):
    """A picture larger than MAX_PIXELS."""

    def __init__(self) -> None:
        super().__init__(f"has more than {MAX_PIXELS:,} pixels: make it smaller")


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """The picture in a file's bytes, not yet decoded. Raises TooManyPixels, or whatever Pillow does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise TooManyPixels from None
    with picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise TooManyPixels
        yield picture


def pixels_of(picture: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 sRGB, or (H, W, 4) if one sees through somewhere; no side longer than MAX_SIDE."""
    if picture.format not in (None, *FORMATS):
        raise ValueError(f"{picture.format} is not read here")
    if max(picture.size) > MAX_SIDE:
        picture = picture.copy() if picture.format is None else picture
        picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    if not picture.has_transparency_data:
        return np.asarray(picture.convert("RGB"))
    pixels = np.asarray(picture.convert("RGBA"))
    return pixels if pixels[..., 3].min() < 255 else pixels[..., :3]
