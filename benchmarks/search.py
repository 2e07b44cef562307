"""Search over many vectors, beside faiss's exact index and the time that memory takes to be read once.

Data: unit vectors around random unit centres, one centre for 50 of them, noise of length 0.7; queries are made the
same way and are not among them. Printed are, all from one run: a batch of 64 queries by ours and by
`IndexFlatIP.search`, one query by ours and one pass over the same memory by all cores, and an index of each kind asked
for: recall@10 against exact search and the median time of one query.

    python benchmarks/search.py                                  # 100,000 x 512
    python benchmarks/search.py --objects 1000000 --kinds ivf    # 2 GB of disk, 5 GB of memory, some minutes
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import h5py
import numpy as np

from ddclip_cli.data.hdf5_output import create_contiguous, create_ids
from ddclip_cli.search.embeddings import ShapeEmbeddings
from ddclip_cli.search.index import NearIndex, build_index
from ddclip_cli.search.retrieve import retrieve

WIDTH, A_CENTRE, NOISE, BATCH, TOP_K = 512, 50, 0.7, 64, 10


def around(centres: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """(number, E) unit vectors, each a random centre with noise."""
    noise = rng.standard_normal((number, centres.shape[1]), dtype=np.float32)
    noise *= NOISE / np.linalg.norm(noise, axis=1, keepdims=True)
    noise += centres[rng.integers(len(centres), size=number)]
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    return noise


def seconds(*functions: Callable[[], Any], rounds: int) -> list[float]:
    """The best time of each; they take turns, so that a busy machine slows all."""
    best = [float("inf")] * len(functions)
    for _ in range(rounds):
        for number, function in enumerate(functions):
            begin = time.perf_counter()
            function()
            best[number] = min(best[number], time.perf_counter() - begin)
    return best


def read_once(vectors: np.ndarray) -> None:
    """Every number looked at once, by all cores."""
    parts = np.array_split(vectors, os.cpu_count() or 1)
    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(np.sum, parts))


def exact(vectors: np.ndarray, queries: np.ndarray) -> None:
    """A batch and one query over all vectors in memory."""
    flat = faiss.IndexFlatIP(WIDTH)
    flat.add(vectors)
    batch = queries[:BATCH]
    assert np.allclose(retrieve(batch, vectors, TOP_K)[0], flat.search(batch, TOP_K)[0], atol=1e-5)
    ours, theirs = seconds(lambda: retrieve(batch, vectors, TOP_K), lambda: flat.search(batch, TOP_K), rounds=3)
    print(f"batch of {BATCH}, exact: ours {ours:.3f} s, IndexFlatIP {theirs:.3f} s, ratio {theirs / ours:.1f}")
    one, stream = seconds(lambda: retrieve(queries[:1], vectors, TOP_K), lambda: read_once(vectors), rounds=15)
    print(f"one query, exact: {1000 * one:.1f} ms, memory read once {1000 * stream:.1f} ms, ratio {one / stream:.2f}")


def near(kind: str, path: Path, queries: np.ndarray, truth: np.ndarray) -> None:
    """An index of one kind over the embeddings of a file."""
    begin = time.perf_counter()
    built = build_index(ShapeEmbeddings(path), kind)
    build = time.perf_counter() - begin
    begin = time.perf_counter()
    index = NearIndex(path.with_name(f"{path.stem}.{kind}.index"))
    load = time.perf_counter() - begin
    times, right = [], 0
    for query, its_truth in zip(queries, truth, strict=True):
        begin = time.perf_counter()
        _, rows = index.search(query[None], TOP_K)
        times.append(time.perf_counter() - begin)
        right += len(np.intersect1d(rows[0], its_truth))
    size = index.path.stat().st_size / 1e6
    print(
        f"{kind:5} recall@10 {right / truth.size:.4f}, {1000 * statistics.median(times):.2f} ms a query,"
        f" built in {build:.0f} s, opened in {load:.2f} s, {size:.0f} MB, probes {built.probes}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--kinds", nargs="*", default=["fp16", "int8", "ivf", "hnsw"])
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(1, arguments.objects // A_CENTRE), WIDTH), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    vectors = np.empty((arguments.objects, WIDTH), np.float32)
    for start in range(0, len(vectors), 50_000):
        vectors[start : start + 50_000] = around(centres, min(50_000, len(vectors) - start), rng)
    queries = around(centres, 1000, rng)
    print(f"{arguments.objects:,} x {WIDTH}, {os.cpu_count()} cores, {faiss.omp_get_max_threads()} threads")
    exact(vectors, queries)
    _, truth = retrieve(queries, vectors, TOP_K)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "embeddings.h5"
        with h5py.File(path, "w") as file:
            file.attrs["made_by"] = json.dumps({"checkpoint": "none"})
            create_ids(file, [f"object-{row}" for row in range(len(vectors))])
            create_contiguous(file, "shape_feat", vectors.shape, "<f4")[:] = vectors
        for kind in arguments.kinds:
            near(kind, path, queries, truth)


if __name__ == "__main__":
    main()
