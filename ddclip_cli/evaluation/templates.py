"""Prompt templates for class names, in sets; `{}` is where the name goes."""

from __future__ import annotations

from pathlib import Path

from ddclip_cli.errors import UsageError, UserError

SETS: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    "short": ("a {}", "a 3D model of a {}"),
    "render": (
        "a 3D model of a {}",
        "a 3D model of the {}, seen from one side",
        "a computer rendering of a {}",
        "a rendered picture of one {} before a white wall",
        "a {} made of polygons",
        "a textured mesh of a {}",
        "a game asset: a {}",
        "a CAD drawing of a {}",
        "a virtual {}",
        "a scan of a {}",
        "a {} without any background",
        "a simple model of a {}",
        "a detailed model of a {}",
        "a {}, rendered from above",
        "a {}, rendered from below",
        "a {}, rendered from behind",
    ),
    "photo": (
        "a photo of a {}",
        "a photo of one {} on a table",
        "a close photo of a {}",
        "a photo of the {} from the side",
        "a photo of the {} from above",
        "a photo of the {} from behind",
        "a snapshot of a {} at home",
        "a {} out of doors",
        "a dark photo of a {}",
        "a bright photo of a {}",
        "a blurred photo of a {}",
        "a photo of a new {}",
        "a photo of a worn {}",
        "a photo of part of a {}",
        "a small {}",
        "a large {}",
    ),
}
SETS["all"] = tuple(dict.fromkeys(template for of_set in SETS.values() for template in of_set))


def read_templates(name_or_path: str) -> list[str]:
    """The set of that name, or a text file with one template a line.

    Raises:
        UserError: there is neither, or a line has not one `{}`.
    """
    if name_or_path in SETS:
        return list(SETS[name_or_path])
    path = Path(name_or_path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UsageError(
            f"there is no set of templates {name_or_path!r} and no such file; the sets are {', '.join(SETS)}"
        ) from None
    except (IsADirectoryError, UnicodeDecodeError):
        raise UserError(f"{path} is no text file: give one template a line, with {{}} for the name") from None
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    for number, line in numbered:
        if line.count("{}") != 1:
            raise UserError(f"{path}:{number}: {line[:40]!r} has not one {{}} for the name of the class")
    if not numbered:
        raise UserError(f"{path} has no template: give one a line, with {{}} for the name")
    return [line for _, line in numbered]
