"""Materials of a glTF file: base colour, alpha and emission, with the extensions that change them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

import numpy as np

from ddclip_cli.render.gltf_file import GltfFile
from ddclip_cli.render.scene import Alpha, Material, Texture, Wrap

WRAPS = {33071: Wrap.CLAMP, 33648: Wrap.MIRROR}
NEAREST = 9728
Use = Literal["base", "emissive"]


class GltfMaterials:
    """Materials by number, each decoded once, when a primitive asks for it."""

    def __init__(self, file: GltfFile) -> None:
        self.file = file
        self.material = cache(self._material)
        self.texture = cache(self._texture)

    def coordinates(self, number: int, use: Use, arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """(V, 2) where a texture of material `number` lies on vertices, v running up; None if the file does not say."""
        slot = _slots(self.file.list("materials")[number])[use]
        transform = slot.get("extensions", {}).get("KHR_texture_transform", {})
        uv = arrays.get(f"TEXCOORD_{transform.get('texCoord', slot.get('texCoord', 0))}")
        if uv is None:
            return None
        u, v = np.asarray(uv, dtype=np.float64).T * np.reshape(transform.get("scale", (1, 1)), (2, 1))
        cos, sin = (f(transform.get("rotation", 0)) for f in (math.cos, math.sin))
        across, down = transform.get("offset", (0, 0))
        # Counter-clockwise on the picture, whose v runs down.
        return np.stack([cos * u + sin * v + across, 1 - (cos * v - sin * u + down)], axis=1)

    def _material(self, number: int) -> Material:
        material = self.file.list("materials")[number]
        extensions, slots = material.get("extensions", {}), _slots(material)
        surface = material.get("pbrMetallicRoughness", {})
        gloss = extensions.get("KHR_materials_pbrSpecularGlossiness")
        factor = surface.get("baseColorFactor") if gloss is None else gloss.get("diffuseFactor")
        strength = extensions.get("KHR_materials_emissive_strength", {}).get("emissiveStrength", 1)
        emissive = strength * np.asarray(material.get("emissiveFactor", (0, 0, 0)), dtype=np.float64)
        glows = bool(emissive.any())
        return Material(
            factor=tuple(map(float, factor or (1, 1, 1, 1))),
            texture=self.texture(slots["base"]["index"]) if slots["base"] else None,
            emissive=tuple(emissive.tolist()),
            emissive_texture=self.texture(slots["emissive"]["index"]) if slots["emissive"] and glows else None,
            alpha=Alpha[material.get("alphaMode", "OPAQUE")],
            cutoff=float(material.get("alphaCutoff", 0.5)),
            unlit="KHR_materials_unlit" in extensions,
        )

    def _texture(self, number: int) -> Texture | None:
        texture = self.file.list("textures")[number]
        webp = texture.get("extensions", {}).get("EXT_texture_webp", {})
        source = webp.get("source", texture.get("source"))
        if source is None:
            kinds = ", ".join(texture.get("extensions", {})) or "no picture"
            self.file.files.note(f"a texture that is only there as {kinds} is drawn plain")
            return None
        picture = self._picture(source)
        if picture is None:
            return None
        sampler = self.file.list("samplers")[texture["sampler"]] if "sampler" in texture else {}
        across, up = (WRAPS.get(sampler.get(key, 0), Wrap.REPEAT) for key in ("wrapS", "wrapT"))
        return Texture(picture, (across, up), nearest=sampler.get("magFilter") == NEAREST)

    def _picture(self, number: int) -> np.ndarray | None:
        image = self.file.list("images")[number]
        name = repr(image.get("name") or image.get("uri", "")[:60] or f"number {number}")
        data = self.file.picture(number)
        if data is None:
            self.file.files.note(f"the texture {name} is missing, drawn plain")
            return None
        return self.file.files.decode(data, name)


def _slots(material: dict[str, Any]) -> dict[Use, dict[str, Any]]:
    """Where a material says which texture it uses, and how; empty where it uses none."""
    gloss = material.get("extensions", {}).get("KHR_materials_pbrSpecularGlossiness")
    base = material.get("pbrMetallicRoughness", {}).get("baseColorTexture")
    if gloss is not None:
        base = gloss.get("diffuseTexture")
    return {"base": base or {}, "emissive": material.get("emissiveTexture") or {}}
