"""Make the frozen features that training aims at, by the plain backbone, over any number of runs and processes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddclip_cli.console import progress_bar
from ddclip_cli.data.captions import Captions, read_captions, read_view_captions
from ddclip_cli.data.convert import opened_store
from ddclip_cli.data.hdf5 import opened
from ddclip_cli.data.hdf5_output import Forms, NewFile, check_space, create_ids, places
from ddclip_cli.data.object_ids import digest
from ddclip_cli.data.text_targets import create_captions
from ddclip_cli.data.unfinished import Unfinished, continuing, is_begun, refuse_finished
from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.errors import UserError, some
from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.ordered_pool import in_order

TEXTS_AT_ONCE = 8192
"""Texts in one piece of work; a text that stands there twice is encoded once."""
LoadModel = Callable[[int], MultiViewCLIP]
"""Number of a process -> its own copy of the model."""


@dataclass(frozen=True)
class Encoder:
    """The plain backbone, here and in as many processes as are wanted."""

    model: MultiViewCLIP
    load: LoadModel | None = None
    """For the processes, if there are several."""
    processes: int = 1
    recipe: dict[str, Any] | None = None
    """What made the model, kept in the attribute `made_by` of the files."""

    @property
    def made_by(self) -> dict[str, Any]:
        return {
            "fingerprint": self.model.fingerprint,
            "backbone": self.model.backbone.get("name"),
            "recipe": self.recipe,
        }

    def over(self, work: Callable[[MultiViewCLIP, Any], bytes], tasks: Sequence[Any]) -> Iterator[bytes]:
        """`work(model, task)` of every task, in order."""
        if self.processes == 1 or self.load is None:
            return map(partial(work, self.model), tasks)
        prepare = partial(_prepare, self.load, self.processes)
        return in_order(work, tasks, jobs=self.processes, prepare=prepare)


def _prepare(load: LoadModel, processes: int, number: int) -> MultiViewCLIP:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    return load(number)


def encode_targets(
    encoder: Encoder,
    store_path: str | Path,
    captions_path: str | Path,
    out_dir: str | Path,
    *,
    ids: str | Path | None = None,
    batch_size: int = 16,
    force: bool = False,
) -> tuple[int, int]:
    """Encode the views and captions of every object of a store -> (objects, texts).

    Writes `out_dir/text_embeddings.h5` (`features` (T, E) fp16, `kind` (T,) uint8, `offsets` (N + 1,) int64, `ids`) and
    `out_dir/image_embeddings.h5` (`img_feat` (N, F, E) fp16, `ids`), un-normalised, of whole pictures (no crop). A run
    that was ended goes on where it was.

    Args:
        encoder: the plain backbone; each view is encoded alone.
        ids: JSON of the store's rows (see `read_ids`).
        batch_size: objects whose views are encoded at once.

    Raises:
        UserError: an object has no caption, a file is missing or damaged, no space, or output that exists.
    """
    store, width = ViewStore(store_path, ids), encoder.model.embed_dim
    image_path, text_path = Path(out_dir) / "image_embeddings.h5", Path(out_dir) / "text_embeddings.h5"
    refuse_finished(image_path, force=force)
    captions = _captions_of(store, captions_path)
    texts = [text for own in captions for _, text in own]
    check_space(image_path, (len(store) * store.num_views + len(texts)) * width * 2)
    # Text features alone are output that was cut short: whatever they are of, they may be replaced.
    kinds = bytes(kind for own in captions for kind, _ in own)
    counts = [len(own) for own in captions]
    job = {"of": _job(encoder, store, batch_size), "texts": digest(texts), "kinds": kinds.hex(), "counts": counts}
    if force or is_begun(text_path) or not _is_of(text_path, job):
        features = {"features": ((len(texts), width), np.float16)}
        with _writing(text_path, job, features, force=True) as pieces:
            if pieces is not None:
                _encode_texts(pieces, "features", encoder, texts, width)
                with pieces.completing(encoder) as file:
                    create_captions(file, store.ids, counts, kinds, store.path)
    _encode_store(image_path, encoder, store, batch_size, force=force)
    return len(store), len(texts)


def encode_view_targets(
    encoder: Encoder,
    store_path: str | Path,
    captions_path: str | Path,
    out_dir: str | Path,
    *,
    ids: str | Path | None = None,
    batch_size: int = 16,
    force: bool = False,
) -> tuple[int, int]:
    """Encode every view and its own caption -> (objects, texts); as `encode_targets`, for MVImgNet.

    Writes `out_dir/mvimgnet_embeddings.h5`: `img_feat` and `text_feat`, both (N, F, E) fp16, and `ids`.

    Args:
        captions_path: JSON, or JSON in gzip, of `{object_id: [caption of view 0, ...]}`.
    """
    store, path = ViewStore(store_path, ids), Path(out_dir) / "mvimgnet_embeddings.h5"
    refuse_finished(path, force=force)
    captions = read_view_captions(captions_path, store.num_views)
    _refuse_without(captions, captions_path, store)
    texts = [text for object_id in store.ids for text in captions[object_id]]
    _encode_store(path, encoder, store, batch_size, force=force, texts=texts)
    return len(store), len(texts)


def _encode_store(
    path: Path,
    encoder: Encoder,
    store: ViewStore,
    batch_size: int,
    *,
    force: bool,
    texts: Sequence[str] | None = None,
) -> None:
    """Write `img_feat` of a store, and, of one text a view, `text_feat`."""
    width = encoder.model.embed_dim
    shape = (len(store), store.num_views, width)
    datasets = dict.fromkeys(["img_feat"] if texts is None else ["img_feat", "text_feat"], (shape, np.float16))
    job = {"of": _job(encoder, store, batch_size), "texts": None if texts is None else digest(texts)}
    check_space(path, len(datasets) * int(np.prod(shape)) * 2)
    with _writing(path, job, datasets, force=force) as pieces:
        if pieces is None:
            return
        if texts is not None:
            _encode_texts(pieces, "text_feat", encoder, texts, width)
        work = partial(_encode_views, store.path, store.ids_path, batch_size)
        starts = pieces.lacking("img_feat", range(0, len(store), batch_size))
        done, size = len(store) - len(starts) * batch_size, store.num_views * width * 2
        with progress_bar(total=len(store), done=max(done, 0), label="encode views") as bar:
            for start, data in zip(starts, encoder.over(work, starts), strict=True):
                pieces.add("img_feat", start, start * size, data)
                bar.update(len(data) // size)
        with pieces.completing(encoder) as file:
            create_ids(file, store.ids)


def _encode_texts(pieces: _Pieces, name: str, encoder: Encoder, texts: Sequence[str], width: int) -> None:
    starts = pieces.lacking(name, range(0, len(texts), TEXTS_AT_ONCE))
    several = [texts[start : start + TEXTS_AT_ONCE] for start in starts]
    done = len(texts) - sum(map(len, several))
    with progress_bar(total=len(texts), done=done, label="encode texts", unit="texts") as bar:
        for start, piece, data in zip(starts, several, encoder.over(_encode_some, several), strict=True):
            pieces.add(name, start, start * width * 2, data)
            bar.update(len(piece))


# --- the work of a process


@torch.inference_mode()
def _encode_views(path: Path, ids: Path | None, batch_size: int, model: MultiViewCLIP, start: int) -> bytes:
    store = opened_store(path, ids)
    rows = np.arange(start, min(start + batch_size, len(store)))
    views = torch.from_numpy(store.read(rows, np.arange(store.num_views))).to(model.device)  # (B, F, 3, H, W)
    pixels = model.to_pixels(views, crop="none").flatten(0, 1)  # (B, F, 3, S, S) -> (B*F, 3, S, S)
    return _as_half(model.view_features(pixels)).tobytes()  # (B*F, E)


@torch.inference_mode()
def _encode_some(model: MultiViewCLIP, texts: Sequence[str]) -> bytes:
    place = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    return _as_half(model.text_features(list(place)))[[place[text] for text in texts]].tobytes()


def _as_half(features: torch.Tensor) -> np.ndarray:
    """Float16 as the reference stores them; a feature that does not fit is a broken model's."""
    half = features.half().cpu()
    if not half.isfinite().all():
        raise UserError(
            "the model gives features that are no finite numbers: check its weights, or try --precision fp32"
        )
    return half.numpy()


# --- what is there already


class _Pieces:
    """The pieces of several datasets in one unfinished file."""

    def __init__(self, unfinished: Unfinished, job: dict[str, Any], datasets: Forms) -> None:
        self._unfinished, self._job, self._datasets = unfinished, job, datasets
        self._place = places(datasets)
        self._there = {(name, start) for name, start in unfinished.records()}

    def lacking(self, name: str, starts: Sequence[int]) -> list[int]:
        return [start for start in starts if (name, start) not in self._there]

    def add(self, name: str, start: int, offset: int, data: bytes) -> None:
        self._unfinished.write(self._place[name] + offset, data)
        self._unfinished.record([name, start])

    @contextmanager
    def completing(self, encoder: Encoder) -> Iterator[NewFile]:
        """Yield the file, for what else belongs into it; all its pieces must be there."""
        with self._unfinished.completing(self._datasets) as file:
            assert {name: file[name].id.get_offset() for name in self._place} == self._place
            file.attrs["made_by"], file.attrs["job"] = json.dumps(encoder.made_by), _name_of(self._job)
            yield file


@contextmanager
def _writing(path: Path, job: dict[str, Any], datasets: Forms, *, force: bool) -> Iterator[_Pieces | None]:
    """Yield the pieces of `path`, or None if it is whole. See `continuing` for `job` and `force`."""
    with continuing(path, {"name": _name_of(job)}, force=force) as unfinished:
        yield None if unfinished.is_named else _Pieces(unfinished, job, datasets)


def _job(encoder: Encoder, store: ViewStore, batch_size: int) -> dict[str, Any]:
    made_by = encoder.made_by | {"precision": encoder.model.precision, "batch": batch_size}
    return made_by | {"store": str(store.path.resolve()), "views": store.shape, "objects": digest(store.ids)}


def _name_of(job: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()


def _is_of(path: Path, job: dict[str, Any]) -> bool:
    """Whether a finished file is of exactly this job."""
    if not path.is_file():
        return False
    try:
        with opened(path) as file:
            return bool(file.attrs.get("job") == _name_of(job))
    except UserError:  # damaged
        return False


# --- captions


def _captions_of(store: ViewStore, captions_path: str | Path) -> list[Captions]:
    """Captions of every object by its row; each must have one."""
    captions = read_captions(captions_path)
    _refuse_without(captions, captions_path, store)
    return [captions[object_id] for object_id in store.ids]


def _refuse_without(captions: Mapping[str, Any], captions_path: str | Path, store: ViewStore) -> None:
    without = [object_id for object_id in store.ids if not captions.get(object_id)]
    if without:
        raise UserError(
            f"{captions_path} has no caption for {len(without)} of the {len(store)} objects of {store.path}: "
            f"{some(without)}; add them, or pack only the objects that have one (pack-h5 --ids)"
        )
