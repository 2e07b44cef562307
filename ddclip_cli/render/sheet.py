"""A contact sheet of rendered objects: a few views of each, with its id, as a PNG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ddclip_cli import files

VIEW, LABEL, GAP = 112, 18, 16
VIEWS_AN_OBJECT, OBJECTS_A_LINE = 4, 3
MAX_OBJECTS = 300
"""More would not be a sheet to look at, but a picture of gigabytes."""


def write_views_sheet(path: str | Path, folders: Sequence[Path]) -> None:
    """Draw the first views in the folders of objects, at most MAX_OBJECTS of them, to the PNG `path`."""
    folders = folders[:MAX_OBJECTS]
    columns = min(OBJECTS_A_LINE, max(1, len(folders)))
    tile = VIEWS_AN_OBJECT * VIEW + GAP, VIEW + LABEL + GAP
    sheet = Image.new("RGB", (columns * tile[0] + GAP, -(-len(folders) // columns) * tile[1] + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, folder in enumerate(folders):
        row, column = divmod(number, columns)
        left, top = GAP + column * tile[0], GAP + row * tile[1]
        shown = "".join(character if character.isprintable() else " " for character in folder.name)
        draw.text((left, top), shown[:60], "black", font=font)
        for place, view in enumerate(_views(folder)):
            sheet.paste(view, (left + place * VIEW, top + LABEL), view)
    with files.writing(path) as partial:
        sheet.save(partial, "PNG")


def _views(folder: Path) -> Iterator[Image.Image]:
    for path in sorted(folder.glob("*.png"))[:VIEWS_AN_OBJECT]:
        with Image.open(path) as view:
            yield view.convert("RGBA").resize((VIEW, VIEW), Image.Resampling.LANCZOS)
