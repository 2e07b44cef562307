"""The vectors of a file of embeddings, read in blocks of unit length: mapped, not loaded, however many there are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ddclip_cli.data.hdf5 import StoredArray
from ddclip_cli.data.object_ids import read_ids
from ddclip_cli.errors import UserError

BLOCK_BYTES = 16 << 20
KEPT_BYTES = 256 << 20
"""Of a larger file, the blocks that were read are given back: memory does not grow with the number of objects."""

HALF_SCALE = np.float32(2.0**112)
HALF_BITS = np.int32(-0x70002000)  # sign, five bits of exponent and ten of mantissa, where float32 has them
HALF_LIMIT = 65_504.0


class StoredVectors:
    """`shape_feat` (N, E) of an HDF5 file.

    Attributes:
        shape: (N, E).
        trusted: every row is taken to have unit length, as `embed` wrote it; else it is brought there on the way out.

    Raises:
        UserError: the dataset is no table of floats, or is empty; later, when it is read: it is damaged, or a row is
            NaN, infinite or zero.
    """

    def __init__(self, path: Path, *, trusted: bool) -> None:
        self._stored = StoredArray(path, "shape_feat", axes=("objects", "width"), dtype="float")
        self.shape: tuple[int, int] = self._stored.shape  # type: ignore[assignment]
        self.trusted = trusted
        self.path = path

    def __len__(self) -> int:
        return self.shape[0]

    def blocks(self, block_rows: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """First row and vectors (b, E) float32 of every block, in order; a block is valid until the next one."""
        step = block_rows or max(1, BLOCK_BYTES // (4 * self.shape[1]))
        large = len(self) * self.shape[1] * self._stored.dtype.itemsize > KEPT_BYTES
        for start in range(0, len(self), step):
            stop = min(start + step, len(self))
            yield start, self._unit(self._stored.span(start, stop), start)
            if large:
                self._stored.release(start, stop)

    def take(self, rows: Any) -> np.ndarray:
        """Rows (B,) in any order -> (B, E) float32 of unit length."""
        rows = np.asarray(rows, dtype=np.int64)
        return self._unit(self._stored.read(rows), rows)

    def read(self) -> np.ndarray:
        """All of them in memory, (N, E) float32."""
        return np.concatenate([block.copy() for _, block in self.blocks()])

    def bad_row(self, row: int, what: str = "NaN, infinite or zero") -> UserError:
        object_id = read_ids(self.path, count=len(self))[row]
        return UserError(f"{self.path}: the embedding of {object_id} (row {row}) is {what}: embed it again")

    def _unit(self, block: np.ndarray, rows: int | np.ndarray) -> np.ndarray:
        """The stored values of rows, the first being `rows` if that is one number, at unit length."""
        if self.trusted and block.dtype == np.float32:
            return block
        block = from_half(block) if block.dtype == np.float16 else block.astype(np.float32)
        lengths = np.sqrt(np.einsum("ij,ij->i", block, block))
        bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
        if len(bad):
            raise self.bad_row(int(rows[bad[0]]) if isinstance(rows, np.ndarray) else rows + int(bad[0]))
        block /= lengths[:, None]
        return block


def from_half(values: np.ndarray) -> np.ndarray:
    """float16 -> float32, the same numbers, four times as fast as `astype`; NaN and infinity become NaN."""
    bits = values.view(np.int16).astype(np.int32)  # the sign fills the upper half
    bits <<= 13
    bits &= HALF_BITS
    floats = bits.view(np.float32)
    floats *= HALF_SCALE  # the exponent of float32 counts from another place
    if floats.size and max(floats.max(), -floats.min()) > HALF_LIMIT:
        floats[np.abs(floats) > HALF_LIMIT] = np.nan
    return floats
