"""What a mesh file may make us read, and how much: the files that it names, its pictures, the sizes that it claims."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import numpy as np
from PIL import Image

from ddclip_cli.errors import UserError
from ddclip_cli.render.pictures import TooManyPixels, opened, pixels_of

MAX_BYTES = 2 * 2**30  # of a mesh file, and of each file that it names
MAX_TRIANGLES = 20_000_000
NOT_PICTURES = (".bin", ".mtl", ".gltf", ".glb")


class FilesBeside:
    """Gives a reader the files that a mesh names: those in its folder or below it, and no others.

    It also keeps what will be drawn otherwise than the file says, since loaders go on without what they could not get.
    """

    def __init__(self, folder: Path | None, name: str) -> None:
        self.folder = None if folder is None else folder.resolve()
        self.name = name
        self.refused: UserError | None = None
        self.notes: list[str] = []
        self._decoded: dict[bytes, np.ndarray | None] = {}

    def note(self, text: str) -> None:
        """Keep one thing that will be drawn otherwise than the file says."""
        if text not in self.notes:
            self.notes.append(text)

    def refuse(self, why: str) -> UserError:
        """An error to raise, also if the loader in between swallows it."""
        error = UserError(f"{self.name}: {why}")
        self.refused = self.refused or error
        return error

    def get(self, key: str) -> bytes:
        """The bytes of a file. Raises UserError if it may not or cannot be read."""
        data = self.find(key)
        if data is None:
            self.note(f"{key!r} is missing, drawn without")
            raise UserError(f"{self.name}: the file {key!r} that it names is not there")
        if Path(key).suffix.lower() not in NOT_PICTURES:
            try:
                with opened(data):
                    pass
            except TooManyPixels as error:
                raise self.refuse(f"its texture {key!r} {error}") from None
            except Exception:
                self.note(f"{key!r} is unreadable, drawn without")
        return data

    def find(self, key: str) -> bytes | None:
        """The bytes of a file, None if it is not there. Raises UserError if it may not be read."""
        try:
            path = self._place(key.strip().replace("\\", "/"))
        except (OSError, ValueError):  # no possible file name
            return None
        if path is None:
            return None
        if path.stat().st_size > MAX_BYTES:
            raise self.refuse(f"the file {key!r} that it names is larger than {MAX_BYTES >> 30} GiB")
        return path.read_bytes()

    def decode(self, data: bytes, name: str) -> np.ndarray | None:
        """A picture's pixels, (H, W, 3 or 4) uint8, one array for the same bytes; None, with a note, if it is none.

        Raises UserError if it has too many pixels.
        """
        digest = hashlib.sha256(data).digest()
        if digest not in self._decoded:
            self._decoded[digest] = None
            try:
                with opened(data) as picture:
                    self._decoded[digest] = pixels_of(picture)
            except TooManyPixels as error:
                raise self.refuse(f"its texture {name} {error}") from None
            except Exception:
                self.note(f"the texture {name} is unreadable, drawn plain")
        return self._decoded[digest]

    def decode_opened(self, picture: Image.Image) -> np.ndarray | None:
        """The same for a picture that a loader has opened."""
        try:
            return pixels_of(picture)
        except Exception:
            self.note("a texture is unreadable, drawn plain")
            return None

    # What trimesh asks of a resolver besides `get`.

    def __getitem__(self, key: str) -> bytes:
        return self.get(key)

    def __contains__(self, key: str) -> bool:
        return False

    def keys(self) -> list[str]:
        return []

    def namespaced(self, namespace: str) -> FilesBeside:
        return self

    def _place(self, name: str) -> Path | None:
        """Where a file lies that a mesh names, None for nowhere."""
        if "://" in name:
            raise self.refuse(f"it names {name!r}, an address on the network: put the file beside it instead")
        if self.folder is None:
            return None
        outside = False
        # As it stands, as an address has it (`%20`), and by its last part: exporters leave paths of other machines.
        for candidate in (name, unquote(name), PurePosixPath(unquote(name)).name):
            path = (self.folder / candidate).resolve()
            if not path.is_relative_to(self.folder):
                outside = True
            elif path.is_file():
                return path
        if outside:
            raise self.refuse(f"it names {name!r}, outside its folder: put the file beside it instead")
        return None


def check_archive(data: bytes, name: str) -> None:
    """Raise UserError if a zip file unpacks to more than a mesh file may hold."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
            raise UserError(f"{name}: unpacks to more than {MAX_BYTES >> 30} GiB")


def check_off(data: bytes, triangles: int, name: str) -> None:
    """Raise UserError if an .off file ends before the last of its faces, which its loader does not mind."""
    counts = re.search(rb"OFF\s*(?:#.*\s*)*\d+\s+(\d+)", data[:4096])
    if counts and triangles < int(counts[1]):
        raise UserError(f"{name}: ends early, with {triangles:,} triangles of {int(counts[1]):,} faces")


def check_triangles(number: int, name: str) -> None:
    if number > MAX_TRIANGLES:
        raise UserError(f"{name}: has {number:,} triangles, more than the {MAX_TRIANGLES:,} drawn here: simplify it")
