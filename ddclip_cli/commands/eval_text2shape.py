"""`ddclip eval-text2shape`: retrieval between captions and the objects of a view store, both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddclip_cli.commands.evaluating import Evaluation, Options, evaluates
from ddclip_cli.commands.options import Overrides, StoreOption


@evaluates
def command(
    options: Options,
    overrides: Overrides = None,
    store: StoreOption = None,
    captions: Annotated[
        Path | None, typer.Option("--captions", metavar="JSON", help="Captions by object id, instead of the recipe's.")
    ] = None,
) -> None:
    """Find objects by their captions, and captions by their object: recall at 1 and 5, nDCG at 5, median rank.

    Store and captions are those of the recipe's section text2shape, or your own.

    Examples:
    \b
      ddclip eval-text2shape --protocol paper --out text2shape
      ddclip eval-text2shape --recipe sample --data-dir demo --views 1,12
    """
    own = {"store": store, "captions": captions}
    evaluation = Evaluation("text2shape", options, overrides, files=("store", "ids", "captions"), own=own)

    from ddclip_cli import console
    from ddclip_cli.data.captions import read_captions
    from ddclip_cli.data.view_store import ViewStore
    from ddclip_cli.evaluation.published import published_recall
    from ddclip_cli.evaluation.report import recall_curves, recall_table
    from ddclip_cli.evaluation.retrieval import evaluate_retrieval

    paths = evaluation.paths
    texts = {key: [text for _, text in of_object] for key, of_object in read_captions(paths["captions"]).items()}
    objects = ViewStore(paths["store"], paths["ids"])
    model = evaluation.model()
    report = evaluate_retrieval(model, objects, texts, **evaluation.arguments(model))
    report["published"] = published_recall(paths["captions"].name, evaluation.trained_on)
    runs = evaluation.keys.runs
    console.log(f"{report['objects']} objects, {report['captions']} captions, mean of runs: {runs}, in percent")
    title = f"{paths['captions'].stem}: retrieval"
    evaluation.finish(report, model, title, recall_table, recall_curves)
