"""GPUs for what takes long in building an ivf: finding the nearest list of every vector, through faiss.

Where CUDA fails, faiss ends its process, and no exception says so. So a process of its own tries the GPUs first, and a
machine whose driver or GPUs are out of order builds on its CPU.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from typing import Any

import faiss
import numpy as np

from ddclip_cli.console import warn
from ddclip_cli.errors import UsageError
from ddclip_cli.model.device import kind_and_number

TRIED = 16
"""Vectors that are looked for in the trial."""
PATIENCE = 180
"""Seconds for the trial, of which starting CUDA on many GPUs can take tens."""


def usable_gpus(device: str) -> list[int]:
    """The numbers of the GPUs that `auto` and `cuda` (all), `cuda:N` or `cpu` (none) stand for, if they work.

    Raises UsageError for another device, and for a cuda that faiss cannot use.
    """
    kind, number = kind_and_number(device)
    gpus = [] if kind == "cpu" else _tried(number)
    if kind == "cuda" and not gpus:
        raise UsageError(f"there is no {device} here that faiss can use: use --device cpu or auto")
    return gpus


def on_gpus(index: Any, gpus: list[int]) -> Any:
    """The same flat index on these GPUs: whole on each, which answers a part of the queries."""
    return faiss.index_cpu_to_gpus_list(index, gpus=gpus)


def warn_of(reason: str) -> None:
    """Say that the CPU does what the GPUs did not."""
    warn(f"faiss cannot use the GPUs, so the CPU does it all: {reason.strip().splitlines()[-1]}")


def _tried(number: int | None) -> list[int]:
    """All GPUs, or that of this number; none, with a warning, if they fail."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []  # no driver, no GPU
    command = [sys.executable, "-m", __name__, *([] if number is None else [str(number)])]
    try:
        trial = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        warn_of(f"no answer in {PATIENCE} s")
        return []
    if trial.returncode:
        warn_of(f"exit {trial.returncode}\n{trial.stderr}")
        return []
    return [int(gpu) for gpu in trial.stdout.split()]


def _try(wanted: list[int]) -> None:
    """Print the numbers of the wanted GPUs that there are, all if none is named, after a search on them."""
    gpus = [gpu for gpu in range(faiss.get_num_gpus()) if not wanted or gpu in wanted]
    if gpus:
        vectors = np.eye(TRIED, dtype=np.float32)
        index = on_gpus(faiss.IndexFlatIP(TRIED), gpus)
        index.add(vectors)
        if (index.search(vectors, 1)[1][:, 0] != np.arange(TRIED)).any():
            raise SystemExit("a search on them finds what is not nearest")
    print(*gpus)


if __name__ == "__main__":
    _try([int(word) for word in sys.argv[1:]])
