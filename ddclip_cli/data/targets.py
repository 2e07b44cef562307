"""Frozen features that training aims at: made once by the plain backbone, read by row and view."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddclip_cli import files
from ddclip_cli.console import progress_bar
from ddclip_cli.data.captions import Captions, read_captions
from ddclip_cli.data.hdf5 import StoredArray, made_by, opened
from ddclip_cli.data.hdf5_output import NewFile, check_space, create_contiguous, create_ids, creating
from ddclip_cli.data.object_ids import RowOf, read_ids
from ddclip_cli.data.text_targets import TextTargets
from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.errors import UserError, some
from ddclip_cli.model.multiview import MultiViewCLIP

__all__ = ["ImageTargets", "PerViewTextTargets", "TextTargets", "encode_targets"]

TEXTS_AT_ONCE = 8192
"""Texts in one reading; a text that stands there twice is encoded once."""


class _PerViewFeatures:
    """A dataset (N, F, E) of un-normalised features, one a view."""

    dataset: str

    def __init__(self, path: str | Path, ids: str | Path | None = None) -> None:
        self.path = Path(path)
        self._features = StoredArray(path, self.dataset, axes=("objects", "views", "width"), dtype="float")
        self._ids_path = ids

    def __len__(self) -> int:
        return len(self._features)

    @property
    def num_views(self) -> int:
        return self._features.shape[1]

    @cached_property
    def ids(self) -> list[str]:
        """Object of every row (see `read_ids`)."""
        return read_ids(self.path, self._ids_path, count=len(self))

    @cached_property
    def backbone_fingerprint(self) -> str | None:
        """Of the model that made the file, if the file says so."""
        with opened(self.path) as file:
            return (made_by(file) or {}).get("fingerprint")

    def rows(self, object_ids: Iterable[str]) -> np.ndarray:
        """Rows (B,) int64 of these objects; UserError names those that are not there."""
        return self._row_of(object_ids)

    def read(self, rows: Any, views: Any) -> np.ndarray:
        """Rows (B,), views (F,) -> (B, E) float32: the mean over exactly those views of the un-normalised features."""
        return self._features.read(rows, views).astype(np.float32).mean(axis=1)  # (B, F, E) -> (B, E)

    @cached_property
    def _row_of(self) -> RowOf:
        return RowOf(self.ids, self.path)


class ImageTargets(_PerViewFeatures):
    """`img_feat` (N, F, E): the image feature of every view; of `encode_targets` or the reference."""

    dataset = "img_feat"


class PerViewTextTargets(_PerViewFeatures):
    """`text_feat` (N, F, E): the feature of a caption of every view, as the reference has them for MVImgNet."""

    dataset = "text_feat"


def encode_targets(
    model: MultiViewCLIP,
    store_path: str | Path,
    captions_path: str | Path,
    out_dir: str | Path,
    *,
    ids: str | Path | None = None,
    batch_size: int = 16,
    force: bool = False,
    recipe: dict[str, Any] | None = None,
) -> tuple[int, int]:
    """Encode the views and captions of every object of a store -> (objects, texts).

    Writes `out_dir/image_embeddings.h5` (`img_feat` (N, F, E) fp16, `ids`) and `out_dir/text_embeddings.h5` (`features`
    (T, E) fp16, `kind` (T,) uint8, `offsets` (N + 1,) int64, `ids`), un-normalised, of whole pictures (no crop).

    Args:
        model: the plain backbone; each view is encoded alone.
        ids: JSON of the store's rows (see `read_ids`).
        batch_size: objects whose views are encoded at once.
        recipe: what made the model, kept in the attribute `made_by` of both files.

    Raises:
        UserError: an object has no caption, a file is missing or damaged, no space, or output that exists.
    """
    store = ViewStore(store_path, ids)
    image_path, text_path = Path(out_dir) / "image_embeddings.h5", Path(out_dir) / "text_embeddings.h5"
    files.refuse_existing(image_path, force=force)
    captions = _captions_of(store, captions_path)
    num_texts = sum(map(len, captions))
    made_by = {"fingerprint": model.fingerprint, "backbone": model.backbone.get("name"), "recipe": recipe}
    files.remove_leftovers(image_path.parent, (image_path.name, text_path.name))
    check_space(image_path, (len(store) * store.num_views + num_texts) * model.embed_dim * 2)
    # The image features get their name last: text features without them are output that was cut short.
    with files.writing(image_path) as images, files.writing(text_path) as texts:
        with creating(texts, text_path) as file:
            _begin(file, store, made_by)
            _encode_texts(file, model, captions)
        with creating(images, image_path) as file:
            _begin(file, store, made_by)
            _encode_views(file, model, store, batch_size)
    return len(store), num_texts


def _begin(file: NewFile, store: ViewStore, made_by: dict[str, Any]) -> None:
    file.attrs["made_by"] = json.dumps(made_by)
    create_ids(file, store.ids)


def _captions_of(store: ViewStore, captions_path: str | Path) -> list[Captions]:
    """Captions of every object by its row; each must have one."""
    captions = read_captions(captions_path)
    without = [object_id for object_id in store.ids if not captions.get(object_id)]
    if without:
        raise UserError(
            f"{captions_path} has no caption for {len(without)} of the {len(store)} objects of {store.path}: "
            f"{some(without)}; add them, or pack only the objects that have one (pack-h5 --ids)"
        )
    return [captions[object_id] for object_id in store.ids]


@torch.inference_mode()
def _encode_views(file: NewFile, model: MultiViewCLIP, store: ViewStore, batch_size: int) -> None:
    every_view = np.arange(store.num_views)
    features = create_contiguous(file, "img_feat", (len(store), store.num_views, model.embed_dim), np.float16)
    with progress_bar(total=len(store), label="encode views") as bar:
        for start in range(0, len(store), batch_size):
            rows = np.arange(start, min(start + batch_size, len(store)))
            views = torch.from_numpy(store.read(rows, every_view)).to(model.device)  # (B, F, 3, H, W)
            pixels = model.to_pixels(views, crop="none").flatten(0, 1)  # (B, F, 3, S, S) -> (B*F, 3, S, S)
            encoded = model.view_features(pixels).unflatten(0, views.shape[:2])  # (B*F, E) -> (B, F, E)
            features[start : start + len(rows)] = _as_half(encoded)
            file.check()
            bar.update(len(rows))


@torch.inference_mode()
def _encode_texts(file: NewFile, model: MultiViewCLIP, captions: Sequence[Captions]) -> None:
    offsets = np.cumsum([0, *map(len, captions)], dtype=np.int64)
    num_texts = int(offsets[-1])
    file.create_dataset("offsets", data=offsets)
    file.create_dataset("kind", data=np.fromiter((kind for own in captions for kind, _ in own), np.uint8, num_texts))
    features = create_contiguous(file, "features", (num_texts, model.embed_dim), np.float16)
    texts = [text for own in captions for _, text in own]
    with progress_bar(total=num_texts, label="encode texts", unit="texts") as bar:
        for start in range(0, num_texts, TEXTS_AT_ONCE):
            several = texts[start : start + TEXTS_AT_ONCE]
            place = {text: index for index, text in enumerate(dict.fromkeys(several))}
            encoded = _as_half(model.text_features(list(place)))
            features[start : start + len(several)] = encoded[[place[text] for text in several]]
            file.check()
            bar.update(len(several))


def _as_half(features: torch.Tensor) -> np.ndarray:
    """Float16 as the reference stores them; a feature that does not fit is a broken model's."""
    half = features.half().cpu()
    if not half.isfinite().all():
        raise UserError(
            "the model gives features that are no finite numbers: check its weights, or try --precision fp32"
        )
    return half.numpy()
