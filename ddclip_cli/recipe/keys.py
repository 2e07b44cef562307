"""The keys of a recipe by their dotted names: what each must be, and which one was meant."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

from ddclip_cli.recipe.schema import Recipe

ALSO_CALLED = {  # names of the reference and of habit, by the last word of a key
    "lr": "train.learning_rate",
    "min_lr": "train.min_learning_rate",
    "max_epochs": "train.epochs",
    "layers_threshold": "model.cross_view_from",
    "base_name": "model.backbone",
    "pretrained_name": "model.pretrained",
    "ckpt_path": "model.checkpoint",
}


@cache
def keys() -> dict[str, dict[str, Any]]:
    """Dotted key -> its JSON schema, sections among them (`train`, then `train.epochs`, ...), in the schema's order."""
    root = Recipe.model_json_schema()
    found: dict[str, dict[str, Any]] = {}

    def walk(schema: dict[str, Any], prefix: str) -> None:
        for name, part in schema["properties"].items():
            found[prefix + name] = part
            for choice in [part, *part.get("anyOf", [])]:
                if "$ref" in choice:
                    walk(root["$defs"][choice["$ref"].rsplit("/", 1)[1]], f"{prefix}{name}.")

    walk(root, "")
    return found


def is_section(key: str) -> bool:
    return any(other.startswith(f"{key}.") for other in keys())


def takes_null(key: str) -> bool:
    return any(choice.get("type") == "null" for choice in keys()[key].get("anyOf", []))


def list_item(key: str) -> str | None:
    """What a list key holds: 'integer', 'number' or 'string'; None for a key that is no list."""
    schema = keys()[key]
    if schema.get("type") != "array":
        return None
    return (schema.get("items") or schema["prefixItems"][0])["type"]


def members(section: str) -> list[str]:
    """Last words of the keys directly inside a section; '' is the recipe itself."""
    prefix = f"{section}." if section else ""
    inside = [key.removeprefix(prefix) for key in keys() if key.startswith(prefix)]
    return [word for word in inside if "." not in word]


def expectation(key: str) -> str:
    """What the value of a key must be, in words: "an integer, at least 1"."""
    return _words(keys()[key])


def _words(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return ", or ".join(_words(choice) for choice in schema["anyOf"])
    if "$ref" in schema:
        return "a section of keys"
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    kind = schema["type"]
    if kind == "array":
        items = schema.get("prefixItems") or [schema["items"]]
        count = "two " if len(items) == 2 else ""
        bounds = _bounds(items[0])
        noun = {"integer": "integers", "number": "numbers", "string": "texts"}[items[0]["type"]]
        return f"a list of {count}{noun}{', each ' + bounds if bounds else ''}{_not_empty(schema)}"
    noun = {"integer": "an integer", "number": "a number", "string": "text", "null": "null"}[kind]
    bounds = _bounds(schema)
    return f"{noun}{', ' + bounds if bounds else ''}{_not_empty(schema)}"


def _bounds(schema: dict[str, Any]) -> str:
    names = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return " and ".join(f"{words} {schema[name]:g}" for name, words in names.items() if name in schema)


def _not_empty(schema: dict[str, Any]) -> str:
    one = schema.get("minLength", 0) or (schema.get("minItems", 0) if "items" in schema else 0)
    return ", not empty" if one else ""


def unknown(key: str) -> str:
    """The sentence about a key that does not exist, with the one that was probably meant."""
    meant = nearest(key)
    if meant:
        return f"unknown key '{key}', did you mean '{meant}'?"
    section = key.rpartition(".")[0]
    if section in keys():
        return f"unknown key '{key}'; '{section}' has {', '.join(members(section))}"
    return f"unknown key '{key}'; a recipe has extends, {', '.join(members(''))}"


def nearest(key: str) -> str | None:
    """The key that was probably meant: a like one in its section, else one of that name elsewhere, else any like it."""
    section, _, last = key.rpartition(".")
    if last in ALSO_CALLED:
        return ALSO_CALLED[last]
    siblings = [*members(section), *([] if section else ["extends"])]
    alike = nearest_name(last, siblings, cutoff=0.6)
    if alike:
        return f"{section}.{alike}" if section else alike
    last_words = {other.rpartition(".")[2]: other for other in reversed(keys())}
    namesake = nearest_name(last, [*last_words], cutoff=0.75)
    return (
        last_words[namesake] if namesake else nearest_name(key, [k for k in keys() if not is_section(k)], cutoff=0.75)
    )


def nearest_name(name: str, names: Sequence[str], cutoff: float = 0.5) -> str | None:
    return next(iter(get_close_matches(name, names, n=1, cutoff=cutoff)), None)
