"""Colours and finishes: from the parts of an object to the surfaces that are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ddclip_cli.sample.glb import Primitive, to_linear
from ddclip_cli.sample.shapes import Part
from ddclip_cli.sample.solids import Solid

PLAIN, PAINTED, GRAINED, STRIPED, TWO_TONE = "plain", "painted", "grained", "striped", "two-tone"
CREASE = np.cos(np.radians(40))  # edges sharper than 40 degrees stay sharp
TEXELS = 64


@dataclass(frozen=True)
class Colour:
    """`words`: what people call it, the usual word first. sRGB triples 0..255: itself, its second tone, its stripes."""

    words: tuple[str, ...]
    srgb: tuple[int, int, int]
    second: tuple[int, int, int]
    stripe: tuple[int, int, int]


# Far apart in hue or lightness, so that shade and light do not turn one into another.
PALETTE = {
    "red": Colour(("red",), (214, 16, 20), (140, 5, 12), (240, 240, 240)),
    "orange": Colour(("orange",), (255, 126, 0), (255, 164, 70), (245, 245, 245)),
    "yellow": Colour(("yellow",), (252, 222, 16), (255, 240, 130), (60, 60, 60)),
    "green": Colour(("green",), (22, 150, 40), (10, 95, 28), (240, 240, 240)),
    "blue": Colour(("blue",), (20, 60, 220), (8, 30, 140), (240, 240, 240)),
    "purple": Colour(("purple", "violet"), (122, 30, 180), (78, 14, 122), (240, 240, 240)),
    "pink": Colour(("pink",), (255, 145, 195), (238, 105, 165), (160, 45, 105)),
    "brown": Colour(("brown",), (112, 66, 34), (146, 98, 58), (225, 215, 200)),
    "black": Colour(("black",), (30, 30, 33), (62, 62, 66), (215, 215, 215)),
    "white": Colour(("white",), (246, 246, 244), (218, 218, 216), (120, 122, 128)),
    "gray": Colour(("gray", "grey"), (138, 140, 143), (104, 106, 109), (52, 53, 56)),
    "turquoise": Colour(("turquoise", "cyan"), (34, 210, 215), (16, 155, 165), (245, 245, 245)),
}

ACCENTS = {
    "dark": (38, 38, 42),
    "light": (238, 236, 228),
    "wood": (146, 100, 58),
    "metal": (168, 172, 178),
    "glass": (120, 165, 200),
    "carrot": (240, 120, 30),
}


def surfaces(parts: Sequence[Part], colour: str, finish: str, rng: np.random.Generator) -> list[Primitive]:
    """One primitive a material, the main one first. The main colour varies a little from object to object."""
    jitter = rng.uniform(-7, 7, 3)
    tones = [
        np.clip((np.array(tone) + jitter) / 255, 0, 1)
        for tone in (PALETTE[colour].srgb, PALETTE[colour].second, PALETTE[colour].stripe)
    ]
    groups: dict[str, list[Solid]] = {"main": []}
    for material, solid in parts:
        groups.setdefault(material, []).append(solid)
    made = [_main_surface(groups.pop("main"), tones, finish, rng)]
    for material, solids in groups.items():
        positions, normals, faces, _ = _shaded(solids)
        srgb = tones[0] * 0.8 + 0.02 if material == "shade" else np.array(ACCENTS[material]) / 255
        roughness = 0.4 if material in ("metal", "glass") else 0.8
        made.append(Primitive(material, positions, normals, faces, to_linear(srgb).tolist(), roughness))
    return made


def _main_surface(solids: list[Solid], tones: list[np.ndarray], finish: str, rng: np.random.Generator) -> Primitive:
    positions, normals, faces, part = _shaded(solids)
    roughness = float(rng.uniform(0.6, 0.95))
    if finish == PLAIN:
        return Primitive("main", positions, normals, faces, to_linear(tones[0]).tolist(), roughness)
    if finish == PAINTED:  # every part a little lighter or darker: a texture with a column for each
        shades = np.clip(tones[0] * rng.uniform(0.88, 1.08, (len(solids), 1)), 0, 1)
        texture = np.round(shades[None].repeat(2, axis=0) * 255).astype(np.uint8)
        uv = np.stack([(part + 0.5) / len(solids), np.full(len(part), 0.5)], axis=1)
    else:
        # The pattern runs through the object like the rings of a tree, aslant, so that every side shows some of it.
        texture = _texture(tones, finish, rng)
        across, along = (rng.normal(size=3) * 0.25 + axis for axis in np.eye(3)[rng.permutation(3)[:2]])
        uv = np.stack([positions @ along, positions @ across], axis=1)
        uv = (uv - uv.min(axis=0)) / np.maximum(np.ptp(uv, axis=0), 1e-9)
        size = np.array([texture.shape[1], texture.shape[0]])
        uv = (uv * (size - 1) + 0.5) / size  # between the middles of the outermost texels: nothing wraps around
    return Primitive("main", positions, normals, faces, (1.0, 1.0, 1.0), roughness, uv, texture)


def _texture(tones: list[np.ndarray], finish: str, rng: np.random.Generator) -> np.ndarray:
    """A picture (H, W, 3) uint8 whose pattern runs down; two thirds or more have the main colour or its second tone."""
    main, second, stripe = tones
    row = np.arange(TEXELS)
    if finish == GRAINED:
        light = 1 + 0.07 * np.cumsum(rng.normal(size=(TEXELS, 16)), axis=1) / 4 + 0.03 * rng.normal(size=(TEXELS, 1))
        picture = main * np.clip(light, 0.84, 1.1)[..., None]
    else:
        if finish == STRIPED:
            count = int(rng.integers(5, 9))
            marked, other = (row * count / TEXELS) % 1 > rng.uniform(0.72, 0.8), stripe
        else:
            marked, other = row > TEXELS * rng.uniform(0.45, 0.6), second
        picture = np.where(marked[:, None, None], other, main) * np.ones((1, 4, 1))
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _shaded(solids: Sequence[Solid]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Join solids and give every corner the mean normal of its flat-enough neighbours.

    Returns positions and normals (V, 3), faces (T, 3), and of each vertex the index of its solid (V,).
    """
    starts = np.cumsum([0] + [len(solid.vertices) for solid in solids])
    vertices = np.concatenate([solid.vertices for solid in solids])
    faces = np.concatenate([solid.faces + start for solid, start in zip(solids, starts, strict=False)])
    corners = vertices[faces]
    weighted = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])  # (T, 3), length twice the area
    unit = weighted / np.linalg.norm(weighted, axis=1, keepdims=True)

    # The faces around each vertex, as a table padded with -1.
    corner_vertex = faces.reshape(-1)
    order = np.argsort(corner_vertex, kind="stable")
    counts = np.bincount(corner_vertex, minlength=len(vertices))
    slot = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    around = np.full((len(vertices), counts.max()), -1)
    around[corner_vertex[order], slot] = order // 3
    near = around[corner_vertex]  # (3T, K)
    own = np.repeat(unit, 3, axis=0)  # (3T, 3)
    flat = (near >= 0) & (np.einsum("ij,ikj->ik", own, unit[near]) > CREASE)
    normals = np.einsum("ik,ikj->ij", flat.astype(float), weighted[near])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)

    keys = np.concatenate([corner_vertex[:, None], np.round(normals * 1000).astype(np.int64)], axis=1)
    packed = ((keys[:, 0] * 2048 + keys[:, 1] + 1024) * 2048 + keys[:, 2] + 1024) * 2048 + keys[:, 3] + 1024
    _, first, inverse = np.unique(packed, return_index=True, return_inverse=True)
    kept = corner_vertex[first]
    part = np.searchsorted(starts, kept, side="right") - 1
    return vertices[kept], normals[first], inverse.reshape(-1, 3), part
