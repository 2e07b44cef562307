"""Processes that train together: functions run in several, `ddclip train` under launchers, and what comes of it."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from safetensors.torch import load_file

from ddclip_cli.data.encode import Encoder, encode_targets
from ddclip_cli.model.checkpoints import load_backbone
from ddclip_cli.shipped import shipped_path

SAMPLE = shipped_path("sample:backbone")
SETTINGS = ("train.precision=fp64", "train.batch_size=8", "train.epochs=2", "train.num_views=1,3")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def in_processes(number: int, function, *arguments) -> list[int]:
    """Exit codes of `function(*arguments)` in processes that know of each other as a launcher would have it."""
    port = free_port()
    context = multiprocessing.get_context("forkserver")  # forks a process with everything imported and no threads
    context.set_forkserver_preload(["ddclip_cli.training.loop"])
    children = [
        context.Process(target=_as_rank, args=(rank, number, port, function, arguments)) for rank in range(number)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout=120)
        child.kill()
        child.join()
    return [child.exitcode for child in children]


def _as_rank(rank: int, number: int, port: int, function, arguments) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(number), "LOCAL_RANK": str(rank)}
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    function(*arguments)


def distance(found, expected) -> float:
    """Norm of the difference over norm, of all tensors together."""
    difference = sum(float((a.double() - b.double()).norm()) ** 2 for a, b in zip(found, expected, strict=True))
    return (difference / sum(float(b.double().norm()) ** 2 for b in expected)) ** 0.5


def write_sample_data(folder: Path) -> Path:
    """A data directory for recipe `sample`: its own backbone, 24 objects made of noise."""
    backbone = load_backbone(str(SAMPLE / "open_clip_config.json"), SAMPLE, device="cpu")
    ids = [f"object-{i}" for i in range(24)]
    with h5py.File(folder / "train.h5", "w") as file:
        file["imgs"] = np.random.default_rng(0).integers(0, 256, (24, 12, 3, 112, 112), dtype=np.uint8)
        file.create_dataset("ids", data=ids, dtype=h5py.string_dtype())
    shutil.copy(folder / "train.h5", folder / "heldout.h5")
    (folder / "library").mkdir()
    (folder / "library" / "heldout.csv").write_text("".join(f"{n % 3},class {n % 3},{i}\n" for n, i in enumerate(ids)))
    (folder / "captions.json").write_text(json.dumps({i: [f"a red {i}", f"a blue {i}"] for i in ids}))
    encode_targets(Encoder(backbone), folder / "train.h5", folder / "captions.json", folder / "targets")
    return folder


def train_sample(
    data: Path, out: str, *options: object, launcher: tuple = (), cwd: Path | None = None
) -> subprocess.Popen:
    command = [*launcher] or [sys.executable]
    places = ["--recipe", "sample", "--data-dir", data, "--out", data / out, "--device", "cpu"]
    words = [*command, "-m", "ddclip_cli", "train", *places, *SETTINGS, *options]
    return subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd)


def weights(data: Path, out: str) -> list[torch.Tensor]:
    state = load_file(data / out / "checkpoints" / "last" / "model.safetensors")
    assert state["logit_scale"].dtype == torch.float64
    return [state[name] for name in sorted(state) if name.startswith("visual.") or name == "logit_scale"]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
