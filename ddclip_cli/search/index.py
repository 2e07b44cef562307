"""Indexes through faiss: near neighbours faster than by looking at all, with what that costs in recall measured.

Whatever the kind, it only proposes: candidates are scored again by the vectors themselves, so that scores are exact.
"""

from __future__ import annotations

import hashlib
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from faiss.contrib.ivf_tools import add_preassigned

from ddclip_cli import files
from ddclip_cli.console import log, progress_bar
from ddclip_cli.errors import UsageError, UserError
from ddclip_cli.model.device import kind_and_number
from ddclip_cli.search.embeddings import ShapeEmbeddings
from ddclip_cli.search.gpus import on_gpus, usable_gpus, warn_of
from ddclip_cli.search.index_file import SUFFIX, IndexRecord, read_index, write_index
from ddclip_cli.search.retrieve import retrieve
from ddclip_cli.search.vectors import StoredVectors

KINDS = ("exact", "fp16", "int8", "ivf", "hnsw", "auto")
EXACT_UP_TO = 50_000
"""Objects of which `auto` finds the best in a few milliseconds without an index."""
WANTED_RECALL = 0.96
"""At 10: a margin over 0.95, since the queries that are measured are few."""
MEASURED_QUERIES, TIMED_QUERIES = 512, 100
NOISE = 0.7
ADD_ROWS = 50_000
NEIGHBOURS, BUILD_CANDIDATES = 32, 80  # of an hnsw
TRAINED_A_LIST, LIST_ROUNDS = 40, 6
CONTENT_ROWS = 1024
GPUS_FROM = 200_000
"""Objects from which `auto` asks for GPUs: of fewer, a CPU makes an ivf in about the time that CUDA takes to start."""


class NearIndex:
    """An index file that is open for queries, with the embeddings it was made from."""

    def __init__(self, path: str | Path) -> None:
        """Raises UserError for a damaged or foreign file, and if its embeddings are gone or have changed."""
        self.path = Path(path)
        index, self.record = read_index(self.path)
        source = self.path.parent / self.record.embeddings
        if not source.is_file():
            raise UserError(f"{self.path} was made from {source}, which is not there: put it back, or build it again")
        self.embeddings = ShapeEmbeddings(source)
        vectors = self.embeddings.vectors
        if vectors.shape != (self.record.objects, self.record.width) or content_of(vectors) != self.record.content:
            raise UserError(f"{self.path} was made from other embeddings than {source} has now: build it again")
        self._search = _searcher(index, vectors, self.record.kind, self.record.probes, self.path)

    def search(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `retrieve`, nearly: scores (Q, k) and rows (Q, k), row -1 where no more was found."""
        return self._search(queries, top_k)


def choose_kind(kind: str, objects: int) -> str:
    """What `auto` stands for."""
    return kind if kind != "auto" else "exact" if objects <= EXACT_UP_TO else "ivf"


def build_index(
    embeddings: ShapeEmbeddings,
    kind: str,
    out: str | Path | None = None,
    *,
    device: str = "auto",
    seed: int = 0,
    force: bool = False,
) -> IndexRecord:
    """Build an index of a kind and write it to `out`, `<stem>.<kind>.index` beside the embeddings if that is None.

    `exact` needs no file: it is measured, and nothing is written. Recall@10 against exact search and the latency of one
    query are measured by objects with noise, which are not in the library.

    Args:
        device: where the lists of an ivf are made and filled: `auto` (every GPU, from 200,000 objects on), `cpu`,
            `cuda` (every GPU) or `cuda:N`. The file is the same kind of file wherever it was made.

    Raises:
        UsageError: `device` is none, or is not there, or is cuda for another kind.
        UserError: `out` exists (and not `force`) or cannot be written, or a vector is damaged.
    """
    kind = choose_kind(kind, len(embeddings))
    if kind_and_number(device)[0] == "cuda" and kind != "ivf":
        raise UsageError(f"of the indexes, ivf alone is made on GPUs: leave --device out for {kind}")
    vectors = embeddings.vectors
    out = Path(out) if out is not None else embeddings.path.with_name(f"{embeddings.path.stem}.{kind}{SUFFIX}")
    if kind != "exact":
        files.refuse_existing(out, force=force)
    asks_gpus = kind == "ivf" and (device != "auto" or len(vectors) >= GPUS_FROM)
    gpus = usable_gpus(device) if asks_gpus else []
    queries = _queries(vectors, seed)
    _, truth = retrieve(queries, vectors, 10)
    exact = _milliseconds(lambda query: retrieve(query, vectors, 10), queries)
    probes, recall, near = 0, 1.0, exact
    if kind != "exact":
        index = _built(vectors, kind, seed, gpus)
        for probes in _probes(kind, len(vectors)):
            search = _searcher(index, vectors, kind, probes, out)
            recall = _recall(search(queries, 10)[1], truth)
            if recall >= WANTED_RECALL:
                break
        near = _milliseconds(lambda query: search(query, 10), queries)
    record = IndexRecord(
        kind=kind,
        embeddings=os.path.relpath(embeddings.path, out.parent),
        content=content_of(vectors),
        objects=len(vectors),
        width=embeddings.embed_dim,
        probes=probes,
        recall_at_10=recall,
        milliseconds=near,
        exact_milliseconds=exact,
        queries=len(queries),
        threads=faiss.omp_get_max_threads(),
    )
    if kind != "exact":
        files.remove_leftovers(out.parent, (out.name,))
        write_index(out, index, record)
    return record


def content_of(vectors: StoredVectors) -> str:
    """A name for these vectors: a digest of their shape and of rows from all over."""
    rows = np.unique(np.linspace(0, len(vectors) - 1, min(CONTENT_ROWS, len(vectors))).astype(np.int64))
    digest = hashlib.blake2b(f"{vectors.shape}".encode(), digest_size=16)
    digest.update(vectors.take(rows).tobytes())
    return digest.hexdigest()


def _built(vectors: StoredVectors, kind: str, seed: int, gpus: list[int]) -> Any:
    """The faiss index of all vectors; the CPU makes it if the GPUs fail."""
    if gpus:
        try:
            return _filled(vectors, kind, seed, gpus)
        except RuntimeError as error:  # no memory left on one, for instance
            warn_of(str(error))
    return _filled(vectors, kind, seed, [])


def _filled(vectors: StoredVectors, kind: str, seed: int, gpus: list[int]) -> Any:
    """The faiss index of all vectors, added block by block; the GPUs look for the nearest list of each."""
    number, width = vectors.shape
    lists = max(1, min(4 * math.isqrt(number), number // TRAINED_A_LIST))
    trained = min(number, max(TRAINED_A_LIST * lists, 10_000))
    index = _empty(kind, width, lists, seed)
    add = index.add
    if not index.is_trained:
        log(f"training on {trained} of {number} objects" + (f", GPUs: {len(gpus)}" if gpus else ""))
    rows = np.sort(np.random.default_rng(seed).choice(number, trained, replace=False))
    if gpus:
        nearest_list = index.clustering_index = on_gpus(faiss.IndexFlatIP(width), gpus)
        index.train(vectors.take(rows))
        index.clustering_index = None
        nearest_list.reset()
        nearest_list.add(index.quantizer.reconstruct_n(0, lists))

        def add(block: np.ndarray) -> None:
            add_preassigned(index, block, nearest_list.search(block, 1)[1].reshape(-1))
    else:
        index.train(vectors.take(rows))
    with progress_bar(total=number, label="index") as bar:
        for _, block in vectors.blocks(ADD_ROWS):
            add(np.ascontiguousarray(block))
            bar.update(len(block))
    return index


def _empty(kind: str, width: int, lists: int, seed: int) -> Any:
    """The faiss index of a kind before its training."""
    product, quantizer = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer
    index: Any
    if kind == "fp16":
        index = faiss.IndexScalarQuantizer(width, quantizer.QT_fp16, product)
    elif kind == "int8":
        index = faiss.IndexScalarQuantizer(width, quantizer.QT_8bit, product)
    elif kind == "hnsw":
        index = faiss.IndexHNSWSQ(width, quantizer.QT_fp16, NEIGHBOURS, product)  # type: ignore[arg-type]
        index.hnsw.efConstruction = BUILD_CANDIDATES
    else:
        index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(width), width, lists, quantizer.QT_8bit, product)
        index.cp.niter, index.cp.spherical, index.cp.seed = LIST_ROUNDS, True, seed
        index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, TRAINED_A_LIST
    return index


def _probes(kind: str, number: int) -> list[int]:
    """How far to look, from near to far, until the recall is good enough."""
    if kind == "ivf":
        return [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    if kind == "hnsw":
        return [16, 32, 64, 128, 256, 512, 1024]
    return [0]


def _searcher(index: Any, vectors: StoredVectors, kind: str, probes: int, path: Path) -> Callable[..., Any]:
    """(queries, k) -> scores and rows of the index's candidates, scored by the vectors themselves."""
    if kind == "ivf":
        index.nprobe = min(max(probes, 1), index.nlist)

    def search(queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        k = min(top_k, len(vectors))
        candidates = min(2 * k + 16, len(vectors))
        if kind == "hnsw":
            index.hnsw.efSearch = max(probes, candidates)
        _, found = index.search(np.ascontiguousarray(queries, dtype=np.float32), candidates)
        if found.max(initial=-1) >= len(vectors):
            raise UserError(f"{path} is damaged: build it again with `ddclip index`")
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        for query, its_rows, its_scores, its_found in zip(queries, rows, scores, found, strict=True):
            known = np.unique(its_found[its_found >= 0])  # rising: of equal scores the lower row comes first
            values = vectors.take(known) @ query
            order = np.argsort(-values, kind="stable")[:k]
            its_rows[: len(order)], its_scores[: len(order)] = known[order], values[order]
        return scores, rows

    return search


def _queries(vectors: StoredVectors, seed: int) -> np.ndarray:
    """(Q, E): objects with noise of length 0.7, brought to unit length."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(vectors), size=min(MEASURED_QUERIES, max(32, len(vectors) // 4)))
    noise = rng.standard_normal((len(rows), vectors.shape[1]), dtype=np.float32)
    queries = vectors.take(rows) + NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return queries / np.linalg.norm(queries, axis=1, keepdims=True)


def _recall(found: np.ndarray, truth: np.ndarray) -> float:
    """The share of the true ten that are among those found."""
    hits = sum(len(np.intersect1d(a, b)) for a, b in zip(found, truth, strict=True))
    return hits / truth.size


def _milliseconds(search: Callable[[np.ndarray], Any], queries: np.ndarray) -> float:
    """The median time of one query by itself."""
    times = []
    for query in queries[:TIMED_QUERIES]:
        begin = time.perf_counter()
        search(query[None])
        times.append(time.perf_counter() - begin)
        if sum(times) > 10:
            break
    return 1000 * statistics.median(times)
