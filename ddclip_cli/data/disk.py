"""How much room there is for a file that is not there yet."""

from __future__ import annotations

import shutil
from pathlib import Path


def nearest_folder(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    while not path.exists():
        path = path.parent
    return path


def free_bytes(path: Path) -> int:
    """Of the disk that `path` is on or will be on."""
    return shutil.disk_usage(nearest_folder(path)).free
