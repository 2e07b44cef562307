"""Options that several commands share, so that they read and behave the same everywhere."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Precision(str, Enum):
    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class CodecName(str, Enum):
    raw = "raw"
    jpeg = "jpeg"
    lossless = "lossless"


class OnError(str, Enum):
    fail = "fail"
    skip = "skip"


RecipeOption = Annotated[
    str, typer.Option("--recipe", "-r", metavar="NAME_OR_PATH", help="A recipe of ours by name, or your own YAML file.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key of the recipe; repeatable.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Overrides of the recipe, such as train.epochs=1.", show_default=False),
]
DataDirOption = Annotated[
    Path,
    typer.Option("--data-dir", envvar="DDCLIP_DATA", help="Where data lives; relative paths of a recipe start here."),
]
DeviceOption = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda[:N]", help="Where the model runs.")]
PrecisionOption = Annotated[Precision, typer.Option("--precision", help="Arithmetic of the model.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
CheckpointOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        "-c",
        metavar="NAME_OR_PATH",
        help="Official checkpoint name, .ckpt file or checkpoint folder; default: the recipe's.",
    ),
]
JobsOption = Annotated[int, typer.Option("--jobs", "-j", min=1, help="CPU workers.")]
OnErrorOption = Annotated[
    OnError, typer.Option("--on-error", help="Finish the rest and then fail (exit 1), or skip what is bad (exit 0).")
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of every random choice; default: the recipe's.")]

DATA_DIR = Path("data")
