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
from functools import cache, partial
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from ddclip_cli.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_order(
    function: Callable[..., Result],
    tasks: Iterable[Task],
    *,
    jobs: int,
    prepare: Callable[[int], Any] | None = None,
    died: Callable[[Task], Result] | None = None,
    abandon: bool = False,
) -> Iterator[Result]:
    """`map(function, tasks)` over `jobs` processes; at most four results a process wait to be taken.

    `function`, `prepare`, tasks and results must be picklable; the first two go to each process once. One job works in
    this process, unless `died` is given.

    Args:
        prepare: makes something in each process, of its number, once before its first task; `function` is given it
            before the task.
        died: the result of a task that ends its process (a crash in native code, no memory), where the others go on;
            without it that is a UserError.
        abandon: when the caller is interrupted, end the processes within their tasks instead of after them; for long
            tasks that leave nothing behind.
    """
    if jobs == 1 and died is None:
        yield from map(function if prepare is None else partial(function, prepare(0)), tasks)
        return
    with _Pool(function, prepare, jobs, abandon) as pool, _Pool(function, prepare, 1, abandon) as alone:
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
        self, function: Callable[..., Any], prepare: Callable[[int], Any] | None, jobs: int, abandon: bool
    ) -> None:
        self.function, self.prepare, self.jobs, self.abandon = function, prepare, jobs, abandon
        self.executor: ProcessPoolExecutor | None = None
        # Spawned, not forked: the parent may hold threads and open files that must not be copied.
        self.spawn = multiprocessing.get_context("spawn")
        # Processes end when the other end is closed. (An Event would wait for those that were killed to wake up.)
        self.until, self.end = self.spawn.Pipe(duplex=False)

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None and self.abandon:
            self.end.close()
        if self.executor is not None:
            self.executor.shutdown(cancel_futures=True)
        self.end.close()
        self.until.close()

    def submit(self, task: Any) -> Future[Any]:
        if self.executor is not None:
            try:
                return self.executor.submit(_do, task)
            except BrokenProcessPool:
                self.executor.shutdown()
        # As bytes: torch would otherwise move tensors into shared memory, of which there may be little.
        work = pickle.dumps((self.function, self.prepare))
        arguments = (work, self.spawn.Value("i", 0), self.until)
        self.executor = ProcessPoolExecutor(
            self.jobs, mp_context=self.spawn, initializer=_start_worker, initargs=arguments
        )
        return self.executor.submit(_do, task)


_function: Callable[[Any], Any]
"""What this worker process does."""


def _do(task: Any) -> Any:
    return _function(task)


def _start_worker(work: bytes, started: Any, until: Connection) -> None:
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    threading.Thread(target=_end_with_parent, args=(until,), daemon=True).start()
    with started.get_lock():
        number, started.value = started.value, started.value + 1
    function, prepare = pickle.loads(work)  # of our own parent, handed over in memory
    if prepare is not None:
        prepared = cache(partial(prepare, number))  # at the first task, where its errors can be told
        _function = lambda task: function(prepared(), task)  # noqa: E731
    else:
        _function = function


def _end_with_parent(until: Connection) -> None:
    """A killed parent cannot end its workers, and a queue of tasks does not tell them; nor that they are abandoned."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel, until])
        os._exit(1)
