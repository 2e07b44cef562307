"""`ddclip eval-classify`: zero-shot classification of a labelled view store of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddclip_cli.commands.classification import classify
from ddclip_cli.commands.evaluating import shorthands
from ddclip_cli.commands.options import (
    DATA_DIR,
    BaselineOption,
    CheckpointOption,
    DataDirOption,
    DeviceOption,
    ForceOption,
    Format,
    FormatOption,
    IdsOption,
    JsonOption,
    LimitOption,
    OutOption,
    Precision,
    PrecisionOption,
    ProcessesOption,
    ProtocolOption,
    RecipeOption,
    RunsOption,
    SeedOption,
    SetOption,
    ViewsOption,
)


def command(
    store: Annotated[Path, typer.Argument(metavar="STORE.h5", help="View store (see pack-h5).", show_default=False)],
    labels: Annotated[
        Path,
        typer.Option("--labels", metavar="CSV", help="Lines of class_index,class_name,object_id.", show_default=False),
    ],
    classes: Annotated[
        Path | None,
        typer.Option(
            "--classes",
            metavar="FILE",
            help="Class names, one a line, or features of encode-classes (.npy); default: the names in the labels.",
        ),
    ] = None,
    recipe: RecipeOption = "four",
    set_: SetOption = None,
    checkpoint: CheckpointOption = None,
    views: ViewsOption = None,
    runs: RunsOption = None,
    protocol: ProtocolOption = None,
    seed: SeedOption = None,
    baseline: BaselineOption = None,
    limit: LimitOption = None,
    ids: IdsOption = None,
    out: OutOption = None,
    format_: FormatOption = Format.text,
    as_json: JsonOption = False,
    force: ForceOption = False,
    processes: ProcessesOption = 1,
    data_dir: DataDirOption = DATA_DIR,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.auto,
) -> None:
    """Zero-shot accuracy on labelled objects of your own.

    The rest is the recipe's section eval: templates, numbers of views, crop and seed.

    Examples:
    \b
      ddclip eval-classify library.h5 --labels labels.csv --views 1,6,12
      ddclip eval-classify demo/heldout.h5 --labels demo/library/heldout.csv --recipe sample --views 1,3
    """
    given = shorthands("eval", views=views, runs=runs, seed=seed, protocol=protocol)
    without = [] if classes is not None else ["eval.class_features=null"]
    classify(
        "eval",
        recipe=recipe,
        overrides=[*without, *(set_ or []), *given],
        own={"store": store, "ids": ids, "labels": labels, "class_features": classes},
        checkpoint=checkpoint,
        baseline=baseline,
        limit=limit,
        out=out,
        form=format_,
        as_json=as_json,
        force=force,
        processes=processes,
        data_dir=data_dir,
        device=device,
        precision=precision,
    )
