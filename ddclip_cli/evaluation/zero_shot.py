"""Zero-shot classification of the objects of a view store: top-k accuracy for several numbers of views."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ddclip_cli.console import progress_bar, warn
from ddclip_cli.data.labels import Labels
from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.errors import UserError, some
from ddclip_cli.evaluation.metrics import TOP_K, percent, top_k_hits, true_class_ranks
from ddclip_cli.evaluation.view_choice import crop_seed, view_order
from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.model.transforms import Crop


def evaluate(
    model: MultiViewCLIP,
    store: ViewStore,
    labels: Labels,
    class_features: Tensor,
    *,
    views: Sequence[int],
    runs: int = 1,
    seed: int = 678,
    crop: Crop = "center",
    batch_size: int = 32,
    baseline: MultiViewCLIP | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Classify every labelled object by the class feature of greatest cosine to its shape embedding.

    The views of an object are the first F of `view_choice.view_order(seed, run, object_id)`: nested, and the same for
    the model and the baseline. With `crop="random"` an object has one crop a run. Neither the batch size nor `limit`
    changes what an object is given.

    Args:
        class_features: (C, E) float, any length.
        views: the numbers of views F to evaluate.
        runs: evaluations with other views and crops, of which the mean is reported.
        baseline: a backbone whose per-view features are averaged un-normalised, after the backbone's own preprocessing
            (the whole picture, no crop): the zero-shot baseline.
        limit: evaluate only so many objects, spread evenly over the list.

    Returns:
        {"views": {F: {"top1", "top3", "top5"}}, "objects", "classes", "missing"} with accuracies in percent and
        `missing` the labelled ids that the store lacks. With several runs each F also has `std`, their sample standard
        deviation: {"top1", ...}. With a baseline also "baseline": {F: ...} like "views".

    Raises:
        UserError: nothing to evaluate, more views asked for than stored, or class features that do not fit.
    """
    views = sorted(set(views))
    _check_request(store, views=views, runs=runs, batch_size=batch_size, limit=limit)
    _check_class_features(model, labels, class_features)
    object_ids, class_index, missing = _select(store, labels, limit)

    networks = {"views": model} if baseline is None else {"views": model, "baseline": baseline}
    classes = {name: normalize(class_features.float(), dim=1).to(net.device) for name, net in networks.items()}
    hits = {name: np.zeros((len(views), runs, len(TOP_K)), dtype=np.int64) for name in networks}
    rows = store.rows(object_ids)

    with _evaluating(*networks.values()), progress_bar(total=len(object_ids), label="evaluate") as bar:
        for start in range(0, len(object_ids), batch_size):
            part = slice(start, start + batch_size)
            batch = _Batch(store, object_ids[part], rows[part], views=views, runs=runs, seed=seed)
            for name, network in networks.items():
                encode = batch.shape_embeddings if name == "views" else batch.averaged_features
                truth = torch.from_numpy(class_index[part]).to(network.device)
                for run in range(runs):
                    for column, embeddings in enumerate(encode(network, crop=crop, run=run)):
                        scores = normalize(embeddings.float(), dim=1) @ classes[name].T  # (B, E), (C, E) -> (B, C)
                        if scores.isnan().any():
                            raise UserError("the model's shape embeddings are not numbers (NaN): try --precision fp32")
                        hits[name][column, run] += top_k_hits(true_class_ranks(scores, truth))
            bar.update(len(object_ids[part]))

    report = {"objects": len(object_ids), "classes": len(class_features), "missing": missing}
    return report | {name: _summary(views, hits[name], len(object_ids)) for name in networks}


class _Batch:
    """The views that some objects need over all runs, each read once, and what a network makes of them."""

    def __init__(
        self,
        store: ViewStore,
        object_ids: Sequence[str],
        rows: np.ndarray,
        *,
        views: Sequence[int],
        runs: int,
        seed: int,
    ) -> None:
        self.object_ids, self.views, self.seed = object_ids, views, seed
        every = store.num_views
        order = np.stack(
            [[view_order(every, seed=seed, run=run, object_id=o) for o in object_ids] for run in range(runs)]
        )  # (R, B, V)
        # One run needs only its own views; several together need about all.
        needed = np.sort(order[0, :, : max(views)], axis=1) if runs == 1 else np.tile(np.arange(every), (len(rows), 1))
        self.pictures = store.read(rows, needed)  # (B, P, 3, H, W)
        wanted = order[:, :, : max(views)]  # (R, B, most)
        # Where each wanted view lies among those read.
        self.places = (needed[None, :, None, :] == wanted[..., None]).argmax(axis=-1)  # (R, B, most)

    def shape_embeddings(self, model: MultiViewCLIP, *, crop: Crop, run: int) -> Iterator[Tensor]:
        """(B, E) for each number of views."""
        pixels = self._pixels(model, crop=crop, run=run)  # (B, P, 3, S, S)
        for num_views in self.views:
            yield model(_choose(pixels, self.places[run, :, :num_views]))

    def averaged_features(self, backbone: MultiViewCLIP, *, crop: Crop, run: int) -> Iterator[Tensor]:
        """(B, E) for each number of views: the mean of the per-view features, whatever crop the model has."""
        pixels = self._pixels(backbone, crop="none", run=run)
        features = backbone.view_features(pixels.flatten(0, 1)).float()  # (B*P, 3, S, S) -> (B*P, E)
        features = features.unflatten(0, pixels.shape[:2])  # (B, P, E)
        for num_views in self.views:
            yield _choose(features, self.places[run, :, :num_views]).mean(dim=1)

    def _pixels(self, model: MultiViewCLIP, *, crop: Crop, run: int) -> Tensor:
        pictures = torch.from_numpy(self.pictures).to(model.device)
        if crop != "random":
            return model.to_pixels(pictures, crop)
        # An object at a time: its crop must not depend on who else is in the batch.
        cropped = []
        for object_id, own in zip(self.object_ids, pictures, strict=True):
            generator = torch.Generator().manual_seed(crop_seed(seed=self.seed, run=run, object_id=object_id))
            cropped.append(model.to_pixels(own, crop, generator))
        return torch.stack(cropped)


def _choose(values: Tensor, places: np.ndarray) -> Tensor:
    """(B, P, ...) and (B, F) -> (B, F, ...), views in the order in which they are stored."""
    chosen = torch.from_numpy(np.sort(places, axis=1)).to(values.device)
    return values[torch.arange(len(values), device=values.device)[:, None], chosen]


def _select(store: ViewStore, labels: Labels, limit: int | None) -> tuple[list[str], np.ndarray, list[str]]:
    """Ids and classes to evaluate, and the ids that the store lacks."""
    stored = set(store.ids)
    known = np.array([object_id in stored for object_id in labels.object_ids], dtype=bool)
    missing = [object_id for object_id, here in zip(labels.object_ids, known, strict=True) if not here]
    if not known.any():
        raise UserError(f"none of the {len(known)} labelled objects is in the store: check eval.store and eval.labels")
    if missing:
        count = f"{len(missing)} of the {len(known)}"
        warn(f"{count} labelled objects are not in the store, and not counted: {some(missing)}")
    places = np.flatnonzero(known)
    if limit is not None and limit < len(places):
        places = places[np.arange(limit) * len(places) // limit]
    return [labels.object_ids[i] for i in places], np.asarray(labels.class_index)[places], missing


def _check_request(store: ViewStore, *, views: Sequence[int], runs: int, batch_size: int, limit: int | None) -> None:
    if not views or min(views) < 1 or runs < 1 or batch_size < 1 or (limit is not None and limit < 1):
        raise UserError("numbers of views, runs, batch size and limit must be at least 1")
    if max(views) > store.num_views:
        raise UserError(
            f"{max(views)} views were asked for, but the store has {store.num_views} of each object: lower --views"
        )


def _check_class_features(model: MultiViewCLIP, labels: Labels, class_features: Tensor) -> None:
    classes, width = class_features.shape
    if width != model.embed_dim:
        raise UserError(
            f"class features are {width} wide, the model's embeddings {model.embed_dim}: "
            "make them with the text tower of this model"
        )
    highest = int(np.max(labels.class_index, initial=-1))
    if highest >= classes:
        raise UserError(f"the labels have class {highest}, but there are features of {classes} classes only")


@contextmanager
def _evaluating(*networks: MultiViewCLIP) -> Iterator[None]:
    """No gradients, eval mode; training goes on as it was."""
    training = [network.training for network in networks]
    try:
        with torch.no_grad():
            for network in networks:
                network.eval()
            yield
    finally:
        for network, was in zip(networks, training, strict=True):
            network.train(was)


def _summary(views: Sequence[int], hits: np.ndarray, objects: int) -> dict[int, dict[str, Any]]:
    """hits (len(views), R, len(TOP_K)) -> {F: {"top1", ..., "std"?}} in percent."""
    table: dict[int, dict[str, Any]] = {}
    for num_views, of_runs in zip(views, hits, strict=True):
        accuracies = {f"top{k}": [percent(int(h), objects) for h in of_runs[:, i]] for i, k in enumerate(TOP_K)}
        table[num_views] = {name: statistics.fmean(values) for name, values in accuracies.items()}
        if hits.shape[1] > 1:
            table[num_views]["std"] = {name: statistics.stdev(values) for name, values in accuracies.items()}
    return table
