"""Views a second out of a view store, random objects, 4 of 12 views each: ours beside h5py's own indexing.

A store of `--gigabytes` is written as the reference has it (pixels, contiguous), and one of each codec. Both ways read
the same objects and views from the page cache, their results are compared, and they take turns.

    python benchmarks/read_views.py [--gigabytes 1]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from ddclip_cli.data.codecs import ENCODED
from ddclip_cli.data.convert import convert_store
from ddclip_cli.data.view_store import ViewStore

VIEWS, SIZE, BATCH, ROUNDS = 12, 224, 64, 15
COUCH = Path(__file__).parent.parent / "docs" / "couch.jpg"


def write_store(path: Path, objects: int) -> None:
    """Twelve views of a couch, turned and mirrored, so that no two objects are equal."""
    from PIL import Image

    couch = np.asarray(Image.open(COUCH)).reshape(VIEWS, SIZE, SIZE, 3).transpose(0, 3, 1, 2)
    with h5py.File(path, "w") as file:
        imgs = file.create_dataset("imgs", (objects, VIEWS, 3, SIZE, SIZE), np.uint8)
        for row in range(objects):
            imgs[row] = np.roll(couch, row, axis=-1)
        file.create_dataset("ids", data=[str(row) for row in range(objects)], dtype=h5py.string_dtype())


def by_h5py(dataset: h5py.Dataset, rows: np.ndarray, views: np.ndarray) -> np.ndarray:
    """One object after the other, as the reference's dataset class does: one fancy index of increasing views each."""
    return np.stack([dataset[row, views] for row in rows])


def seconds(function: Callable[[], np.ndarray]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=1.0)
    objects = max(BATCH, int(parser.parse_args().gigabytes * 1e9 / (VIEWS * 3 * SIZE**2)))
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "raw.h5"
        write_store(path, objects)
        stores = {"raw": ViewStore(path)}
        few = Path(folder) / "few.h5"
        write_store(few, BATCH)
        stores |= {name: convert_store(few, Path(folder) / f"{name}.h5", codec=name) for name in ENCODED}
        print(f"{os.cpu_count()} cores, {objects} objects of {VIEWS} views, 4 views of {BATCH} objects a batch")
        with h5py.File(path) as file:
            times: dict[str, list[float]] = {"h5py": [], **{name: [] for name in stores}}
            for _ in range(ROUNDS + 1):
                views = np.sort(rng.choice(VIEWS, 4, replace=False))
                rows = rng.integers(0, objects, BATCH)
                assert np.array_equal(stores["raw"].read(rows, views), by_h5py(file["imgs"], rows, views))
                times["h5py"].append(seconds(lambda r=rows, v=views: by_h5py(file["imgs"], r, v)))
                for name, store in stores.items():
                    own = rows % len(store)
                    times[name].append(seconds(lambda s=store, r=own, v=views: s.read(r, v)))
        for name, taken in times.items():
            ratio = statistics.median(a / b for a, b in zip(times["h5py"][1:], taken[1:], strict=True))
            rate = BATCH * 4 / statistics.median(taken[1:])
            print(f"{name:9s} {rate:9.0f} views/s   {ratio:5.2f} times h5py's indexing")


if __name__ == "__main__":
    main()
