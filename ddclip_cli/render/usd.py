"""USDZ as parts of a scene, by way of OpenUSD (an extra): meshes as they were modelled, with preview surfaces."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ddclip_cli.render.outside import FilesBeside, check_archive, check_triangles
from ddclip_cli.render.polygons import fans
from ddclip_cli.render.scene import WHITE, Material, Part, unit_rows
from ddclip_cli.render.usd_materials import UsdMaterials


def read_usdz(data: bytes, files: FilesBeside) -> tuple[list[Part], bool]:
    """The parts of a .usdz file, and whether y is up; what is drawn otherwise than it says goes to `files.notes`."""
    from pxr import Usd, UsdGeom, UsdSkel

    check_archive(data, files.name)
    parts: list[Part] = []
    with TemporaryDirectory() as folder:  # OpenUSD reads files, and this one alone is in the folder
        path = Path(folder) / "it.usdz"
        path.write_bytes(data)
        stage = Usd.Stage.Open(str(path))
        for layer in stage.GetUsedLayers():
            if not layer.anonymous and not layer.identifier.startswith(str(path)):
                raise files.refuse(f"it names {layer.identifier!r}, outside itself: pack it into the file instead")
        with zipfile.ZipFile(path) as archive:
            materials, places = UsdMaterials(files, archive), UsdGeom.XformCache()
            for prim in stage.Traverse(Usd.TraverseInstanceProxies()):
                if not prim.IsA(UsdGeom.Mesh) or not _is_drawn(UsdGeom.Imageable(prim)):
                    continue
                if prim.HasAPI(UsdSkel.BindingAPI):
                    files.note("a skin (UsdSkel) is drawn as modelled")
                parts += _parts(prim, np.array(places.GetLocalToWorldTransform(prim)), materials)
                check_triangles(sum(len(part.faces) for part in parts), files.name)
        return parts, UsdGeom.GetStageUpAxis(stage) == UsdGeom.Tokens.y


def _is_drawn(imageable: Any) -> bool:
    return imageable.ComputeVisibility() != "invisible" and imageable.ComputePurpose() in ("default", "render")


@dataclass(frozen=True)
class _Polygons:
    """How a mesh's values reach its corners."""

    counts: np.ndarray  # (N,) corners of each polygon
    points: np.ndarray  # (corners,) the point of each corner

    def spread(self, values: Any, interpolation: str) -> np.ndarray | None:
        """(corners, K) float64 of a value for each corner, point or polygon, or for all; None for none."""
        if values is None or not len(values):
            return None
        values = np.array(values, dtype=np.float64)
        if interpolation in ("vertex", "varying"):
            return values[self.points]
        if interpolation == "uniform":
            return np.repeat(values, self.counts, axis=0)
        return np.repeat(values[:1], len(self.points), axis=0) if interpolation == "constant" else values

    def primvar(self, prim: Any, name: str) -> np.ndarray | None:
        from pxr import UsdGeom

        primvar = UsdGeom.PrimvarsAPI(prim).FindPrimvarWithInheritance(name)
        if not primvar or not primvar.HasValue():
            return None
        return self.spread(primvar.ComputeFlattened(), primvar.GetInterpolation())


def _parts(prim: Any, place: np.ndarray, materials: UsdMaterials) -> Iterator[Part]:
    """The triangles of one mesh, a part for each of its materials; corners stand alone."""
    from pxr import UsdGeom

    mesh = UsdGeom.Mesh(prim)
    points = np.array(mesh.GetPointsAttr().Get(), dtype=np.float64).reshape(-1, 3)
    counts, index = (
        np.array(attribute.Get(), dtype=np.int64).reshape(-1)
        for attribute in (mesh.GetFaceVertexCountsAttr(), mesh.GetFaceVertexIndicesAttr())
    )
    polygons = _Polygons(counts, index)
    vertices = points[index] @ place[:3, :3] + place[3, :3]
    normals = polygons.primvar(prim, "normals")
    if normals is None:
        normals = polygons.spread(mesh.GetNormalsAttr().Get(), mesh.GetNormalsInterpolation())
    if normals is not None:
        normals = unit_rows(normals @ np.linalg.pinv(place[:3, :3]).T)
    corners, polygon = fans(counts)
    colours = polygons.primvar(prim, "displayColor")
    for material, coordinates, which in materials.of(prim, len(counts)):
        uv = polygons.primvar(prim, coordinates) if material and material.texture else None
        painted = None
        if material is None and colours is not None:
            material, painted = WHITE, np.pad(colours, ((0, 0), (0, 1)), constant_values=1.0)
        used, faces = np.unique(corners[which[polygon]], return_inverse=True)
        given = (None if a is None else a[used] for a in (normals, painted, uv))
        yield Part(vertices[used], faces.reshape(-1, 3), material or Material(), *given)
