"""Text features of objects, several each, of which every training step draws one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddclip_cli.data.captions import KINDS
from ddclip_cli.data.hdf5 import StoredArray, local_dataset, opened, read_whole
from ddclip_cli.data.object_ids import RowOf, read_ids
from ddclip_cli.data.safe_pickle import Array, read_pickled_dict
from ddclip_cli.errors import UserError

TEXT, BLIP, MSFT, RETRIEVAL = range(len(KINDS))
REFERENCE_KEYS = ("text_feat", "blip_caption_feat", "msft_caption_feat", "retrieval_text_feat")
"""The reference's names of the kinds, in the order of `KINDS`."""


@dataclass(frozen=True)
class TextFeatures:
    """The features of all objects in one row of rows: object i has rows offsets[i] to offsets[i + 1] - 1."""

    ids: list[str]
    read: Callable[[np.ndarray], np.ndarray]
    """Rows (B,) -> features (B, E), un-normalised."""
    kind: np.ndarray
    """(T,) uint8, a place in `KINDS`."""
    offsets: np.ndarray
    """(N + 1,) int64"""


class TextTargets:
    """Draws a text feature an object, from a file of `encode_targets` (.h5) or the reference's pickled .npy.

    The former is mapped and takes no memory; the latter is loaded whole.

    Raises:
        UserError: the file is missing, damaged or of another form, or its pickle asks for more than arrays.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._features = _read_npy(self.path) if self.path.suffix == ".npy" else _read_h5(self.path)
        self._row_of = RowOf(self._features.ids, self.path)

    @property
    def ids(self) -> list[str]:
        return self._features.ids

    def draw(self, object_ids: Sequence[str], rng: np.random.Generator) -> np.ndarray:
        """One text feature of each object -> (B, E) float32, un-normalised; nothing but `rng` decides which.

        Every object uses up four numbers of `rng`: its draw depends on its place, not on the others' captions.
        """
        kind, offsets = self._features.kind, self._features.offsets
        rows = self._row_of(object_ids)
        chosen = [
            start + choose_caption(kind[start:end], uniform)
            for start, end, uniform in zip(offsets[rows], offsets[rows + 1], rng.random((len(rows), 4)), strict=True)
        ]
        return self._features.read(np.array(chosen, dtype=np.int64)).astype(np.float32)


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


def _read_h5(path: Path) -> TextFeatures:
    features = StoredArray(path, "features", axes=("texts", "width"), dtype="float")
    with opened(path) as file:
        kind, offsets = local_dataset(file, "kind"), local_dataset(file, "offsets")
        if kind.shape != (len(features),) or kind.dtype != np.uint8:
            raise UserError(f"{path}: dataset 'kind' is {kind.shape} {kind.dtype}: it must be ({len(features)},) uint8")
        if offsets.ndim != 1 or offsets.dtype != np.int64 or not 1 < offsets.shape[0] <= len(features) + 1:
            form = f"{offsets.shape} {offsets.dtype}"
            raise UserError(f"{path}: dataset 'offsets' is {form}: it must be (objects + 1,) int64")
        kinds, starts = read_whole(kind), read_whole(offsets)
    if starts[0] != 0 or starts[-1] != len(features) or (np.diff(starts) < 1).any() or kinds.max() >= len(KINDS):
        raise UserError(f"{path}: 'offsets' or 'kind' do not fit the {len(features)} features: make the file again")
    ids = read_ids(path, count=len(starts) - 1)
    return TextFeatures(ids, features.read, kinds, starts)


def _read_npy(path: Path) -> TextFeatures:
    document = read_pickled_dict(path)
    per_object = [_entry(path, object_id, entry) for object_id, entry in document.items()]
    ids = [str(object_id) for object_id in document]
    del document
    if not per_object:
        raise UserError(f"{path} holds no object: fetch or make it again")
    kinds = np.array([kind for captions in per_object for kind, _ in captions], dtype=np.uint8)
    offsets = np.cumsum([0, *map(len, per_object)], dtype=np.int64)
    width = per_object[0][0][1].shape
    features = np.empty((len(kinds), *width), dtype=per_object[0][0][1].dtype)
    for index, object_id in enumerate(ids):
        captions, per_object[index] = per_object[index], []  # let go of what has been copied
        for row, (_, feature) in enumerate(captions, start=offsets[index]):
            if feature.shape != width:
                raise UserError(f"{path}: object {object_id!r} has a feature of {feature.shape}, others of {width}")
            features[row] = feature
    return TextFeatures(ids, features.__getitem__, kinds, offsets)


def _entry(path: Path, object_id: Any, entry: Any) -> list[tuple[int, np.ndarray]]:
    """The reference's entry of one object -> (kind, feature (E,)) of every caption."""
    wrong = UserError(f"{path}: object {str(object_id)[:80]!r} has no features of the known form")
    if not isinstance(object_id, str) or not isinstance(entry, dict):
        raise wrong
    captions = []
    for kind, key in enumerate(REFERENCE_KEYS):
        values = entry.get(key)
        if values is None:
            continue
        for value in values if isinstance(values, list) else [values]:
            feature = getattr(value, "value", None) if isinstance(value, Array) else None
            if feature is None or feature.ndim != 1 or feature.dtype.kind != "f":
                raise wrong
            captions.append((kind, feature))
    if not captions:
        raise wrong
    return captions
