"""Mesh files as scenes: axes, textures, colours of every kind, and what is warned of."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from mesh_files import OFF, QUAD, TWO_HALVES, gltf, textured_glb, write_obj
from PIL import Image

from ddclip_cli.render import render_mesh
from ddclip_cli.render.load import load_scene
from ddclip_cli.render.scene import Alpha
from ddclip_cli.sample.glb import png_bytes


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_a_texture_is_not_upside_down(tmp_path, kind):
    path = tmp_path / "quad.glb"
    path.write_bytes(textured_glb())
    views = render_mesh(path if kind == "glb" else write_obj(tmp_path), camera="ring", num_views=4, image_size=48)
    assert views.shape == (4, 48, 48, 4)
    assert views.dtype == np.uint8
    for view in views[[1, 3]].astype(int):  # from both sides; the quad is upright
        rows = np.nonzero(view[..., 3].any(1))[0]
        above, below = view[rows[0] + 3, 24], view[rows[-1] - 3, 24]
        assert above[0] > above[2] + 80
        assert below[2] > below[0] + 80


def test_y_is_up_in_gltf_and_z_in_stl(tmp_path):
    import trimesh

    tall = trimesh.creation.box((0.1, 0.1, 1.0))
    tall.export(tmp_path / "tall.stl")
    assert np.ptp(load_scene(tmp_path / "tall.stl").vertices, axis=0).argmax() == 2
    tall.export(tmp_path / "deep.glb")
    assert np.ptp(load_scene(tmp_path / "deep.glb").vertices, axis=0).argmax() == 1
    centre = load_scene(tmp_path / "deep.glb").vertices
    assert np.allclose(centre.max(0) + centre.min(0), 0, atol=1e-6)
    assert np.ptp(centre, axis=0).max() == pytest.approx(1)


FACTOR = [0.5, 1.0, 0.25, 1.0]


def colour_of(scene) -> np.ndarray:
    """(T, 3 corners, RGBA) linear, textures aside."""
    factor = np.array([material.factor for material in scene.materials])[scene.material][:, None]
    return factor * (1 if scene.colours is None else scene.colours[scene.faces])


@pytest.mark.parametrize("factor", [None, FACTOR])
@pytest.mark.parametrize("most", [np.float32(1), np.uint8(255), np.uint16(65535)])
def test_gltfs_colours_of_vertices_are_linear_and_multiply_the_factor(tmp_path, most, factor):
    colours = np.array([[1, 0.2, 0, 1]] * 3)
    colours = (colours * most).round().astype(most.dtype) if most != 1 else colours.astype(np.float32)
    material = None if factor is None else {"pbrMetallicRoughness": {"baseColorFactor": factor}}
    scene = load_scene(gltf(tmp_path, colours=colours, material=material))
    expected = np.array([1, 0.2, 0, 1]) * (1 if factor is None else np.array(factor))
    assert np.allclose(colour_of(scene), expected, atol=1e-6)


def test_a_factor_keeps_all_its_digits(tmp_path):
    material = {"pbrMetallicRoughness": {"baseColorFactor": [0.00123456, 0.5, 0.25, 1]}}
    assert load_scene(gltf(tmp_path, material=material)).materials[0].factor[0] == 0.00123456


def ply(folder: Path, *, vertex: bool, face: bool) -> Path:
    rgb = "property uchar red\nproperty uchar green\nproperty uchar blue\n"
    header = "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
    header += (rgb if vertex else "") + "element face 2\nproperty list uchar int vertex_indices\n"
    header += (rgb if face else "") + "end_header\n"
    corners = [" ".join(map(str, c)) + (" 188 0 0" if vertex else "") for c in QUAD.astype(int)]
    faces = ["3 0 1 2" + (" 255 0 0" if face else ""), "3 0 2 3" + (" 0 0 188" if face else "")]
    path = folder / "it.ply"
    path.write_text(header + "\n".join(corners + faces) + "\n")
    return path


def test_plys_colours_of_vertices_are_srgb(tmp_path):
    scene = load_scene(ply(tmp_path, vertex=True, face=False))
    assert np.allclose(colour_of(scene), [0.5029, 0, 0, 1], atol=1e-3)


def test_colours_of_faces_do_not_run_into_each_other(tmp_path):
    scene = load_scene(ply(tmp_path, vertex=False, face=True))
    assert np.allclose(colour_of(scene)[0], [1, 0, 0, 1])
    assert np.allclose(colour_of(scene)[1], [0, 0, 0.5029, 1], atol=1e-3)
    assert scene.vertices.shape == (6, 3)
    assert scene.normals is None  # flat


def test_a_file_that_says_nothing_is_grey(tmp_path):
    path = tmp_path / "it.off"
    path.write_text(OFF)
    assert np.allclose(colour_of(load_scene(path))[..., :3], 0.8)


def picture_of(scene) -> np.ndarray | None:
    (material,) = scene.materials
    return None if material.texture is None else material.texture.picture


def data_uri(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_a_texture_of_many_parts_is_kept_once(tmp_path):
    def change(document):
        document["nodes"] = [{"mesh": 0}, {"mesh": 0, "translation": [2, 0, 0]}]
        document["scenes"] = [{"nodes": [0, 1]}]

    image = {"uri": data_uri(TWO_HALVES)}
    scene = load_scene(gltf(tmp_path, material={"pbrMetallicRoughness": {}}, image=image, change=change))
    assert len(scene.faces) == 2
    assert np.array_equal(picture_of(scene), TWO_HALVES)
    assert scene.material.tolist() == [0, 0]


def test_a_large_texture_is_reduced_and_alpha_is_kept_where_there_is_some(tmp_path):
    wide = np.zeros((16, 4096, 4), np.uint8)
    wide[..., 0], wide[:, ::2, 3], wide[:, 1::2, 3] = 200, 255, 155
    large = load_scene(gltf(tmp_path, material={"pbrMetallicRoughness": {}}, image={"uri": data_uri(wide)}))
    picture = picture_of(large)
    assert picture.shape == (4, 1024, 4)
    assert (picture == [200, 0, 0, 205]).all()
    wide[..., 3] = 255
    solid = load_scene(gltf(tmp_path, material={"pbrMetallicRoughness": {}}, image={"uri": data_uri(wide)}))
    assert picture_of(solid).shape == (4, 1024, 3)


@pytest.mark.parametrize("image", ["gone.png", "broken.png", "data:image/png;base64,AAAA"])
def test_a_texture_that_is_not_there_is_warned_of_and_drawn_plain(tmp_path, capsys, image):
    (tmp_path / "broken.png").write_text("no picture")
    material = {"pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 1]}}
    scene = load_scene(gltf(tmp_path, name="it.gltf", material=material, image={"uri": image}))
    assert np.allclose(colour_of(scene), [1, 0, 0, 1])
    assert picture_of(scene) is None
    warning = capsys.readouterr().err
    assert warning.count("warning:") == 1
    assert ("missing" if image == "gone.png" else "unreadable") in warning


def test_a_truncated_texture_is_warned_of_and_drawn_plain(tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[:1500])
    scene = load_scene(gltf(tmp_path, material={"pbrMetallicRoughness": {}}, image={"uri": "cut.jpg"}))
    assert picture_of(scene) is None
    assert "'cut.jpg' is unreadable" in capsys.readouterr().err


def test_missing_mtl_and_its_missing_texture_are_warned_of(tmp_path, capsys):
    load_scene(write_obj(tmp_path, picture="gone.png"))
    assert "'gone.png' is missing" in capsys.readouterr().err
    (tmp_path / "quad.mtl").unlink()
    load_scene(tmp_path / "quad.obj")
    assert "'quad.mtl' is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["with space.png", "with%20space.png", "C:\\Users\\me\\with space.png", "sub/with space.png"]
)
def test_files_beside_the_mesh_are_found_by_the_names_that_exporters_write(tmp_path, capsys, name):
    folder = tmp_path / ("sub" if name.startswith("sub/") else ".")
    folder.mkdir(exist_ok=True)
    (folder / "with space.png").write_bytes(png_bytes(TWO_HALVES))
    scene = load_scene(gltf(tmp_path, name="it.gltf", material={"pbrMetallicRoughness": {}}, image={"uri": name}))
    assert np.array_equal(picture_of(scene), TWO_HALVES)
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extension", "said"),
    [
        ("KHR_materials_transmission", "glass"),
        ("EXT_mesh_gpu_instancing", "drawn once"),
        ("ACME_hologram", "ACME_hologram is not known here"),
    ],
)
def test_what_is_drawn_otherwise_is_said(tmp_path, capsys, extension, said):
    def change(document):
        document["extensionsUsed"] = document["extensionsRequired"] = [extension]

    load_scene(gltf(tmp_path, change=change))
    assert said in capsys.readouterr().err


def test_a_texture_that_is_only_there_as_basisu_is_said(tmp_path, capsys):
    def change(document):
        document["textures"] = [{"extensions": {"KHR_texture_basisu": {"source": 0}}}]

    material = {"pbrMetallicRoughness": {"baseColorFactor": [0, 1, 0, 1]}}
    scene = load_scene(gltf(tmp_path, material=material, image={"uri": data_uri(TWO_HALVES)}, change=change))
    assert "only there as KHR_texture_basisu is drawn plain" in capsys.readouterr().err
    assert picture_of(scene) is None


@pytest.mark.parametrize(("suffix", "axis"), [(".glb", 2), (".stl", 1)])
def test_up_is_what_one_says(tmp_path, suffix, axis):
    """A box that is long in y: upright where y is up."""
    import trimesh

    path = tmp_path / f"it{suffix}"
    trimesh.creation.box((0.2, 1.0, 0.2)).export(path)
    for up, expected in (("auto", axis), ("y", 2), ("z", 1)):
        assert np.ptp(load_scene(path, up=up).vertices, axis=0).argmax() == expected


def test_coordinates_of_a_texture_that_no_one_names_are_no_texture(tmp_path):
    path = tmp_path / "it.ply"
    path.write_text(
        "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
        "property float s\nproperty float t\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n"
        "0 0 0 0 0\n1 0 0 1 0\n0 1 0 0 1\n3 0 1 2\n"
    )
    scene = load_scene(path)
    assert picture_of(scene) is None
    assert np.allclose(colour_of(scene)[..., :3], 0.8)


def test_an_mtl_says_how_opaque_it_is(tmp_path, capsys):
    path = write_obj(tmp_path)
    (tmp_path / "quad.mtl").write_text("newmtl m\nKd 1 0 0\nd 0.25\nmap_d halves.png\n")
    (material,) = load_scene(path).materials
    assert material.factor == (1, 0, 0, 0.25)
    assert material.alpha == Alpha.BLEND
    assert "map_d" in capsys.readouterr().err
    (tmp_path / "quad.mtl").write_text("newmtl m\nKd 1 0 0\nd 0\n")
    assert load_scene(path).materials[0].factor == (1, 0, 0, 1)
