"""Retrieval between captions and the objects of a view store, both ways, for several numbers of views.

Text to shape: every caption asks for its object among all objects. Shape to text: every object asks for any of its
captions among all captions. The rank of an answer is the number of candidates with a greater score and, of those with
an equal score, of lower number: one order for each query, whatever the right answer is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ddclip_cli.console import warn
from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.errors import UserError, some
from ddclip_cli.evaluation.metrics import RECALL_AT, mean_ndcg, percent, relevant_ranks, top_k_hits
from ddclip_cli.evaluation.one_pass import Entrant, OnePass, Protocol
from ddclip_cli.evaluation.parts import computed
from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.model.transforms import Crop

QUERIES_AT_ONCE = 512


def evaluate_retrieval(
    model: MultiViewCLIP,
    store: ViewStore,
    captions: Mapping[str, Sequence[str]],
    *,
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
    """Rank all objects for every caption, and all captions for every object, by the cosine of their features.

    The objects see what `zero_shot.evaluate` shows them, in one pass. Beside the captions' features, the shape
    embeddings of all objects are held in memory: 4 E bytes an object, number of views and run.

    Args:
        captions: those of each object; an id that the store lacks stands for the object before its last `_`.

    The other arguments are those of `zero_shot.evaluate`.

    Returns:
        {"objects", "captions", "missing", "views": {F: {"text_to_shape": METRICS, "shape_to_text": METRICS}},
        "outcomes"} where METRICS is {"recall1", "recall5", "ndcg5" in percent, "median_rank" from 1}, the mean of the
        runs, with "std" of each if there are several; with a baseline also "baseline" like "views". `outcomes` holds
        the rank of the right object from 0 for every caption, by F and run.

    Raises:
        UserError: no caption of an object of the store, or what `zero_shot.evaluate` raises.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise UserError("batch size and limit must be at least 1")
    protocol = Protocol(tuple(views), runs, seed, crop)
    protocol.check_store(store)
    of_object, missing = _of_stored(captions, store)
    object_ids = list(of_object)
    if limit is not None and limit < len(object_ids):
        object_ids = [object_ids[number * len(object_ids) // limit] for number in range(limit)]
    texts = [text for object_id in object_ids for text in of_object[object_id]]
    owner = np.repeat(np.arange(len(object_ids)), [len(of_object[object_id]) for object_id in object_ids])

    entrants = {"views": Entrant(model, crop)}
    if baseline is not None:
        entrants["baseline"] = Entrant(baseline, "none")
    one_pass = OnePass(store, object_ids, protocol, list(entrants.values()))
    width = model.embed_dim
    embeddings = computed(
        _Embedder(one_pass),
        len(object_ids),
        part_size=batch_size,
        shape=(len(entrants), len(protocol.views), runs, width),
        dtype=np.float32,
        processes=processes,
        settle=one_pass.settle,
        unfinished=unfinished,
        force=force,
        made_from=one_pass.made_from() | {"captions": hashlib.sha256("\0".join(texts).encode()).hexdigest()},
    )  # (N, entrants, len(views), R, E)
    report: dict[str, Any] = {"objects": len(object_ids), "captions": len(texts), "missing": missing}
    for number, (name, entrant) in enumerate(entrants.items()):
        of_texts = normalize(entrant.model.text_features(texts), dim=1)  # (T, E)
        report[name] = {}
        for column, num_views in enumerate(protocol.views):
            each = [_directions(of_texts, embeddings[:, number, column, run], owner) for run in range(runs)]
            report[name][num_views] = {way: _over_runs([found[way][0] for found in each]) for way in each[0]}
            if name == "views":
                ranks = np.stack([found["text_to_shape"][1] for found in each], axis=1)  # (T, R)
                outcomes = report.setdefault("outcomes", {"ids": _numbered(object_ids, owner), "ranks": {}})
                outcomes["ranks"][num_views] = ranks.tolist()
    return report


class _Embedder:
    """Shape embeddings of unit length of a part of the objects; works in any process."""

    def __init__(self, one_pass: OnePass) -> None:
        self.one_pass = one_pass

    def __call__(self, part: range) -> np.ndarray:
        """(B, entrants, len(views), R, E) float32"""
        found = torch.stack([normalize(e, dim=-1).cpu() for e in self.one_pass.embeddings(part)])  # (K, F, R, B, E)
        return found.movedim(3, 0).numpy()


def _directions(texts: Tensor, shapes: np.ndarray, owner: np.ndarray) -> dict[str, tuple[dict[str, float], np.ndarray]]:
    """Both ways of retrieval: metrics, and of every query the rank of its best right answer.

    texts (T, E) and shapes (N, E) of unit length; owner (T,): the object of each text.
    """
    objects = torch.from_numpy(shapes).to(texts.device)
    every = torch.arange(len(shapes))
    found = {}
    for way, queries, candidates, asks, answers in (
        ("text_to_shape", texts, objects, torch.from_numpy(owner), every),
        ("shape_to_text", objects, texts, every, torch.from_numpy(owner)),
    ):
        ranks = []
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            part = slice(start, start + QUERIES_AT_ONCE)
            scores = (queries[part] @ candidates.T).cpu()  # (Q, candidates)
            ranks += relevant_ranks(scores, asks[part, None] == answers)
        best = np.array([of_query[0] for of_query in ranks])
        metrics = {
            f"recall{k}": percent(hits, len(best))
            for k, hits in zip(RECALL_AT, top_k_hits(best, RECALL_AT), strict=True)
        }
        metrics |= {"ndcg5": 100 * mean_ndcg(ranks, 5), "median_rank": float(np.median(best)) + 1}
        found[way] = (metrics, best)
    return found


def _over_runs(each: list[dict[str, float]]) -> dict[str, Any]:
    mean: dict[str, Any] = {key: float(np.mean([metrics[key] for metrics in each])) for key in each[0]}
    if len(each) > 1:
        mean["std"] = {key: float(np.std([metrics[key] for metrics in each], ddof=1)) for key in each[0]}
    return mean


def _numbered(object_ids: Sequence[str], owner: np.ndarray) -> list[str]:
    """A name for every caption: its object's id, and its number among that object's captions."""
    place = np.arange(len(owner)) - np.searchsorted(owner, owner)
    return [f"{object_ids[number]}#{of_object}" for number, of_object in zip(owner, place, strict=True)]


def _of_stored(captions: Mapping[str, Sequence[str]], store: ViewStore) -> tuple[dict[str, list[str]], list[str]]:
    """Captions by object of the store, and the ids that stand for none."""
    found: dict[str, list[str]] = {}
    stored, missing = set(store.ids), []
    for key, texts in captions.items():
        object_id = key if key in stored else key.rpartition("_")[0]
        if object_id not in stored:
            missing.append(key)
        elif texts:
            found.setdefault(object_id, []).extend(texts)
    if not found:
        raise UserError(f"none of the {len(captions)} objects with captions is in the store: check store and captions")
    if missing:
        count = f"{len(missing)} of the {len(captions)}"
        warn(f"{count} objects with captions are not in the store, and not counted: {some(missing)}")
    return found, missing
