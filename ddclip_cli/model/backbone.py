"""Backbones: the open_clip config behind a name, and the file with the pretrained weights behind a tag."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import open_clip
from huggingface_hub import try_to_load_from_cache
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

from ddclip_cli import console
from ddclip_cli.errors import UserError


def read_backbone(backbone: str) -> dict[str, Any]:
    """An open_clip model name, or the path of a config JSON -> {"name", "config"}, and "mean", "std" if it has them."""
    if backbone.endswith(".json") or Path(backbone).is_file():
        return _from_json(Path(backbone).expanduser())
    config = open_clip.get_model_config(backbone) if backbone in open_clip.list_models() else None
    if config is None:
        near = difflib.get_close_matches(backbone, open_clip.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}" if near else "open_clip.list_models() lists the names"
        raise UserError(f"open_clip knows no backbone {backbone!r}: {hint}, or give the path of a config JSON")
    return {"name": backbone, "config": config}


def _from_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no backbone config {path}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not an open_clip model config: it is no JSON") from error
    config = document.get("model_cfg", document) if isinstance(document, dict) else None
    if not isinstance(config, dict):
        raise UserError(f"{path} is not an open_clip model config: it needs embed_dim, vision_cfg and text_cfg")
    pixels = document.get("preprocess_cfg") or {}
    name = path.stem if path.stem != "open_clip_config" else path.resolve().parent.name
    return {"name": name, "config": config, **{key: pixels[key] for key in ("mean", "std") if key in pixels}}


def find_pretrained(backbone: dict[str, Any], tag: str) -> Path:
    """The weights file of open_clip's pretrained tag: from the Hugging Face cache, else downloaded by open_clip.

    Notes in `backbone` what belongs to the tag: "mean" and "std" of the pixels, and the activation of the weights.
    """
    name = backbone["name"]
    entry = open_clip.get_pretrained_cfg(name, tag)
    if not entry:
        known = open_clip.list_pretrained_tags_by_model(name)
        near = difflib.get_close_matches(tag, known, n=1, cutoff=0.0) or ["none"]
        raise UserError(f"{tag!r} is neither a file nor a pretrained tag of {name} (nearest: {near[0]})")
    backbone.update({key: list(entry[key]) for key in ("mean", "std") if entry.get(key)})
    if entry.get("quick_gelu"):
        backbone["config"]["quick_gelu"] = True
    repo, _, filename = entry.get("hf_hub", "").rpartition("/")
    for candidate in [filename] if filename else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]:
        cached = try_to_load_from_cache(repo, candidate) if repo else None
        if isinstance(cached, str):
            return Path(cached)
    try:
        console.log(f"fetching the weights {name} {tag} ({repo or entry.get('url')})")
        return Path(open_clip.download_pretrained(entry))
    except Exception as error:  # open_clip and the hub raise many kinds for the one fact that it is not here
        raise UserError(
            f"the pretrained weights {name} {tag} are not in the Hugging Face cache and cannot be fetched: "
            "run `ddclip download backbone` where there is a network"
        ) from error
