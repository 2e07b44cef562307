"""A resolved recipe as YAML, each value with where it comes from."""

from __future__ import annotations

from ddclip_cli.recipe.loader import Resolved, flatten
from ddclip_cli.recipe.yaml_text import write

MARGIN = 56  # columns; a longer line pushes its comment out instead of moving all others


def as_yaml(resolved: Resolved) -> str:
    """YAML that loads as the same recipe; behind each value its origin: a file and line, `--set` or `default`."""
    lines: list[tuple[str, str]] = []
    opened: list[str] = []
    for key, value in flatten(resolved.recipe).items():
        *sections, last = key.split(".")
        for depth, section in enumerate(sections):
            if opened[: depth + 1] != sections[: depth + 1]:
                lines.append((f"{'  ' * depth}{section}:", ""))
                opened = sections[: depth + 1]
        opened = sections
        origin = "--set" if resolved.origins[key].startswith("--set ") else resolved.origins[key]
        lines.append((f"{'  ' * len(sections)}{last}: {write(value)}", origin))
    width = min(MARGIN, max(len(text) for text, _ in lines))
    return "".join(f"{text:<{width}}  # {origin}\n" if origin else f"{text}\n" for text, origin in lines)
