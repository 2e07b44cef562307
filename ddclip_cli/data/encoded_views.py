"""Encoded views of objects in an HDF5 file: one flat row of bytes, and where in it each view lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ddclip_cli.data.codecs import ENCODED
from ddclip_cli.data.hdf5 import StoredArray, opened
from ddclip_cli.errors import UserError


class EncodedViews:
    """Reads like the array (N, F, 3, S, S) uint8 that it stands for.

    The datasets: `encoded` (T,) uint8, and of every view its `offsets` (N, F) int64 and `sizes` (N, F) int32 in it; the
    attributes: `codec` and `image_size`. The offsets may be in any order, and none is believed before it is used.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._bytes = StoredArray(path, "encoded", axes=("bytes",), dtype="uint8")
        self._offsets = StoredArray(path, "offsets", axes=("objects", "views"), dtype="int64")
        self._sizes = StoredArray(path, "sizes", axes=("objects", "views"), dtype="int32")
        with opened(path) as file:
            codec, size = file.attrs.get("codec"), file.attrs.get("image_size")
        if self._offsets.shape != self._sizes.shape or not isinstance(size, np.integer) or size < 1:
            raise UserError(f"{path}: 'offsets', 'sizes' and 'image_size' do not fit each other: make the file again")
        if not isinstance(codec, str) or codec not in ENCODED:
            raise UserError(f"{path} has views of codec {str(codec)[:20]!r}: this version knows {', '.join(ENCODED)}")
        self.codec = codec
        self.shape = (*self._offsets.shape, 3, int(size), int(size))

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: Any, views: Any) -> np.ndarray:
        """Rows (B,), views (F,) or (B, F) -> (B, F, 3, S, S) uint8, decoded."""
        offsets, sizes = self._offsets.read(rows, views), self._sizes.read(rows, views)  # (B, F)
        decoded = np.empty((*offsets.shape, *self.shape[2:]), np.uint8)
        for place in np.ndindex(offsets.shape):
            data = self._data(int(offsets[place]), int(sizes[place]))
            try:
                ENCODED[self.codec].decode_into(decoded[place], data)
            except Exception as error:  # PIL raises whatever a decoder comes upon
                row = int(np.asarray(rows)[place[0]])
                reason = str(error).split("\n")[0] or type(error).__name__
                raise UserError(
                    f"{self.path}: a view of row {row} is damaged ({reason}): make the file again"
                ) from None
        return decoded

    def read_encoded(self, row: int, num_views: int) -> list[bytes]:
        """The first F views of an object as they are stored."""
        views = np.arange(num_views)
        offsets, sizes = self._offsets.read([row], views)[0], self._sizes.read([row], views)[0]
        return [self._data(int(offset), int(size)) for offset, size in zip(offsets, sizes, strict=True)]

    def _data(self, offset: int, size: int) -> bytes:
        if not (offset >= 0 and size > 0 and offset + size <= len(self._bytes)):
            raise UserError(f"{self.path}: a view lies outside of the file's views: make the file again")
        return self._bytes.read_slice(offset, offset + size).tobytes()
