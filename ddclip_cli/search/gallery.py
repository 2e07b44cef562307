"""A gallery page: one HTML file with every picture inside, which opens from disk and needs no network.

Whatever an id, a name or a query holds is shown, never run: it is escaped, and the page's own policy lets nothing but
its one script and one style sheet through.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files as package_files
from pathlib import Path

from ddclip_cli import files
from ddclip_cli.errors import UserError
from ddclip_cli.search.answer import Answer, Hit
from ddclip_cli.search.plain import one_line

MAX_CARDS = 5000
"""A page of some 20 MB; more is no page to look at."""


def write_gallery(path: str | Path, answers: Sequence[Answer], thumbnail: Callable[[int], bytes | None]) -> None:
    """Write `answers` to the HTML file `path`.

    Args:
        thumbnail: JPEG of an object by its row in the embeddings; None: a placeholder.

    Raises:
        UserError: more than `MAX_CARDS` pictures would be on the page.
    """
    cards = sum(len(answer.hits) for answer in answers)
    if cards > MAX_CARDS:
        raise UserError(
            f"a gallery holds at most {MAX_CARDS} pictures, not {cards}: ask fewer queries or lower --top-k"
        )
    with files.writing(path) as partial:
        partial.write_text(gallery_page(answers, thumbnail), encoding="utf-8", errors="replace")


def gallery_page(answers: Sequence[Answer], thumbnail: Callable[[int], bytes | None]) -> str:
    """The page as text."""
    style, script = _asset("gallery.css"), _asset("gallery.js")
    policy = f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    title = _text(answers[0].query) if len(answers) == 1 else f"{len(answers)} queries"
    links = "".join(f'<a href="#q{n}">{_text(answer.query)}</a>' for n, answer in enumerate(answers))
    navigation = f"<nav>{links}</nav>" if len(answers) > 1 else ""
    sections = "\n".join(_section(number, answer, thumbnail) for number, answer in enumerate(answers))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title} - ddclip</title>
<style>{style}</style>
</head>
<body>
<header><b>ddclip</b>{navigation}</header>
<main>
{sections}
</main>
<dialog aria-label="Object">
<button class="close" aria-label="Close">&times;</button>
<div class="stage"></div>
<h3></h3>
<code></code>
<p class="facts"></p>
<div class="actions">
<button class="previous" aria-label="Previous">&larr;</button>
<button class="copy">Copy id</button>
<a class="page" target="_blank" rel="noopener noreferrer">Open page</a>
<button class="next" aria-label="Next">&rarr;</button>
</div>
</dialog>
<script>{script}</script>
</body>
</html>
"""


def _section(number: int, answer: Answer, thumbnail: Callable[[int], bytes | None]) -> str:
    cards = "\n".join(_card(hit, thumbnail(hit.row)) for hit in answer.hits)
    body = f'<ol class="grid">\n{cards}\n</ol>' if cards else '<p class="nothing">Nothing was found.</p>'
    count = f"{len(answer.hits)} {'object' if len(answer.hits) == 1 else 'objects'}"
    return f'<section id="q{number}">\n<h2>{_text(answer.query)}</h2>\n<p class="count">{count}</p>\n{body}\n</section>'


def _card(hit: Hit, jpeg: bytes | None) -> str:
    """One object. A button, so that keys reach it; what the dialog shows is in its attributes."""
    name = hit.name or hit.object_id
    picture = '<span class="empty">no picture</span>'
    if jpeg is not None and jpeg.startswith(b"\xff\xd8"):
        data = base64.b64encode(jpeg).decode()
        picture = f'<img src="data:image/jpeg;base64,{data}" alt="{_text(name)}">'
    link = f' data-link="{escape(hit.link)}"' if hit.link else ""
    width = max(0.0, min(1.0, hit.score))
    return (
        f'<li><button class="card" data-id="{escape(hit.object_id)}" data-name="{_text(name)}" '
        f'data-rank="{hit.rank}" data-score="{hit.score:.4f}"{link}>'
        f'<span class="picture">{picture}</span>'
        f'<span class="line"><b>{hit.rank}</b><meter min="0" max="1" value="{width:.4f}"></meter>'
        f"<span>{hit.score:.3f}</span></span>"
        f'<span class="name">{_text(name)}</span></button></li>'
    )


def _text(text: str) -> str:
    return escape(one_line(text))


def _asset(name: str) -> str:
    return (package_files("ddclip_cli.search") / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
