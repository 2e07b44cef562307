"""`ddclip train`: training of the multi-view model on a view store and its targets."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from ddclip_cli.data.dataset import ObjectSet
    from ddclip_cli.model.multiview import MultiViewCLIP
    from ddclip_cli.recipe import Recipe
    from ddclip_cli.recipe.schema import DataSection, ExtraDataSection
    from ddclip_cli.training.gate import Evaluation
    from ddclip_cli.training.loop import ExtraSet
    from ddclip_cli.training.plan import TrainingPlan


class TrackerName(str, Enum):
    none = "none"
    tensorboard = "tensorboard"
    wandb = "wandb"


def command(
    overrides: Overrides = None,
    recipe: RecipeOption = "four",
    set_: SetOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="Folder of the run; default: runs/<recipe>.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of the run.")] = False,
    force: ForceOption = False,
    init_from: Annotated[
        str | None,
        typer.Option(
            "--init-from",
            metavar="NAME_OR_PATH",
            help="Start from a trained checkpoint, ours or official, not the backbone.",
        ),
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many steps of the whole run.")] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that share every batch, on a GPU each where there are GPUs; default: 1."),
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(min=1, help="Objects a process puts through the network at once; the gradient stays the batch's."),
    ] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Less memory: compute activations again in the backward pass.")
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the blocks: minutes at the start, for GPUs; slower on a CPU.")
    ] = False,
    save_every: Annotated[
        int | None,
        typer.Option(min=1, help="Steps between checkpoints within an epoch; default: every ten minutes."),
    ] = None,
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest checkpoints stay, beside the best.")] = 1,
    tracker: Annotated[
        TrackerName, typer.Option("--tracker", help="Where the metrics go too, beside metrics.jsonl.")
    ] = TrackerName.none,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the run will take, from a few steps, and leave nothing.")
    ] = False,
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

    SIGTERM saves and exits 143; --resume starts a run that has not begun, so that a scheduler may repeat one command.
    Under torchrun or accelerate launch, on one machine or several, leave --processes out.

    Examples:
    \b
      ddclip train --recipe sample --data-dir demo train.epochs=1
      ddclip train --recipe sample --data-dir demo train.epochs=1 --processes 2 --resume
    """
    from ddclip_cli import console
    from ddclip_cli.commands.needs import require, sample_hint
    from ddclip_cli.commands.sources import load_recipe_backbone, model_source
    from ddclip_cli.recipe import data_path, load_recipe
    from ddclip_cli.training import launch

    if resume and force:
        raise UsageError("--resume goes on with a run and --force replaces it: give one of them")
    launch.refuse_mismatch(processes)
    given = [] if seed is None else [f"seed={seed}"]
    given += (
        []
        if init_from is None
        else [f"train.init_from={Path(init_from).absolute() if Path(init_from).exists() else init_from}"]
    )
    settings = load_recipe(recipe, [*(set_ or []), *(overrides or []), *given])
    start = None if settings.train.init_from is None else model_source(settings.train.init_from, data_dir)
    needed = [start, *_training_files(settings, data_dir)]
    evaluated = [] if no_eval or not console.is_main_process() else _evaluation_files(settings, data_dir)
    files = [path for path in (*needed, *evaluated) if isinstance(path, Path)]
    hint = sample_hint(settings, *files)
    if hint is None and not all(path.exists() for path in evaluated):
        hint = "--no-eval trains without the evaluation's files"
    require(*needed, *evaluated, data_dir=data_dir, hint=hint)
    if processes not in (None, 1) and launch.launched() is None and not dry_run:
        launch.refuse_too_many(processes, device)
        if code := launch.launch(processes, sys.argv[1:]):
            raise typer.Exit(code)
        return
    launch.end_with_the_launcher()

    import torch

    from ddclip_cli.model.checkpoints import load_model
    from ddclip_cli.training.loop import train
    from ddclip_cli.training.plan import TrainingPlan
    from ddclip_cli.training.processes import LostProcessError, Processes

    place = launch.device_of_process(device)
    together = Processes.join(torch.device("cuda" if place.startswith("cuda") else "cpu"))
    try:
        with together.together():
            objects, extra = _sets(settings, data_dir)
            torch.manual_seed(settings.seed)  # for a backbone without pretrained weights
            if start is None:
                model = load_recipe_backbone(settings, data_dir, place, "fp32", settings.model.cross_view_from)
                _compare_backbones(data_path(settings.data.image_targets, data_dir), model)
            else:
                model = load_model(start, device=place, precision="fp32")
                model = model.with_views_meeting_from(settings.model.cross_view_from)
            if compiled:
                model.compile_blocks()
            plan = TrainingPlan(seed=settings.seed, **settings.train.model_dump())
            if dry_run:
                options = {"micro_batch": micro_batch, "recompute": recompute, "jobs": jobs}
                if together.is_main:
                    _show_dry_run(model, objects, extra, plan, processes or together.number, as_json, **options)
                return
            evaluation = None if no_eval or not together.is_main else _evaluation(settings, model, data_dir)
        summary = train(
            model,
            objects,
            plan,
            out or Path("runs") / Path(recipe).stem,
            extra=extra,
            evaluate=evaluation,
            recipe=settings.model_dump(mode="json"),
            resume=resume,
            force=force,
            max_steps=max_steps,
            save_every=save_every,
            keep=keep,
            jobs=jobs,
            micro_batch=micro_batch,
            recompute=recompute,
            tracker=tracker.value,
            processes=together,
        )
    except LostProcessError:
        if launch.is_launched_by_us():  # the launcher says which
            raise typer.Exit(1) from None
        raise
    finally:
        together.leave()
    if not together.is_main:
        return
    if as_json:
        console.print_json(summary)
    else:
        rows = [("steps", summary["steps"]), ("checkpoint", summary["checkpoint"])]
        if summary["best_top1"] is not None:
            rows.append(("best top-1", f"{summary['best_top1']:.2f} % (after step {summary['best_step']})"))
        console.print_table(["training", ""], rows)


def _show_dry_run(
    model: MultiViewCLIP,
    objects: ObjectSet,
    extra: ExtraSet | None,
    plan: TrainingPlan,
    processes: int,
    as_json: bool,
    **options: Any,
) -> None:
    """What each of `processes` processes will take, tried in this one."""
    from dataclasses import asdict

    from ddclip_cli import console
    from ddclip_cli.training.dry_run import dry_run, rows
    from ddclip_cli.training.loop import training_data

    found = dry_run(model, training_data(model, objects, extra, plan, (0, processes)), plan, **options)
    if as_json:
        console.print_json(asdict(found))
    else:
        console.print_table(["a run", ""], rows(found))


def _training_files(recipe: Recipe, data_dir: Path) -> list[Path]:
    from ddclip_cli.recipe import data_path

    sets: list[DataSection | ExtraDataSection] = [recipe.data, *filter(None, [recipe.data.extra])]
    named = [path for own in sets for path in (own.store, own.ids, own.objects, own.image_targets, own.text_targets)]
    return [data_path(path, data_dir) for path in dict.fromkeys(named) if path is not None]


def _sets(recipe: Recipe, data_dir: Path) -> tuple[ObjectSet, ExtraSet | None]:
    from ddclip_cli.training.loop import ExtraSet

    objects, extra = _object_set(recipe.data, data_dir), recipe.data.extra
    return objects, None if extra is None else ExtraSet(_object_set(extra, data_dir), extra.batch_size)


def _object_set(named: DataSection | ExtraDataSection, data_dir: Path) -> ObjectSet:
    from ddclip_cli.data.dataset import ObjectSet
    from ddclip_cli.data.object_ids import read_id_list
    from ddclip_cli.data.targets import ImageTargets, open_text_targets
    from ddclip_cli.data.view_store import ViewStore
    from ddclip_cli.recipe import data_path

    ids = None if named.ids is None else data_path(named.ids, data_dir)
    return ObjectSet(
        store=ViewStore(data_path(named.store, data_dir), ids),
        image_targets=ImageTargets(data_path(named.image_targets, data_dir)),
        text_targets=open_text_targets(data_path(named.text_targets, data_dir)),
        object_ids=None if named.objects is None else read_id_list(data_path(named.objects, data_dir)),
    )


def _compare_backbones(path: Path, model: MultiViewCLIP) -> None:
    """Warn if the targets say that another backbone made them; those who made them averaged the views."""
    from ddclip_cli.console import warn
    from ddclip_cli.data.targets import ImageTargets
    from ddclip_cli.model.fingerprint import fingerprint

    made_by, own = ImageTargets(path).backbone_fingerprint, fingerprint(model.clip.state_dict(), model.num_blocks)
    if made_by not in (None, own):
        warn(
            f"{path} was made by another backbone ({made_by}) than the one in training ({own}): "
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
