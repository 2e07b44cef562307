"""glTF 2.0 as parts of a scene: nodes, skins and morphs at rest, and materials with their extensions.

Read here rather than by trimesh, which leaves out texture transforms, second texture coordinates, samplers, sparse and
normalised arrays, fans, skins and morphs, and cuts factors and colours to 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ddclip_cli.render.gltf_file import GltfFile
from ddclip_cli.render.gltf_materials import GltfMaterials
from ddclip_cli.render.outside import FilesBeside, check_triangles
from ddclip_cli.render.scene import WHITE, Material, Part, unit_rows

KNOWN = {
    "EXT_texture_webp",
    "KHR_draco_mesh_compression",
    "KHR_materials_emissive_strength",
    "KHR_materials_pbrSpecularGlossiness",
    "KHR_materials_unlit",
    "KHR_mesh_quantization",
    "KHR_texture_transform",
}
NOT_DRAWN = {
    "EXT_mesh_gpu_instancing": "copies of meshes (EXT_mesh_gpu_instancing) are drawn once",
    "KHR_materials_transmission": "glass (KHR_materials_transmission) is drawn as paint",
}
STRIP, FAN = 5, 6


def read_gltf(data: bytes, suffix: str, files: FilesBeside) -> Iterator[Part]:
    """The parts of a .gltf or .glb file in its own axes (y up); what is drawn otherwise goes to `files.notes`."""
    file = GltfFile(data, suffix, files)
    for extension in file.document.get("extensionsRequired", ()):
        if extension not in KNOWN and extension not in NOT_DRAWN:
            files.note(f"{extension} is not known here, and the file says that it is required")
    for extension, note in NOT_DRAWN.items():
        if extension in file.document.get("extensionsUsed", ()):
            files.note(note)
    materials = GltfMaterials(file)
    places = _places(file)
    triangles = 0
    for number in _reached(file):
        node = file.list("nodes")[number]
        if "mesh" not in node:
            continue
        mesh = file.list("meshes")[node["mesh"]]
        weights = node.get("weights", mesh.get("weights", ()))
        joints = _joints(file, node, places)
        for primitive in mesh["primitives"]:
            if primitive.get("mode", 4) < 4:  # points and lines
                continue
            part = _part(file, primitive, weights, materials, places[number], joints)
            triangles += len(part.faces)
            check_triangles(triangles, files.name)
            yield part


def _part(
    file: GltfFile,
    primitive: dict[str, Any],
    weights: Any,
    materials: GltfMaterials,
    place: np.ndarray,
    joints: np.ndarray | None,
) -> Part:
    """Triangles of one primitive, in world axes."""
    compressed = primitive.get("extensions", {}).get("KHR_draco_mesh_compression")
    faces, found = file.draco(compressed, primitive) if compressed else (None, {})
    arrays = {
        name: found[name] if name in found else file.accessor(number)
        for name, number in primitive["attributes"].items()
        if name.startswith(("POSITION", "NORMAL", "TEXCOORD_", "COLOR_0", "JOINTS_", "WEIGHTS_"))
    }
    vertices, normals = np.asarray(arrays["POSITION"], dtype=np.float64), arrays.get("NORMAL")
    for weight, target in zip(weights, primitive.get("targets", ()), strict=False):
        if weight and "POSITION" in target:
            vertices = vertices + weight * file.accessor(target["POSITION"])
        if weight and normals is not None and "NORMAL" in target:
            normals = normals + weight * file.accessor(target["NORMAL"])
    if faces is None:
        indices = file.accessor(primitive["indices"]) if "indices" in primitive else np.arange(len(vertices))
        faces = _triangles(indices, primitive.get("mode", 4))
    matrices = place
    if joints is not None and "JOINTS_0" in arrays:
        matrices = _skinned(arrays, joints)
    vertices, normals = _moved(vertices, normals, matrices)

    number = primitive.get("material")
    colours = _rgba(arrays["COLOR_0"]) if "COLOR_0" in arrays else None
    if number is None:
        return Part(vertices, faces, Material() if colours is None else WHITE, normals, colours)
    material = materials.material(number)
    return Part(
        vertices,
        faces,
        material,
        normals,
        colours,
        materials.coordinates(number, "base", arrays) if material.texture else None,
        materials.coordinates(number, "emissive", arrays) if material.emissive_texture else None,
    )


def _triangles(indices: np.ndarray, mode: int) -> np.ndarray:
    """(T, 3) of a list, a strip or a fan."""
    if mode == FAN:
        return np.stack([np.full(max(0, len(indices) - 2), indices[0]), indices[1:-1], indices[2:]], axis=1)
    if mode == STRIP:
        faces = np.stack([indices[:-2], indices[1:-1], indices[2:]], axis=1)
        return faces[(faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 0] != faces[:, 2])]
    return indices[: len(indices) // 3 * 3].reshape(-1, 3)


def _moved(
    vertices: np.ndarray, normals: np.ndarray | None, matrices: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Points and unit normals through one (4, 4) matrix, or through (V, 4, 4), one each."""
    linear, offset = matrices[..., :3, :3], matrices[..., :3, 3]
    with np.errstate(all="ignore"):  # what is not finite is found when all parts are joined
        if matrices.ndim == 2:
            vertices = vertices @ linear.T + offset
            normals = None if normals is None else normals @ np.linalg.pinv(linear)
        else:
            vertices = np.einsum("vij,vj->vi", linear, vertices) + offset
            normals = None if normals is None else np.einsum("vij,vj->vi", linear, normals)
        if normals is not None:
            normals = unit_rows(normals)
    return vertices, normals


def _rgba(colours: np.ndarray) -> np.ndarray:
    """(V, 4) float linear; whole numbers stand for fractions even where the file forgets to say so."""
    if colours.dtype.kind == "u":
        colours = colours / np.iinfo(colours.dtype).max
    return colours if colours.shape[1] == 4 else np.pad(colours, ((0, 0), (0, 1)), constant_values=1.0)


def _skinned(arrays: dict[str, np.ndarray], joints: np.ndarray) -> np.ndarray:
    """(V, 4, 4): the weighted mean of the matrices of each vertex's joints."""
    total = np.zeros((len(arrays["JOINTS_0"]), 4, 4))
    for name in sorted(arrays):
        if not name.startswith("JOINTS_"):
            continue
        weights = np.asarray(arrays[name.replace("JOINTS", "WEIGHTS")], dtype=np.float64)
        if arrays[name].max(initial=0) >= len(joints):
            raise ValueError("a skin names joints that are not there")
        for column in range(4):
            total += weights[:, column, None, None] * joints[arrays[name][:, column]]
    sums = total[:, 3:, 3:]  # of the weights, should be 1
    return np.where(sums > 1e-6, total / np.where(sums > 1e-6, sums, 1), np.eye(4))


def _joints(file: GltfFile, node: dict[str, Any], places: list[np.ndarray]) -> np.ndarray | None:
    """(joints, 4, 4) from a skinned mesh's own axes to the world, None for other meshes."""
    if "skin" not in node:
        return None
    skin = file.list("skins")[node["skin"]]
    matrices = np.stack([places[joint] for joint in skin["joints"]])
    if "inverseBindMatrices" not in skin:
        return matrices
    bind = file.accessor(skin["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)
    return matrices @ bind[: len(matrices)]


def _reached(file: GltfFile) -> Iterator[int]:
    """The nodes of the scene that the file shows."""
    scenes = file.list("scenes")
    found = list(scenes[file.document.get("scene", 0)].get("nodes", ())) if scenes else list(_roots(file))
    seen = set()
    for number in found:  # which grows on the way
        if number in seen:
            raise ValueError("its scene graph holds itself")
        seen.add(number)
        yield number
        found += file.list("nodes")[number].get("children", ())


def _roots(file: GltfFile) -> Iterator[int]:
    children = {child for node in file.list("nodes") for child in node.get("children", ())}
    return (number for number in range(len(file.list("nodes"))) if number not in children)


def _places(file: GltfFile) -> list[np.ndarray]:
    """(4, 4) float64 from each node's own axes to the world."""
    nodes = file.list("nodes")
    places: list[np.ndarray] = [np.eye(4)] * len(nodes)
    waiting = [(number, np.eye(4)) for number in _roots(file)]
    visits = 0
    while waiting:
        number, parent = waiting.pop()
        visits += 1
        if visits > len(nodes):
            raise ValueError("its scene graph holds itself")
        places[number] = parent @ _matrix(nodes[number])
        waiting += [(child, places[number]) for child in nodes[number].get("children", ())]
    return places


def _matrix(node: dict[str, Any]) -> np.ndarray:
    """(4, 4) float64 from a node's axes to its parent's."""
    if "matrix" in node:
        return np.array(node["matrix"], dtype=np.float64).reshape(4, 4).T
    matrix = np.eye(4)
    x, y, z, w = node.get("rotation", (0, 0, 0, 1))
    turn = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    matrix[:3, :3] = turn * np.asarray(node.get("scale", (1, 1, 1)), dtype=np.float64)
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix
