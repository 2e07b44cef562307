"""What a mesh file may make us read, and how much: the files that it names, its pictures, the sizes that it claims."""

from __future__ import annotations

import base64
import io
import json
import re
import struct
import warnings
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from PIL import Image

from ddclip_cli.errors import UserError

MAX_BYTES = 2 * 2**30  # of a mesh file, and of each file that it names
MAX_TRIANGLES = 20_000_000
MAX_PICTURE = 8192 * 8192  # pixels of a texture; a small file can claim any number of them
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "TGA")  # Pillow knows others that run programs
NOT_PICTURES = (".bin", ".mtl", ".gltf", ".glb")
NOT_READ = ("EXT_meshopt_compression", "KHR_meshopt_compression")  # geometry that is not there without them
GL_UNSIGNED_SHORT = 5123
NOT_DRAWN = ("KHR_texture_transform", "KHR_texture_basisu")


class FilesBeside:
    """Gives a loader of trimesh the files that a mesh names: those in its folder or below it, and no others.

    Loaders go on without a file that they could not get, so what was refused or lost is kept here as well.
    """

    def __init__(self, folder: Path | None, name: str) -> None:
        self.folder = None if folder is None else folder.resolve()
        self.name = name
        self.refused: UserError | None = None
        self.lost: list[str] = []
        """Names of files that are missing, and of pictures that are none."""

    def get(self, key: str) -> bytes:
        """The bytes of a file. Raises UserError if it may not or cannot be read."""
        try:
            path = self._find(key.strip().replace("\\", "/"))
        except (OSError, ValueError):  # no possible file name
            path = None
        if path is None:
            self.lost.append(key)
            raise UserError(f"{self.name}: the file {key!r} that it names is not there")
        if path.stat().st_size > MAX_BYTES:
            raise self._refuse(f"the file {key!r} that it names is larger than {MAX_BYTES >> 30} GiB")
        data = path.read_bytes()
        if path.suffix.lower() not in NOT_PICTURES and not self.check_picture(data, repr(key)):
            self.lost.append(key)
        return data

    def __getitem__(self, key: str) -> bytes:
        return self.get(key)

    def __contains__(self, key: str) -> bool:
        return False

    def keys(self) -> list[str]:
        return []

    def namespaced(self, namespace: str) -> FilesBeside:
        return self

    def check_picture(self, data: bytes, what: str) -> bool:
        """Whether `data` is a picture, told by its first bytes. Raises UserError if it has too many pixels."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower
                with Image.open(io.BytesIO(data), formats=PICTURE_FORMATS) as picture:
                    too_large = picture.width * picture.height > MAX_PICTURE
        except Image.DecompressionBombError:
            too_large = True
        except Exception:  # decoders raise whatever they come upon
            return False
        if too_large:
            raise self._refuse(f"its texture {what} has more than {MAX_PICTURE:,} pixels: make it smaller")
        return True

    def _find(self, name: str) -> Path | None:
        """Where a file lies that a mesh names, None for nowhere."""
        if "://" in name:
            raise self._refuse(f"it names {name!r}, an address on the network: put the file beside it instead")
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
            raise self._refuse(f"it names {name!r}, outside its folder: put the file beside it instead")
        return None

    def _refuse(self, why: str) -> UserError:
        error = UserError(f"{self.name}: {why}")
        self.refused = self.refused or error
        return error


def check_gltf(data: bytes, suffix: str, files: FilesBeside) -> list[str]:
    """Look through a .glb or .gltf before it is loaded -> what will be drawn otherwise than it says.

    Raises UserError for what cannot be read here at all; other exceptions if the file is broken.
    """
    document, binary = _document(data, suffix)
    required, used = (set(document.get(key, ())) for key in ("extensionsRequired", "extensionsUsed"))
    for extension in required.intersection(NOT_READ):
        raise UserError(f"{files.name}: is compressed with {extension}, which is not read here: export it without")
    accessors = document.get("accessors", [])
    triangles, wide = 0, False
    for primitive in (p for mesh in document.get("meshes", ()) for p in mesh["primitives"]):
        attributes = primitive["attributes"]
        index = primitive.get("indices", attributes.get("POSITION"))
        triangles += 0 if index is None else int(accessors[index]["count"]) // 3
        if "material" not in primitive and "COLOR_0" in attributes:
            wide |= accessors[attributes["COLOR_0"]]["componentType"] == GL_UNSIGNED_SHORT
    check_triangles(max([triangles, *(int(a["count"]) // 3 for a in accessors)]), files.name)

    notes = [f"{extension} is not drawn" for extension in NOT_DRAWN if extension in used]
    readable = [_is_readable(document, number, binary, files) for number in range(len(document.get("images", ())))]
    if wide:
        notes.append("colours of vertices in 16 bits, with no material, are not drawn right")  # trimesh cuts them to 8
    lost = 0
    for material in document.get("materials", ()):
        texture = material.get("pbrMetallicRoughness", {}).get("baseColorTexture")
        if texture is None:
            continue
        source = document["textures"][texture["index"]].get("source")
        lost += source is not None and not readable[source]
        if texture.get("texCoord", 0) != 0:
            notes.append("a second set of texture coordinates is not drawn")
    if lost:
        notes.append(f"{_count(lost, 'texture')} missing or unreadable, drawn plain")
    return list(dict.fromkeys(notes))


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


def _document(data: bytes, suffix: str) -> tuple[dict[str, Any], bytes]:
    """The JSON document and the binary chunk of a glTF file."""
    if suffix == ".gltf":
        return json.loads(data), b""
    magic, _, _, length, kind = struct.unpack("<4s3I4s", data[:20].ljust(20, b"\0"))
    if magic != b"glTF" or kind != b"JSON":
        raise ValueError("it does not begin as one")
    start = 20 + length + 8
    return json.loads(data[20 : 20 + length]), data[start:]


def _is_readable(document: dict[str, Any], number: int, binary: bytes, files: FilesBeside) -> bool:
    """Whether a picture inside a glTF document is one. Raises UserError if it is larger than allowed."""
    image = document["images"][number]
    if "bufferView" in image:
        view = document["bufferViews"][image["bufferView"]]
        if view.get("buffer", 0) != 0 or not binary:
            return True  # in a file of its own
        start = view.get("byteOffset", 0)
        data = binary[start : start + view["byteLength"]]
    elif image.get("uri", "").startswith("data:"):
        data = base64.b64decode(image["uri"].partition("base64,")[2])
    else:
        return True  # a file of its own, which `files` checks when it is read
    return files.check_picture(data, f"number {number}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun} is" if number == 1 else f"{number} {noun}s are"
