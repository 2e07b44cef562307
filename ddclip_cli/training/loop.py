"""The training run: from a model, objects and a plan to a run folder, also where it was interrupted before."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ddclip_cli import console
from ddclip_cli.data import view_sampler
from ddclip_cli.data.dataset import Mixture, ObjectSet, TrainingData
from ddclip_cli.errors import UserError
from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.training import agreement, checkpointing, tracking
from ddclip_cli.training.checkpointing import Progress
from ddclip_cli.training.gate import Evaluation
from ddclip_cli.training.plan import TrainingPlan
from ddclip_cli.training.processes import Processes
from ddclip_cli.training.run_folder import RunFolder
from ddclip_cli.training.session import Session
from ddclip_cli.training.trainer import Trainer


def train(
    model: MultiViewCLIP,
    objects: ObjectSet,
    plan: TrainingPlan,
    out: str | Path,
    *,
    extra: ExtraSet | None = None,
    evaluate: Evaluation | None = None,
    recipe: dict[str, Any] | None = None,
    resume: bool = False,
    force: bool = False,
    max_steps: int | None = None,
    save_every: int | None = None,
    keep: int = 1,
    jobs: int = 0,
    micro_batch: int | None = None,
    recompute: bool = False,
    tracker: str = "none",
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Train `model` in place, on its device, and leave the run in the folder `out` (see `run_folder`).

    Args:
        objects: what to train on.
        extra: a second set, of which a batch joins every step.
        evaluate: called before the first step and after every epoch; its `top1` chooses the best checkpoint. That of
            the main process counts, for all.
        recipe: recorded in the run folder and the checkpoints; a run is only resumed with the same one.
            None records the plan.
        resume: go on from the last checkpoint, if there is one, as if the run had never stopped.
        force: replace a run that `out` holds.
        max_steps: stop after so many steps of the whole run; the schedule stays that of all epochs.
        save_every: steps between checkpoints within an epoch; None saves by the clock.
        keep: how many of the newest checkpoints stay, beside the best.
        jobs: threads that read batches ahead; 0 reads in turn.
        micro_batch, recompute: ways to less memory with the same gradients (see `Trainer`).
        tracker: "tensorboard" or "wandb" beside metrics.jsonl, or "none".
        processes: those that share the batches; None meets those that a launcher started, if one did.

    Returns:
        {"out", "steps", "finished", "best_top1", "best_step", "checkpoint"}: `checkpoint` is the best one, or the last
        one where none was evaluated.

    Raises:
        UserError: a run folder that may not be used, objects that do not fill a batch or are not in the store, targets
            of another backbone, a loss that is not finite, or a process that was lost.
        UsageError: a precision that the device does not have, a batch that the processes cannot share, a tracker that
            is not installed.
        SystemExit: with 143, after SIGTERM; the step under way is finished and saved first.
    """
    processes = processes or Processes.join(model.device)
    recipe = {"train": asdict(plan)} if recipe is None else recipe
    recipe = json.loads(json.dumps(recipe))  # tuples become lists, as they will when the file is read again
    run = RunFolder(out)
    try:
        with processes.together():
            tracking.check(tracker, is_main=processes.is_main)
            data = training_data(model, objects, extra, plan, (processes.rank, processes.number))
        with processes.together():
            trainer = Trainer(model, plan, processes=processes, micro_batch=micro_batch, recompute=recompute)
        agreement.refuse_differences(trainer, data, max_steps)
        agreement.refuse_a_run_elsewhere(processes, run, resume=resume)
        progress = None
        with processes.together():
            if processes.is_main:
                run.prepare(recipe, resume=resume, force=force)
                progress = checkpointing.restore(run, trainer, keep=keep)
        progress = processes.from_main(progress)
        trainer.copy_from_main()
        if resume:
            where = (
                f"resuming after step {progress.step}" if progress else "no checkpoint yet, starting at the first step"
            )
            console.log(f"{run.path}: {where}")
        progress = progress or Progress()
        if processes.is_main:
            run.truncate_metrics(progress.metrics_bytes)
        session, failed = Session(run, trainer, data, progress, evaluate, recipe, keep, tracker), True
        try:
            session.run(max_steps=max_steps, save_every=save_every, jobs=jobs)
            failed = False
        except KeyboardInterrupt:
            saved = f"goes on after step {session.saved_step}" if session.saved_step else "starts at the first step"
            console.log(f"interrupted after step {progress.step}: --resume {saved}")
            raise
        finally:
            session.close(failed=failed)
        return session.summary()
    finally:
        run.close()


@dataclass(frozen=True)
class ExtraSet:
    """A second set of objects, of which a batch joins every step."""

    objects: ObjectSet
    batch_size: int
    """Objects of this set in a global batch."""


def training_data(
    model: MultiViewCLIP,
    objects: ObjectSet,
    extra: ExtraSet | None,
    plan: TrainingPlan,
    share: tuple[int, int] = (0, 1),
) -> Mixture:
    """What a run of `model` reads, or that part of it (see `TrainingData`).

    Raises UserError for objects that do not fit together, or targets of another backbone than the model's.
    """
    sets = [(objects, plan.batch_size)] + ([] if extra is None else [(extra.objects, extra.batch_size)])
    data = Mixture(
        [
            TrainingData(
                own,
                batch_size=batch_size,
                num_views=plan.num_views,
                seed=view_sampler.seed_of_set(plan.seed, number),
                share_views=plan.view_choice == "step",
                share=share,
            )
            for number, (own, batch_size) in enumerate(sets)
        ]
    )
    _check_width(data, model)
    return data


def _check_width(data: Mixture, model: MultiViewCLIP) -> None:
    """Targets of another backbone have another width; found before a run folder is made."""
    for where, batch in zip(("data", "data.extra"), data[0], strict=False):
        for name, targets in (("image", batch.image_targets), ("text", batch.text_targets)):
            if targets.shape[1] != model.embed_dim:
                raise UserError(
                    f"{where}.{name}_targets are {targets.shape[1]} wide but the model's embeddings "
                    f"{model.embed_dim}: make them with the model's own backbone (ddclip encode-targets)"
                )
