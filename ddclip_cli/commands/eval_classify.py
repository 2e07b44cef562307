"""`ddclip eval-classify`: zero-shot classification of a labelled view store of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddclip_cli.commands.classification import classify
from ddclip_cli.commands.evaluating import Options, evaluates


@evaluates
def command(
    options: Options,
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
) -> None:
    """Zero-shot accuracy on labelled objects of your own.

    The rest is the recipe's section eval: templates, numbers of views, crop and seed.

    Examples:
    \b
      ddclip eval-classify library.h5 --labels labels.csv --views 1,6,12
      ddclip eval-classify demo/heldout.h5 --labels demo/library/heldout.csv --recipe sample --views 1,3
    """
    without = [] if classes is not None else ["eval.class_features=null"]
    classify("eval", options, without, store=store, labels=labels, class_features=classes)
