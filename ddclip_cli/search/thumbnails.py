"""Thumbnails: one view of each object, as a small JPEG beside its embedding."""

from __future__ import annotations

import io
from collections.abc import Sequence

import h5py
import numpy as np
from PIL import Image

THUMBNAIL_SIZE = 112
THUMBNAIL_QUALITY = 85


def best_views(pictures: np.ndarray) -> np.ndarray:
    """(B, F, 3, H, W) uint8 -> (B,) the view to show: the brightest of those that show much of the object.

    Rendered from below, an object is all shadow. What is not white is taken for the object.
    """
    small = pictures[..., ::4, ::4].astype(np.float32)
    shown = (small < 250).any(axis=2)  # (B, F, H / 4, W / 4)
    area = shown.sum(axis=(2, 3))
    brightness = (small.max(axis=2) * shown).sum(axis=(2, 3)) / np.maximum(area, 1)
    return np.where(area * 2 >= area.max(axis=1, keepdims=True), brightness, -1).argmax(axis=1)


def thumbnail_jpeg(view: np.ndarray) -> bytes:
    """A view, (3, H, W) uint8, as a small JPEG."""
    picture = Image.fromarray(np.ascontiguousarray(view.transpose(1, 2, 0)))
    picture.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY)
    return buffer.getvalue()


class ThumbnailWriter:
    """JPEGs end to end in one growing dataset, with the offset at which each begins."""

    def __init__(self, file: h5py.File, objects: int) -> None:
        self.data = file.create_dataset("thumbnail_bytes", shape=(0,), maxshape=(None,), dtype="u1", chunks=(1 << 16,))
        self.offsets = file.create_dataset("thumbnail_offsets", data=np.zeros(objects + 1, dtype="<i8"))

    def write(self, start: int, jpegs: Sequence[bytes]) -> None:
        """`jpegs` are those of the rows from `start`, which follow the rows written before."""
        end = len(self.data)
        self.offsets[start + 1 : start + 1 + len(jpegs)] = end + np.cumsum([len(jpeg) for jpeg in jpegs])
        joined = np.frombuffer(b"".join(jpegs), dtype=np.uint8)
        self.data.resize((end + len(joined),))
        self.data[end:] = joined
