"""The `config.json` of a checkpoint folder, read and checked without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ddclip_cli.errors import UserError

FORMAT, VERSION = "ddclip-checkpoint", 1
WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"


def read_config(folder: Path) -> dict[str, Any]:
    """{"backbone", "cross_view_from", "recipe", "fingerprint", ...}; UserError if the folder is no checkpoint."""
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is not a checkpoint folder: it has no {CONFIG_NAME}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not the config of a checkpoint: it is no JSON") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UserError(f"{path} is not the config of a checkpoint of ddclip")
    if config.get("version") != VERSION:
        raise UserError(
            f"{folder} has version {config.get('version')} of the checkpoint format: update ddclip to read it"
        )
    backbone = config.get("backbone")
    if (
        not isinstance(backbone, dict)
        or not isinstance(backbone.get("name"), str)
        or not isinstance(backbone.get("config"), dict)
        or not isinstance(config.get("cross_view_from"), int)
        or not isinstance(config.get("fingerprint"), str)
    ):
        raise UserError(f"{path} is damaged: backbone, cross_view_from or fingerprint is missing")
    return config
