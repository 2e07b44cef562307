"""Start the processes of a training run on this machine, and end them together."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

from ddclip_cli.errors import UsageError, UserError

LIFELINE = "DDCLIP_LIFELINE"
"""Environment variable: the file descriptor of a pipe whose other end the launcher holds."""
PATIENCE = 60.0
"""Seconds for processes that were asked to end to save and do so."""


def refuse_mismatch(processes: int | None, environment: Mapping[str, str] = os.environ) -> None:
    """Raise UsageError if a launcher has started other processes than `--processes` and the plain loop allow."""
    started = environment.get("WORLD_SIZE")
    if started is not None and processes not in (None, int(started) if started.isdecimal() else None):
        raise UsageError(
            f"--processes {processes} inside one of {started} processes that a launcher started: leave --processes out"
        )
    if environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") != "1":
        raise UsageError(
            "gradient accumulation would change the negatives of the contrastive loss: leave it out of accelerate's "
            "settings and give --micro-batch, which has the gradient of the whole batch"
        )
    for name, what in (("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_FSDP", "FSDP")):
        if environment.get(name, "false").lower() == "true":
            raise UsageError(
                f"{what} is not supported, as the model fits every GPU: leave it out of accelerate's settings"
            )


def refuse_too_many(number: int, device: str) -> None:
    """Raise UsageError if there are GPUs for some of the processes only, or one is named for all."""
    if device.startswith("cuda:"):
        raise UsageError(f"--device {device} is one GPU: give --device cuda for {number} processes on a GPU each")
    if device == "cpu":
        return
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number > gpus and (gpus or device == "cuda"):
        raise UsageError(f"--processes {number} needs a GPU each and there are {gpus}: lower it, or give --device cpu")


def device_of_process(device: str) -> str:
    """What `--device` means in this process: of several, each takes the GPU of its own number on its machine."""
    if launched() is None or device == "cpu":
        return device
    import torch

    if device.startswith("cuda:"):
        raise UsageError(f"--device {device} is one GPU: give --device cuda for a process on each")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not gpus and device == "auto":
        return "cpu"
    local = int(os.environ["LOCAL_RANK"])
    if local >= gpus:
        raise UsageError(f"process {local} of this machine has no GPU of {gpus}: start fewer, or give --device cpu")
    return f"cuda:{local}"


def is_launched_by_us() -> bool:
    return LIFELINE in os.environ


def launched() -> tuple[int, int] | None:
    """(rank, number) of this process as its launcher says (ours, torchrun, accelerate launch); None without one.

    Raises UsageError if the environment says only half of it.
    """
    number = os.environ.get("WORLD_SIZE", "1")
    if number == "1":
        return None
    needed = {name: os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    missing = [name for name, value in needed.items() if value is None]
    if missing or not (number.isdecimal() and str(needed["RANK"]).isdecimal()):
        raise UsageError(
            f"WORLD_SIZE={number} says that several processes train together, but {' and '.join(missing) or 'RANK'} "
            "does not fit: start them with --processes, torchrun or accelerate launch"
        )
    return int(str(needed["RANK"])), int(number)


def launch(number: int, arguments: Sequence[str]) -> int:
    """Run `ddclip ARGUMENTS` in `number` processes that know of each other -> their exit code.

    Signals are handed on; when one process ends badly, the others are ended too. The processes end by themselves if
    this one is killed, so that none goes on alone.

    Raises:
        UserError: one of them was killed.
    """
    lifeline, held = os.pipe()
    environment = os.environ | {
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        LIFELINE: str(lifeline),
    }
    # Or every process would start a thread a core.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
    command = [sys.executable, "-m", "ddclip_cli", *arguments]
    children: list[subprocess.Popen] = []
    asked: list[int] = []  # signals to hand on

    def hand_on(signal_number: int, _frame: object) -> None:
        asked.append(signal_number)
        for child in children:
            if child.poll() is None:
                child.send_signal(signal_number)

    before = {heard: signal.signal(heard, hand_on) for heard in (signal.SIGINT, signal.SIGTERM)}
    try:
        for rank in range(number):
            own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # A session of its own: a Ctrl-C comes from here alone, once.
            children.append(subprocess.Popen(command, env=own, pass_fds=(lifeline,), start_new_session=True))
        rank, code = _wait(children)
    finally:
        for heard, handler in before.items():
            signal.signal(heard, handler)
        for child in children:
            child.kill()
            child.wait()
        os.close(lifeline)
        os.close(held)
    if asked:
        return 128 + asked[0]
    if code < 0:
        name = signal.Signals(-code).name + (" (out of memory?)" if -code == signal.SIGKILL else "")
        raise UserError(f"process {rank} of {number} was ended by {name}: --resume goes on from the last checkpoint")
    return code


def end_with_the_launcher() -> None:
    """In a process that `launch` started: end at once when the launcher is gone."""
    lifeline = os.environ.get(LIFELINE)
    if lifeline is None:
        return

    def wait() -> None:
        os.read(int(lifeline), 1)  # nothing is ever written: it returns when the other end is closed
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="lifeline").start()


def _wait(children: Sequence[subprocess.Popen]) -> tuple[int, int]:
    """(rank, exit code) of the first that failed, which ends the rest, or (0, 0)."""
    failed, deadline = (0, 0), math.inf
    while any(child.poll() is None for child in children):
        if failed == (0, 0) and (failed := _failure(children)) != (0, 0):
            deadline = time.monotonic() + PATIENCE
            for child in children:
                if child.poll() is None:
                    child.terminate()
        if time.monotonic() > deadline:
            for child in children:
                child.kill()
        time.sleep(0.05)
    return failed if failed != (0, 0) else _failure(children)


def _failure(children: Sequence[subprocess.Popen]) -> tuple[int, int]:
    """Of those that failed by now the one that was killed, as the others fail for want of it; else the first."""
    failed = [(rank, child.returncode) for rank, child in enumerate(children) if child.returncode]
    return next((ended for ended in failed if ended[1] < 0), failed[0] if failed else (0, 0))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
