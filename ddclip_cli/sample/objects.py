"""Sample objects: object number `number` of seed `seed`, the same whichever others are made."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import numpy as np

from ddclip_cli.sample import shapes_indoor, shapes_outdoor  # noqa: F401  (they register their categories)
from ddclip_cli.sample.captions import Captions, object_captions
from ddclip_cli.sample.glb import glb_bytes
from ddclip_cli.sample.shapes import REGISTRY, Part, build_parts
from ddclip_cli.sample.surfaces import GRAINED, PAINTED, PALETTE, PLAIN, STRIPED, TWO_TONE, surfaces

CATEGORIES: tuple[str, ...] = tuple(sorted(REGISTRY))
COLOURS: tuple[str, ...] = tuple(PALETTE)
PAIRS = tuple((category, colour) for category in CATEGORIES for colour in COLOURS)
FINISHES = (PLAIN, PAINTED, GRAINED, STRIPED, TWO_TONE)
FINISH_ODDS = (0.34, 0.18, 0.14, 0.17, 0.17)


@dataclass(frozen=True)
class SampleObject:
    """One object. `attributes`: what captions may mention beside colour and category, such as "tall" or "striped"."""

    object_id: str
    category: str
    colour: str
    attributes: tuple[str, ...]
    captions: Captions
    finish: str
    key: tuple[int, int]

    @property
    def parts(self) -> list[Part]:
        """(material, solid) pairs, before colouring."""
        return build_parts(self.category, _generator("parts", self), set(self.attributes))

    def glb(self) -> bytes:
        """The object as a binary glTF file."""
        return glb_bytes(self.object_id, surfaces(self.parts, self.colour, self.finish, _generator("surfaces", self)))


def make_object(seed: int, category: str, colour: str, number: int = 0) -> SampleObject:
    """Object `number` of `seed`, of this category and colour. Geometry is made only when asked for."""
    blank = SampleObject(f"{colour}-{category}-{number:06d}", category, colour, (), {}, PLAIN, (seed, number))
    rng = _generator("attributes", blank)
    finish = str(rng.choice(FINISHES, p=FINISH_ODDS))
    traits = REGISTRY[category].traits
    trait = str(rng.choice(traits)) if traits and rng.random() < 0.5 else None
    attributes = tuple(word for word in (trait, finish if finish in (STRIPED, TWO_TONE) else None) if word)
    captions = object_captions(REGISTRY[category].words, PALETTE[colour].words, attributes, rng)
    return SampleObject(blank.object_id, category, colour, attributes, captions, finish, blank.key)


def _generator(purpose: str, thing: SampleObject) -> np.random.Generator:
    """Random numbers for one purpose and one object, whatever was drawn for others before."""
    return np.random.default_rng([*thing.key, crc32(f"{purpose}/{thing.category}/{thing.colour}".encode())])
