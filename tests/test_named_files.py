"""What the views of a mesh depend on: the files that it names, and those that these name."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from mesh_files import gltf
from PIL import Image
from tiny import DATA, SIZE, tiny_model

from ddclip_cli.render.named_files import bytes_named
from ddclip_cli.search.embed import embed_library
from ddclip_cli.search.library import ViewSettings, find_objects

OBJ = (
    "mtllib ./a mesh.mtl\nmtllib other.mtl none.mtl\n"
    "v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nusemtl m\nf 1/1 2/2 3/3\n"
)
GLB = json.dumps({"images": [{"uri": "a.png"}]}).encode()


@pytest.mark.parametrize(
    ("name", "text", "others"),
    [
        ("it.gltf", r'{"a": {"uri": "tex%20ture.png"}, "b": {"uri" : "\u0061.bin"}}', {"tex ture.png", "a.bin"}),
        ("it.gltf", '{"a": {"uri": "data:image/png;base64,AAAA"}, "b": {"uri": "no.png"}, "c": {"uri": 3}}', set()),
        ("it.gltf", '{"a": {"uri": "../outside.png"}, "b": {"uri": "https://example.org/a.png"}}', set()),
        ("it.gltf", '{"a": {"uri": "it.gltf"}, "b": {"uri": "\\q"}}', {"it.gltf"}),
        ("it.glb", struct.pack("<4s4I", b"glTF", 2, 0, len(GLB), 0) + GLB + b'BIN "uri": "b.png"', {"a.png"}),
        ("it.obj", OBJ, {"a mesh.mtl", "other.mtl", "tex ture.png", "b.png"}),
        ("it.ply", "ply\ncomment TextureFile b.png\nend_header\n", {"b.png"}),
        ("it.dae", "<image><init_from>./sub/c.png</init_from></image>", {"sub/c.png"}),
        ("it.fbx", (DATA / "quad.fbx").read_text().replace("halves.png", "C:\\x\\b.png"), {"b.png"}),
        ("it.fbx", b"Kaydara\0\x10RelativeFilenameS\x0f\0\0\0..\\tex ture.png\x09", {"tex ture.png"}),
        ("it.fbx", b"Kaydara\0\x10RelativeFilenameS\xff\xff\0\0cut off.png", set()),
        ("it.stl", "solid uri", set()),
    ],
)
def test_what_a_mesh_names(tmp_path, name, text, others):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    for other in ("tex ture.png", "a.png", "b.png", "a.bin", "sub/c.png", "unnamed.png", "../outside.png"):
        (folder / other).write_bytes(other.encode())
    (folder / "a mesh.mtl").write_text("newmtl m\nmap_Kd -s 1 1 1 tex ture.png\r\n")
    (folder / "other.mtl").write_text("newmtl n\nbump b.png\n")
    mesh = folder / name
    mesh.write_bytes(text if isinstance(text, bytes) else text.encode())
    first, *found = bytes_named(mesh)
    assert first == mesh.read_bytes()
    assert sorted(found) == sorted((folder / other).read_bytes() for other in others)


def test_update_sees_a_texture_that_changed(tmp_path):
    model, library, out = tiny_model(tmp_path), tmp_path / "library", tmp_path / "emb.h5"
    for name in ("obj", "gltf", "plain"):
        (library / name).mkdir(parents=True)
    texture(library / "obj" / "texture.png", "red")
    (library / "obj" / "chair.obj").write_text(OBJ.replace("./a mesh.mtl", "chair.mtl"))
    (library / "obj" / "chair.mtl").write_text("newmtl m\nmap_Kd texture.png\n")
    texture(library / "gltf" / "texture.png", "red")
    gltf(library / "gltf", name="lamp.gltf", image={"uri": "texture.png"}, material={"pbrMetallicRoughness": {}})
    gltf(library / "plain", name="mug.glb")
    views = ViewSettings(num_views=2, size=SIZE, render_size=64)
    embed_library(model, find_objects([library]), out, views=views)
    assert embed_library(model, find_objects([library]), out, views=views, update=True).done == []
    texture(library / "obj" / "texture.png", "blue")
    assert embed_library(model, find_objects([library]), out, views=views, update=True).done == ["chair"]
    (library / "gltf" / "texture.png").unlink()
    assert embed_library(model, find_objects([library]), out, views=views, update=True).done == ["lamp"]


def texture(path: Path, colour: str) -> None:
    Image.new("RGB", (8, 8), colour).save(path)
