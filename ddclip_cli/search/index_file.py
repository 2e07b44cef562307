"""The file of an index: what faiss wrote, and behind it a record of ours. faiss alone reads it too.

Such a file may come from anywhere, and faiss trusts what it reads. So nothing reaches faiss before it has been held
against the record, and nothing that faiss made of it is used before its numbers are known to be in range.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from ddclip_cli import files
from ddclip_cli.errors import UserError

FORMAT, VERSION = "ddclip-index", 1
SUFFIX = ".index"
TAIL = struct.Struct("<Q8s")  # length of the record, mark
MARK = b"ddclipix"
MAX_RECORD = 1 << 20
HEAD_BYTES = 1 << 20
NAMES = {"fp16": b"IxSQ", "int8": b"IxSQ", "ivf": b"IwSq", "hnsw": b"IHNs"}
"""What faiss calls the kinds, in the first four bytes of a file."""
MAPPED = ("fp16", "int8")
"""Kinds whose vectors cannot mislead the search into other memory: they are mapped, and their head alone is checked."""


@dataclass(frozen=True)
class IndexRecord:
    """What stands behind an index."""

    kind: str
    embeddings: str
    """The file it was made from, as seen from the folder of the index."""
    content: str
    """Of the vectors it was made from: see `content_of`."""
    objects: int
    width: int
    probes: int
    """How far a query looks around: lists of an ivf, candidates of an hnsw; 0 where it looks at all."""
    recall_at_10: float
    milliseconds: float
    """Of one query, the median when it was built."""
    exact_milliseconds: float
    """The same by exact search."""
    queries: int
    threads: int


def write_index(path: Path, index: Any, record: IndexRecord) -> None:
    """Write both in one file, which has its name only when it is whole."""
    with files.writing(path) as partial:
        try:
            faiss.write_index(index, str(partial))
        except RuntimeError as error:
            raise UserError(f"{path} could not be written: make room, or choose another --out") from error
        size = partial.stat().st_size
        checksum = _checksum(partial, size if record.kind not in MAPPED else min(size, HEAD_BYTES))
        document = {"format": FORMAT, "version": VERSION, "size": size, "checksum": checksum, **asdict(record)}
        text = json.dumps(document, sort_keys=True).encode()
        with partial.open("ab") as file:
            file.write(text + TAIL.pack(len(text), MARK))


def read_record(path: Path) -> IndexRecord:
    """The record of an index file; UserError for a file that is none, is cut off or is damaged."""
    return _read(path)[0]


def read_index(path: Path) -> tuple[Any, IndexRecord]:
    """The index, its vectors mapped, and its record.

    Raises UserError for a file that is no index of ours, is cut off, is damaged, or would lead faiss out of its memory.
    """
    record, size, checksum = _read(path)
    damaged = UserError(f"{path} is damaged: build it again with `ddclip index`")
    with path.open("rb") as file:
        name = file.read(4)
    checked = size if record.kind not in MAPPED else min(size, HEAD_BYTES)
    if name != NAMES[record.kind] or _checksum(path, checked) != checksum:
        raise damaged
    try:
        with _limits(bytes_of_a_vector=size, loops=max(record.objects, 1 << 16)):
            index: Any = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except (RuntimeError, MemoryError):
        raise damaged from None
    if index.d != record.width or index.ntotal != record.objects or not _is_sound(index, record.kind):
        raise damaged
    return index, record


def _read(path: Path) -> tuple[IndexRecord, int, int]:
    """The record, and size and checksum of what faiss wrote."""
    refused = UserError(f"{path} is no index of ddclip, or is cut off: build it again with `ddclip index`")
    if not path.is_file():
        raise UserError(f"there is no index {path}")
    total = path.stat().st_size
    if total < TAIL.size:
        raise refused
    with path.open("rb") as file:
        file.seek(total - TAIL.size)
        length, mark = TAIL.unpack(file.read(TAIL.size))
        if mark != MARK or length > min(MAX_RECORD, total - TAIL.size):
            raise refused
        file.seek(total - TAIL.size - length)
        text = file.read(length)
    try:
        document = json.loads(text)
        version = document.pop("version")
        if document.pop("format") != FORMAT or document["kind"] not in NAMES:
            raise refused
        if version != VERSION:
            raise UserError(f"{path} has version {version} of the index format: update ddclip to read it")
        size, checksum = int(document.pop("size")), int(document.pop("checksum"))
        record = IndexRecord(**document)
        numbers = (record.objects, record.width, record.probes)
        if not all(type(number) is int and 0 <= number < 1 << 40 for number in numbers):
            raise refused
        if not isinstance(record.embeddings, str) or size != total - TAIL.size - length:
            raise refused
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise refused from None
    return record, size, checksum


@contextmanager
def _limits(*, bytes_of_a_vector: int, loops: int) -> Iterator[None]:
    """What faiss believes of a file while it reads one; the limits are those of the whole process."""
    before = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
    faiss.set_deserialization_vector_byte_limit(bytes_of_a_vector)
    faiss.set_deserialization_loop_limit(loops)
    try:
        yield
    finally:
        faiss.set_deserialization_vector_byte_limit(before[0])
        faiss.set_deserialization_loop_limit(before[1])


def _checksum(path: Path, size: int) -> int:
    checksum = 0
    with path.open("rb") as file:
        while size > 0:
            data = file.read(min(size, 1 << 24))
            if not data:
                break
            checksum = zlib.crc32(data, checksum)
            size -= len(data)
    return checksum


def _is_sound(index: Any, kind: str) -> bool:
    """Whether a search stays inside the index: a checksum is no proof, whoever makes a file makes it too."""
    if kind in MAPPED:
        return index.codes.size() == index.ntotal * index.code_size
    if kind == "ivf":
        sizes = [index.invlists.list_size(number) for number in range(index.nlist)]
        whole = index.code_size == index.invlists.code_size and index.quantizer.d == index.d
        return whole and sum(sizes) == index.ntotal and index.quantizer.ntotal == index.nlist
    storage: Any = faiss.downcast_index(index.storage)
    graph = index.hnsw
    links = graph.neighbors.size()  # many, so they are looked at where they lie
    neighbours = faiss.rev_swig_ptr(graph.neighbors.data(), links) if links else np.empty(0, np.int32)
    offsets = faiss.vector_to_array(graph.offsets)
    levels, per_level = faiss.vector_to_array(graph.levels), faiss.vector_to_array(graph.cum_nneighbor_per_level)
    return bool(
        storage.ntotal == index.ntotal
        and storage.d == index.d
        and storage.codes.size() == index.ntotal * storage.code_size
        and len(levels) == index.ntotal == len(offsets) - 1
        and levels.min(initial=1) >= 1
        and levels.max(initial=0) < len(per_level)
        and (np.diff(per_level) >= 0).all()
        and offsets[0] == 0
        and (np.diff(offsets.astype(np.int64)) == per_level[levels]).all()
        and offsets[-1] == len(neighbours)
        and neighbours.min(initial=0) >= -1
        and neighbours.max(initial=-1) < index.ntotal
        and 0 <= graph.entry_point < index.ntotal
        and graph.max_level + 1 == levels[graph.entry_point]
    )
