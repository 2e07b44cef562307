"""The arrays and pictures of a .gltf or .glb file, read as it describes them and no further than it reaches.

glTF 2.0 with quantised, normalised, strided and sparse accessors and with Draco compression.
"""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np

from ddclip_cli.errors import UserError
from ddclip_cli.render.outside import FilesBeside, check_triangles

DTYPES = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
MAX_ZEROS = 3_000_000  # items of an array that is only there where it is not zero; a small file can claim any number
NOT_READ = ("EXT_meshopt_compression", "KHR_meshopt_compression")  # geometry that is not there without them


class GltfFile:
    """`document` is the JSON of the file; arrays, pictures and primitives are decoded when they are asked for.

    Raises UserError for what is not read here; other exceptions if the file is broken.
    """

    def __init__(self, data: bytes, suffix: str, files: FilesBeside) -> None:
        self.files = files
        self.document: dict[str, Any]
        self._chunk: bytes | None
        self.document, self._chunk = _split(data) if suffix == ".glb" else (json.loads(data), None)
        self._buffers: dict[int, memoryview] = {}
        for extension in set(self.document.get("extensionsRequired", ())).intersection(NOT_READ):
            raise UserError(f"{files.name}: is compressed with {extension}, which is not read here: export it without")
        check_triangles(max((int(a["count"]) // 3 for a in self.list("accessors")), default=0), files.name)

    def list(self, key: str) -> list[dict[str, Any]]:
        return self.document.get(key, [])

    def accessor(self, number: int) -> np.ndarray:
        """(N,) or (N, width): whole numbers as they are, or as the fractions that they stand for."""
        accessor = self.list("accessors")[number]
        count, width = int(accessor["count"]), WIDTHS[accessor["type"]]
        dtype = np.dtype(DTYPES[accessor["componentType"]]).newbyteorder("<")
        if "bufferView" in accessor:
            values = self._strided(accessor, count, width, dtype)
        elif "sparse" not in accessor or count > MAX_ZEROS:
            raise ValueError("an array is not there")
        else:
            values = np.zeros((count, width), dtype)
        if "sparse" in accessor:
            values = self._sparse(accessor["sparse"], values, width, dtype)
        return _as_it_stands(values, accessor)

    def view(self, number: int) -> memoryview:
        """The bytes of a buffer view."""
        view = self.list("bufferViews")[number]
        start, length = int(view.get("byteOffset", 0)), int(view["byteLength"])
        data = self._buffer(int(view.get("buffer", 0)))
        if start < 0 or length < 0 or start + length > len(data):
            raise ValueError("it ends early")
        return data[start : start + length]

    def picture(self, number: int) -> bytes | None:
        """The file of an image; None if it is not there."""
        image = self.list("images")[number]
        if "bufferView" in image:
            return bytes(self.view(image["bufferView"]))
        uri = image.get("uri", "")
        if uri.startswith("data:"):
            return _data_of(uri)
        return self.files.find(uri)

    def draco(self, extension: dict[str, Any], primitive: dict[str, Any]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Triangles (T, 3) and attributes by name of a compressed primitive."""
        import DracoPy

        decoded = DracoPy.decode(bytes(self.view(extension["bufferView"])))
        found = {attribute["unique_id"]: attribute["data"] for attribute in decoded.attributes}
        arrays = {}
        for name, identity in extension["attributes"].items():
            if identity in found and name in primitive["attributes"]:
                accessor = self.list("accessors")[primitive["attributes"][name]]
                arrays[name] = _as_it_stands(np.asarray(found[identity]), accessor)
        return np.asarray(decoded.faces).reshape(-1, 3), arrays

    def _buffer(self, number: int) -> memoryview:
        if number not in self._buffers:
            uri = self.list("buffers")[number].get("uri")
            if uri is None:
                if self._chunk is None:
                    raise ValueError("a buffer is not there")
                self._buffers[number] = memoryview(self._chunk)
            else:
                self._buffers[number] = memoryview(_data_of(uri) if uri.startswith("data:") else self.files.get(uri))
        return self._buffers[number]

    def _strided(self, accessor: dict[str, Any], count: int, width: int, dtype: np.dtype) -> np.ndarray:
        data = self.view(accessor["bufferView"])
        start, item = int(accessor.get("byteOffset", 0)), width * dtype.itemsize
        stride = int(self.list("bufferViews")[accessor["bufferView"]].get("byteStride", item))
        if start < 0 or stride < item or (count and start + (count - 1) * stride + item > len(data)):
            raise ValueError("an array reaches past its end")
        shape, strides = (count, width), (stride, dtype.itemsize)
        return np.ndarray(shape, dtype, data, start, strides) if count else np.zeros(shape, dtype)

    def _sparse(self, sparse: dict[str, Any], values: np.ndarray, width: int, dtype: np.dtype) -> np.ndarray:
        count, where, what = int(sparse["count"]), sparse["indices"], sparse["values"]
        kind = np.dtype(DTYPES[where["componentType"]]).newbyteorder("<")
        at = np.frombuffer(self.view(where["bufferView"]), kind, count, int(where.get("byteOffset", 0)))
        new = np.frombuffer(self.view(what["bufferView"]), dtype, count * width, int(what.get("byteOffset", 0)))
        values = values.copy()
        values[at] = new.reshape(count, width)
        return values


def _split(data: bytes) -> tuple[dict[str, Any], bytes | None]:
    """The JSON document and the binary chunk of a .glb file."""
    magic, version, _, length, kind = struct.unpack("<4s3I4s", data[:20].ljust(20, b"\0"))
    if magic != b"glTF" or kind != b"JSON":
        raise ValueError("it does not begin as one")
    if version != 2:
        raise ValueError(f"it is glTF {version}, and version 2 is read here")
    start = 20 + length
    if len(data) < start + 8:
        return json.loads(data[20:start]), None
    (size,) = struct.unpack("<I", data[start : start + 4])
    return json.loads(data[20:start]), data[start + 8 : start + 8 + size]


def _data_of(uri: str) -> bytes:
    """The bytes in a `data:` address."""
    return base64.b64decode(uri.partition("base64,")[2])


def _as_it_stands(values: np.ndarray, accessor: dict[str, Any]) -> np.ndarray:
    """Normalised whole numbers as fractions in [-1, 1] or [0, 1]; one column as a list."""
    if accessor.get("normalized") and values.dtype.kind in "iu":
        values = np.maximum(values / np.float32(np.iinfo(values.dtype).max), np.float32(-1))
    return values[:, 0] if values.ndim == 2 and accessor["type"] == "SCALAR" else values
