"""Text features that were asked for before, kept between runs: the same query again needs no model."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

MAX_ENTRIES = 20_000
"""About 50 MB at 512 numbers each; the oldest go first."""


def cache_folder() -> Path:
    """Where ddclip keeps what it can make again: `DDCLIP_CACHE`, else `ddclip` in the user's cache folder."""
    own = os.environ.get("DDCLIP_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddclip"


class FeatureCache:
    """Vectors by (model, text) in a small database. Only digests of the texts are stored.

    A cache never stands in the way: one that cannot be read or written is an empty one, and a damaged one is removed.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_folder() / "text_features.sqlite"

    def get(self, fingerprint: str, texts: Sequence[str], width: int) -> dict[str, np.ndarray]:
        """Text -> (E,) float32 of those that are here."""
        found: dict[str, np.ndarray] = {}
        if not self.path.is_file():
            return found
        with self._tolerant(), self._database() as database:
            for text in texts:
                key = _key(fingerprint, text)
                row = database.execute("SELECT vector FROM features WHERE key = ?", (key,)).fetchone()
                vector = np.frombuffer(row[0], "<f4") if row else np.empty(0)
                if vector.shape == (width,) and np.isfinite(vector).all():
                    found[text] = vector
        return found

    def put(self, fingerprint: str, features: dict[str, np.ndarray]) -> None:
        now = time.time_ns()
        rows = [(_key(fingerprint, text), vector.astype("<f4").tobytes(), now) for text, vector in features.items()]
        with self._tolerant(), self._database() as database, database:
            database.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", rows[-MAX_ENTRIES:])
            (count,) = database.execute("SELECT COUNT(*) FROM features").fetchone()
            if count > MAX_ENTRIES:
                oldest = "SELECT key FROM features ORDER BY made LIMIT ?"
                database.execute(f"DELETE FROM features WHERE key IN ({oldest})", (count - MAX_ENTRIES,))

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.path, timeout=1)) as database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS features (key BLOB PRIMARY KEY, vector BLOB, made INTEGER) WITHOUT ROWID"
            )
            yield database

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        """What goes wrong with the database ends the block, and no more."""
        try:
            yield
        except (sqlite3.OperationalError, OSError):  # locked, full, not writable
            pass
        except sqlite3.DatabaseError:
            self.path.unlink(missing_ok=True)


def _key(fingerprint: str, text: str) -> bytes:
    return hashlib.sha256(f"{fingerprint}\0{text}".encode("utf-8", "surrogatepass")).digest()
