"""Small mesh files to render, whole and broken."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path

import numpy as np

from ddclip_cli.sample.glb import Primitive, glb_bytes, png_bytes

TRIANGLE = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
QUAD = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)  # glTF: upright, facing +z
QUAD_FACES = np.array([[0, 1, 2], [0, 2, 3]])
TWO_HALVES = np.zeros((8, 8, 3), np.uint8)
TWO_HALVES[:4], TWO_HALVES[4:] = (255, 0, 0), (0, 0, 255)  # red above blue
OFF = "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"


def gltf(
    folder: Path,
    *,
    name: str = "it.glb",
    positions: np.ndarray = TRIANGLE,
    colours: np.ndarray | None = None,
    material: dict | None = None,
    image: dict | None = None,
    change=lambda document: None,
) -> Path:
    """Write one triangle; `change` may break the JSON document before it is written."""
    binary = positions.astype("<f4").tobytes()
    accessors = [{"bufferView": 0, "componentType": 5126, "count": len(positions), "type": "VEC3"}]
    views = [{"buffer": 0, "byteOffset": 0, "byteLength": len(binary)}]
    primitive: dict = {"attributes": {"POSITION": 0, "TEXCOORD_0": 0} if image else {"POSITION": 0}}
    if image:
        uv = positions[:, :2].astype("<f4").tobytes()
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": len(uv)})
        accessors.append({"bufferView": 1, "componentType": 5126, "count": len(positions), "type": "VEC2"})
        primitive["attributes"]["TEXCOORD_0"] = 1
        binary += uv
    if colours is not None:
        kind = {"f": 5126, "u": 5121 if colours.itemsize == 1 else 5123}[colours.dtype.kind]
        accessors.append(
            {"bufferView": len(views), "componentType": kind, "normalized": kind != 5126, "count": 3, "type": "VEC4"}
        )
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": colours.nbytes})
        primitive["attributes"]["COLOR_0"] = len(accessors) - 1
        binary += colours.tobytes()
    document: dict = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(binary)}],
    }
    if material is not None:
        primitive["material"] = 0
        document["materials"] = [material]
    if image is not None:
        document |= {"images": [image], "textures": [{"source": 0}]}
        material["pbrMetallicRoughness"]["baseColorTexture"] = {"index": 0}
    path = folder / name
    if path.suffix == ".gltf":
        document["buffers"][0]["uri"] = "data:application/octet-stream;base64," + base64.b64encode(binary).decode()
        change(document)
        path.write_text(json.dumps(document))
        return path
    change(document)
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    binary += bytes(-len(binary) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
    return path


def textured_glb() -> bytes:
    uv = np.array([[0, 1], [1, 1], [1, 0], [0, 0.0]])  # glTF's v runs down
    normals = np.tile([0, 0, 1.0], (4, 1))
    return glb_bytes("quad", [Primitive("quad", QUAD, normals, QUAD_FACES, (1, 1, 1), uv=uv, texture=TWO_HALVES)])


def write_obj(folder: Path, picture: str = "halves.png") -> Path:
    (folder / "halves.png").write_bytes(png_bytes(TWO_HALVES))
    (folder / "quad.mtl").write_text(f"newmtl m\nKd 1 1 1\nmap_Kd {picture}\n")
    corners = "".join(f"v {x} {y} {z}\nvt {(x + 1) / 2} {(y + 1) / 2}\n" for x, y, z in QUAD)
    (folder / "quad.obj").write_text(f"mtllib quad.mtl\n{corners}usemtl m\nf 1/1 2/2 3/3\nf 1/1 3/3 4/4\n")
    return folder / "quad.obj"
