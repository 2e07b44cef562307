"""Mesh files that are refused, each in one sentence: broken, too large, or reaching out of their folder."""

from __future__ import annotations

import base64
import contextlib
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from mesh_files import OFF, TRIANGLE, TWO_HALVES, gltf, write_obj

from ddclip_cli.errors import UserError
from ddclip_cli.render import render_mesh
from ddclip_cli.render.load import load_scene
from ddclip_cli.sample.glb import png_bytes


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_scene(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "..%2Fsecret.png", "sub/../../secret.png"])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "secret.png").write_bytes(png_bytes(TWO_HALVES))
    by_gltf = gltf(inner, name="it.gltf", material={"pbrMetallicRoughness": {}}, image={"uri": name})
    assert "outside its folder" in refused(by_gltf)
    assert "outside its folder" in refused(write_obj(inner, picture=name))


def test_links_that_leave_the_folder_are_refused(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "secret.png").write_bytes(png_bytes(TWO_HALVES))
    (inner / "wood.png").symlink_to(tmp_path / "secret.png")
    path = gltf(inner, name="it.gltf", material={"pbrMetallicRoughness": {}}, image={"uri": "wood.png"})
    assert "outside its folder" in refused(path)


def test_addresses_are_refused(tmp_path):
    address = "http://127.0.0.1:9/wood.png"
    path = gltf(tmp_path, name="it.gltf", material={"pbrMetallicRoughness": {}}, image={"uri": address})
    assert "an address on the network" in refused(path)
    assert "an address on the network" in refused(write_obj(tmp_path, picture=address))


def test_a_buffer_outside_or_missing_is_refused(tmp_path):
    def buffer(uri):
        return lambda document: document["buffers"][0].update(uri=uri)

    assert "outside its folder" in refused(gltf(tmp_path, name="it.gltf", change=buffer("../../it.bin")))
    assert "'it.bin' that it names is not there" in refused(gltf(tmp_path, name="it.gltf", change=buffer("it.bin")))


def bomb(side: int) -> bytes:
    """A small PNG that claims side x side pixels."""
    picture = bytearray(png_bytes(TWO_HALVES))
    picture[16:24] = struct.pack(">II", side, side)
    picture[29:33] = struct.pack(">I", zlib.crc32(picture[12:29]))
    return bytes(picture)


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_a_texture_with_too_many_pixels_is_refused(tmp_path, side, recwarn):
    picture = bomb(side)
    inside = {"uri": "data:image/png;base64," + base64.b64encode(picture).decode()}
    assert "pixels" in refused(gltf(tmp_path, material={"pbrMetallicRoughness": {}}, image=inside))
    obj = write_obj(tmp_path)
    (tmp_path / "halves.png").write_bytes(picture)
    assert "pixels" in refused(obj)
    assert not recwarn


def test_a_mesh_of_too_many_triangles_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "it.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n" + "f 1 2 3\n" * 11)
    load_scene(path)
    monkeypatch.setattr("ddclip_cli.render.outside.MAX_TRIANGLES", 10)
    assert "11 triangles, more than the 10" in refused(path)


def test_a_gltf_that_claims_billions_is_refused_before_it_is_read(tmp_path):
    def change(document):
        document["accessors"][0] = {"componentType": 5126, "count": 3_000_000_000, "type": "VEC3"}

    assert "1,000,000,000 triangles" in refused(gltf(tmp_path, change=change))


def test_geometry_that_cannot_be_decoded_is_refused(tmp_path):
    def change(document):
        document["extensionsUsed"] = document["extensionsRequired"] = ["EXT_meshopt_compression"]

    assert "EXT_meshopt_compression" in refused(gltf(tmp_path, change=change))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vertices_that_are_not_finite_are_refused(tmp_path, value):
    positions = TRIANGLE.copy()
    positions[1, 1] = value
    assert "not finite" in refused(gltf(tmp_path, positions=positions))


def test_a_mesh_without_extent_is_refused(tmp_path):
    assert "no extent" in refused(gltf(tmp_path, positions=np.ones((3, 3))))


@pytest.mark.parametrize("suffix", [".glb", ".gltf", ".obj", ".ply", ".stl", ".off", ".dae", ".3mf"])
def test_empty_files_and_other_files_of_that_name_are_refused(tmp_path, suffix):
    path = tmp_path / f"it{suffix}"
    path.write_bytes(b"")
    assert "is empty" in refused(path)
    path.write_text("This is a shopping list.\nButter\nBread\n")
    refused(path)
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    refused(path)


@pytest.mark.parametrize("suffix", [".glb", ".stl", ".off", ".ply", ".3mf", ".dae"])
def test_truncated_files_are_refused(tmp_path, suffix):
    import trimesh

    if suffix == ".dae":
        pytest.importorskip("collada")
    if suffix == ".3mf":
        pytest.importorskip("lxml")
    path = tmp_path / f"it{suffix}"
    trimesh.creation.icosphere(subdivisions=2).export(path)
    assert len(load_scene(path).faces) == 320
    whole = path.read_bytes()
    for part in (0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(part * len(whole))])
        refused(path)


def test_points_and_lines_are_no_mesh(tmp_path):
    path = tmp_path / "it.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    assert "holds no triangles" in refused(path)
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nl 1 2\n")
    refused(path)


def test_triangles_of_vertices_that_are_not_there_are_refused(tmp_path):
    path = tmp_path / "it.off"
    path.write_text(OFF.replace("3 0 1 2", "3 0 1 7"))
    refused(path)


def test_a_scene_graph_that_holds_itself_ends(tmp_path):
    def change(document):
        document["nodes"] = [{"children": [1]}, {"children": [0], "mesh": 0}]

    path = gltf(tmp_path, change=change)
    with contextlib.suppress(UserError):
        load_scene(path)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "it.3mf", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("3D/3dmodel.model", bytes(2_000_000))
    monkeypatch.setattr("ddclip_cli.render.outside.MAX_BYTES", 1_000_000)
    assert "unpacks to more" in refused(tmp_path / "it.3mf")


def test_other_kinds_of_file_are_refused(tmp_path):
    (tmp_path / "chair.blend").write_text("x")
    assert "not a mesh format" in refused(tmp_path / "chair.blend")
    assert "no such mesh file" in refused(tmp_path / "gone.glb")


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 80 + struct.pack("<I", 100_000_000) + b"\0" * 500,  # a hundred million triangles in 500 bytes
        b"\0" * 80 + struct.pack("<I", 4_294_967_295) + b"\0" * 5000,
    ],
)
def test_an_stl_that_claims_more_than_it_holds_is_refused(tmp_path, data):
    (tmp_path / "it.stl").write_bytes(data)
    refused(tmp_path / "it.stl")


@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian"])
def test_a_ply_that_claims_billions_is_refused(tmp_path, kind):
    header = (
        f"ply\nformat {kind} 1.0\nelement vertex 4000000000\nproperty float x\nproperty float y\nproperty float z\n"
    )
    header += "element face 4000000000\nproperty list uchar int vertex_indices\nend_header\n"
    (tmp_path / "it.ply").write_bytes(header.encode() + b"0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    refused(tmp_path / "it.ply")


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "it.off"
    path.write_text(OFF)

    def denied(_self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert "cannot be read (Permission denied)" in refused(path)


def test_triangles_in_too_many_layers_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "it.off"
    path.write_text(OFF)
    monkeypatch.setattr("ddclip_cli.render.raster.MAX_CANDIDATES", 100)
    with pytest.raises(UserError, match=r"it\.off: its triangles lie in too many layers"):
        render_mesh(path, num_views=2, image_size=64)


def test_a_device_without_memory_is_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "it.off"
    path.write_text(OFF)

    def full(*_arguments):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nGPU 0 has ...")

    monkeypatch.setattr("ddclip_cli.render.renderer.Surface", full)
    with pytest.raises(UserError, match=r"it\.off: cannot be drawn \(CUDA out of memory\. Tried to allocate 2 GiB\)$"):
        render_mesh(path, num_views=1, image_size=16)


def test_names_in_any_encoding_are_read(tmp_path):
    """OBJ has no encoding, and exporters write Latin-1."""
    path = tmp_path / "it.obj"
    path.write_bytes(
        "# Füße\no Stühle für Gäste, größer und schöner als früher\n".encode("latin-1")
        + b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"
    )
    assert len(load_scene(path).faces) == 1


@pytest.mark.parametrize("suffix", [".glb", ".gltf", ".obj", ".ply", ".stl", ".off", ".dae", ".3mf"])
def test_damaged_files_are_drawn_or_refused_in_a_sentence(tmp_path, capsys, suffix):
    import trimesh

    path = tmp_path / f"it{suffix}"
    if suffix == ".gltf":
        path = gltf(tmp_path, name="it.gltf", colours=np.full((3, 4), 255, np.uint8), material={})
    else:
        trimesh.creation.icosphere(subdivisions=1).export(path)
    whole, rng, sentences = path.read_bytes(), np.random.default_rng(0), []
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(len(data), size=rng.integers(1, 20)):
            data[place] = rng.integers(256)
        path.write_bytes(data[: rng.integers(len(data))] if rng.random() < 0.2 else data)
        try:
            render_mesh(path, num_views=1, image_size=16)
        except UserError as error:
            sentences.append(str(error))
    assert len(sentences) > 5
    assert all(sentence.startswith(str(path)) and "\n" not in sentence for sentence in sentences)
