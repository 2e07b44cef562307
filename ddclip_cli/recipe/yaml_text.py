"""The YAML that recipes are written in: nodes that know their lines, and values that print as they were read.

Plain words follow YAML 1.2, so that `5e-5` is a number, `off` and `no` are words and `010` is no octal.
Only nodes are made, never objects: a tag in a file can not run anything.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_PLAIN = {  # what a word without quotes is: (tag, pattern, first characters)
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9]{0,17})", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.inf|\.nan",
        list("-+.0123456789"),
    ),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}  # noqa: RUF012  PyYAML's own way


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind, (_pattern, _first) in _PLAIN.items():
    for _side in (_Loader, _Dumper):
        _side.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})$"), _first)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    one_line = text.isprintable()
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if one_line else '"')


def _represent_number(dumper: yaml.SafeDumper, number: float) -> yaml.ScalarNode:
    text = repr(number).replace("inf", ".inf").replace("nan", ".nan")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(float, _represent_number)


class YamlMistake(Exception):
    """Text that is not YAML: `line` counts from 1, the message is a phrase."""

    def __init__(self, line: int, phrase: str) -> None:
        self.line = line
        super().__init__(phrase)


def parse(text: str) -> yaml.Node | None:
    """The root node of a YAML document, None if it is empty.

    Raises YamlMistake.
    """
    try:
        return yaml.compose(text, Loader=_Loader)  # type: ignore[return-value]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        phrase = error.problem or "no reason given"
        if phrase.startswith("but ") and error.context:
            phrase = f"{error.context}, {phrase}"
        if "<block " in phrase:
            phrase += ": check the indentation"
        raise YamlMistake(mark.line + 1 if mark else 1, phrase) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlMistake(line, f"the character {chr(error.character)!r} is not allowed") from None
    except RecursionError:
        raise YamlMistake(1, "nested too deeply") from None


def line_of(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def scalar(node: yaml.ScalarNode) -> Any:
    """The value of a scalar node: None, bool, int, float or str.

    Raises YamlMistake for a tag other than these, or a word that is not what its tag says.
    """
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if kind == "str":
        return node.value
    if kind not in _PLAIN:
        raise YamlMistake(line_of(node), f"the tag '{node.tag}' is not allowed")
    if not re.fullmatch(_PLAIN[kind][0], node.value):
        raise YamlMistake(line_of(node), f"{node.value!r} is not of the kind '{kind}'")
    if kind == "null":
        return None
    if kind == "bool":
        return node.value.lower() == "true"
    if kind == "int":
        return int(node.value)
    return float(node.value.replace(".inf", "inf").replace(".nan", "nan"))


def write(value: Any) -> str:
    """A value (None, bool, number, text, or a list of these) as one line of YAML that `parse` reads back."""
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=2**31)
    return text.removesuffix("...\n").rstrip("\n")
