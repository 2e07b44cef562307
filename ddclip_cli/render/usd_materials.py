"""Materials of a USDZ file: the colour, opacity and emission of its preview surfaces."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from ddclip_cli.render.outside import FilesBeside
from ddclip_cli.render.scene import Alpha, Material, Texture, Wrap

WRAPS = {"clamp": Wrap.CLAMP, "black": Wrap.CLAMP, "mirror": Wrap.MIRROR}
Found = tuple[Material | None, str]
"""A material and the name of its texture coordinates."""


class UsdMaterials:
    """Materials by what they are bound to; pictures are those inside the package."""

    def __init__(self, files: FilesBeside, archive: zipfile.ZipFile) -> None:
        self.files, self.archive = files, archive
        self.picture = cache(self._picture)
        self._known: dict[str, Found] = {}

    def of(self, prim: Any, polygons: int) -> Iterator[tuple[Material | None, str, np.ndarray]]:
        """(material, name of its texture coordinates, (polygons,) bool which have it) of a mesh."""
        from pxr import UsdGeom, UsdShade

        left = np.ones(polygons, dtype=bool)
        for subset in UsdShade.MaterialBindingAPI(prim).GetMaterialBindSubsets():
            which = np.zeros(polygons, dtype=bool)
            which[np.array(UsdGeom.Subset(subset).GetIndicesAttr().Get(), dtype=np.int64)] = True
            left &= ~which
            yield (*self._bound(subset.GetPrim()), which)
        if left.any():
            yield (*self._bound(prim), left)

    def _bound(self, prim: Any) -> Found:
        from pxr import UsdShade

        bound, _ = UsdShade.MaterialBindingAPI(prim).ComputeBoundMaterial()
        shader = bound.ComputeSurfaceSource()[0] if bound else None
        if not shader:
            return None, "st"
        key = str(shader.GetPath())
        if key not in self._known:
            self._known[key] = self._material(shader)
        return self._known[key]

    def _material(self, shader: Any) -> Found:
        source = _source(shader, "diffuseColor")
        texture = None if source is None else self._texture(source)
        colour = (1.0, 1.0, 1.0) if texture else _value(shader, "diffuseColor", (0.18, 0.18, 0.18))
        pictured = _source(shader, "opacity") is not None
        alpha = 1.0 if pictured else float(_value(shader, "opacity", 1.0))
        cutoff = float(_value(shader, "opacityThreshold", 0.0))
        kind = Alpha.OPAQUE
        if pictured or alpha < 1:
            kind = Alpha.MASK if cutoff > 0 else Alpha.BLEND
        if _source(shader, "emissiveColor") is not None:
            self.files.note("pictures of what glows are not drawn")
        emissive = _value(shader, "emissiveColor", (0.0, 0.0, 0.0))
        material = Material((*map(float, colour), alpha), texture, tuple(map(float, emissive)), None, kind, cutoff)
        return material, "st" if source is None else self._coordinates(source)

    def _texture(self, source: Any) -> Texture | None:
        kind = source.GetIdAttr().Get()
        if kind != "UsdUVTexture":
            self.files.note(f"a colour that comes from a {kind} is drawn plain")
            return None
        asset = _value(source, "file", None)
        picture = self.picture(asset.path if asset else "")
        across, up = (WRAPS.get(str(_value(source, name, "")), Wrap.REPEAT) for name in ("wrapS", "wrapT"))
        return None if picture is None else Texture(picture, (across, up))

    def _coordinates(self, texture: Any) -> str:
        reader = _source(texture, "st")
        if reader is not None and reader.GetIdAttr().Get() == "UsdTransform2d":
            self.files.note("a texture that its material moves (UsdTransform2d) is drawn unmoved")
            reader = _source(reader, "in")
        return "st" if reader is None else str(_value(reader, "varname", "st"))

    def _picture(self, name: str) -> np.ndarray | None:
        inside = name.removeprefix("./")
        if not inside or inside not in self.archive.namelist():
            self.files.note(f"the texture {name!r} is missing, drawn plain")
            return None
        return self.files.decode(self.archive.read(inside), repr(name))


def _source(shader: Any, name: str) -> Any:
    """The shader that an input of another is connected to, None for none."""
    from pxr import UsdShade

    given = shader.GetInput(name)
    if not given or not given.HasConnectedSource():
        return None
    source = UsdShade.Shader(given.GetConnectedSources()[0][0].source.GetPrim())
    return source if source and source.GetIdAttr().Get() else None


def _value(shader: Any, name: str, default: Any) -> Any:
    """The value of an input, also where it comes from the material's interface."""
    given = shader.GetInput(name)
    found = given.GetValueProducingAttributes() if given else ()
    value = found[0].Get() if found else None
    return default if value is None or type(value).__name__ == "Token" else value
