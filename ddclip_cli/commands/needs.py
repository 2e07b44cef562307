"""What a command needs before it can start: everything that is missing in one sentence, with what brings it."""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import TYPE_CHECKING

from ddclip_cli.commands.options import DATA_DIR
from ddclip_cli.errors import UserError

if TYPE_CHECKING:
    from ddclip_cli.recipe import Recipe

# Stores that nobody offers: the folder to pack, and what is packed.
PACKED = {
    "mv_images.h5": ("VIEWS_RELEASE", "about 1.6 TB, from the renders of Zero123"),
    "ViT-B-32_laion2b_s34b_b79k/mvpnet/mvpnet_mv_images.h5": ("MVPNET", "from your copy of MVPNet"),
    "scanobjectnn_images.h5": ("RENDERS", "from your renders of ScanObjectNN"),
    "text2shape_images.h5": ("RENDERS", "from your renders of the objects of Text2Shape"),
}


def require(*sources: str | Path | None, data_dir: Path = DATA_DIR, hint: str | None = None) -> None:
    """Raise one UserError about all `sources` that are not here.

    Args:
        sources: files and folders; a str is the name of an official checkpoint; None is nothing needed.
        hint: how else to go on, appended to the sentence.
    """
    parts = []
    missing: dict[tuple[str, str] | None, list[str]] = {}  # (command, size) -> what it brings
    for source in dict.fromkeys(sources):
        if isinstance(source, str) and not _is_cached(source):
            missing.setdefault(_download(f"checkpoint:{source}", data_dir), []).append(f"the checkpoint {source}")
        elif isinstance(source, Path) and (official := _meant(source, data_dir)):
            parts.append(f"{source} (did you mean the official checkpoint {official}?)")
        elif isinstance(source, Path) and not source.exists():
            missing.setdefault(_brought_by(source, data_dir), []).append(str(source))
    for bringer, things in missing.items():
        listed = " and ".join(filter(None, [", ".join(things[:-1]), things[-1]]))
        if bringer is None:
            parts.append(f"{listed} (check the path)")
        else:
            parts.append(f"{listed} (`{bringer[0]}` brings {'it' if len(things) == 1 else 'them'}, {bringer[1]})")
    if parts:
        raise UserError("missing: " + "; ".join([*parts, *filter(None, [hint])]))


def sample_hint(recipe: Recipe, *data: Path | None) -> str | None:
    """What makes the sample's files, if the recipe is the sample's and one of these files of its data is not here."""
    from ddclip_cli.shipped import SAMPLE

    is_sample = any((name or "").startswith(SAMPLE) for name in (recipe.model.pretrained, recipe.model.checkpoint))
    if not is_sample or all(path is None or path.exists() for path in data):
        return None
    return "`ddclip demo` makes the sample's files: then add --data-dir demo"


def _meant(path: Path, data_dir: Path) -> str | None:
    """The official checkpoint that a bare name almost spells; None for files that are here and for other paths."""
    from ddclip_cli.hub import OFFICIAL_CHECKPOINTS

    if path.exists() or path.suffix not in ("", ".ckpt") or path.parent not in (Path(), data_dir):
        return None
    near = difflib.get_close_matches(path.stem, OFFICIAL_CHECKPOINTS, n=1, cutoff=0.8)
    return near[0] if near else None


def _brought_by(path: Path, data_dir: Path) -> tuple[str, str] | None:
    """The command that brings a file of the data directory and its size; None for files of the user's own."""
    from ddclip_cli.data.catalogue import FEATURES, ITEMS

    try:
        name = path.relative_to(data_dir).as_posix()
    except ValueError:
        return None
    if name in PACKED:
        folder, what = PACKED[name]
        return f"ddclip pack-h5 {folder} --out {path}", what
    if name == f"{FEATURES}/text_embeddings.h5":
        return f"ddclip convert-text {path.with_suffix('.npy')}", "about 15 GB, from a file of `ddclip download four`"
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
