"""How a run is told to end: SIGTERM, as schedulers send it, is heard between steps and leaves a checkpoint."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

TERMINATED = 128 + signal.SIGTERM


class Ending:
    """Hears SIGTERM while it is entered: inside a step it waits for the step's end, elsewhere it ends the run at once.

    Nothing is lost outside steps, as an evaluation begins with a checkpoint.
    """

    def __init__(self) -> None:
        self.asked = False
        self.in_steps = False

    def __enter__(self) -> Ending:
        self._before: Any = None
        if threading.current_thread() is threading.main_thread():  # Python lets no other hear signals
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _hear(self, number: int, _frame: Any) -> None:
        self.asked = True
        if not self.in_steps:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the unwinding short
            sys.exit(128 + number)
