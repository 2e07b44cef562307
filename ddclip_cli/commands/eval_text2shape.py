"""`ddclip eval-text2shape`: retrieval between captions and the objects of a view store, both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddclip_cli.commands.evaluating import print_result, refuse_finished, shorthands
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
    Overrides,
    Precision,
    PrecisionOption,
    ProcessesOption,
    ProtocolOption,
    RecipeOption,
    RunsOption,
    SeedOption,
    SetOption,
    StoreOption,
    ViewsOption,
)


def command(
    overrides: Overrides = None,
    recipe: RecipeOption = "four",
    set_: SetOption = None,
    checkpoint: CheckpointOption = None,
    captions: Annotated[
        Path | None, typer.Option("--captions", metavar="JSON", help="Captions by object id, instead of the recipe's.")
    ] = None,
    views: ViewsOption = None,
    runs: RunsOption = None,
    protocol: ProtocolOption = None,
    seed: SeedOption = None,
    baseline: BaselineOption = None,
    limit: LimitOption = None,
    store: StoreOption = None,
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
    """Find objects by their captions, and captions by their object: recall at 1 and 5, nDCG at 5, median rank.

    Store and captions are those of the recipe's section text2shape, or your own.

    Examples:
    \b
      ddclip eval-text2shape --protocol paper --out text2shape
      ddclip eval-text2shape --recipe sample --data-dir demo --views 1,12
    """
    from ddclip_cli import console
    from ddclip_cli.commands.needs import require, sample_hint
    from ddclip_cli.commands.sources import checkpoint_source, load_recipe_backbone, load_recipe_model, recorded
    from ddclip_cli.recipe import data_path, load_recipe

    given = shorthands("text2shape", views=views, runs=runs, seed=seed, protocol=protocol)
    settings = load_recipe(recipe, [*(set_ or []), *(overrides or []), *given])
    ev = settings.text2shape
    refuse_finished(out, force=force)
    # A store of one's own brings its own ids.
    ids_path = ids or (None if ev.ids is None or store is not None else data_path(ev.ids, data_dir))
    store_path, captions_path = store or data_path(ev.store, data_dir), captions or data_path(ev.captions, data_dir)
    data = (store_path, ids_path, captions_path)
    source = checkpoint_source(settings, checkpoint, data_dir)
    require(*data, source, data_dir=data_dir, hint=sample_hint(settings, *data))

    from ddclip_cli.data.captions import read_captions
    from ddclip_cli.data.view_store import ViewStore
    from ddclip_cli.evaluation.published import published_recall
    from ddclip_cli.evaluation.report import UNFINISHED, recall_curves, recall_table, write_report
    from ddclip_cli.evaluation.retrieval import evaluate_retrieval

    texts = {key: [text for _, text in of_object] for key, of_object in read_captions(captions_path).items()}
    objects = ViewStore(store_path, ids_path)
    model = load_recipe_model(settings, checkpoint, data_dir, device, precision.value)
    report = evaluate_retrieval(
        model,
        objects,
        texts,
        views=ev.views,
        runs=ev.runs,
        seed=ev.seed,
        crop=ev.crop,
        baseline=load_recipe_backbone(settings, data_dir, str(model.device), model.precision) if baseline else None,
        limit=limit,
        processes=processes,
        unfinished=None if out is None else out / UNFINISHED,
        force=force,
    )
    own = {"store": store, "ids": ids, "captions": captions}
    options = {f"text2shape.{key}": None if path is None else str(path) for key, path in own.items()}
    document = recorded(settings, options | {"model.checkpoint": checkpoint})
    trained_on = settings.data.objects if settings.data.extra is None else None
    report |= {
        "published": published_recall(captions_path.name, trained_on),
        "checkpoint": document["model"]["checkpoint"],
        "fingerprint": model.fingerprint,
        "precision": model.precision,
        "limit": limit,
        "recipe": document,
    }
    console.log(f"{report['objects']} objects, {report['captions']} captions, mean of runs: {ev.runs}, in percent")
    table = recall_table(report)
    if out is not None:
        write_report(out, report, table, f"{captions_path.stem}: retrieval", recall_curves(report))
    print_result(report, table, as_json=as_json, form=format_)
