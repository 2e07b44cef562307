"""glTF as it is written: arrays of every kind, texture coordinates, samplers, skins, morphs and materials."""

from __future__ import annotations

import base64
import io
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mesh_files import TRIANGLE
from PIL import Image

from ddclip_cli.errors import UserError
from ddclip_cli.render.load import load_scene
from ddclip_cli.render.scene import Alpha, Wrap

TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
COMPONENTS = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)


class Gltf:
    """A document with one node and one primitive, to which a test adds."""

    def __init__(self, positions: np.ndarray = TRIANGLE) -> None:
        self.binary = bytearray()
        self.primitive: dict[str, Any] = {"attributes": {}}
        self.document: dict[str, Any] = {
            "asset": {"version": "2.0"},
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0}],
            "meshes": [{"primitives": [self.primitive]}],
            "accessors": [],
            "bufferViews": [],
        }
        self.attribute("POSITION", positions)

    def view(self, data: bytes, **more: Any) -> int:
        self.binary += bytes(-len(self.binary) % 4)
        views = self.document["bufferViews"]
        views.append({"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data)} | more)
        self.binary += data
        return len(views) - 1

    def array(self, values: np.ndarray, **more: Any) -> int:
        values = np.ascontiguousarray(values)
        width = values[0].size if values.ndim > 1 else 1
        accessor = {"componentType": COMPONENTS[values.dtype.str[1:]], "count": len(values), "type": TYPES[width]}
        accessor |= {"bufferView": self.view(values.tobytes())} | more
        self.document["accessors"].append(accessor)
        return len(self.document["accessors"]) - 1

    def attribute(self, name: str, values: np.ndarray, **more: Any) -> None:
        self.primitive["attributes"][name] = self.array(values, **more)

    def material(self, **material: Any) -> None:
        self.primitive["material"] = 0
        self.document["materials"] = [material]

    def texture(self, pixels: np.ndarray, **sampler: int) -> None:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        self.document["images"] = [{"bufferView": self.view(buffer.getvalue()), "mimeType": "image/png"}]
        self.document["textures"] = [{"source": 0, "sampler": 0}]
        self.document["samplers"] = [sampler]

    def write(self, folder: Path) -> Path:
        path = folder / "it.gltf"
        uri = "data:application/octet-stream;base64," + base64.b64encode(self.binary).decode()
        self.document["buffers"] = [{"byteLength": len(self.binary), "uri": uri}]
        path.write_text(json.dumps(self.document))
        return path

    def load(self, folder: Path):
        return load_scene(self.write(folder))


def shape_of(scene) -> np.ndarray:
    """The corners (T, 3, xyz) moved so that they begin at 0, in the file's axes."""
    x, y, z = scene.vertices[scene.faces].transpose(2, 0, 1)
    corners = np.stack([x, z, -y], axis=-1)
    return corners - corners.min((0, 1))


def check_shape(scene, corners: Any) -> None:
    expected = np.asarray(corners, dtype=np.float64)
    expected = (expected - expected.min((0, 1))) / np.ptp(expected, axis=(0, 1)).max()
    assert np.allclose(shape_of(scene), expected, atol=1e-6)


# ---- arrays


def test_strided_arrays(tmp_path):
    file = Gltf()
    interleaved = np.concatenate([TRIANGLE, np.full((3, 3), 9, np.float32)], axis=1).astype("<f4")
    accessor = file.document["accessors"][0]
    accessor["bufferView"] = file.view(interleaved.tobytes(), byteStride=24)
    accessor["byteOffset"] = 0
    check_shape(file.load(tmp_path), TRIANGLE[None])


def test_sparse_arrays_with_and_without_a_base(tmp_path):
    moved = TRIANGLE.copy()
    moved[1] = [3, 0, 0]
    for base in (True, False):
        file = Gltf()
        accessor = file.document["accessors"][0]
        which = np.array([1] if base else [1, 2], np.uint16)
        values = moved[which]
        accessor["sparse"] = {
            "count": len(which),
            "indices": {"bufferView": file.view(which.tobytes()), "componentType": 5123},
            "values": {"bufferView": file.view(values.astype("<f4").tobytes())},
        }
        if not base:
            del accessor["bufferView"]
        check_shape(file.load(tmp_path), moved[None])


@pytest.mark.parametrize(("dtype", "most"), [(np.int8, 127), (np.uint8, 255), (np.int16, 32767), (np.uint16, 65535)])
def test_whole_numbers_stand_for_fractions(tmp_path, dtype, most):
    """KHR_mesh_quantization."""
    uv = np.array([[0, 0], [1, 0], [0.5, 1]])
    file = Gltf((TRIANGLE * 100).astype(dtype))
    file.attribute("TEXCOORD_0", (uv * most).astype(dtype), normalized=True)
    file.texture(np.zeros((2, 2, 3), np.uint8))
    file.material(pbrMetallicRoughness={"baseColorTexture": {"index": 0}})
    scene = file.load(tmp_path)
    check_shape(scene, TRIANGLE[None])
    assert np.allclose(scene.uv, [[0, 1], [1, 1], [0.5, 0]], atol=1 / most)


@pytest.mark.parametrize(
    ("mode", "indices", "faces"),
    [
        (4, [0, 1, 2, 0, 2, 3], [[0, 1, 2], [0, 2, 3]]),
        (5, [0, 1, 3, 2], [[0, 1, 3], [1, 3, 2]]),
        (5, [0, 1, 3, 3, 2], [[0, 1, 3]]),  # a doubled corner joins strips
        (6, [0, 1, 2, 3], [[0, 1, 2], [0, 2, 3]]),
        (6, None, [[0, 1, 2], [0, 2, 3]]),
    ],
)
def test_lists_strips_and_fans(tmp_path, mode, indices, faces):
    file = Gltf(SQUARE)
    file.primitive["mode"] = mode
    if indices is not None:
        file.primitive["indices"] = file.array(np.array(indices, np.uint8))
    check_shape(file.load(tmp_path), SQUARE[faces])


def test_lines_and_points_are_left_out(tmp_path):
    file = Gltf()
    file.document["meshes"][0]["primitives"] += [file.primitive | {"mode": mode} for mode in (0, 1, 2, 3)]
    assert len(file.load(tmp_path).faces) == 1


def test_draco(tmp_path):
    import DracoPy

    file = Gltf(SQUARE)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.uint32)
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1.0]])
    file.attribute("TEXCOORD_0", uv.astype("<f4"))
    file.primitive["indices"] = file.array(faces.ravel())
    packed = DracoPy.encode(SQUARE, faces, tex_coord=uv, preserve_order=True)
    ids = {a["attribute_type"]: a["unique_id"] for a in DracoPy.decode(packed).attributes}
    attributes = {"POSITION": ids[DracoPy.AttributeType.POSITION], "TEXCOORD_0": ids[DracoPy.AttributeType.TEX_COORD]}
    extension = {"bufferView": file.view(packed), "attributes": attributes}
    file.primitive["extensions"] = {"KHR_draco_mesh_compression": extension}
    for accessor in file.document["accessors"]:
        del accessor["bufferView"]
    file.texture(np.zeros((2, 2, 3), np.uint8))
    file.material(pbrMetallicRoughness={"baseColorTexture": {"index": 0}})
    scene = file.load(tmp_path)
    assert np.allclose(shape_of(scene), SQUARE[faces], atol=1e-3)
    assert np.allclose(scene.uv[scene.faces][0], [[0, 1], [1, 1], [1, 0]], atol=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"count": 4},
        {"byteOffset": 4},
        {"byteOffset": -4},
        {"count": -3},
        {"bufferView": 7},
        {"type": "VEC9"},
        {"componentType": 1},
        {"count": 10_000_000},
        {"bufferView": None},
        {"sparse": {"count": 99, "indices": {"bufferView": 0, "componentType": 5125}, "values": {"bufferView": 0}}},
    ],
)
def test_arrays_that_reach_too_far_are_refused(tmp_path, change):
    file = Gltf()
    file.document["accessors"][0] |= change
    file.document["accessors"][0] = {k: v for k, v in file.document["accessors"][0].items() if v is not None}
    with pytest.raises(UserError, match=r"cannot be read as a \.gltf mesh|holds no triangles"):
        file.load(tmp_path)


def test_a_glb_of_another_version_is_refused(tmp_path):
    (tmp_path / "it.glb").write_bytes(struct.pack("<4sIII4s", b"glTF", 1, 24, 4, b"JSON") + b"{}  ")
    with pytest.raises(UserError, match="it is glTF 1"):
        load_scene(tmp_path / "it.glb")


# ---- nodes


def test_matrices_and_turns_of_nodes_multiply(tmp_path):
    file = Gltf()
    half = math.sqrt(0.5)
    file.document["nodes"] = [
        {
            "children": [1],
            "matrix": [0, 2, 0, 0, -2, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1],
        },  # a quarter turn about z, doubled
        {"mesh": 0, "rotation": [0, 0, half, half], "scale": [1, 3, 1], "translation": [5, 0, 0]},
    ]
    turned = np.array([[-x, -3 * y, z] for x, y, z in TRIANGLE])  # half a turn in all
    check_shape(file.load(tmp_path), turned[None])


@pytest.mark.parametrize(
    "nodes", [[{"children": [1]}, {"children": [0], "mesh": 0}], [{"children": [1, 1]}, {"mesh": 0}]]
)
def test_nodes_that_hold_each_other_are_refused(tmp_path, nodes):
    file = Gltf()
    file.document["nodes"] = nodes
    with pytest.raises(UserError, match="its scene graph holds itself"):
        file.load(tmp_path)


def test_a_mesh_that_stands_twice_is_drawn_twice(tmp_path):
    file = Gltf()
    file.document["nodes"] = [{"mesh": 0}, {"mesh": 0, "translation": [4, 0, 0]}, {"mesh": 0, "translation": [9, 9, 9]}]
    file.document["scenes"] = [{"nodes": [2]}, {"nodes": [0, 1]}]
    file.document["scene"] = 1
    check_shape(file.load(tmp_path), [TRIANGLE, TRIANGLE + np.array([4, 0, 0])])


def test_a_skin_bends_the_mesh_where_its_joints_are(tmp_path):
    """The corner (1, 0, 0) hangs half on a joint that moves it by (0, 4, 0); the node of the mesh itself is ignored."""
    file = Gltf()
    file.attribute("JOINTS_0", np.array([[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], np.uint8))
    file.attribute("WEIGHTS_0", np.array([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [1, 0, 0, 0]], np.float32))
    bind = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1))
    bind[1, 3, 0] = -2  # column-major: the second joint stood at x = 2
    file.document["skins"] = [{"joints": [1, 2], "inverseBindMatrices": file.array(bind.reshape(2, 16))}]
    file.document["nodes"] = [
        {"mesh": 0, "skin": 0, "translation": [77, 0, 0], "scale": [5, 5, 5]},
        {"children": [2]},
        {"translation": [2, 4, 0]},
    ]
    file.document["scenes"] = [{"nodes": [0, 1]}]
    check_shape(file.load(tmp_path), [[[0, 0, 0], [1, 2, 0], [0, 1, 0]]])


def test_a_skin_of_joints_that_are_not_there_is_refused(tmp_path):
    file = Gltf()
    file.attribute("JOINTS_0", np.full((3, 4), 9, np.uint8))
    file.attribute("WEIGHTS_0", np.full((3, 4), 0.25, np.float32))
    file.document["skins"] = [{"joints": [0]}]
    file.document["nodes"][0]["skin"] = 0
    with pytest.raises(UserError, match="joints that are not there"):
        file.load(tmp_path)


def test_morphs_stand_at_their_first_weights(tmp_path):
    file = Gltf()
    towards = np.array([[0, 0, 0], [2, 0, 0], [0, 0, 0]], np.float32)
    file.primitive["targets"] = [{"POSITION": file.array(towards)}, {"POSITION": file.array(towards * 50)}]
    file.document["meshes"][0]["weights"] = [0.5, 0]
    check_shape(file.load(tmp_path), [[[0, 0, 0], [2, 0, 0], [0, 1, 0]]])
    file.document["nodes"][0]["weights"] = [1, 0]
    check_shape(file.load(tmp_path), [[[0, 0, 0], [3, 0, 0], [0, 1, 0]]])


def test_normals_turn_with_their_node_also_when_it_is_stretched(tmp_path):
    file = Gltf()
    slope = np.array([1, 1, 0]) / math.sqrt(2)
    file.attribute("NORMAL", np.tile(slope, (3, 1)).astype("<f4"))
    file.document["nodes"][0]["scale"] = [1, 4, 1]
    expected = np.array([1, 0.25, 0]) / math.hypot(1, 0.25)
    x, y, z = file.load(tmp_path).normals[0]
    assert np.allclose([x, z, -y], expected, atol=1e-6)


# ---- materials


def test_texture_coordinates_are_moved_as_the_material_says(tmp_path):
    """KHR_texture_transform: scaled, turned counter-clockwise on the picture, then moved; v runs down in the file."""
    uv = np.array([[0.2, 0.1], [0.9, 0.3], [0.4, 0.8]])
    angle, offset, scale = 0.3, (0.25, -0.5), (2.0, 3.0)
    file = Gltf()
    file.attribute("TEXCOORD_0", np.zeros((3, 2), np.float32))
    file.attribute("TEXCOORD_1", uv.astype("<f4"))
    file.texture(np.zeros((2, 2, 3), np.uint8))
    transform = {"offset": offset, "rotation": angle, "scale": scale, "texCoord": 1}
    slot = {"index": 0, "texCoord": 0, "extensions": {"KHR_texture_transform": transform}}
    file.material(pbrMetallicRoughness={"baseColorTexture": slot})
    u, v = uv[:, 0] * scale[0], -uv[:, 1] * scale[1]  # as complex numbers with v upwards
    turned = (u + 1j * v) * np.exp(1j * angle)
    expected = np.stack([turned.real + offset[0], 1 - (-turned.imag + offset[1])], axis=1)
    assert np.allclose(file.load(tmp_path).uv, expected, atol=1e-6)


def test_a_texture_without_coordinates_is_not_drawn(tmp_path):
    file = Gltf()
    file.texture(np.zeros((2, 2, 3), np.uint8))
    file.material(pbrMetallicRoughness={"baseColorTexture": {"index": 0}}, emissiveTexture={"index": 0})
    (material,) = file.load(tmp_path).materials
    assert material.texture is None
    assert material.emissive_texture is None


def test_each_texture_has_its_own_set_of_coordinates(tmp_path):
    file = Gltf()
    sets = np.random.default_rng(0).random((2, 3, 2)).astype("<f4")
    file.attribute("TEXCOORD_0", sets[0])
    file.attribute("TEXCOORD_1", sets[1])
    file.texture(np.zeros((2, 2, 3), np.uint8))
    file.material(
        pbrMetallicRoughness={"baseColorTexture": {"index": 0, "texCoord": 1}},
        emissiveTexture={"index": 0},
        emissiveFactor=[1, 1, 1],
    )
    scene = file.load(tmp_path)
    assert np.allclose(scene.uv, sets[1] * [1, -1] + [0, 1])
    assert np.allclose(scene.emissive_uv, sets[0] * [1, -1] + [0, 1])


def test_samplers_say_what_is_outside_and_how_texels_mix(tmp_path):
    file = Gltf()
    file.attribute("TEXCOORD_0", np.zeros((3, 2), np.float32))
    file.texture(np.zeros((2, 2, 3), np.uint8), wrapS=33071, wrapT=33648, magFilter=9728)
    file.material(pbrMetallicRoughness={"baseColorTexture": {"index": 0}})
    texture = file.load(tmp_path).materials[0].texture
    assert texture.wrap == (Wrap.CLAMP, Wrap.MIRROR)
    assert texture.nearest


def test_materials_and_their_extensions(tmp_path):
    file = Gltf()
    file.material(
        extensions={"KHR_materials_unlit": {}, "KHR_materials_emissive_strength": {"emissiveStrength": 3}},
        emissiveFactor=[0.5, 0, 0.25],
        alphaMode="MASK",
        alphaCutoff=0.25,
        pbrMetallicRoughness={"baseColorFactor": [1, 0.5, 0.25, 0.75]},
    )
    (material,) = file.load(tmp_path).materials
    assert material.unlit
    assert material.emissive == (1.5, 0, 0.75)
    assert (material.alpha, material.cutoff, material.factor) == (Alpha.MASK, 0.25, (1, 0.5, 0.25, 0.75))


def test_specular_glossiness_gives_the_diffuse_colour(tmp_path):
    file = Gltf()
    gloss = {"diffuseFactor": [0.2, 0.4, 0.6, 1], "specularFactor": [0, 0, 0]}
    file.material(extensions={"KHR_materials_pbrSpecularGlossiness": gloss})
    assert file.load(tmp_path).materials[0].factor == (0.2, 0.4, 0.6, 1)


@pytest.mark.parametrize(("alpha", "kind"), [(1.0, Alpha.OPAQUE), (0.99, Alpha.OPAQUE), (0.5, Alpha.BLEND)])
def test_what_hides_everything_is_opaque_whatever_it_says(tmp_path, alpha, kind):
    file = Gltf()
    file.material(alphaMode="BLEND", pbrMetallicRoughness={"baseColorFactor": [1, 1, 1, alpha]})
    assert file.load(tmp_path).materials[0].alpha == kind
    file.attribute("COLOR_0", np.full((3, 4), 0.5, np.float32))
    assert file.load(tmp_path).materials[0].alpha == Alpha.BLEND
