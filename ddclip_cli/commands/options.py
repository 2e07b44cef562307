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


class Baseline(str, Enum):
    zero_shot = "zero-shot"


class Protocol(str, Enum):
    deterministic = "deterministic"
    paper = "paper"


class Format(str, Enum):
    text = "text"
    markdown = "markdown"
    latex = "latex"


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
StoreOption = Annotated[
    Path | None, typer.Option("--store", metavar="STORE.h5", help="View store, instead of the recipe's.")
]
IdsOption = Annotated[Path | None, typer.Option("--ids", metavar="JSON", help="Rows of the store, object_id: row.")]
ViewsOption = Annotated[
    str | None, typer.Option("--views", metavar="1,6,12", help="Numbers of views to evaluate; default: the recipe's.")
]
RunsOption = Annotated[
    int | None, typer.Option("--runs", help="Evaluations with other random views; default: the recipe's.")
]
ProtocolOption = Annotated[
    Protocol | None,
    typer.Option("--protocol", help="Random crops and three runs (paper), or the centre (deterministic)."),
]
BaselineOption = Annotated[
    Baseline | None, typer.Option("--baseline", help="Evaluate the stock backbone beside the model.")
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Only so many objects, spread evenly over the list.")
]
ProcessesOption = Annotated[
    int,
    typer.Option("--processes", min=1, help="Processes that share the work, on a GPU each where there are several."),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="DIR",
        help="Folder for report.json, tables and plot; an evaluation that was cut short goes on there.",
    ),
]
FormatOption = Annotated[Format, typer.Option("--format", help="Form of the table that is printed.")]

DATA_DIR = Path("data")
