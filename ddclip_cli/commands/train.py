"""`ddclip train`: training of the multi-view model on a view store and its targets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddclip_cli.commands.options import (
    DATA_DIR,
    DataDirOption,
    DeviceOption,
    ForceOption,
    JsonOption,
    Overrides,
    RecipeOption,
    SeedOption,
    SetOption,
)
from ddclip_cli.errors import UsageError, UserError

if TYPE_CHECKING:
    from ddclip_cli.data.targets import ImageTargets
    from ddclip_cli.model.multiview import MultiViewCLIP
    from ddclip_cli.recipe import Recipe
    from ddclip_cli.training.gate import Evaluation


def command(
    overrides: Overrides = None,
    recipe: RecipeOption = "four",
    set_: SetOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="Folder of the run; default: runs/<recipe>.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of the run.")] = False,
    force: ForceOption = False,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many steps of the whole run.")] = None,
    save_every: Annotated[
        int | None,
        typer.Option(min=1, help="Steps between checkpoints within an epoch; default: every ten minutes."),
    ] = None,
    no_eval: Annotated[bool, typer.Option("--no-eval", help="Train without evaluation or best checkpoint.")] = False,
    seed: SeedOption = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=0, help="Batches to read ahead; 0 reads in turn.")] = 2,
    as_json: JsonOption = False,
    data_dir: DataDirOption = DATA_DIR,
    device: DeviceOption = "auto",
) -> None:
    """Train a multi-view model as the recipe says; a run that was cut short goes on with --resume.

    The model is evaluated before the first step and after every epoch. The run folder holds recipe.yaml, metrics.jsonl,
    checkpoints/last and checkpoints/best; other commands take the latter two as --checkpoint.

    Examples:
    \b
      ddclip train --recipe sample --data-dir demo train.epochs=1
      ddclip train --recipe sample --data-dir demo train.epochs=1 --resume
    """
    from ddclip_cli import console
    from ddclip_cli.commands.needs import require, sample_hint
    from ddclip_cli.commands.sources import load_recipe_backbone
    from ddclip_cli.recipe import data_path, load_recipe

    if resume and force:
        raise UsageError("--resume goes on with a run and --force replaces it: give one of them")
    given = [] if seed is None else [f"seed={seed}"]
    settings = load_recipe(recipe, [*(set_ or []), *(overrides or []), *given])
    data = settings.data
    if data.extra is not None:
        raise UserError(f"recipe {recipe} has data.extra, which this version cannot train on yet: set data.extra=null")

    store, images, texts = (data_path(path, data_dir) for path in (data.store, data.image_targets, data.text_targets))
    ids, listed = (None if path is None else data_path(path, data_dir) for path in (data.ids, data.objects))
    evaluated = [] if no_eval else _evaluation_files(settings, data_dir)
    needed = (store, ids, listed, images, texts, *evaluated)
    hint = sample_hint(settings, *needed)
    if hint is None and not all(path.exists() for path in evaluated):
        hint = "--no-eval trains without the evaluation's files"
    require(*needed, data_dir=data_dir, hint=hint)

    import torch

    from ddclip_cli.data.dataset import ObjectSet
    from ddclip_cli.data.object_ids import read_id_list
    from ddclip_cli.data.targets import ImageTargets
    from ddclip_cli.data.text_targets import TextTargets
    from ddclip_cli.data.view_store import ViewStore
    from ddclip_cli.training.loop import train
    from ddclip_cli.training.plan import TrainingPlan

    image_targets = ImageTargets(images)
    objects = ObjectSet(
        store=ViewStore(store, ids),
        image_targets=image_targets,
        text_targets=TextTargets(texts),
        object_ids=None if listed is None else read_id_list(listed),
    )
    torch.manual_seed(settings.seed)  # for a backbone without pretrained weights
    model = load_recipe_backbone(settings, data_dir, device, "fp32", settings.model.cross_view_from)
    _compare_backbones(image_targets, model)
    summary = train(
        model,
        objects,
        TrainingPlan(seed=settings.seed, **settings.train.model_dump()),
        out or Path("runs") / Path(recipe).stem,
        evaluate=None if no_eval else _evaluation(settings, model, data_dir),
        recipe=settings.model_dump(mode="json"),
        resume=resume,
        force=force,
        max_steps=max_steps,
        save_every=save_every,
        jobs=jobs,
    )
    if as_json:
        console.print_json(summary)
    else:
        rows = [("steps", summary["steps"]), ("checkpoint", summary["checkpoint"])]
        if summary["best_top1"] is not None:
            rows.append(("best top-1", f"{summary['best_top1']:.2f} % (after step {summary['best_step']})"))
        console.print_table(["training", ""], rows)


def _compare_backbones(targets: ImageTargets, model: MultiViewCLIP) -> None:
    """Warn if the targets say that another backbone made them; those who made them averaged the views."""
    from ddclip_cli.console import warn
    from ddclip_cli.model.fingerprint import fingerprint

    made_by, own = targets.backbone_fingerprint, fingerprint(model.clip.state_dict(), model.num_blocks)
    if made_by not in (None, own):
        warn(
            f"{targets.path} was made by another backbone ({made_by}) than the one in training ({own}): "
            "make the targets again (ddclip encode-targets), unless this is meant"
        )


def _evaluation_files(recipe: Recipe, data_dir: Path) -> list[Path]:
    from ddclip_cli.recipe import data_path

    named = (recipe.eval.store, recipe.eval.ids, recipe.eval.labels, recipe.eval.class_features)
    return [data_path(path, data_dir) for path in named if path is not None]


def _evaluation(recipe: Recipe, model: MultiViewCLIP, data_dir: Path) -> Evaluation:
    """The recipe's evaluation at `eval.validation_views`; class features are fixed, as the text tower never learns."""
    from ddclip_cli.data.labels import read_labels
    from ddclip_cli.data.view_store import ViewStore
    from ddclip_cli.evaluation.class_features import class_features
    from ddclip_cli.evaluation.zero_shot import evaluate
    from ddclip_cli.recipe import data_path

    ev = recipe.eval
    num_views = ev.validation_views
    store = ViewStore(data_path(ev.store, data_dir), None if ev.ids is None else data_path(ev.ids, data_dir))
    if num_views > store.num_views:
        raise UserError(
            f"eval.validation_views is {num_views} but {store.path} has {store.num_views} views an object: lower it"
        )
    labels = read_labels(data_path(ev.labels, data_dir))
    named = None if ev.class_features is None else data_path(ev.class_features, data_dir)
    features, _ = class_features(named, labels, model, ev.templates)

    def run(network: MultiViewCLIP) -> dict:
        report = evaluate(network, store, labels, features, views=[num_views], seed=ev.seed, crop=ev.crop)
        return {"num_views": num_views, "objects": report["objects"], **report["views"][num_views]}

    return run
