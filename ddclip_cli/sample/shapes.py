"""The categories of the sample library: which there are, which traits each can have, and how one is built.

A category is a function (rng, traits) -> parts, a part being (material, solid). "main" has the colour of the object and
covers most of it, on every side; the other materials are accents. About a unit large, y up, the front towards +z.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass

import numpy as np

from ddclip_cli.sample.solids import Solid

Part = tuple[str, Solid]
Traits = Set[str]
Builder = Callable[[np.random.Generator, Traits], list[Part]]

TALL, LOW = "tall", "low"
LONG_LEGS = "long legs"
SIDES = (-1, 1)
CORNERS = ((-1, -1), (-1, 1), (1, -1), (1, 1))
STRETCH = {TALL: (1.0, 1.35, 1.0), LOW: (1.0, 0.72, 1.0)}


@dataclass(frozen=True)
class Category:
    """`words`: what people call it, the usual word first. `traits`: its possible variations, at most one at a time."""

    words: tuple[str, ...]
    traits: tuple[str, ...]
    build: Builder


REGISTRY: dict[str, Category] = {}


def category(*words: str, traits: tuple[str, ...] = ()) -> Callable[[Builder], Builder]:
    """Register a builder as a category that is called by the first of `words`."""

    def register(build: Builder) -> Builder:
        REGISTRY[words[0]] = Category(words, traits, build)
        return build

    return register


def build_parts(name: str, rng: np.random.Generator, traits: Traits) -> list[Part]:
    """The parts of an object of category `name`, stretched if it is tall or low."""
    parts = REGISTRY[name].build(rng, traits)
    for trait, stretch in STRETCH.items():
        if trait in traits:
            parts = [(material, solid.scaled(*stretch)) for material, solid in parts]
    return parts
