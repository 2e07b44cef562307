"""Memory of training at ViT-B/32: beside the model in each of N processes, and with the size of a batch.

First, one process after another loads the model, opens a library of as many objects as the paper's (their ids are made
up; pictures and features are holes in files, which take no disk), and N of them take two steps of a batch together, of
one view of one object each. Then a step is taken whole and in pieces (`--micro-batch`), in batches of several sizes,
each in a process of its own, beside what `ddclip train --dry-run` says that it takes. All are peaks of the memory that
the system counts as the process's own (RSS), without what importing torch takes.

    python benchmarks/train_memory.py [--objects 876867] [--batches 8 24] [--views 6] [--micro-batch 8]
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from ddclip_cli.data.dataset import Mixture, ObjectSet, TrainingData
from ddclip_cli.data.object_ids import read_id_list, write_rows
from ddclip_cli.data.targets import ImageTargets
from ddclip_cli.data.text_targets import TextTargets, create_captions
from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.model.checkpoints import load_backbone
from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.training.dry_run import dry_run
from ddclip_cli.training.loop import train
from ddclip_cli.training.plan import TrainingPlan
from ddclip_cli.training.processes import Processes
from ddclip_cli.training.trainer import Trainer

CAPTIONS = 5
MOST_TRIED = 4000
"""MB of a step, by its own word, beyond which it is not tried."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=876_867)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--batches", type=int, nargs="*", default=[8, 24])
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--micro-batch", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_library(Path(folder), options.objects)
        print(f"{options.objects:,} objects; MB of a process: weights, then ids and targets, then at most in two steps")
        for number in options.processes:
            found = in_processes(number, steps_of_a_run, folder)
            for rank, (weights, data, peak) in enumerate(found):
                print(
                    f"process {rank + 1} of {number}   {weights:6.0f} {data:6.0f} {peak:6.0f}   "
                    f"{peak - weights:5.0f} beside the weights"
                )
        print(f"batches of objects of {options.views} views, MB at most in a step beside the weights (and --dry-run)")
        for batch_size in options.batches:
            line = f"{batch_size:5} objects"
            for what, micro_batch in (("whole", None), ("in pieces", options.micro_batch)):
                arguments = (folder, batch_size, options.views, micro_batch)
                (said,) = in_processes(1, said_of_a_batch, *arguments)
                if said < MOST_TRIED:
                    (peak,) = in_processes(1, step_of_a_batch, *arguments)
                line += f"   {what} {peak if said < MOST_TRIED else math.nan:7.0f} ({said:.0f})"
            print(line, flush=True)


def write_library(folder: Path, objects: int) -> None:
    """The files of a library in the form of the paper's: rows as JSON, a list of objects, captions to draw from."""
    digits = np.random.default_rng(0).bytes(16 * objects).hex()
    ids = [digits[start : start + 32] for start in range(0, len(digits), 32)]
    write_rows(folder / "store_model_to_idx.json", ids)
    write_rows(folder / "images_model_to_idx.json", ids)
    (folder / "objects.txt").write_text("\n".join(ids))
    with h5py.File(folder / "store.h5", "w") as file:
        create_hole(file, "imgs", (objects, 12, 3, 224, 224), np.uint8)
    with h5py.File(folder / "images.h5", "w") as file:
        create_hole(file, "img_feat", (objects, 12, 512), np.float16)
    with h5py.File(folder / "texts.h5", "w") as file:
        create_hole(file, "features", (objects * CAPTIONS, 512), np.float16)
        create_captions(file, ids, [CAPTIONS] * objects, bytes(objects * CAPTIONS), folder)


def create_hole(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> None:
    """A dataset that has its place in the file and was never written."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(np.dtype(dtype)), space, creation)


def open_library(folder: str) -> ObjectSet:
    place = Path(folder)
    targets = ImageTargets(place / "images.h5"), TextTargets(place / "texts.h5")
    return ObjectSet(ViewStore(place / "store.h5"), *targets, read_id_list(place / "objects.txt"))


def fresh_model() -> MultiViewCLIP:
    torch.manual_seed(0)
    return load_backbone("ViT-B-32", None, cross_view_from=6, device="cpu", precision="fp32")


def steps_of_a_run(folder: str) -> tuple[float, float, float]:
    """MB beside the imports: of the model, of model and opened library, and at most in a run of two steps."""
    processes = Processes.join(torch.device("cpu"))
    before = resident()
    model = fresh_model()
    weights = resident() - before
    objects = open_library(folder)
    plan = TrainingPlan(batch_size=processes.number, num_views=(1, 1), precision="fp32")
    opened = TrainingData(objects, batch_size=processes.number, num_views=(1, 1), seed=0)
    data = resident() - before
    del opened
    out = Path(folder) / f"run-{processes.number}"
    train(model, objects, plan, out, max_steps=2, jobs=2, processes=processes)
    return weights, data, resident("VmHWM") - before


def batch_of(folder: str, batch_size: int, views: int) -> Mixture:
    few = read_id_list(Path(folder) / "objects.txt")[:batch_size]
    place = Path(folder)
    targets = ImageTargets(place / "images.h5"), TextTargets(place / "texts.h5")
    objects = ObjectSet(ViewStore(place / "store.h5"), *targets, few)
    return Mixture([TrainingData(objects, batch_size=batch_size, num_views=(views, views), seed=0)])


def step_of_a_batch(folder: str, batch_size: int, views: int, micro_batch: int | None) -> float:
    """MB at most in two steps, beside the weights and the library."""
    data = batch_of(folder, batch_size, views)
    trainer = Trainer(fresh_model(), TrainingPlan(batch_size=batch_size, precision="fp32"), micro_batch=micro_batch)
    before = resident()
    for step in (0, 1):
        trainer.step(data[step], learning_rate=0.0)
    return resident("VmHWM") - before


def said_of_a_batch(folder: str, batch_size: int, views: int, micro_batch: int | None) -> float:
    """MB of the same as `ddclip train --dry-run` has it."""
    plan = TrainingPlan(batch_size=batch_size, num_views=(views, views), precision="fp32")
    model = fresh_model()
    found = dry_run(model, batch_of(folder, batch_size, views), plan, micro_batch=micro_batch)
    return found.memory_gb * 1e3 - 4 * found.numbers / 1e6


def resident(name: str = "VmRSS") -> float:
    """MB that this process has now, or (VmHWM) had at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError(f"the system does not tell {name}")


def in_processes(number: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function` returns in each of so many new processes that know of each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    environments = [
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1"}
        | {"MASTER_PORT": str(port), "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // number))}
        for rank in range(number)
    ]
    children = [
        context.Process(target=_answer, args=(answers, rank, environment, function, arguments))
        for rank, environment in enumerate(environments)
    ]
    for child in children:
        child.start()
    found = dict(answers.get() for _ in children)
    for child in children:
        child.join()
    return [json.loads(found[rank]) for rank in range(number)]


def _answer(answers: Any, rank: int, environment: dict[str, str], function: Callable[..., Any], arguments: Any) -> None:
    os.environ |= environment
    answers.put((rank, json.dumps(function(*arguments))))


if __name__ == "__main__":
    main()
