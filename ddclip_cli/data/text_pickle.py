"""The reference's text features, one pickled dict in a `.npy` file: read object by object."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ddclip_cli.data.pickle_memory import LocatedArray, Span
from ddclip_cli.data.pickle_stream import PickleStream
from ddclip_cli.data.safe_pickle import Array, read_pickled_dict, reading_pickle
from ddclip_cli.errors import UserError

REFERENCE_KEYS = ("text_feat", "blip_caption_feat", "msft_caption_feat", "retrieval_text_feat")
"""The reference's names of the kinds, in the order of `captions.KINDS`."""

Entry = tuple[str, list[tuple[int, np.ndarray]]]
"""An object and, for every caption, its kind and its feature (E,)."""


def text_entries(path: Path) -> Iterator[Entry]:
    """The objects of the file as they come, all features of one width; takes the memory of a few of them.

    Raises:
        UserError: the file is missing, damaged, of another form, or asks for anything but numpy arrays.
        CannotStreamError: it can only be read whole (`whole_text_entries`).
    """
    with reading_pickle(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:

        def located(value: Any) -> np.ndarray | None:
            if not isinstance(value, LocatedArray) or not isinstance(value.data, Span):
                return None
            data = buffer[value.data.start : value.data.start + value.data.size]
            return np.frombuffer(data, value.dtype.numpy).reshape(value.shape)

        yield from _checked(path, PickleStream(buffer, file.tell()), located)


def whole_text_entries(path: Path) -> Iterator[Entry]:
    """The same, from a file that is read into memory."""
    document = read_pickled_dict(path)
    yield from _checked(path, document.items(), lambda value: value.value if isinstance(value, Array) else None)


def _checked(path: Path, entries: Any, feature_of: Callable[[Any], np.ndarray | None]) -> Iterator[Entry]:
    width = None
    for object_id, entry in entries:
        captions = _captions(path, object_id, entry, feature_of)
        width = width or captions[0][1].shape
        for _, feature in captions:
            if feature.shape != width:
                raise UserError(f"{path}: object {object_id!r} has a feature of {feature.shape}, others of {width}")
        yield object_id, captions
    if width is None:
        raise UserError(f"{path} holds no object: fetch or make it again")


def _captions(
    path: Path, object_id: Any, entry: Any, feature_of: Callable[[Any], np.ndarray | None]
) -> list[tuple[int, np.ndarray]]:
    wrong = UserError(f"{path}: object {str(object_id)[:80]!r} has no features of the known form")
    if not isinstance(object_id, str) or not isinstance(entry, dict):
        raise wrong
    captions = []
    for kind, key in enumerate(REFERENCE_KEYS):
        values = entry.get(key)
        if values is None:
            continue
        for value in values if isinstance(values, list) else [values]:
            feature = feature_of(value)
            if feature is None or feature.ndim != 1 or feature.dtype.kind != "f":
                raise wrong
            captions.append((kind, feature))
    if not captions:
        raise wrong
    return captions
