"""3MF as parts of a scene: the objects that are to be built, with the colours of their triangles.

Read here rather than by trimesh, which leaves out the colours.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from ddclip_cli.render.outside import FilesBeside, check_archive, check_triangles
from ddclip_cli.render.scene import WHITE, Material, Part
from ddclip_cli.render.tone import to_linear

Object = tuple[str, str]  # path in the archive, id


def read_3mf(data: bytes, files: FilesBeside) -> Iterator[Part]:
    """The parts of a .3mf file in its own axes (z up)."""
    check_archive(data, files.name)
    package = _Package(data, files)
    items = [(item, path) for path, model in package.models.items() for item in _below(model, "build", "item")]
    check_triangles(sum(package.amount(_target(item, path), ()) for item, path in items), files.name)
    for item, path in items:
        yield from package.parts(_target(item, path), _transform(item))


class _Package:
    def __init__(self, data: bytes, files: FilesBeside) -> None:
        from lxml import etree

        self.files = files
        self.models: dict[str, Any] = {}
        self.objects: dict[Object, Any] = {}
        self.colours: dict[Object, np.ndarray] = {}  # (N, 3) linear, by the id of their group
        self._amounts: dict[Object, int] = {}
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                if name.lower().endswith(".model"):
                    parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=True)
                    self.models["/" + name.lstrip("/")] = etree.fromstring(archive.read(name), parser)
        if not self.models:
            raise ValueError("it holds no model")
        for path, model in self.models.items():
            for resource in _below(model, "resources", "*"):
                key, kind = (path, resource.get("id")), _name(resource)
                if kind == "object":
                    self.objects[key] = resource
                elif kind in ("basematerials", "colorgroup"):
                    texts = [child.get("displaycolor") or child.get("color") for child in resource]
                    self.colours[key] = np.array([_colour(text) for text in texts]).reshape(-1, 3)
                elif kind == "texture2dgroup":
                    files.note("pictures on a .3mf are not drawn")

    def amount(self, key: Object, above: tuple[Object, ...]) -> int:
        """The triangles of an object and of those that it consists of, and one for each object."""
        if key in above:
            raise ValueError("its objects hold each other")
        if key not in self._amounts:
            thing = self.objects[key]
            parts = _below(thing, "components", "component")
            own = 1 + len(_below(thing, "mesh", "triangles", "triangle"))
            self._amounts[key] = own + sum(self.amount(_target(part, key[0]), (*above, key)) for part in parts)
        return self._amounts[key]

    def parts(self, key: Object, place: np.ndarray, colour: np.ndarray | None = None) -> Iterator[Part]:
        """The triangles of an object and of those that it consists of, in `colour` (3,) where nothing else is said."""
        thing = self.objects[key]
        own = self._colour(key[0], thing.get("pid"), thing.get("pindex"))
        colour = colour if own is None else own
        for component in _below(thing, "components", "component"):
            yield from self.parts(_target(component, key[0]), _transform(component) @ place, colour)
        points, triangles = _below(thing, "mesh", "vertices", "vertex"), _below(thing, "mesh", "triangles", "triangle")
        vertices = _numbers(points, ("x", "y", "z"), np.float64) @ place[:3, :3] + place[3, :3]
        faces = _numbers(triangles, ("v1", "v2", "v3"), np.int64)
        plain = Material() if colour is None else Material((*colour.tolist(), 1.0))
        if not any(triangle.get("p1") for triangle in triangles):
            yield Part(vertices, faces, plain)
            return
        rest = np.asarray(plain.factor)[:3]
        colours = np.array([c for triangle in triangles for c in self._of_corners(key[0], thing, triangle, rest)])
        colours = np.pad(colours, ((0, 0), (0, 1)), constant_values=1.0)
        yield Part(vertices[faces.ravel()], np.arange(faces.size).reshape(-1, 3), WHITE, None, colours)

    def _of_corners(self, path: str, thing: Any, triangle: Any, rest: np.ndarray) -> Iterator[np.ndarray]:
        """(3,) linear for each of a triangle's corners, `rest` where nothing is said."""
        group, first = triangle.get("pid") or thing.get("pid"), triangle.get("p1")
        for at in (first, triangle.get("p2") or first, triangle.get("p3") or first):
            colour = self._colour(path, group, at)
            yield rest if colour is None else colour

    def _colour(self, path: str, group: str | None, at: str | None) -> np.ndarray | None:
        """(3,) linear of a place in a group of colours."""
        colours = self.colours.get((path, group or ""))
        return colours[int(at)] if colours is not None and at is not None and 0 <= int(at) < len(colours) else None


def _name(element: Any) -> str:
    """An element's name without its namespace; comments have none."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _below(element: Any, *names: str) -> list[Any]:
    """The elements at the end of a path of names, `*` for any."""
    found = [element]
    for name in names:
        found = [child for parent in found for child in parent if name in ("*", _name(child))]
    return found


def _numbers(elements: list[Any], names: tuple[str, ...], dtype: type) -> np.ndarray:
    """(N, names) of attributes."""
    rows = [[element.get(name) for name in names] for element in elements]
    return np.array(rows, dtype=dtype).reshape(-1, len(names))


def _target(element: Any, path: str) -> Object:
    """The object that a component or an item stands for."""
    other = next((value for key, value in element.attrib.items() if key.rpartition("}")[2] == "path"), path)
    return other, element.get("objectid")


def _transform(element: Any) -> np.ndarray:
    """(4, 4), for rows of points."""
    matrix = np.eye(4)
    if element.get("transform"):
        matrix[:, :3] = np.array(element.get("transform").split(), dtype=np.float64).reshape(4, 3)
    return matrix


def _colour(text: str | None) -> np.ndarray:
    """`#RRGGBB` or `#RRGGBBAA` -> (3,) linear."""
    return to_linear(np.array([int(str(text)[i : i + 2], 16) for i in (1, 3, 5)]) / 255)
