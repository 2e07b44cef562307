"""From a name or file, and overrides, to one validated recipe: the origin of every value, and all mistakes at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import ValidationError

from ddclip_cli.recipe import library, yaml_text
from ddclip_cli.recipe.errors import RecipeError
from ddclip_cli.recipe.keys import expectation, is_section, keys, list_item, members, takes_null, unknown
from ddclip_cli.recipe.schema import Recipe

DEFAULT = "default"


@dataclass(frozen=True)
class Resolved:
    """A recipe and where each dotted key of it was written: `recipes/four.yaml:12`, `--set KEY=VALUE` or `default`."""

    recipe: Recipe
    origins: Mapping[str, str]


@dataclass
class _Settings:
    """What the files and overrides say, the later over the earlier, before it is validated."""

    values: dict[str, tuple[Any, str]] = field(default_factory=dict)  # key -> (value, origin)
    opened: dict[str, str] = field(default_factory=dict)  # section -> where it was last written
    problems: list[str] = field(default_factory=list)

    def put(self, key: str, value: Any, origin: str) -> None:
        if is_section(key):  # null: what an earlier file put inside is gone
            for inside in [other for other in self.values if other.startswith(f"{key}.")]:
                del self.values[inside]
            self.opened = {other: at for other, at in self.opened.items() if other != key}
        parts = key.split(".")
        for depth in range(1, len(parts)):  # and a key inside a section that was null opens it again
            self.values.pop(".".join(parts[:depth]), None)
        self.values[key] = (value, origin)


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of ours of that name, or the one in that YAML file, with `KEY=VALUE` overrides on top.

    Raises RecipeError, which lists every mistake.
    """
    return resolve(name_or_path, overrides).recipe


def resolve(name_or_path: str, overrides: Sequence[str] = ()) -> Resolved:
    """Like `load_recipe`, with the origin of every value.

    Raises RecipeError, which lists every mistake.
    """
    settings = _Settings()
    for source, root in _lineage(library.find(name_or_path), settings.problems):
        _read_section(root, "", f"{source.shown}:", settings)
    for override in overrides:
        _read_override(override, settings)
    recipe = _validate(settings)
    if recipe is None or settings.problems:
        raise RecipeError(settings.problems)
    origins = {key: settings.values[key][1] if key in settings.values else DEFAULT for key in flatten(recipe)}
    return Resolved(recipe, origins)


def flatten(recipe: Recipe) -> dict[str, Any]:
    """Dotted key -> value of every key that is no section."""
    found: dict[str, Any] = {}

    def walk(section: dict[str, Any], prefix: str) -> None:
        for name, value in section.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")
            else:
                found[prefix + name] = value

    walk(recipe.model_dump(mode="json"), "")
    return found


def _lineage(source: library.Source, problems: list[str]) -> list[tuple[library.Source, yaml.MappingNode]]:
    """The recipe and its parents, the eldest first, as nodes."""
    found: list[tuple[library.Source, yaml.MappingNode]] = []
    shown = {source.path.resolve(): source.shown}
    while True:
        try:
            root = _parse_file(source)
        except RecipeError as error:
            problems.extend(error.problems)
            return found
        found.insert(0, (source, root))
        extends = next(((key, value) for key, value in root.value if key.value == "extends"), None)
        if extends is None:
            return found
        where = f"{source.shown}:{yaml_text.line_of(extends[0])}"
        if not isinstance(extends[1], yaml.ScalarNode) or not extends[1].tag.endswith(":str"):
            problems.append(f"{where}: 'extends' must be the name of one recipe, or a path beside this file")
            return found
        try:
            parent = library.find(extends[1].value, beside=source)
        except RecipeError as error:
            problems.extend(f"{where}: {problem}" for problem in error.problems)
            return found
        if parent.path.resolve() in shown:
            circle = " -> ".join([*shown.values(), parent.shown])
            problems.append(f"{where}: 'extends' goes round in a circle: {circle}")
            return found
        shown[parent.path.resolve()] = parent.shown
        source = parent


def _parse_file(source: library.Source) -> yaml.MappingNode:
    try:
        root = yaml_text.parse(source.read())
    except yaml_text.YamlMistake as mistake:
        raise RecipeError([f"{source.shown}:{mistake.line}: this is not YAML: {mistake}"]) from None
    if isinstance(root, yaml.MappingNode):
        return root
    line = 1 if root is None else yaml_text.line_of(root)
    what = "is empty" if root is None else f"is {_named(root)}"
    raise RecipeError([f"{source.shown}:{line}: a recipe is made of 'key: value' lines (this one {what})"])


def _read_section(node: yaml.MappingNode, prefix: str, file: str | None, settings: _Settings, origin: str = "") -> None:
    """Put what a mapping says into `settings`. Lines are named `FILE:LINE` if `file` is given, else `origin`."""
    first_at: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = yaml_text.line_of(key_node)
        where = f"{file}{line}" if file else origin
        if not isinstance(key_node, yaml.ScalarNode):
            settings.problems.append(f"{where}: a key must be one word (is {_named(key_node)})")
            continue
        key = prefix + key_node.value
        if key in first_at:
            again = f"first in line {first_at[key]}" if file else "in one override"
            settings.problems.append(f"{where}: the key '{key}' stands here twice, {again}")
            continue
        first_at[key] = line
        if key == "extends":
            continue  # read when the parents were found
        if "." in key_node.value and key in keys():
            section, _, last = key.rpartition(".")
            settings.problems.append(f"{where}: '{key}' is written as '{last}' inside the section '{section}'")
        else:
            _read_value(key, value_node, where, file, settings)


def _read_value(key: str, node: yaml.Node | None, where: str, file: str | None, settings: _Settings) -> None:
    if key not in keys():
        settings.problems.append(f"{where}: {unknown(key)}")
    elif is_section(key) and isinstance(node, yaml.MappingNode):
        settings.values.pop(key, None)  # it may have been null
        settings.opened[key] = where
        _read_section(node, f"{key}.", file, settings, where)
    else:
        try:
            value = _value(node)
        except yaml_text.YamlMistake as mistake:
            settings.problems.append(f"{where}: '{key}': {mistake}")
        except _NotAValue as mistake:
            settings.problems.append(f"{where}: '{key}' must be {expectation(key)} (is {mistake})")
        else:
            if not is_section(key) or (value is None and takes_null(key)):
                settings.put(key, value, where)
            else:
                inside = ", ".join(members(key))
                settings.problems.append(f"{where}: '{key}' is a section, which holds {inside} (is {_shown(value)})")


class _NotAValue(Exception):
    pass


def _value(node: yaml.Node | None) -> Any:
    """A scalar, or a tuple of scalars. Nothing deeper is ever built, however often a file repeats an alias."""
    if node is None:
        return None
    if isinstance(node, yaml.ScalarNode):
        return yaml_text.scalar(node)
    if not isinstance(node, yaml.SequenceNode):
        raise _NotAValue(_named(node))
    for item in node.value:
        if not isinstance(item, yaml.ScalarNode):
            raise _NotAValue(f"a list that holds {_named(item)}")
    return tuple(yaml_text.scalar(item) for item in node.value)


def _read_override(override: str, settings: _Settings) -> None:
    origin = f"--set {override}"
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        settings.problems.append(f"{origin}: an override is KEY=VALUE, such as train.epochs=1")
    elif key == "extends":
        settings.problems.append(f"{origin}: 'extends' belongs in a recipe file; choose the recipe with --recipe")
    else:
        try:
            node = _override_node(key, text)
        except yaml_text.YamlMistake as mistake:
            settings.problems.append(f"{origin}: the value is not YAML: {mistake} (text may need quotes of its own)")
        else:
            _read_value(key, node, origin, None, settings)


def _override_node(key: str, text: str) -> yaml.Node | None:
    """The value as YAML; a list may go without its brackets: `eval.views=1,6,12`, or one text with all its commas."""
    item = list_item(key) if key in keys() else None
    if item is None or text.lstrip().startswith("["):
        return yaml_text.parse(text)
    pieces = [text] if item == "string" else text.split(",")
    nothing = yaml.ScalarNode("tag:yaml.org,2002:null", "")
    return yaml.SequenceNode("tag:yaml.org,2002:seq", [yaml_text.parse(piece) or nothing for piece in pieces])


def _validate(settings: _Settings) -> Recipe | None:
    document: dict[str, Any] = {}
    for section in settings.opened:
        _place(document, section.split("."))
    for key, (value, _) in settings.values.items():
        *sections, last = key.split(".")
        _place(document, sections)[last] = value
    try:
        return Recipe.model_validate(document, strict=True)
    except ValidationError as error:
        told = set()
        for fault in error.errors(include_url=False):
            key = _key_of(fault["loc"])
            if key not in told:
                told.add(key)
                settings.problems.append(_sentence(key, fault, settings))
        return None


def _place(document: dict[str, Any], sections: list[str]) -> dict[str, Any]:
    for section in sections:
        document = document.setdefault(section, {})
    return document


def _key_of(loc: tuple[int | str, ...]) -> str:
    """The key that a place of pydantic's names: `('eval', 'views', 2)` -> `eval.views`."""
    words = [str(word) for word in loc]
    while ".".join(words) not in keys():
        words.pop()
    return ".".join(words)


def _sentence(key: str, fault: Any, settings: _Settings) -> str:
    if key not in settings.values:  # it is missing
        section = key.rpartition(".")[0]
        inside = [origin for other, (_, origin) in settings.values.items() if other.startswith(f"{section}.")]
        return f"{settings.opened.get(section) or inside[-1]}: '{key}' is missing, which '{section}' needs"
    value, origin = settings.values[key]
    what = str(fault["ctx"]["error"]) if fault["type"] == "value_error" else f"must be {expectation(key)}"
    quote = "; put it in quotes" if what.startswith("must be text") and isinstance(value, (int, float)) else ""
    return f"{origin}: '{key}' {what} (is {_shown(value)}{quote})"


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else yaml_text.write(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _named(node: yaml.Node) -> str:
    kinds = {yaml.MappingNode: "a section of keys", yaml.SequenceNode: "a list", yaml.ScalarNode: "a single value"}
    return kinds[type(node)]
