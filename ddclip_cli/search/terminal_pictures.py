"""Thumbnails in the terminal, side by side, where it can show pictures: kitty's protocol and iTerm2's."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from PIL import Image

from ddclip_cli.search.answer import Hit
from ddclip_cli.search.sheet import decode_thumbnail

Protocol = Literal["kitty", "iterm2"]
PICTURE, GAP, ROWS = 112, 8, 6
"""Pixels of a picture and between two; lines of text that a strip is high."""
MOST = 12
CHUNK = 4096  # of kitty's protocol


def protocol(environment: Mapping[str, str] = os.environ) -> Protocol | None:
    """How the terminal of these variables shows pictures; None if it is not known to."""
    if environment.get("TMUX") or environment.get("STY"):
        return None  # they swallow what they do not know
    program, term = environment.get("TERM_PROGRAM", ""), environment.get("TERM", "")
    if environment.get("KITTY_WINDOW_ID") or term in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm", "mintty", "vscode"):
        return "iterm2"
    return None


def strip(hits: Sequence[Hit], thumbnail: Callable[[int], bytes | None], how: Protocol) -> str:
    """The first pictures in one row, as the control sequences of `how`; empty if no object has one."""
    pictures = [decode_thumbnail(thumbnail(hit.row), PICTURE) for hit in hits[:MOST]]
    if not any(pictures):
        return ""
    row = Image.new("RGBA", (len(pictures) * (PICTURE + GAP) - GAP, PICTURE))
    for place, picture in enumerate(pictures):
        if picture is not None:
            left = place * (PICTURE + GAP)
            row.paste(picture, (left + (PICTURE - picture.width) // 2, (PICTURE - picture.height) // 2))
    buffer = io.BytesIO()
    row.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    if how == "iterm2":
        return f"\x1b]1337;File=inline=1;height={ROWS};size={len(buffer.getvalue())}:{data}\x07\n"
    chunks = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    first = f"a=T,f=100,r={ROWS},"
    return (
        "".join(
            f"\x1b_G{first if number == 0 else ''}m={int(number < len(chunks) - 1)};{chunk}\x1b\\"
            for number, chunk in enumerate(chunks)
        )
        + "\n"
    )
