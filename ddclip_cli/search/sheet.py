"""A contact sheet: for each query one row of pictures with rank, score and id, as a PNG."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ddclip_cli import files
from ddclip_cli.errors import UserError
from ddclip_cli.search.answer import Answer, Hit
from ddclip_cli.search.plain import one_line

PICTURE, PADDING, GAP, MARGIN = 168, 12, 16, 32
CARD_WIDTH = PICTURE + 2 * PADDING
CARD_HEIGHT = PICTURE + 2 * PADDING + 62
HEADER_HEIGHT = 46
ROW_GAP = 28
CARDS_A_LINE = 6
MAX_CARDS = 600
"""More would not be a sheet to look at, but a picture of gigabytes."""

PAGE, CARD, EDGE, EMPTY = "#f4f5f7", "#ffffff", "#dfe2e7", "#eceef1"
INK, GREY, ACCENT = "#1c2330", "#707a8a", "#2f6fed"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def write_sheet(path: str | Path, rows: Sequence[Answer], thumbnail: Callable[[int], bytes | None]) -> None:
    """Draw `rows` to the PNG `path`.

    Args:
        thumbnail: JPEG of an object by its row in the embeddings; None and bytes that are no picture: a placeholder.

    Raises:
        UserError: more than `MAX_CARDS` pictures would be on the sheet.
    """
    cards = sum(len(row.hits) for row in rows)
    if cards > MAX_CARDS:
        raise UserError(f"a sheet holds at most {MAX_CARDS} pictures, not {cards}: ask fewer queries or lower --top-k")
    sheet = draw_sheet(rows, thumbnail)
    with files.writing(path) as partial:
        sheet.save(partial, "PNG", optimize=True)


def draw_sheet(rows: Sequence[Answer], thumbnail: Callable[[int], bytes | None]) -> Image.Image:
    """The sheet as an RGB picture."""
    most = max(1, min(CARDS_A_LINE, max((len(row.hits) for row in rows), default=1)))
    width = max(2 * MARGIN + most * CARD_WIDTH + (most - 1) * GAP, 480)
    sheet = Image.new("RGB", (width, 2 * MARGIN - ROW_GAP + sum(_row_height(row) for row in rows)), PAGE)
    draw = ImageDraw.Draw(sheet)
    fonts = {"query": _font(24), "rank": _font(15), "id": _font(14)}
    top = MARGIN
    for row in rows:
        title = _clip(one_line(row.query), fonts["query"], width - 2 * MARGIN)
        draw.text((MARGIN, top), title, INK, font=fonts["query"])
        for place, hit in enumerate(row.hits):
            line, column = divmod(place, CARDS_A_LINE)
            corner = (MARGIN + column * (CARD_WIDTH + GAP), top + HEADER_HEIGHT + line * (CARD_HEIGHT + GAP))
            _draw_card(sheet, draw, corner, hit, decode_thumbnail(thumbnail(hit.row), PICTURE), fonts)
        top += _row_height(row)
    return sheet


def _row_height(row: Answer) -> int:
    lines = max(1, -(-len(row.hits) // CARDS_A_LINE))
    return HEADER_HEIGHT + lines * CARD_HEIGHT + (lines - 1) * GAP + ROW_GAP


def _draw_card(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    hit: Hit,
    picture: Image.Image | None,
    fonts: dict[str, Font],
) -> None:
    left, top = corner
    draw.rounded_rectangle((left, top, left + CARD_WIDTH, top + CARD_HEIGHT), radius=10, fill=CARD, outline=EDGE)
    inner = (left + PADDING, top + PADDING)
    if picture is None:
        box = (*inner, inner[0] + PICTURE - 1, inner[1] + PICTURE - 1)
        draw.rounded_rectangle(box, radius=6, fill=EMPTY)
        draw.text((inner[0] + PICTURE / 2, inner[1] + PICTURE / 2), "no picture", GREY, font=fonts["id"], anchor="mm")
    else:
        sheet.paste(picture, (inner[0] + (PICTURE - picture.width) // 2, inner[1] + (PICTURE - picture.height) // 2))
    below = inner[1] + PICTURE + 10
    draw.text((inner[0], below), f"{hit.rank}", ACCENT, font=fonts["rank"])
    draw.text((inner[0] + PICTURE, below), f"{hit.score:.3f}", GREY, font=fonts["rank"], anchor="ra")
    for number, line in enumerate(_two_lines(one_line(hit.object_id), fonts["id"], PICTURE)):
        draw.text((inner[0], below + 23 + 17 * number), line, INK, font=fonts["id"])


def decode_thumbnail(jpeg: bytes | None, side: int) -> Image.Image | None:
    """The thumbnail fitted into a square of `side` pixels; None if there is none or its bytes are no small JPEG."""
    if jpeg is None:
        return None
    try:
        file = Image.open(io.BytesIO(jpeg), formats=["JPEG"])
        if max(file.size) > 2048:
            return None
        picture = file.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _font(size: int) -> Font:
    """DejaVu where the system has it, for its many alphabets; else the one inside Pillow."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)


def _two_lines(text: str, font: Font, width: int) -> list[str]:
    """An id in one line or two, broken anywhere (ids have no words); more is cut off."""
    length = len(text[:500])
    while font.getlength(text[:length]) > width:
        length -= 1
    return [text[:length], _clip(text[length:], font, width)] if length < len(text) else [text]


def _clip(text: str, font: Font, width: int) -> str:
    """`text`, its end cut off with an ellipsis if it is wider than `width` pixels."""
    text = text[:500]  # measuring has to end, whatever an id holds
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text.rstrip() + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
