"""Worker processes whose results come in the order of the tasks, a bounded number ahead."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from ddclip_cli.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    jobs: int,
    died: Callable[[Task], Result] | None = None,
) -> Iterator[Result]:
    """`map(function, tasks)` over `jobs` processes; at most four results a process wait to be taken.

    `function`, tasks and results must be picklable. A task that ends its process (a crash in native code, no memory)
    has the result `died(task)`, and the others go on; without `died` that is a UserError, and one job works in this
    process.
    """
    if jobs == 1 and died is None:
        yield from map(function, tasks)
        return
    with _Pool(jobs) as pool, _Pool(1) as alone:
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
                return alone.submit(function, task).result()
            except BrokenProcessPool:
                return died(task)

        for task in tasks:
            waiting.append((task, pool.submit(function, task)))
            if len(waiting) >= 4 * jobs:
                yield first()
        while waiting:
            yield first()


class _Pool:
    """Processes that are started anew after one has died."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        if self.executor is not None:
            self.executor.shutdown(cancel_futures=True)

    def submit(self, function: Callable[[Task], Result], task: Task) -> Future[Result]:
        if self.executor is not None:
            try:
                return self.executor.submit(function, task)
            except BrokenProcessPool:
                self.executor.shutdown()
        # Spawned, not forked: the parent may hold threads and open files that must not be copied.
        spawn = multiprocessing.get_context("spawn")
        self.executor = ProcessPoolExecutor(self.jobs, mp_context=spawn, initializer=_start_worker)
        return self.executor.submit(function, task)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot end its workers, and a queue of tasks does not tell them."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
