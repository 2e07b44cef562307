"""Captions of objects, by the kind that decides how a training step draws one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddclip_cli.data.json_files import read_json_dict
from ddclip_cli.errors import UserError

KINDS = ("text", "blip", "msft", "retrieval")
"""Names of the kinds; a kind's number is its place here."""
SEVERAL = frozenset(("text", "retrieval"))
"""Kinds of which an object may have any number; of the others it has at most one."""

Captions = list[tuple[int, str]]
"""Captions of one object: (kind, text), sorted by kind."""


def read_captions(path: str | Path) -> dict[str, Captions]:
    """Read `{object_id: "caption" | ["caption", ...] | {kind: caption or captions}}`, kinds as in `KINDS`.

    A plain caption or list is of kind "text". Blank captions do not count.

    Raises:
        UserError: the file is missing, no JSON, or an object's captions are of another form.
    """
    return {
        object_id: _captions(entry, f"{path}: object {object_id!r}")
        for object_id, entry in read_json_dict(path, "captions").items()
    }


def read_view_captions(path: str | Path, num_views: int) -> dict[str, list[str]]:
    """Read `{object_id: [caption of view 0, ...]}`, as the reference has them for MVImgNet; a `.gz` is unpacked.

    Raises:
        UserError: the file is missing, no JSON, or an object has not one caption for every view.
    """
    captions = read_json_dict(path, "captions of the views")
    for object_id, texts in captions.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"{path}: object {object_id!r} has {str(texts)[:40]}: it must be a list of captions")
        if len(texts) != num_views:
            raise UserError(f"{path}: object {object_id!r} has {len(texts)} captions for {num_views} views")
    return captions


def _captions(entry: Any, where: str) -> Captions:
    if not isinstance(entry, dict):
        entry = {"text": entry}
    unknown = [kind for kind in entry if kind not in KINDS]
    if unknown:
        raise UserError(f"{where} has captions of the unknown kind {unknown[0]!r}: the kinds are {', '.join(KINDS)}")
    captions: Captions = []
    for number, kind in enumerate(KINDS):
        texts = entry.get(kind)
        if texts is None:
            continue
        if isinstance(texts, str):
            texts = [texts]
        elif kind not in SEVERAL or not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            form = "a text or a list of texts" if kind in SEVERAL else "one text"
            raise UserError(f"{where} has {str(texts)[:40]} as {kind!r}: it must be {form}")
        captions += [(number, text.strip()) for text in texts if text.strip()]
    return captions
