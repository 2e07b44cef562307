"""FBX as parts of a scene, by way of Assimp (an extra): meshes as they were modelled, and their materials."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ddclip_cli.render.outside import FilesBeside, check_triangles
from ddclip_cli.render.scene import WHITE, Alpha, Material, Part, Texture, unit_rows
from ddclip_cli.render.tone import to_linear


def read_fbx(data: bytes, files: FilesBeside) -> list[Part]:
    """The parts of an .fbx file, y up; what is drawn otherwise than it says goes to `files.notes`."""
    import assimp_py

    with TemporaryDirectory() as folder:  # Assimp reads files, and this one alone is in the folder
        path = Path(folder) / "it.fbx"
        path.write_bytes(data)
        try:
            scene = assimp_py.import_file(str(path), assimp_py.Process_Triangulate)
        except RuntimeError as error:
            raise ValueError(str(error).rpartition("': ")[2]) from None
    material = cache(lambda number: _material(scene.materials[number], files))
    nodes = list(_nodes(scene.root_node, np.eye(4)))
    check_triangles(sum(scene.meshes[i].num_indices // 3 for node, _ in nodes for i in node.mesh_indices), files.name)
    return [_part(scene.meshes[i], place, material) for node, place in nodes for i in node.mesh_indices]


def _nodes(node: Any, place: np.ndarray) -> Iterator[tuple[Any, np.ndarray]]:
    """Every node, and the (4, 4) matrix from its axes to the world."""
    place = place @ np.array(node.transformation)
    yield node, place
    for child in node.children:
        yield from _nodes(child, place)


def _part(mesh: Any, place: np.ndarray, materials: Any) -> Part:
    vertices = np.array(mesh.vertices, dtype=np.float64).reshape(-1, 3) @ place[:3, :3].T + place[:3, 3]
    normals = None
    if mesh.normals is not None:
        normals = unit_rows(np.array(mesh.normals, dtype=np.float64).reshape(-1, 3) @ np.linalg.pinv(place[:3, :3]))
    faces = np.array(mesh.indices, dtype=np.int64)
    faces = faces[: len(faces) // 3 * 3].reshape(-1, 3)
    colours = np.array(mesh.colors[0], dtype=np.float64).reshape(-1, 4) if mesh.colors else None
    material = materials(mesh.material_index)
    uv = None
    if material.texture is not None and mesh.texcoords:
        uv = np.array(mesh.texcoords[0], dtype=np.float64).reshape(len(vertices), -1)[:, :2]
    if colours is not None:
        colours[:, :3] = to_linear(colours[:, :3])
        material = material if material.texture else WHITE
    return Part(vertices, faces, material, normals, colours, uv)


def _material(material: dict[str, Any], files: FilesBeside) -> Material:
    """Colours of the format are linear light, as its other readers take them."""
    names = material.get("TEXTURES", {}).get(1, ())  # the diffuse ones
    texture = _texture(names[0], files) if names else None
    colour = (1.0, 1.0, 1.0) if texture else tuple(material.get("COLOR_DIFFUSE", Material().factor)[:3])
    alpha = float(np.clip(material.get("OPACITY", 1.0), 0, 1)) or 1.0  # exporters also write 0 where they mean 1
    emissive = tuple(material.get("COLOR_EMISSIVE", (0.0, 0.0, 0.0))[:3])
    return Material((*colour, alpha), texture, emissive, alpha=Alpha.BLEND if alpha < 1 else Alpha.OPAQUE)


def _texture(name: str, files: FilesBeside) -> Texture | None:
    if name.startswith("*"):
        files.note("pictures inside an .fbx are not drawn: put them beside it")
        return None
    data = files.find(name)
    if data is None:
        files.note(f"the texture {name!r} is missing, drawn plain")
        return None
    picture = files.decode(data, repr(name))
    return None if picture is None else Texture(picture)
