"""Write binary glTF 2.0 by hand, so that the same object is the same bytes on every machine."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

GL_FLOAT, GL_UINT, GL_USHORT = 5126, 5125, 5123
VERTEX_BUFFER, INDEX_BUFFER = 34962, 34963


@dataclass(frozen=True)
class Primitive:
    """A surface of one material.

    Arrays: `positions` and `normals` (V, 3), `faces` (T, 3), and either both or none of `uv` (V, 2) and
    `texture` (H, W, 3) uint8.
    `factor` (3 numbers, linear) is the colour, or multiplies the texture.
    """

    name: str
    positions: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    factor: Sequence[float]
    roughness: float = 0.8
    uv: np.ndarray | None = None
    texture: np.ndarray | None = None


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] -> the linear values in which glTF wants factors and vertex colours."""
    srgb = np.asarray(srgb, float)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def glb_bytes(name: str, primitives: Sequence[Primitive]) -> bytes:
    """A glTF scene of one mesh, a primitive and a material for each of `primitives`."""
    binary = bytearray()
    views: list[dict] = []
    accessors: list[dict] = []

    def add_view(data: bytes, target: int | None = None) -> int:
        binary.extend(bytes(-len(binary) % 4))
        views.append(
            {"buffer": 0, "byteOffset": len(binary), "byteLength": len(data)} | ({"target": target} if target else {})
        )
        binary.extend(data)
        return len(views) - 1

    def add_array(array: np.ndarray, kind: str, component: int, target: int, *, bounds: bool = False) -> int:
        accessor = {
            "bufferView": add_view(array.tobytes(), target),
            "componentType": component,
            "count": len(array),
            "type": kind,
        }
        if bounds:
            accessor |= {"min": array.min(axis=0).tolist(), "max": array.max(axis=0).tolist()}
        accessors.append(accessor)
        return len(accessors) - 1

    def floats(array: np.ndarray, *, bounds: bool = False) -> int:
        # Rounded, so that the last bits of a processor's sine do not reach the file; + 0.0 turns -0.0 into 0.0.
        return add_array(
            (np.round(array, 5) + 0.0).astype("<f4"), f"VEC{array.shape[1]}", GL_FLOAT, VERTEX_BUFFER, bounds=bounds
        )

    meshes: list[dict] = []
    materials: list[dict] = []
    textures: list[int] = []
    for primitive in primitives:
        attributes = {"POSITION": floats(primitive.positions, bounds=True), "NORMAL": floats(primitive.normals)}
        surface: dict = {"baseColorFactor": [*np.round(primitive.factor, 5).tolist(), 1.0]}
        if primitive.texture is not None and primitive.uv is not None:
            attributes["TEXCOORD_0"] = floats(primitive.uv)
            surface["baseColorTexture"] = {"index": len(textures)}
            textures.append(add_view(png_bytes(primitive.texture)))
        small = len(primitive.positions) < 65536
        indices = add_array(
            primitive.faces.reshape(-1).astype("<u2" if small else "<u4"),
            "SCALAR",
            GL_USHORT if small else GL_UINT,
            INDEX_BUFFER,
        )
        meshes.append({"attributes": attributes, "indices": indices, "material": len(materials)})
        surface |= {"metallicFactor": 0.0, "roughnessFactor": primitive.roughness}
        materials.append({"name": primitive.name, "pbrMetallicRoughness": surface})
    document: dict = {
        "asset": {"version": "2.0", "generator": "ddclip sample"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": name, "mesh": 0}],
        "meshes": [{"name": name, "primitives": meshes}],
        "materials": materials,
        "accessors": accessors,
        "bufferViews": views,
    }
    if textures:
        document["images"] = [{"bufferView": view, "mimeType": "image/png"} for view in textures]
        document["samplers"] = [{"magFilter": 9729, "minFilter": 9729, "wrapS": 33071, "wrapT": 33071}]
        document["textures"] = [{"source": index, "sampler": 0} for index in range(len(textures))]
    binary.extend(bytes(-len(binary) % 4))
    document["buffers"] = [{"byteLength": len(binary)}]
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + bytes(binary)
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def png_bytes(picture: np.ndarray) -> bytes:
    """A PNG of (H, W, 3) uint8, at most 65,535 bytes of it.

    Stored rather than compressed, because not every version of zlib compresses to the same bytes.
    """
    height, width, _ = picture.shape
    rows = b"".join(b"\0" + row.tobytes() for row in picture)
    block = struct.pack("<BHH", 1, len(rows), len(rows) ^ 0xFFFF) + rows

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x78\x01" + block + struct.pack(">I", zlib.adler32(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
