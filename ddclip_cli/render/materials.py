"""What a mesh is made of: linear colours, texture coordinates and textures, from trimesh's many ways to keep them."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from ddclip_cli.errors import UserError
from ddclip_cli.render.outside import MAX_PICTURE, PICTURE_FORMATS

MAX_TEXTURE = 1024  # pixels a side; larger ones are reduced first
GREY = (0.5, 0.5, 0.5)  # sRGB, for files that say nothing
TRIMESHS_GREY = (102, 102, 102, 255)  # what it fills in for them
OPAQUE = 250 / 255  # exporters leave alphas of almost one


class Textures:
    """The textures of a file, each decoded once, however many parts use it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pictures: list[np.ndarray] = []  # (H, W, 3) uint8 sRGB
        self.notes: set[str] = set()
        """What is drawn otherwise than the file says."""
        self._known: dict[int, tuple[Any, int, bool]] = {}

    def add(self, picture: Any) -> tuple[int, bool]:
        """A picture of Pillow's -> its index in `pictures`, -1 if it cannot be decoded; whether one sees through it."""
        if id(picture) not in self._known:
            self._known[id(picture)] = (picture, *self._decode(picture))  # holding it, its id stays its own
        return self._known[id(picture)][1:]

    def _decode(self, picture: Any) -> tuple[int, bool]:
        if picture.width * picture.height > MAX_PICTURE:
            raise UserError(f"{self.name}: a texture has more than {MAX_PICTURE:,} pixels: make it smaller")
        try:
            if picture.format not in (None, *PICTURE_FORMATS):
                raise ValueError(picture.format)
            if max(picture.size) > MAX_TEXTURE:
                picture = picture.copy()
                picture.thumbnail((MAX_TEXTURE, MAX_TEXTURE), Image.Resampling.BOX)
            self.pictures.append(np.asarray(picture.convert("RGB")))
            clear = picture.has_transparency_data
            lowest = picture.convert("RGBA").getchannel("A").getextrema()[0] if clear else 255
        except Exception:  # decoders raise whatever they come upon in a broken file
            self.notes.add("a texture cannot be decoded and is drawn plain")
            return -1, False
        return len(self.pictures) - 1, lowest < 255 * OPAQUE


def surface_of(mesh: Any, textures: Textures, *, gltf: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """Linear colours (V, 3), texture coordinates (V, 2) and the texture's index, -1 for none.

    Colours of vertices are linear in glTF and sRGB in other formats.
    """
    visual, count = mesh.visual, len(mesh.vertices)
    uv = np.zeros((count, 2))
    if visual.kind == "vertex":
        colours = _unit(visual.vertex_colors)[:, :3]
        return colours if gltf else to_linear(colours), uv, -1
    material: Any = getattr(visual, "material", None)
    factor, picture = to_linear(np.array(GREY)), None
    alpha = 1.0
    if hasattr(material, "baseColorFactor"):
        base = material.baseColorFactor
        factor = np.ones(3) if base is None else _unit(base)[:3]
        alpha = 1.0 if base is None else float(_unit(base)[3])
        picture = material.baseColorTexture
    elif material is not None:
        picture = getattr(material, "image", None)
        diffuse = getattr(material, "diffuse", None)
        if picture is not None:
            factor = np.ones(3)
        elif diffuse is not None and not np.array_equal(diffuse, TRIMESHS_GREY):
            factor = to_linear(_unit(diffuse)[:3])
    colours = np.tile(factor, (count, 1))
    painted = getattr(visual, "vertex_attributes", {}).get("color")  # beside a material, only glTF has them
    if painted is not None and len(painted) == count:
        colours *= np.nan_to_num(_unit(painted)[:, :3])
    index, clear = -1, False
    if picture is not None and getattr(visual, "uv", None) is not None:
        index, clear = textures.add(picture)
        uv = np.asarray(visual.uv, dtype=np.float64)[:, :2]
    if getattr(material, "alphaMode", None) in ("BLEND", "MASK") and (clear or alpha < OPAQUE):
        textures.notes.add("what one sees through is drawn opaque")
    return colours, uv, index


def without_shared_corners(mesh: Any) -> tuple[np.ndarray, np.ndarray]:
    """Vertex numbers (3T,) and sRGB colours (3T, 3) of a mesh whose faces have colours, for corners of their own."""
    return np.asarray(mesh.faces).ravel(), np.repeat(_unit(mesh.visual.face_colors)[:, :3], 3, axis=0)


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB values in [0, 1] as linear light (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _unit(colour: Any) -> np.ndarray:
    """trimesh keeps some colours as whole numbers and some as fractions."""
    colour = np.asarray(colour)
    return colour / np.iinfo(colour.dtype).max if colour.dtype.kind == "u" else colour.astype(np.float64)
