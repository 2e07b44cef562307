"""What a command needs before it can start: everything that is missing in one sentence, with what brings it."""

from __future__ import annotations

import math
from pathlib import Path

from ddclip_cli.commands.options import DATA_DIR
from ddclip_cli.errors import UserError


def require(*sources: str | Path | None, data_dir: Path = DATA_DIR, hint: str | None = None) -> None:
    """Raise one UserError about all `sources` that are not here.

    Args:
        sources: files and folders; a str is the name of an official checkpoint; None is nothing needed.
        hint: how else to go on, appended to the sentence.
    """
    missing: dict[tuple[str, str] | None, list[str]] = {}  # (command, size) -> what it brings
    for source in dict.fromkeys(sources):
        if isinstance(source, str) and not _is_cached(source):
            missing.setdefault(_download(f"checkpoint:{source}", data_dir), []).append(f"the checkpoint {source}")
        elif isinstance(source, Path) and not source.exists():
            missing.setdefault(_brought_by(source, data_dir), []).append(str(source))
    if not missing:
        return
    parts = []
    for bringer, things in missing.items():
        listed = " and ".join(filter(None, [", ".join(things[:-1]), things[-1]]))
        if bringer is None:
            parts.append(f"{listed} (check the path)")
        else:
            parts.append(f"{listed} (`{bringer[0]}` brings {'it' if len(things) == 1 else 'them'}, {bringer[1]})")
    raise UserError("missing: " + "; ".join(parts) + (f"; {hint}" if hint else ""))


def _brought_by(path: Path, data_dir: Path) -> tuple[str, str] | None:
    """The command that brings a file of the data directory and its size; None for files of the user's own."""
    from ddclip_cli.data.catalogue import ITEMS

    try:
        name = path.relative_to(data_dir).as_posix()
    except ValueError:
        return None
    if name == "mv_images.h5":
        return f"ddclip pack-h5 VIEWS_RELEASE --out {path}", "about 1.6 TB, from the renders of Zero123"
    items = [item.name for item in ITEMS.values() if name in (file.destination for file in item.files)]
    return _download(items[0], data_dir) if items else None


def _download(item: str, data_dir: Path) -> tuple[str, str]:
    from ddclip_cli.data.catalogue import ITEMS, find_items, readable

    size = ITEMS[item].size
    size = round(size, -math.floor(math.log10(size)))  # one digit: 83,462,400,000 -> 80 GB
    short = item.partition(":")[0] if find_items(["checkpoint"])[0].name == item else item
    # Checkpoints live in the Hugging Face cache, wherever the data is.
    where = "" if item.startswith("checkpoint") or data_dir == DATA_DIR else f" --data-dir {data_dir}"
    return f"ddclip download {short}{where}", f"about {readable(size)}"


def _is_cached(checkpoint: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    from ddclip_cli.hub import MODEL_REPO, OFFICIAL_CHECKPOINTS

    return isinstance(try_to_load_from_cache(MODEL_REPO, OFFICIAL_CHECKPOINTS[checkpoint]), str)
