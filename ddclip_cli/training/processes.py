"""The processes that share a training run: who they are, and what they tell each other.

Every process holds the whole model and takes an equal share of every global batch. Process 0, the main one, alone
evaluates, writes the run folder and speaks. Objects and flags go over gloo, whatever carries the gradients, so that
waiting for an evaluation does not keep a GPU busy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ddclip_cli.errors import UsageError, UserError
from ddclip_cli.training.launch import launched

T = TypeVar("T")

LONGEST_WAIT = timedelta(minutes=30)
"""Of one process for the others. One that has died is noticed at once, but not a machine without power or network."""
LONGEST_EVALUATION = timedelta(days=1)
"""Of the main process, for which the others wait."""


class LostProcessError(UserError):
    """Another process of the run is gone."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        # It may be the main one, and its machine with it: the first process of every machine says it.
        self.is_shared = os.environ.get("LOCAL_RANK", "0") != "0"


def _noticing_loss(method: Callable[..., T]) -> Callable[..., T]:
    """A message that cannot be sent or received means that its other end is gone."""

    @wraps(method)
    def call(*arguments: Any, **named: Any) -> T:
        try:
            return method(*arguments, **named)
        except RuntimeError as error:
            raise LostProcessError(
                f"another process of this run has ended, here or on another machine ({_reason(error)}): "
                "its own message says why, if it left one; --resume goes on from the last checkpoint"
            ) from error

    return call


def _reason(error: RuntimeError) -> str:
    """Its first sentence, without the place in gloo's source."""
    return re.sub(r"\[/.*?\] |\. .*", "", str(error).splitlines()[0])


class Processes:
    """All processes of a run, seen from one of them; a run of one process needs no messages.

    Args:
        rank: number of this process, from 0.
        number: of processes.
        control: the gloo group of their messages; None if there is one process.
        patient: the one of those messages that are waited for as long as an evaluation takes.
    """

    def __init__(self, rank: int = 0, number: int = 1, control: Any = None, patient: Any = None) -> None:
        self.rank, self.number, self._control, self._patient = rank, number, control, patient

    @classmethod
    def join(cls, device: torch.device) -> Processes:
        """Meet the others that a launcher started, if it says in the environment that there are any.

        Raises UserError if they cannot be reached.
        """
        started = launched()
        if started is None:
            return cls()
        rank, number = started
        try:
            if not dist.is_initialized():
                backend = "gloo" if device.type == "cpu" else "nccl"
                dist.init_process_group(backend, rank=rank, world_size=number, timeout=LONGEST_WAIT)
            waits = (LONGEST_WAIT, LONGEST_EVALUATION)
            return cls(rank, number, *(dist.new_group(backend="gloo", timeout=longest) for longest in waits))
        except RuntimeError as error:
            raise UserError(
                f"the processes of this run do not reach each other ({_reason(error)}): where a machine's own name "
                "leads to 127.0.0.1 or 127.0.1.1, set GLOO_SOCKET_IFNAME to its network interface"
            ) from error

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def leave(self) -> None:
        """No more messages; after that a new `join` is possible."""
        if self.number > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def share(self, total: int) -> slice:
        """This process's part of `total` rows, which every process has equally many of."""
        size = total // self.number
        return slice(self.rank * size, (self.rank + 1) * size)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows (B / N, E) of all processes in their order -> (B, E), with gradient."""
        return rows if self.number == 1 else _Gather.apply(rows, self)

    @_noticing_loss
    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.number > 1:
            for waiting in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                waiting.wait()

    @_noticing_loss
    def any(self, *flags: bool) -> list[bool]:
        """Whether each flag is raised in some process."""
        if self.number == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self._control)
        return [bool(flag) for flag in raised]

    @_noticing_loss
    def from_main(self, value: T, *, patiently: bool = False) -> T:
        """What `value` is in the main process (a pickle of ours, without tensors: they would go to its own GPU)."""
        if self.number == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._patient if patiently else self._control)
        return box[0]

    @_noticing_loss
    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Give each tensor, in place, the numbers that it has in the main process."""
        if self.number > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def agree(self, error: UserError | None) -> None:
        """Raise in every process if there is an error in one: the first one's, with its process if not the main."""
        told = self._from_all(None if error is None else (error.exit_code, str(error)))
        for rank, said in enumerate(told):
            if said is not None:
                code, sentence = said
                kind = UsageError if code == UsageError.exit_code else UserError
                agreed = kind(sentence if rank == 0 else f"process {rank}: {sentence}")
                agreed.is_shared = True
                raise agreed from error

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block in every process; a UserError in one is raised by all, when all are through with it."""
        error = None
        try:
            yield
        except LostProcessError:
            raise
        except UserError as failed:
            error = failed
        self.agree(error)

    @_noticing_loss
    def _from_all(self, value: T) -> list[T]:
        if self.number == 1:
            return [value]
        box: list[Any] = [None] * self.number
        dist.all_gather_object(box, value, group=self._control)
        return box


class _Gather(torch.autograd.Function):
    """All rows for every process; a row's gradient is the sum of what all processes make of it."""

    @staticmethod
    def forward(context: Any, rows: Tensor, processes: Processes) -> Tensor:
        context.processes, context.size = processes, len(rows)
        parts = [torch.empty_like(rows) for _ in range(processes.number)]
        _noticing_loss(dist.all_gather)(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        summed = gradient.contiguous().clone()
        context.processes.add_up([summed])
        return summed[context.processes.share(len(summed))], None
