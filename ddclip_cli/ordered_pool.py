"""Worker processes whose results come in the order of the tasks, a bounded number ahead."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, TypeVar

from ddclip_cli.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    jobs: int,
    died: Callable[[Task], Result] | None = None,
    settle: Callable[[int, int], None] | None = None,
) -> Iterator[Result]:
    """`map(function, tasks)` over `jobs` processes; at most four results a process wait to be taken.

    `function`, tasks and results must be picklable; `function` goes to each process once. A task that ends its process
    (a crash in native code, no memory) has the result `died(task)`, and the others go on; without `died` that is a
    UserError, and one job works in this process.

    Args:
        settle: called in each process before its first task with the process's number and `jobs`; a method of
            `function` finds there the very object that does the tasks.
    """
    if jobs == 1 and died is None:
        yield from map(function, tasks)
        return
    with _Pool(function, jobs, settle) as pool, _Pool(function, 1, settle) as alone:
        waiting: deque[tuple[Task, Future[Result]]] = deque()

        def first() -> Result:
            """The result of the task that has waited longest."""
            task, future = waiting.popleft()
            try:
                return future.result()
            except BrokenProcessPool:
                if died is None:
                    raise UserError(
                        "a worker process was killed, perhaps for want of memory: try fewer --jobs"
                    ) from None
            # Which task it was does not show. So the one that has waited longest is done again by itself.
            try:
                return alone.submit(task).result()
            except BrokenProcessPool:
                return died(task)

        for task in tasks:
            waiting.append((task, pool.submit(task)))
            if len(waiting) >= 4 * jobs:
                yield first()
        while waiting:
            yield first()


class _Pool:
    """Processes that are started anew after one has died."""

    def __init__(
        self, function: Callable[[Any], Any], jobs: int, settle: Callable[[int, int], None] | None = None
    ) -> None:
        self.function, self.jobs, self.settle = function, jobs, settle
        self.executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        if self.executor is not None:
            self.executor.shutdown(cancel_futures=True)

    def submit(self, task: Any) -> Future[Any]:
        if self.executor is not None:
            try:
                return self.executor.submit(_do, task)
            except BrokenProcessPool:
                self.executor.shutdown()
        # Spawned, not forked: the parent may hold threads and open files that must not be copied.
        spawn = multiprocessing.get_context("spawn")
        # As bytes: torch would otherwise move tensors into shared memory, of which there may be little.
        work = pickle.dumps((self.function, self.settle))
        self.executor = ProcessPoolExecutor(
            self.jobs, mp_context=spawn, initializer=_start_worker, initargs=(work, spawn.Value("i", 0), self.jobs)
        )
        return self.executor.submit(_do, task)


def _start_worker(work: bytes, started: Any, jobs: int) -> None:
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with started.get_lock():
        number, started.value = started.value, started.value + 1
    _function, settle = pickle.loads(work)
    if settle:
        settle(number, jobs)


_function: Callable[[Any], Any]
"""What this worker does."""


def _do(task: Any) -> Any:
    return _function(task)


def _end_with_parent() -> None:
    """A killed parent cannot end its workers, and a queue of tasks does not tell them."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
