"""Accuracy against the number of views as a picture, with published figures beside ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ddclip_cli import files

WIDTH, HEIGHT = 900, 600
LEFT, RIGHT, TOP, BOTTOM = 70, 250, 50, 60
"""Margins around the axes; the names of the curves stand in the right one."""
FINER = 3
"""Drawn so many times larger, then made small: smooth lines."""
COLOURS = ("#1b6ca8", "#d1495b", "#3c8d5a", "#8a5a9e", "#c77d1e", "#555555")


@dataclass(frozen=True)
class Curve:
    name: str
    points: Mapping[int, float]
    """Number of views -> percent."""
    colour: int = 0
    """Place in COLOURS."""
    dashed: bool = False


def draw_curves(path: str | Path, title: str, curves: Sequence[Curve]) -> None:
    """Write a PNG of `curves` over the number of views, each named at its right end."""
    canvas = _Canvas(title, curves)
    for curve in curves:
        canvas.draw(curve)
    canvas.name(curves)
    with files.writing(path) as partial:
        canvas.image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).save(partial, "PNG", optimize=True)


class _Canvas:
    def __init__(self, title: str, curves: Sequence[Curve]) -> None:
        self.image = Image.new("RGB", (WIDTH * FINER, HEIGHT * FINER), "white")
        self.pen = ImageDraw.Draw(self.image)
        views = sorted({views for curve in curves for views in curve.points})
        values = [value for curve in curves for value in curve.points.values()]
        lowest, highest, step = _ticks(min(values), max(values))
        first, last = (views[0], views[-1]) if len(views) > 1 else (views[0] - 1, views[0] + 1)
        self.x: Callable[[float], float] = lambda v: LEFT + (v - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        self.y: Callable[[float], float] = lambda p: (
            HEIGHT - BOTTOM - (p - lowest) / (highest - lowest) * (HEIGHT - TOP - BOTTOM)
        )
        self.text((LEFT, TOP - 22), title, size=17, anchor="lm")
        for tick in range(lowest, highest + 1, step):
            self.line([(LEFT, self.y(tick)), (WIDTH - RIGHT, self.y(tick))], "#dddddd", 1)
            self.text((LEFT - 10, self.y(tick)), f"{tick} %", anchor="rm")
        for number in views:
            self.line([(self.x(number), HEIGHT - BOTTOM), (self.x(number), HEIGHT - BOTTOM + 5)], "#555555", 1)
            self.text((self.x(number), HEIGHT - BOTTOM + 18), str(number), anchor="mm")
        self.line([(LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM)], "#555555", 1)
        self.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 20), "views of an object", anchor="mm")

    def draw(self, curve: Curve) -> None:
        points = [(self.x(views), self.y(value)) for views, value in sorted(curve.points.items())]
        colour = COLOURS[curve.colour % len(COLOURS)]
        for start, end in pairwise(points):
            for piece in _dashes(start, end) if curve.dashed else [(start, end)]:
                self.line(list(piece), colour, 2)
        for x, y in points:
            fill = "white" if curve.dashed else colour
            self.pen.ellipse(
                [(x - 4) * FINER, (y - 4) * FINER, (x + 4) * FINER, (y + 4) * FINER], fill, colour, 2 * FINER
            )

    def name(self, curves: Sequence[Curve]) -> None:
        """Write the names beside the last points, moved apart where they would cover each other."""
        ends = sorted((self.y(curve.points[max(curve.points)]), place) for place, curve in enumerate(curves))
        height, used = 18.0, TOP - 18.0
        for number, (y, place) in enumerate(ends):
            room = HEIGHT - BOTTOM - height * (len(ends) - 1 - number)
            used = max(used + height, min(y, room))
            colour = COLOURS[curves[place].colour % len(COLOURS)]
            self.text((WIDTH - RIGHT + 14, used), curves[place].name, anchor="lm", colour=colour)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float) -> None:
        self.pen.line([(x * FINER, y * FINER) for x, y in points], colour, int(width * FINER))

    def text(self, at: tuple[float, float], text: str, *, anchor: str, size: int = 14, colour: str = "#222222") -> None:
        font = ImageFont.load_default(size * FINER)
        self.pen.text((at[0] * FINER, at[1] * FINER), text, colour, font, anchor)


def _ticks(lowest: float, highest: float) -> tuple[int, int, int]:
    """Whole percentages around the values: first, last, step; at most ten steps."""
    step = next(step for step in (1, 2, 5, 10, 20) if highest - lowest <= 8 * step or step == 20)
    first = max(0, int(lowest // step) * step)
    last = min(100, -int(-highest // step) * step)
    return (first, last, step) if last > first else (max(0, last - step), max(last, step), step)


def _dashes(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[tuple[float, float], ...]]:
    """Pieces of 7 pixels with gaps of 5."""
    (x0, y0), (x1, y1) = start, end
    length = max(1e-9, ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5)
    at = [place / length for place in range(0, int(length), 12)]
    return [
        tuple((x0 + (x1 - x0) * t, y0 + (y1 - y0) * t) for t in (begin, min(1.0, begin + 7 / length))) for begin in at
    ]
