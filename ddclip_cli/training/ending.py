"""How a run is told to end: SIGTERM, as schedulers send it, is heard between steps and leaves a checkpoint."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TERMINATED = 128 + signal.SIGTERM


class Ending:
    """Hears SIGTERM while it is entered, and remembers it; only what may be cut short is ended at once."""

    def __init__(self) -> None:
        self.asked = False
        self._at_once = False

    def __enter__(self) -> Ending:
        self._before: Any = None
        if threading.current_thread() is threading.main_thread():  # Python lets no other hear signals
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    @contextmanager
    def may_be_cut_short(self) -> Iterator[None]:
        """Around work that takes long and is repeated when the run goes on: an evaluation."""
        if self.asked:
            sys.exit(TERMINATED)
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _hear(self, _number: int, _frame: Any) -> None:
        self.asked = True
        if self._at_once:
            self._at_once = False  # a second one must not cut the unwinding short
            sys.exit(TERMINATED)
