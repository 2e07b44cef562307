"""Zero-shot classification on the command line: one function behind `eval-lvis` and the commands that are like it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ddclip_cli.commands.evaluating import Evaluation, Options


def classify(section: str, options: Options, overrides: Sequence[str] | None = None, **own: Path | None) -> None:
    """Evaluate as a section of the recipe says; `own` are files in place of those of its keys."""
    evaluation = Evaluation(section, options, overrides, files=("store", "ids", "labels", "class_features"), own=own)
    from ddclip_cli import console
    from ddclip_cli.data.labels import read_labels
    from ddclip_cli.data.view_store import ViewStore
    from ddclip_cli.evaluation.class_features import class_features
    from ddclip_cli.evaluation.published import published
    from ddclip_cli.evaluation.report import accuracy_curves, accuracy_table
    from ddclip_cli.evaluation.zero_shot import evaluate

    paths, keys = evaluation.paths, evaluation.keys
    labels = read_labels(paths["labels"])
    store = ViewStore(paths["store"], paths["ids"])
    model = evaluation.model()
    features, names = class_features(paths["class_features"], labels, model, keys.templates)
    report = evaluate(model, store, labels, features, class_names=names, **evaluation.arguments(model))
    report["published"] = published(paths["labels"].name, evaluation.trained_on)
    console.log(f"{report['objects']} objects, {report['classes']} classes, mean of runs: {keys.runs}, in percent")
    title = f"{paths['labels'].stem}: zero-shot classification"
    evaluation.finish(report, model, title, accuracy_table, accuracy_curves)
