"""Zero-shot classification of the objects of a view store: top-k accuracy for several numbers of views."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ddclip_cli.console import warn
from ddclip_cli.data.labels import Labels
from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.errors import UserError, some
from ddclip_cli.evaluation.accuracy import Outcomes, accuracies, confused, per_class
from ddclip_cli.evaluation.metrics import true_class_ranks
from ddclip_cli.evaluation.one_pass import Entrant, OnePass, Protocol
from ddclip_cli.evaluation.parts import computed
from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.model.transforms import Crop


def evaluate(
    model: MultiViewCLIP,
    store: ViewStore,
    labels: Labels,
    class_features: Tensor,
    *,
    class_names: Sequence[str] | None = None,
    views: Sequence[int],
    runs: int = 1,
    seed: int = 678,
    crop: Crop = "center",
    batch_size: int = 16,
    baseline: MultiViewCLIP | None = None,
    limit: int | None = None,
    processes: int = 1,
    unfinished: Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Classify every labelled object by the class feature of greatest cosine to its shape embedding.

    The views of an object are the first F of `view_choice.view_order(seed, run, object_id)`: nested, and the same for
    the model and the baseline. With `crop="random"` an object has one crop a run. Neither the batch size nor `limit`
    changes what an object is given. All comes from one pass over the store (see `one_pass`); what is kept of an object
    are two numbers for each number of views and run.

    Args:
        class_features: (C, E) float, any length.
        class_names: of the C classes, for the report; None takes those of the labels.
        views: the numbers of views F to evaluate.
        runs: evaluations with other views and crops, of which the mean is reported.
        baseline: a backbone whose per-view features are averaged un-normalised, after the backbone's own preprocessing
            (the whole picture, no crop): the zero-shot baseline.
        limit: evaluate only so many objects, spread evenly over the list.
        processes: over which the objects are spread, on a GPU each where there are several.
        unfinished: a file that keeps what is done, so that a run that was killed goes on there; the caller removes it.
            What it keeps of another evaluation is refused, or replaced with `force`.

    Returns:
        {"objects", "classes", "missing", "views", "per_class", "confused", "outcomes"}: `missing` the labelled ids that
        the store lacks, `views` the accuracies by F (see `accuracy.accuracies`; with a baseline also "baseline"),
        `per_class` and `confused` as in `accuracy`, `outcomes` {"ids", "ranks": {F: for each object its rank in each
        run}}, which two reports are compared by.

    Raises:
        UserError: nothing to evaluate, more views asked for than stored, or class features that do not fit.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise UserError("batch size and limit must be at least 1")
    protocol = Protocol(tuple(views), runs, seed, crop)
    protocol.check_store(store)
    _check_class_features(model, labels, class_features)
    object_ids, class_index, missing = _select(store, labels, limit)

    entrants = {"views": Entrant(model, crop)}
    if baseline is not None:
        entrants["baseline"] = Entrant(baseline, "none")
    one_pass = OnePass(store, object_ids, protocol, list(entrants.values()))
    found = computed(
        _Classifier(one_pass, class_features, class_index),
        len(object_ids),
        part_size=batch_size,
        shape=(len(entrants), 2, len(protocol.views), runs),
        dtype=np.int32,
        processes=processes,
        settle=one_pass.settle,
        unfinished=unfinished,
        force=force,
        made_from=one_pass.made_from() | {"classes": _digest(class_features, class_index)},
    )
    report: dict[str, Any] = {"objects": len(object_ids), "classes": len(class_features), "missing": missing}
    known = labels.class_names if class_names is None else class_names
    names = [
        known[index] if index < len(known) and known[index] else f"class {index}"
        for index in range(len(class_features))
    ]
    for number, name in enumerate(entrants):
        outcomes = Outcomes(class_index, protocol.views, found[:, number, 0], found[:, number, 1])
        report[name] = accuracies(outcomes)
        if name == "views":
            report["per_class"], report["confused"] = per_class(outcomes, names), confused(outcomes, names)
            by_views = {F: outcomes.ranks[:, column].tolist() for column, F in enumerate(protocol.views)}
            report["outcomes"] = {"ids": object_ids, "ranks": by_views}
    return report


class _Classifier:
    """Ranks of the true classes and predicted classes of a part of the objects; works in any process."""

    def __init__(self, one_pass: OnePass, class_features: Tensor, class_index: np.ndarray) -> None:
        self.one_pass, self.class_index = one_pass, class_index
        self.classes = normalize(class_features.float(), dim=1).cpu()

    def __call__(self, part: range) -> np.ndarray:
        """(B, entrants, 2, len(views), R) int32: rank, predicted class"""
        truth = torch.from_numpy(self.class_index[part])
        return np.stack([self._outcomes(embeddings, truth) for embeddings in self.one_pass.embeddings(part)], axis=1)

    def _outcomes(self, embeddings: Tensor, truth: Tensor) -> np.ndarray:
        """(F, R, B, E) -> (B, 2, F, R)"""
        sets = embeddings.shape[:2]
        self.classes, truth = self.classes.to(embeddings.device), truth.to(embeddings.device)
        scores = normalize(embeddings.flatten(0, 2), dim=1) @ self.classes.T  # (F*R*B, E), (C, E) -> (F*R*B, C)
        ranks = true_class_ranks(scores, truth.repeat(sets.numel()))
        found = torch.stack([ranks, scores.argmax(dim=1)])  # (2, F*R*B)
        return found.unflatten(1, (*sets, -1)).permute(3, 0, 1, 2).to("cpu", torch.int32).numpy()


def _digest(class_features: Tensor, class_index: np.ndarray) -> str:
    return hashlib.sha256(class_features.float().numpy(force=True).tobytes() + class_index.tobytes()).hexdigest()


def _select(store: ViewStore, labels: Labels, limit: int | None) -> tuple[list[str], np.ndarray, list[str]]:
    """Ids and classes to evaluate, and the ids that the store lacks."""
    stored = set(store.ids)
    known = np.array([object_id in stored for object_id in labels.object_ids], dtype=bool)
    missing = [object_id for object_id, here in zip(labels.object_ids, known, strict=True) if not here]
    if not known.any():
        raise UserError(f"none of the {len(known)} labelled objects is in the store: check the store and the labels")
    if missing:
        count = f"{len(missing)} of the {len(known)}"
        warn(f"{count} labelled objects are not in the store, and not counted: {some(missing)}")
    places = np.flatnonzero(known)
    if limit is not None and limit < len(places):
        places = places[np.arange(limit) * len(places) // limit]
    return [labels.object_ids[i] for i in places], np.asarray(labels.class_index)[places], missing


def _check_class_features(model: MultiViewCLIP, labels: Labels, class_features: Tensor) -> None:
    classes, width = class_features.shape
    if width != model.embed_dim:
        raise UserError(
            f"class features are {width} wide, the model's embeddings {model.embed_dim}: "
            "make them with the text tower of this model (ddclip encode-classes)"
        )
    highest = int(np.max(labels.class_index, initial=-1))
    if highest >= classes:
        raise UserError(f"the labels have class {highest}, but there are features of {classes} classes only")
