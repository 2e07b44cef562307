"""Picture files -> (3, S, S) uint8 views, byte for byte as the reference packs them."""

from __future__ import annotations

import math
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
        return resized_on_white(image.convert("RGBA"), size)


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


def resized_on_white(image: Image.Image, size: int) -> np.ndarray:
    """`_on_white(image.resize((size, size)))`, without the work on what is wholly transparent: most of a render.

    A square picture and its view are cut into the same number of blocks, as many as give whole pixels in both: 32 of 16
    and 7 for 512 -> 224. There the filter has the same weights in a part as in the whole. It goes across first, then
    down, as PIL has it for a square.
    """
    seen = image.getbbox()  # of what is not transparent
    if seen is None or image.width != image.height or image.width == size:
        return _on_white(image.resize((size, size)))
    count = math.gcd(image.width, size)
    before, after = image.width // count, size // count  # pixels of a block, in the picture and in the view
    reach = math.ceil(2 * max(1.0, before / after)) + 1  # of the filter, in pixels of the picture
    margin = -(-reach // before)  # in blocks

    def wider(first: int, last: int) -> tuple[int, int]:
        return max(first - margin, 0), min(last + margin, count)

    left, right = wider(seen[0] // before, -(-seen[2] // before))  # blocks of the view that are not just white
    top, bottom = wider(seen[1] // before, -(-seen[3] // before))
    (from_x, to_x), (from_y, to_y) = wider(left, right), wider(top, bottom)  # blocks of the picture that these see
    part = image.crop((from_x * before, from_y * before, to_x * before, to_y * before)).convert("RGBa")
    width, height = (right - left) * after, (bottom - top) * after
    columns = ((left - from_x) * before, 0, (right - from_x) * before, part.height)
    across = part.resize((width, part.height), Image.Resampling.BICUBIC, columns)
    rows = (0, (top - from_y) * before, width, (bottom - from_y) * before)
    resized = across.resize((width, height), Image.Resampling.BICUBIC, rows).convert("RGBA")
    view = np.full((3, size, size), 255, np.uint8)
    view[:, top * after : bottom * after, left * after : right * after] = _on_white(resized)
    return view


def _on_white(image: Image.Image) -> np.ndarray:
    rgba = np.asarray(image)
    places = (rgba[..., 3:].astype(np.uint16) << 8) | rgba[..., :3]
    # (H, W, 3) -> (3, H, W)
    return np.ascontiguousarray(_white_table().take(places).transpose(2, 0, 1))


@cache
def _white_table() -> np.ndarray:
    """(256, 256) uint8 of [alpha, colour]: the reference's float64 `(c*a + (1-a)) * 255`, truncated, as a lookup."""
    unit = np.arange(256) / 255
    alpha, colour = unit[:, None], unit[None, :]
    return ((colour * alpha + (1 - alpha)) * 255).astype(np.uint8)


def _channels_first(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
