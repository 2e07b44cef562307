"""JSON that a user hands in: every way it can be wrong is one sentence."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from ddclip_cli.errors import UserError

MOST_UNPACKED = 4 << 30


class _RepeatedKeyError(ValueError):
    pass


def read_json(path: str | Path, what: str) -> Any:
    """Parse the JSON file `path`; `what` says in an error what the file is for. A key that stands twice is an error.

    A `.gz` is unpacked, to no more than `MOST_UNPACKED` bytes.
    """
    try:
        text = _read_text(Path(path))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the {what} that is meant") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: give the file of the {what}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: the {what} must be JSON") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise UserError(f"{path} is no gzip file, or a damaged one: fetch or make it again") from None
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg}): mend the {what}") from None
    except _RepeatedKeyError as error:
        raise UserError(f"{path}: {error} stands there twice: keep one of them in the {what}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply for a {what}") from None


def _read_text(path: Path) -> str:
    if path.suffix != ".gz":
        return path.read_text(encoding="utf-8-sig")
    with gzip.open(path) as file:
        data = file.read(MOST_UNPACKED + 1)
    if len(data) > MOST_UNPACKED:
        raise UserError(f"{path} unpacks to more than {MOST_UNPACKED >> 30} GiB: unpack it first, if that is right")
    return data.decode("utf-8-sig")


def read_json_dict(path: str | Path, what: str) -> dict[str, Any]:
    """`read_json` of a file that must hold an object, `{...}`."""
    document = read_json(path, what)
    if not isinstance(document, dict):
        raise UserError(f"{path} holds a JSON {type(document).__name__}: the {what} must be an object, {{...}}")
    return document


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    items = dict(pairs)
    if len(items) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RepeatedKeyError(repr(key))
            seen.add(key)
    return items
