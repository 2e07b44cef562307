"""Text features of objects, several each, of which every training step draws one."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ddclip_cli.console import log
from ddclip_cli.data.captions import KINDS
from ddclip_cli.data.hdf5 import StoredArray
from ddclip_cli.data.hdf5_output import create_contiguous
from ddclip_cli.data.id_index import IdIndex, create_id_index
from ddclip_cli.data.safe_pickle import CannotStreamError
from ddclip_cli.data.text_pickle import Entry, text_entries, whole_text_entries
from ddclip_cli.errors import UserError

TEXT, BLIP, MSFT, RETRIEVAL = range(len(KINDS))
CHECKED_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class TextFeatures:
    """The features of all objects in one row of rows: object i has rows offset i to offset i + 1 - 1."""

    index: IdIndex
    read: Callable[[np.ndarray], np.ndarray]
    """Rows (B,) -> features (B, E), un-normalised."""
    kinds: Callable[[int, int], np.ndarray]
    """Rows start to stop - 1 -> uint8, places in `KINDS`."""
    offsets: Callable[[np.ndarray], np.ndarray]
    """Objects (B,) -> (B,) int64"""


class TextTargets:
    """Draws a text feature an object, from a file of `encode_targets` or `convert_text` (.h5), or the reference's .npy.

    The former stay on the disk, names included, and take no memory whatever their size; the latter is loaded whole.

    Raises:
        UserError: the file is missing, damaged or of another form, or its pickle asks for more than arrays.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._features = _read_npy(self.path) if self.path.suffix == ".npy" else _read_h5(self.path)

    def lacking(self, object_ids: Iterable[str]) -> list[str]:
        """Those of the objects that have no text feature."""
        return self._features.index.lacking(object_ids)

    def draw(self, object_ids: Sequence[str], rng: np.random.Generator) -> np.ndarray:
        """One text feature of each object -> (B, E) float32, un-normalised; nothing but `rng` decides which.

        Every object uses up four numbers of `rng`: its draw depends on its place, not on the others' captions.
        """
        features = self._features
        rows = features.index.rows(object_ids, self.path)
        starts, ends = features.offsets(rows), features.offsets(rows + 1)
        chosen = [
            start + choose_caption(features.kinds(start, end), uniform)
            for start, end, uniform in zip(starts, ends, rng.random((len(rows), 4)), strict=True)
        ]
        return features.read(np.array(chosen, dtype=np.int64)).astype(np.float32)


def choose_caption(kinds: np.ndarray, uniform: np.ndarray) -> int:
    """Which of an object's captions a step takes: the reference's rule.

    Candidates: one of the texts; with chance 1/2 the BLIP caption, else the MSFT one; one of the retrieved texts; each
    if there is one. A candidate is picked uniformly. Unlike the reference, which always has a retrieved text, an object
    that has only the caption that the coin did not choose takes that one.

    Args:
        kinds: (n,) kind of every caption, n > 0.
        uniform: (4,) numbers in [0, 1): which text, the coin, which retrieved text, which candidate.
    """
    of_kind = [np.flatnonzero(kinds == kind) for kind in range(len(KINDS))]
    captions = of_kind[BLIP] if uniform[1] < 0.5 else of_kind[MSFT]
    groups = ((of_kind[TEXT], uniform[0]), (captions, 0.0), (of_kind[RETRIEVAL], uniform[2]))
    candidates = [_pick(group, number) for group, number in groups if len(group)]
    return _pick(candidates or range(len(kinds)), uniform[3])


def _pick(items: Any, uniform: float) -> int:
    return int(items[int(uniform * len(items))])


def create_captions(file: h5py.File, ids: Sequence[str], counts: Sequence[int], kinds: Any, path: Path) -> None:
    """What belongs to the dataset `features` (T, E): `kind` (T,) uint8, `offsets` (N + 1,) int64, and the ids.

    Args:
        counts: captions of every object.
        kinds: the kind of every caption, a buffer of uint8.
        path: where the ids come from (see `create_id_index`).
    """
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    create_contiguous(file, "offsets", offsets.shape, np.int64)[:] = offsets
    create_contiguous(file, "kind", (int(offsets[-1]),), np.uint8)[:] = np.frombuffer(kinds, np.uint8)
    create_id_index(file, ids, path)


def _read_h5(path: Path) -> TextFeatures:
    features = StoredArray(path, "features", axes=("texts", "width"), dtype="float", is_sparse=True)
    kind = StoredArray(path, "kind", axes=("texts",), dtype="uint8")
    offsets = StoredArray(path, "offsets", axes=("objects + 1",), dtype="int64")
    if len(kind) != len(features) or not 1 < len(offsets) <= len(features) + 1:
        raise UserError(f"{path}: 'offsets' or 'kind' do not fit the {len(features)} features: make the file again")
    blocks = zip(_blocks(offsets), _blocks(kind), strict=False)
    if any((np.diff(starts) < 1).any() or kinds.max() >= len(KINDS) for starts, kinds in blocks) or (
        offsets.read([0, len(offsets) - 1]).tolist() != [0, len(features)]
    ):
        raise UserError(f"{path}: 'offsets' or 'kind' do not fit the {len(features)} features: make the file again")
    index = IdIndex.of_file(path, count=len(offsets) - 1)
    return TextFeatures(index, features.read, kind.read_slice, offsets.read)


def _blocks(numbers: StoredArray) -> Iterator[np.ndarray]:
    """All of a list, in pieces that overlap by one."""
    for start in range(0, len(numbers), CHECKED_AT_ONCE):
        yield numbers.read_slice(start, start + CHECKED_AT_ONCE + 1)


def _read_npy(path: Path) -> TextFeatures:
    log(f"{path} is read into memory, by every process: `ddclip convert-text` makes a file of it that is not")
    try:
        return _in_memory(text_entries(path))
    except CannotStreamError:
        return _in_memory(whole_text_entries(path))


def _in_memory(entries: Iterator[Entry]) -> TextFeatures:
    ids: list[str] = []
    counts, kinds, features = [0], array("B"), []
    for object_id, captions in entries:
        ids.append(object_id)
        counts.append(len(captions))
        kinds.extend(kind for kind, _ in captions)
        features += [feature for _, feature in captions]
    offsets, kind, stacked = np.cumsum(counts), np.frombuffer(kinds, np.uint8), np.stack(features)
    return TextFeatures(
        IdIndex.of_ids(ids), stacked.__getitem__, lambda start, stop: kind[start:stop], offsets.__getitem__
    )
