"""Models from files and into files: official Lightning checkpoints, our checkpoint folders, pretrained backbones.

A checkpoint folder holds `model.safetensors`, the state dict of the stock open_clip model under its own names, and
`config.json`: format, version, backbone (name, open_clip config, mean and std of the pixels if not CLIP's),
cross_view_from, the resolved recipe, the fingerprint. In `model.safetensors`, `token_embedding.weight` may lack its
zero rows: then `token_embedding.rows` (int32) numbers the rows that are there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddclip_cli import files
from ddclip_cli.errors import UserError
from ddclip_cli.model import towers
from ddclip_cli.model.backbone import find_pretrained, read_backbone
from ddclip_cli.model.checkpoint_config import CONFIG_NAME, FORMAT, VERSION, WEIGHTS_NAME, read_config
from ddclip_cli.model.device import choose_device, choose_precision
from ddclip_cli.model.fingerprint import fingerprint
from ddclip_cli.model.locate import find_checkpoint
from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.model.safetensors_file import write_safetensors
from ddclip_cli.model.weights import drop_zero_rows, fitted, read_pickle, read_safetensors, read_state, tensors_of

__all__ = ["choose_device", "load_backbone", "load_model", "save_checkpoint", "write_model", "writing_checkpoint"]


def load_model(
    source: str | Path, *, backbone: str | None = None, device: str = "auto", precision: str = "auto"
) -> MultiViewCLIP:
    """A trained model in eval mode.

    source: a checkpoint folder of ours, an official Lightning `.ckpt`, the name of an official checkpoint that is in
    the Hugging Face cache, or `sample:model`. Nothing is downloaded.
    backbone: open_clip name or config JSON, when the checkpoint's own name is unknown to open_clip.
    device: auto, cpu, cuda, cuda:N. precision: auto (fp32 on a CPU; bf16, else fp16, on a GPU), fp32, bf16, fp16.
    Raises UserError for a file that is missing, damaged, not a checkpoint, or of another backbone.
    """
    path = find_checkpoint(source)
    place = choose_device(device)
    arithmetic = choose_precision(precision, place)
    saved = _read_folder(path, backbone) if path.is_dir() else _read_lightning(path, backbone)
    clip = _clip_with(saved.backbone, saved.state, path, saved.holds)
    model = MultiViewCLIP(clip, cross_view_from=saved.cross_view_from, backbone=saved.backbone, precision=arithmetic)
    if saved.fingerprint not in (None, model.fingerprint):
        raise UserError(f"{path} is damaged: {WEIGHTS_NAME} and {CONFIG_NAME} are not of the same model; save it again")
    return model.to(place).eval()


def load_backbone(
    backbone: str,
    pretrained: str | Path | None,
    *,
    cross_view_from: int | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> MultiViewCLIP:
    """An open_clip backbone as a multi-view model in eval mode.

    backbone: open_clip name or path of a config JSON.
    pretrained: an open_clip tag (in the Hugging Face cache, or fetched by open_clip), a weights file or a checkpoint
    folder of ours; None for random weights from torch's global generator.
    cross_view_from: None is the number of blocks, plain averaging of the views.
    """
    place = choose_device(device)
    arithmetic = choose_precision(precision, place)
    known = read_backbone(str(backbone))
    if pretrained is None:
        clip = towers.build_clip(known["config"], known["name"], meta=False)
    else:
        towers.refuse_unsupported(known["config"], known["name"])
        path = Path(pretrained).expanduser()
        holds, state = None, None
        if path.is_dir():
            config = read_config(path)
            holds, state = config["backbone"]["name"], read_safetensors(path / WEIGHTS_NAME)
            known.update({key: config["backbone"][key] for key in ("mean", "std") if key in config["backbone"]})
        else:
            if not path.is_file():
                if len(path.parts) > 1 or path.suffix:
                    raise UserError(f"there is no pretrained weights file {path}")
                path = find_pretrained(known, str(pretrained))
            state = read_state(path)
        clip = _clip_with(known, state, path, holds)
    if cross_view_from is None:
        cross_view_from = len(towers.blocks(towers.image_tower(clip)))
    model = MultiViewCLIP(clip, cross_view_from=cross_view_from, backbone=known, precision=arithmetic)
    return model.to(place).eval()


def save_checkpoint(
    model: MultiViewCLIP,
    folder: str | Path,
    *,
    recipe: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write `model` as a checkpoint folder, replacing an older one; the folder is never seen half-written.

    dtype: torch.float16 halves the file and rounds the weights. Token rows that are all zero are left out.
    Raises UserError if it cannot be written, for want of space above all.
    """
    with writing_checkpoint(folder) as partial:
        write_model(model, partial, recipe=recipe, dtype=dtype)


@contextmanager
def writing_checkpoint(folder: str | Path) -> Iterator[Path]:
    """Yield a new folder that becomes `folder` when the block succeeds; a write that fails is a UserError."""
    try:
        with files.writing(folder) as partial:
            partial.mkdir()
            yield partial
    except (OSError, RuntimeError) as error:
        # torch.save makes a RuntimeError of most of what its file raises.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(cause, OSError):
            raise
        reason = cause.strerror or cause
        raise UserError(f"{folder} could not be written ({reason}): make room, or choose another --out") from error


def write_model(
    model: MultiViewCLIP, folder: Path, *, recipe: dict[str, Any] | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write the two files of a checkpoint to a folder that is there (see `save_checkpoint`)."""
    if model.backbone["config"] is None:
        raise UserError("this model cannot be saved: the open_clip config of its backbone is not known")
    rounded = {
        name: tensor.detach().cpu().to(dtype or tensor.dtype) for name, tensor in model.clip.state_dict().items()
    }
    config = {
        "format": FORMAT,
        "version": VERSION,
        "backbone": model.backbone,
        "cross_view_from": model.cross_view_from,
        "recipe": recipe,
        "fingerprint": fingerprint(rounded, model.cross_view_from),
    }
    write_safetensors(drop_zero_rows(rounded), folder / WEIGHTS_NAME)
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Saved:
    """What a checkpoint says, before it is checked."""

    backbone: dict[str, Any]
    holds: str
    """The name of the backbone it was trained with, which may differ from `backbone` if the caller named another."""
    cross_view_from: int
    state: dict[str, Tensor]
    fingerprint: str | None


def _read_folder(folder: Path, backbone: str | None) -> _Saved:
    config = read_config(folder)
    own = config["backbone"]
    state = read_safetensors(folder / WEIGHTS_NAME)
    known = read_backbone(backbone) if backbone else own
    return _Saved(known, own["name"], config["cross_view_from"], state, config["fingerprint"])


def _read_lightning(path: Path, backbone: str | None) -> _Saved:
    """A checkpoint of the reference's trainer: `duoduoclip.*` in `state_dict`, and the learned scale of the loss."""
    document = read_pickle(path)
    try:
        network = document["hyper_parameters"]["model"]["network"]
        name, cross_view_from = network["base_name"], network["layers_threshold"]
        tensors = tensors_of(document["state_dict"], path)
    except (KeyError, TypeError):
        raise UserError(
            f"{path} is not a checkpoint of Duoduo CLIP: its trainer's hyper-parameters are missing "
            "(weights of a backbone belong in model.pretrained)"
        ) from None
    if not isinstance(name, str) or not isinstance(cross_view_from, int):
        raise UserError(f"{path} is damaged: base_name or layers_threshold of its network is of the wrong kind")
    state = {k.removeprefix("duoduoclip."): v for k, v in tensors.items() if k.startswith("duoduoclip.")}
    if "contrastive_loss.logit_scale" in tensors:  # the one that was trained; the backbone's own was not used
        state["logit_scale"] = tensors["contrastive_loss.logit_scale"]
    try:
        known = read_backbone(backbone or name)
    except UserError as error:
        if backbone is not None:
            raise
        raise UserError(f"{path} has the backbone {name!r}, which must be named with backbone=: {error}") from error
    return _Saved(known, name, cross_view_from, state, None)


def _clip_with(known: dict[str, Any], state: dict[str, Tensor], path: Path, holds: str | None) -> Any:
    clip = towers.build_clip(known["config"], known["name"], meta=True)
    towers.fill(clip, fitted(state, clip, source=path, holds=holds, backbone=known["name"]))
    return clip
