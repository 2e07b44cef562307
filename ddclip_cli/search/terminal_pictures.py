"""Thumbnails in the terminal, in rows, where it can show pictures: by kitty's protocol or iTerm2's."""

from __future__ import annotations

import base64
import io
import os
import shutil
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from PIL import Image

from ddclip_cli.search.answer import Hit
from ddclip_cli.search.sheet import decode_thumbnail

Protocol = Literal["kitty", "iterm2"]
ROWS = 6
"""Lines of text that a picture is high."""
MOST = 12
CHUNK = 4096  # of kitty's protocol


class Screen(NamedTuple):
    """The terminal's columns, and the pixels of one of its cells."""

    columns: int
    width: int = 8
    height: int = 16


def protocol(environment: Mapping[str, str] = os.environ) -> Protocol | None:
    """How the terminal of these variables shows pictures; None if it is not known to."""
    if environment.get("TMUX") or environment.get("STY"):
        return None  # they swallow what they do not know
    program, term = environment.get("TERM_PROGRAM", ""), environment.get("TERM", "")
    if environment.get("KITTY_WINDOW_ID") or term in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm", "mintty", "vscode") or environment.get("KONSOLE_VERSION", "") >= "220400":
        return "iterm2"
    return None


def screen() -> Screen:
    """The terminal behind stdout, with a guess where it does not say."""
    guess = Screen(shutil.get_terminal_size().columns)
    try:
        import fcntl
        import termios

        answer = fcntl.ioctl(sys.stdout, termios.TIOCGWINSZ, bytes(8))
    except (ImportError, OSError, ValueError):  # Windows, or no terminal
        return guess
    rows, columns, width, height = struct.unpack("4H", answer)
    if not (rows and columns and columns <= width <= 64 * columns and rows <= height <= 64 * rows):
        return guess
    return Screen(columns, width // columns, height // rows)


def strips(hits: Sequence[Hit], thumbnail: Callable[[int], bytes | None], how: Protocol, on: Screen) -> str:
    """The first pictures in rows, as the control sequences of `how`; empty if no object has one."""
    side = ROWS * on.height - on.height // 2  # half a line lies between two
    across = -(-ROWS * on.height // on.width)  # columns
    pictures = [decode_thumbnail(thumbnail(hit.row), side) for hit in hits[:MOST]]
    if not any(pictures):
        return ""
    a_row = max(1, on.columns // across)
    rows = (pictures[start : start + a_row] for start in range(0, len(pictures), a_row))
    return "".join(_strip(row, across, how, on) for row in rows)


def _strip(pictures: Sequence[Image.Image | None], across: int, how: Protocol, on: Screen) -> str:
    """One row, made of whole cells, so that no terminal has to stretch it."""
    columns = across * len(pictures)
    row = Image.new("RGBA", (columns * on.width, ROWS * on.height))
    for place, picture in enumerate(pictures):
        if picture is not None:
            row.paste(picture, (place * across * on.width, 0))
    buffer = io.BytesIO()
    row.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    if how == "iterm2":
        return f"\x1b]1337;File=inline=1;width={columns};height={ROWS};size={len(buffer.getvalue())}:{data}\x07\n"
    chunks = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    first = f"a=T,f=100,c={columns},r={ROWS},"
    return (
        "".join(
            f"\x1b_G{first if number == 0 else ''}m={int(number < len(chunks) - 1)};{chunk}\x1b\\"
            for number, chunk in enumerate(chunks)
        )
        + "\n"
    )
