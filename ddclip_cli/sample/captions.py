"""What people might say of a sample object: its colour and its category always, its other attributes sometimes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ddclip_cli.sample.shapes import LONG_LEGS

Captions = dict[str, "str | list[str]"]
PATTERNS = (
    "{a_thing}",
    "{a_thing}",
    "{thing}",
    "{a_thing}",
    "a 3D model of {a_thing}",
    "a render of {a_thing}",
    "a picture of {a_thing}",
    "this is {a_thing}",
    "simple 3D {thing}",
    "one {thing}, 3D model",
)


def object_captions(
    category_words: Sequence[str], colour_words: Sequence[str], attributes: Sequence[str], rng: np.random.Generator
) -> Captions:
    """Captions by where they would come from: the name its maker gave it, two captioning models, and similar pictures.

    `msft` is missing now and then, as such captions are. None has more than 11 words.
    """

    def say(pattern: str, mentioned: Sequence[str]) -> str:
        colour, noun = _usual_word(colour_words, rng), _usual_word(category_words, rng)
        with_legs = LONG_LEGS in mentioned
        words = (
            [word for word in mentioned if word != LONG_LEGS]
            + [colour, noun]
            + (["with", "long", "legs"] if with_legs else [])
        )
        thing = " ".join(words)
        return pattern.format(thing=thing, a_thing=with_article(thing))

    def any_pattern() -> str:
        return PATTERNS[rng.integers(len(PATTERNS))]

    captions: Captions = {
        "text": [say(any_pattern(), attributes)],
        "blip": say(PATTERNS[0], attributes if rng.random() < 0.5 else ()),
    }
    if rng.random() < 0.8:
        captions["msft"] = say(any_pattern(), ())
    captions["retrieval"] = [say(any_pattern(), attributes if rng.random() < 0.3 else ()) for _ in range(2)]
    return captions


def with_article(thing: str) -> str:
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def all_captions(captions: Captions) -> list[str]:
    """Every caption of an object, in one list."""
    return [text for value in captions.values() for text in ([value] if isinstance(value, str) else value)]


def _usual_word(words: Sequence[str], rng: np.random.Generator) -> str:
    """The first word more often than all others together."""
    return words[0] if len(words) == 1 or rng.random() < 0.6 else words[int(rng.integers(1, len(words)))]
