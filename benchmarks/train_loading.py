"""Training steps that read their batches from a store on disk, beside the same steps on one batch in memory.

The loader must not be what one waits for. The store is written first (random pictures, as many views as the official
one has), with its targets; both ways take turns. Its pages may be in the system's cache: a disk that is slower than
the figure of what was read a second is a limit of its own.

    python benchmarks/train_loading.py [--objects 64] [--batch 4] [--views 4] [--steps 2] [--jobs 2] [--device cuda]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch

from ddclip_cli.data.dataset import Mixture, ObjectSet, TrainingData, batches
from ddclip_cli.data.targets import ImageTargets, PerViewTextTargets
from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.model.checkpoints import load_backbone
from ddclip_cli.training.plan import TrainingPlan
from ddclip_cli.training.trainer import Trainer

ROUNDS = 6


def write_library(folder: Path, objects: int) -> ObjectSet:
    """A view store of 12 views an object, and features of each view."""
    rng = np.random.default_rng(0)
    ids = [f"object-{number}" for number in range(objects)]
    with h5py.File(folder / "store.h5", "w") as file:
        pictures = file.create_dataset("imgs", (objects, 12, 3, 224, 224), np.uint8)
        for row in range(objects):
            pictures[row] = rng.integers(0, 256, pictures.shape[1:], dtype=np.uint8)
        file.create_dataset("ids", data=ids, dtype=h5py.string_dtype())
    with h5py.File(folder / "features.h5", "w") as file:
        for name in ("img_feat", "text_feat"):
            file[name] = rng.standard_normal((objects, 12, 512)).astype(np.float16)
        file.create_dataset("ids", data=ids, dtype=h5py.string_dtype())
    features = folder / "features.h5"
    return ObjectSet(ViewStore(folder / "store.h5"), ImageTargets(features), PerViewTextTargets(features))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("objects", 64), ("batch", 4), ("views", 4), ("steps", 2), ("jobs", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = load_backbone("ViT-B-32", None, cross_view_from=6, device=options.device, precision="fp32")
    trainer = Trainer(model, TrainingPlan(precision="auto", crop="random"))
    on_gpu = model.device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        objects = write_library(Path(folder), options.objects)
        views = (options.views, options.views)
        data = Mixture([TrainingData(objects, batch_size=options.batch, num_views=views, seed=0)])
        fixed = data[0]
        trainer.step(fixed, learning_rate=5e-5)
        times: list[tuple[float, float]] = []
        for number in range(ROUNDS):
            first = number * options.steps
            begin = time.perf_counter()
            for batch in batches(data, first, first + options.steps, jobs=options.jobs, pin=on_gpu):
                trainer.step(batch, learning_rate=5e-5)
            middle = time.perf_counter()
            for _ in range(options.steps):
                trainer.step(fixed, learning_rate=5e-5)
            times.append((middle - begin, time.perf_counter() - middle))
        begin = time.perf_counter()
        for step in range(options.steps):
            data[step]
        alone = (time.perf_counter() - begin) / options.steps
    seen = options.batch * options.views * options.steps
    reading, still = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(b / a for a, b in times)
    print(
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, batches of {options.batch} x {options.views} views"
    )
    print(f"from the store  {seen / reading:7.1f} views/s, {options.jobs} batches read ahead")
    print(f"a fixed batch   {seen / still:7.1f} views/s")
    print(f"ratio           {ratio:7.1%} (median of {ROUNDS} pairs)")
    print(f"reading alone   {options.batch * options.views / alone:7.0f} views/s, {alone:.4f} s a step")


if __name__ == "__main__":
    main()
