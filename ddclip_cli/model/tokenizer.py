"""CLIP's byte pair encoding, from open_clip's own vocabulary: the same token ids, without importing open_clip."""

from __future__ import annotations

import gzip
import html
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import ftfy
import regex

from ddclip_cli.errors import UserError

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
NUM_MERGES = 49152 - 256 - 2
START, END = "<start_of_text>", "<end_of_text>"
PIECES = regex.compile(
    rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
)


class Tokenizer:
    """Texts -> token ids, as open_clip's `SimpleTokenizer` with its defaults makes them."""

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length
        letters = list(_letters().values())
        merges = _merges()
        self._rank = {merge: rank for rank, merge in enumerate(merges)}
        words = [*letters, *[f"{letter}</w>" for letter in letters], *[merge.replace(" ", "") for merge in merges]]
        self._id = {word: number for number, word in enumerate([*words, START, END])}

    @property
    def end(self) -> int:
        """The id of the last token of every text, the greatest of all ids."""
        return self._id[END]

    def __call__(self, texts: Sequence[str]) -> tuple[list[list[int]], list[str]]:
        """The ids of every text from its start to its end token, and the texts that had to be cut."""
        rows, cut = [], []
        for text in texts:
            ids = [self._id[START], *self.encode(text), self.end]
            if len(ids) > self.context_length:
                cut.append(text)
                ids = [*ids[: self.context_length - 1], self.end]
            rows.append(ids)
        return rows, cut

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without start and end."""
        return [self._id[part] for word in self._words(text) for part in self._split(word)]

    def _words(self, text: str) -> Iterator[str]:
        """Pieces of the cleaned text, each byte as one printable letter."""
        cleaned = html.unescape(html.unescape(ftfy.fix_text(text)))
        for piece in PIECES.findall(" ".join(cleaned.split()).lower()):
            if piece in (START, END):
                yield piece
            else:
                yield "".join(_letters()[byte] for byte in piece.encode())

    def _split(self, word: str) -> list[str]:
        """The parts of a word: the pair that was merged first in training is joined first, wherever it stands."""
        if word in (START, END):
            return [word]
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            pairs = [f"{left} {right}" for left, right in pairwise(parts)]
            best = min(pairs, key=lambda pair: self._rank.get(pair, NUM_MERGES))
            if best not in self._rank:
                break
            joined: list[str] = []
            place = 0
            while place < len(parts):
                if place < len(pairs) and pairs[place] == best:
                    joined.append(best.replace(" ", ""))
                    place += 2
                else:
                    joined.append(parts[place])
                    place += 1
            parts = joined
        return parts


@cache
def _letters() -> dict[int, str]:
    """Byte -> the letter that stands for it in the vocabulary: itself where it can be seen."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {byte: chr(byte) for byte in seen}
    unseen = [byte for byte in range(256) if byte not in letters]
    return letters | {byte: chr(256 + number) for number, byte in enumerate(unseen)}


def open_clip_folder() -> Path:
    """Where open_clip's own files are: found, not imported, which takes seconds."""
    spec = find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("open_clip is not installed: install ddclip again")
    return Path(spec.submodule_search_locations[0])


def _merges() -> list[str]:
    """`left right` of every merge, the first learned first."""
    path = open_clip_folder() / VOCABULARY
    return gzip.decompress(path.read_bytes()).decode().split("\n")[1 : NUM_MERGES + 1]
