"""Zero-shot classification on the command line: one function behind `eval-lvis` and the commands that are like it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ddclip_cli.commands.evaluating import print_result, refuse_finished, shorthands
from ddclip_cli.commands.options import (
    DATA_DIR,
    Baseline,
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


def benchmark(section: str, text: str) -> Callable[..., None]:
    """The command that evaluates on the labelled store of a section of the recipe; `text` is its help."""

    def command(
        overrides: Overrides = None,
        recipe: RecipeOption = "four",
        set_: SetOption = None,
        checkpoint: CheckpointOption = None,
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
        given = shorthands(section, views=views, runs=runs, seed=seed, protocol=protocol)
        classify(
            section,
            recipe=recipe,
            overrides=[*(set_ or []), *(overrides or []), *given],
            own={"store": store, "ids": ids},
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

    command.__doc__ = text
    return command


def classify(
    section: str,
    *,
    recipe: str,
    overrides: list[str],
    own: dict[str, Path | None],
    checkpoint: str | None,
    baseline: Baseline | None,
    limit: int | None,
    out: Path | None,
    form: Format,
    as_json: bool,
    force: bool,
    processes: int,
    data_dir: Path,
    device: str,
    precision: Precision,
) -> None:
    """Evaluate as a section of the recipe says; `own` are files of the command line in place of those of its keys."""
    from ddclip_cli import console
    from ddclip_cli.commands.needs import require, sample_hint
    from ddclip_cli.commands.sources import checkpoint_source, load_recipe_backbone, load_recipe_model, recorded
    from ddclip_cli.recipe import data_path, load_recipe

    settings = load_recipe(recipe, overrides)
    ev = getattr(settings, section)
    refuse_finished(out, force=force)
    named = {"store": ev.store, "ids": ev.ids, "labels": ev.labels, "class_features": ev.class_features}
    if own["store"] is not None:
        named["ids"] = None  # a store of one's own brings its own ids
    paths = {key: own.get(key) or (name and data_path(name, data_dir)) for key, name in named.items()}
    source = checkpoint_source(settings, checkpoint, data_dir)
    require(*paths.values(), source, data_dir=data_dir, hint=sample_hint(settings, *paths.values()))

    from ddclip_cli.data.labels import read_labels
    from ddclip_cli.data.view_store import ViewStore
    from ddclip_cli.evaluation.class_features import class_features
    from ddclip_cli.evaluation.published import published
    from ddclip_cli.evaluation.report import UNFINISHED, accuracy_curves, accuracy_table, write_report
    from ddclip_cli.evaluation.zero_shot import evaluate

    labels = read_labels(paths["labels"])
    objects = ViewStore(paths["store"], paths["ids"])
    model = load_recipe_model(settings, checkpoint, data_dir, device, precision.value)
    features, names = class_features(paths["class_features"], labels, model, ev.templates)
    report = evaluate(
        model,
        objects,
        labels,
        features,
        class_names=names,
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
    options = {f"{section}.{key}": None if path is None else str(path) for key, path in own.items()}
    document = recorded(settings, options | {"model.checkpoint": checkpoint})
    trained_on = settings.data.objects if settings.data.extra is None else None
    report |= {
        "published": published(paths["labels"].name, trained_on),
        "checkpoint": document["model"]["checkpoint"],
        "fingerprint": model.fingerprint,
        "precision": model.precision,
        "limit": limit,
        "recipe": document,
    }
    console.log(f"{report['objects']} objects, {report['classes']} classes, mean of runs: {ev.runs}, in percent")
    table = accuracy_table(report)
    if out is not None:
        title = f"{paths['labels'].stem}: zero-shot classification"
        write_report(out, report, table, title, accuracy_curves(report))
    print_result(report, table, as_json=as_json, form=form)
