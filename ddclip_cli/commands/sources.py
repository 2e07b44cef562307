"""From the values of a recipe and of the command line to files and models.

A relative path on the command line starts in the current folder, one in a recipe in the data directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddclip_cli.errors import UsageError
from ddclip_cli.hub import OFFICIAL_CHECKPOINTS
from ddclip_cli.recipe import Recipe, data_path
from ddclip_cli.shipped import SAMPLE

if TYPE_CHECKING:
    from ddclip_cli.model.multiview import MultiViewCLIP


def model_source(value: str, data_dir: Path) -> str | Path:
    """A checkpoint as a recipe names it: an official name stays a name, all else is a path."""
    if value in OFFICIAL_CHECKPOINTS:
        return value
    path, name = data_path(value, data_dir), value.removesuffix(".ckpt")
    return name if name in OFFICIAL_CHECKPOINTS and not path.exists() else path


def checkpoint_source(recipe: Recipe, checkpoint: str | None, data_dir: Path) -> str | Path:
    """The checkpoint that `--checkpoint` or, without it, the recipe names."""
    if checkpoint is not None:
        return model_source(checkpoint, Path())
    if recipe.model.checkpoint is None:
        raise UsageError("the recipe names no checkpoint: give one with --checkpoint, or set model.checkpoint")
    return model_source(recipe.model.checkpoint, data_dir)


def recorded_source(made_by: dict[str, Any], beside: Path, data_dir: Path) -> str | Path:
    """The checkpoint that made the file `beside`, as its record names it: looked for where it was, from the folder of
    the file, from the current one and in the data directory; as the record has it if it is nowhere.
    """
    name = str(made_by.get("checkpoint"))
    if name in OFFICIAL_CHECKPOINTS or name.startswith(SAMPLE):
        return model_source(name, data_dir)
    candidates = [beside.parent / str(made_by.get("checkpoint_from_here", name)), Path(name), data_dir / name]
    return next((path for path in candidates if path.exists()), model_source(name, Path()))


def backbone_of(recipe: Recipe, source: str | Path, data_dir: Path) -> str | None:
    """The backbone that the recipe describes for a checkpoint that cannot say it itself.

    Folders and official checkpoints say what their backbone is; a .ckpt may have one that only a config describes.
    """
    described = recipe.model.backbone.endswith(".json") and Path(source).suffix == ".ckpt"
    return str(data_path(recipe.model.backbone, data_dir)) if described else None


def load_recipe_model(
    recipe: Recipe, checkpoint: str | None, data_dir: Path, device: str = "auto", precision: str = "auto"
) -> MultiViewCLIP:
    """The trained model of `--checkpoint` or the recipe, in eval mode."""
    from ddclip_cli.model.checkpoints import load_model

    source = checkpoint_source(recipe, checkpoint, data_dir)
    return load_model(source, backbone=backbone_of(recipe, source, data_dir), device=device, precision=precision)


def load_recipe_backbone(
    recipe: Recipe,
    data_dir: Path,
    device: str = "auto",
    precision: str = "auto",
    cross_view_from: int | None = None,
) -> MultiViewCLIP:
    """The pretrained backbone of the recipe; with `cross_view_from` None it averages the views."""
    from ddclip_cli.model.checkpoints import load_backbone

    name, pretrained = recipe.model.backbone, recipe.model.pretrained
    backbone = str(data_path(name, data_dir)) if name.endswith(".json") else name
    weights = None if pretrained is None else _weights(pretrained, data_dir)
    return load_backbone(backbone, weights, cross_view_from=cross_view_from, device=device, precision=precision)


def recorded(recipe: Recipe, options: dict[str, str | None]) -> dict[str, Any]:
    """The recipe as it is saved beside a result: with the options that stood in for one of its keys, as typed.

    `options`: dotted key -> value; None leaves the recipe's own.
    """
    document = recipe.model_dump(mode="json")
    for key, value in options.items():
        section, _, last = key.partition(".")
        if value is not None:
            document[section][last] = value
    return document


def _weights(pretrained: str, data_dir: Path) -> str:
    """An open_clip tag as it is; a file or folder of weights as a path."""
    path = data_path(pretrained, data_dir)
    is_tag = len(Path(pretrained).parts) == 1 and ":" not in pretrained and not path.exists() and not path.suffix
    return pretrained if is_tag else str(path)
