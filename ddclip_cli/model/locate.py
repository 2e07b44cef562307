"""Where a checkpoint is, by whatever name people call it; needs no torch."""

from __future__ import annotations

import difflib
from pathlib import Path

from ddclip_cli.errors import UserError
from ddclip_cli.hub import CHECKPOINT_SIZE, MODEL_REPO, OFFICIAL_CHECKPOINTS
from ddclip_cli.shipped import shipped_path


def find_checkpoint(source: str | Path) -> Path:
    """A file or folder, `sample:NAME`, or an official name in the Hugging Face cache; UserError if it is not here."""
    path = shipped_path(str(source)) or Path(source).expanduser()
    if path.exists():
        return path
    name = str(source).removesuffix(".ckpt")
    if name in OFFICIAL_CHECKPOINTS:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(MODEL_REPO, OFFICIAL_CHECKPOINTS[name])
        if isinstance(cached, str):
            return Path(cached)
        raise UserError(
            f"the official checkpoint {name} is not here: `ddclip download checkpoint` brings it ({CHECKPOINT_SIZE})"
        )
    near = difflib.get_close_matches(name, OFFICIAL_CHECKPOINTS, n=1) or list(OFFICIAL_CHECKPOINTS)[:1]
    raise UserError(
        f"there is no checkpoint {source}: give a folder, a .ckpt file or an official name such as {near[0]}"
    )
