"""The files that a mesh file names, found without loading it: what its views depend on besides its own bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ddclip_cli.errors import UserError
from ddclip_cli.render.outside import FilesBeside

URI = re.compile(rb'"uri"\s*:\s*("[^"\\]*(?:\\.[^"\\]*)*")')
NAMES = {
    ".gltf": URI,
    ".glb": URI,
    ".obj": re.compile(rb"mtllib[ \t]+([^\r\n]+)"),
    ".mtl": re.compile(rb"(?:map_\w+|bump|disp|decal|refl|norm)[ \t]+([^\r\n]+)"),
    ".ply": re.compile(rb"TextureFile[ \t]+([^\r\n]+)"),
    ".dae": re.compile(rb"<init_from>\s*([^<]+?)\s*<"),
    ".fbx": re.compile(rb'RelativeFilename(?:: "([^"]*)|S(..\0\0))', re.DOTALL),  # as text; in binary, its length
}
"""How each kind of file names others; the other formats hold all that is drawn."""
PLY_HEADER = 1 << 16
MOST = 10_000  # names in one file that are looked for


def bytes_named(path: Path) -> Iterator[bytes]:
    """A mesh file and the files beside it that it names, and those that these name, as bytes: each once.

    What is not there, or may not be read, is left out: drawing the mesh says what comes of it. Raises OSError if the
    mesh file itself cannot be read.
    """
    data = path.read_bytes()
    yield data
    beside = FilesBeside(path.parent, str(path))
    left, seen = [(path.suffix.lower(), data)], set()
    while left:
        suffix, data = left.pop()
        for name in islice(_names(suffix, data), MOST):
            if name not in seen:
                seen.add(name)
                try:
                    found = beside.find(name)
                except (UserError, OSError):
                    continue
                if found is not None:
                    yield found
                    if (inner := Path(name).suffix.lower()) in NAMES:
                        left.append((inner, found))


def _names(suffix: str, data: bytes) -> Iterator[str]:
    if suffix not in NAMES:
        return
    if suffix == ".glb":
        data = data[20 : 20 + int.from_bytes(data[12:16], "little")]  # its JSON
    elif suffix == ".ply":
        data = data[:PLY_HEADER]
    for match in NAMES[suffix].finditer(data):
        found = match[1]
        if found is None:
            found = data[match.end() : match.end() + int.from_bytes(match[2], "little")]
        text = found.decode(errors="replace")
        if NAMES[suffix] is URI:
            try:
                text = json.loads(text)
            except ValueError:
                continue
            if not text.startswith("data:"):
                yield text
            continue
        # Options stand before the name of a file, which may have spaces itself; and there may be several.
        words = text.strip().split(" ")[:16]
        yield from (" ".join(words[start:]) for start in range(len(words)))
        yield from words
