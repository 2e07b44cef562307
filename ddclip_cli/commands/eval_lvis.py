"""`ddclip eval-lvis`: zero-shot classification of Objaverse-LVIS, or of any labelled view store of a recipe."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ddclip_cli.commands.options import (
    DATA_DIR,
    CheckpointOption,
    DataDirOption,
    DeviceOption,
    JsonOption,
    Overrides,
    Precision,
    PrecisionOption,
    RecipeOption,
    SeedOption,
    SetOption,
)


class Baseline(str, Enum):
    zero_shot = "zero-shot"


def command(
    overrides: Overrides = None,
    recipe: RecipeOption = "four",
    set_: SetOption = None,
    checkpoint: CheckpointOption = None,
    views: Annotated[str | None, typer.Option(metavar="1,6,12", help="Numbers of views (eval.views).")] = None,
    runs: Annotated[int | None, typer.Option(help="Evaluations with other random views (eval.runs).")] = None,
    seed: SeedOption = None,
    baseline: Annotated[Baseline | None, typer.Option(help="Evaluate the stock backbone beside the model.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many objects, spread over the list.")] = None,
    store: Annotated[Path | None, typer.Option(metavar="STORE.h5", help="View store (eval.store).")] = None,
    as_json: JsonOption = False,
    data_dir: DataDirOption = DATA_DIR,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.auto,
) -> None:
    """Zero-shot accuracy of a checkpoint: top-1, 3 and 5 for every number of views.

    The objects, their labels and class features are those of the recipe: Objaverse-LVIS, unless it says otherwise.
    Their crop `center` is deterministic; the paper's protocol is eval.crop=random eval.runs=3.

    Examples:
    \b
      ddclip eval-lvis --views 1,6,12 --baseline zero-shot
      ddclip eval-lvis --recipe sample --data-dir demo --json eval.crop=none
    """
    from ddclip_cli import console
    from ddclip_cli.commands.needs import require, sample_hint
    from ddclip_cli.commands.sources import checkpoint_source, load_recipe_backbone, load_recipe_model, recorded
    from ddclip_cli.recipe import data_path, load_recipe

    shorthands = {"eval.views": views, "eval.runs": runs, "eval.seed": seed}
    given = [f"{key}={value}" for key, value in shorthands.items() if value is not None]
    settings = load_recipe(recipe, [*(set_ or []), *(overrides or []), *given])
    ev = settings.eval

    # A store of one's own brings its own ids.
    ids = None if ev.ids is None or store is not None else data_path(ev.ids, data_dir)
    labels_path = data_path(ev.labels, data_dir)
    store_path = store or data_path(ev.store, data_dir)
    features_path = None if ev.class_features is None else data_path(ev.class_features, data_dir)
    source = checkpoint_source(settings, checkpoint, data_dir)
    data = (store_path, ids, labels_path, features_path)
    require(*data, source, data_dir=data_dir, hint=sample_hint(settings, *data))

    from ddclip_cli.data.labels import read_labels
    from ddclip_cli.data.view_store import ViewStore
    from ddclip_cli.evaluation.class_features import make_class_features, read_class_features
    from ddclip_cli.evaluation.zero_shot import evaluate

    labels = read_labels(labels_path)
    views_of_objects = ViewStore(store_path, ids)
    class_features = None if features_path is None else read_class_features(features_path)
    model = load_recipe_model(settings, checkpoint, data_dir, device, precision.value)
    if class_features is None:
        class_features = make_class_features(model, labels.class_names, ev.templates)
    report = evaluate(
        model,
        views_of_objects,
        labels,
        class_features,
        views=ev.views,
        runs=ev.runs,
        seed=ev.seed,
        crop=ev.crop,
        baseline=load_recipe_backbone(settings, data_dir, str(model.device), model.precision) if baseline else None,
        limit=limit,
    )
    if as_json:
        options = {"model.checkpoint": checkpoint, "eval.store": None if store is None else str(store)}
        document = recorded(settings, options)
        made_by = {"checkpoint": document["model"]["checkpoint"], "fingerprint": model.fingerprint}
        console.print_json(report | made_by | {"limit": limit, "recipe": document})
    else:
        console.log(f"{report['objects']} objects, {report['classes']} classes, mean of runs: {ev.runs}, in percent")
        _print(report)


def _print(report: dict[str, Any]) -> None:
    """A row for each number of views; the baseline's top-1 beside it, the rest of it only in the JSON."""
    from ddclip_cli.console import print_table

    columns = {"views": list(report["views"])}
    for k in (1, 3, 5):
        columns[f"top-{k}"] = [of_views[f"top{k}"] for of_views in report["views"].values()]
    if all("std" in of_views for of_views in report["views"].values()):
        columns["± top-1"] = [of_views["std"]["top1"] for of_views in report["views"].values()]
    if "baseline" in report:
        columns["zero-shot top-1"] = [of_views["top1"] for of_views in report["baseline"].values()]
    print_table(list(columns), zip(*columns.values(), strict=True))
