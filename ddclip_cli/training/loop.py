"""The training run: steps, evaluations, checkpoints, and going on after any interruption."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ddclip_cli import console, files
from ddclip_cli.data.dataset import Batch, ObjectSet, TrainingData, batches
from ddclip_cli.errors import UserError, some
from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.training import checkpointing
from ddclip_cli.training.checkpointing import Progress
from ddclip_cli.training.gate import Evaluation, zero_shot_gate
from ddclip_cli.training.plan import TrainingPlan
from ddclip_cli.training.run_folder import JsonLines, RunFolder
from ddclip_cli.training.trainer import NotFinite, Trainer

SAVE_SECONDS = 600
"""A checkpoint at least this often, beside the one at the end of every epoch."""


def train(
    model: MultiViewCLIP,
    objects: ObjectSet,
    plan: TrainingPlan,
    out: str | Path,
    *,
    evaluate: Evaluation | None = None,
    recipe: dict[str, Any] | None = None,
    resume: bool = False,
    force: bool = False,
    max_steps: int | None = None,
    save_every: int | None = None,
    jobs: int = 0,
) -> dict[str, Any]:
    """Train `model` in place, on its device, and leave the run in the folder `out` (see `run_folder`).

    Args:
        objects: what to train on.
        evaluate: called before the first step and after every epoch; its `top1` chooses the best checkpoint.
        recipe: recorded in the run folder and the checkpoints; a run is only resumed with the same one.
            None records the plan.
        resume: go on from the last checkpoint, if there is one, as if the run had never stopped.
        force: replace a run that `out` holds.
        max_steps: stop after so many steps of the whole run; the schedule stays that of all epochs.
        save_every: steps between checkpoints within an epoch; None saves by the clock.
        jobs: processes that read batches ahead; 0 reads in this one.

    Returns:
        {"out", "steps", "finished", "best_top1", "best_step", "checkpoint"}: `checkpoint` is the best one, or the last
        one where none was evaluated.

    Raises:
        UserError: a run folder that may not be used, objects that do not fill a batch or are not in the store, targets
            of another backbone, or a loss that is not finite.
        UsageError: a precision that the device does not have.
    """
    data = TrainingData(objects, batch_size=plan.batch_size, num_views=plan.num_views, seed=plan.seed)
    _check_width(data, model)
    run = RunFolder(out)
    trainer = Trainer(model, plan)
    recipe = {"train": asdict(plan)} if recipe is None else recipe
    recipe = json.loads(json.dumps(recipe))  # tuples become lists, as they will when the file is read again
    run.prepare(recipe, resume=resume, force=force)
    progress = checkpointing.restore(run, trainer)
    if resume:
        where = f"resuming after step {progress.step}" if progress else "no checkpoint yet, starting at the first step"
        console.log(f"{run.path}: {where}")
    started_anew = progress is None
    progress = progress or Progress()
    run.truncate_metrics(progress.metrics_bytes)

    session = _Session(run, trainer, data, progress, evaluate, recipe)
    try:
        if started_anew and evaluate:
            session.evaluate_start(evaluate)
        session.run(max_steps=max_steps, save_every=save_every, jobs=jobs)
    except KeyboardInterrupt:
        saved = f"goes on after step {session.saved_step}" if run.last.exists() else "starts at the first step"
        console.log(f"interrupted after step {progress.step}: --resume {saved}")
        raise
    finally:
        session.close()
    return session.summary()


class _Session:
    """One uninterrupted stretch of a run."""

    def __init__(
        self,
        run: RunFolder,
        trainer: Trainer,
        data: TrainingData,
        progress: Progress,
        evaluate: Evaluation | None,
        recipe: dict[str, Any],
    ) -> None:
        self.run_folder, self.trainer, self.data, self.progress = run, trainer, data, progress
        self.evaluate, self.recipe = evaluate, recipe
        self.metrics, self.timings = JsonLines(run.metrics), JsonLines(run.timings)
        self.total_steps = trainer.plan.epochs * data.steps_per_epoch
        self.saved_step = progress.step

    def run(self, *, max_steps: int | None, save_every: int | None, jobs: int) -> None:
        """Take the remaining steps, up to step `max_steps`."""
        first, end = self.progress.step, min(self.total_steps, max_steps or self.total_steps)
        if first >= end:
            console.log(f"{self.run_folder.path}: all {end} steps are done already")
            return
        pin = self.trainer.accelerator.device.type == "cuda"
        epoch_losses: list[float] = []
        begun = last_time = last_save = time.monotonic()
        with console.progress_bar(total=(end - first) * self.data.batch_size, label="train") as bar:
            for batch in batches(self.data, first, end, jobs=jobs, pin=pin):
                loss = self._step(batch)
                now = time.monotonic()
                self.timings.write(
                    step=self.progress.step,
                    seconds=round(now - last_time, 4),
                    objects_per_second=round(self.data.batch_size / (now - last_time), 2),
                )
                bar.update(self.data.batch_size)
                bar.set_postfix_str(f"loss {loss:.3f}")
                epoch_losses.append(loss)
                if self.progress.step % self.data.steps_per_epoch == 0:
                    self._end_epoch(epoch_losses, begun=begun, first=first, end=end)
                    epoch_losses = []
                elif (save_every and self.progress.step % save_every == 0) or now - last_save > SAVE_SECONDS:
                    self._save()
                if self.saved_step == self.progress.step:
                    last_save = time.monotonic()
                last_time = time.monotonic()
        if self.saved_step != self.progress.step:
            self._save()

    def evaluate_start(self, evaluate: Evaluation) -> None:
        """The evaluation before the first step, with the zero-shot gate."""
        top1 = self._evaluate(evaluate, epoch=0)
        with self.trainer.accelerator.autocast():
            zero_shot_gate(top1, self.trainer.model, evaluate)

    def close(self) -> None:
        self.metrics.close()
        self.timings.close()
        self.trainer.close()

    def summary(self) -> dict[str, Any]:
        best = self.progress.best_step is not None
        return {
            "out": str(self.run_folder.path),
            "steps": self.progress.step,
            "finished": self.progress.step >= self.total_steps,
            "best_top1": self.progress.best_top1,
            "best_step": self.progress.best_step,
            "checkpoint": str(self.run_folder.best if best else self.run_folder.last),
        }

    def _step(self, batch: Batch) -> float:
        epoch = batch.step // self.data.steps_per_epoch
        learning_rate = self.trainer.plan.learning_rate_of_epoch(epoch)
        try:
            losses = self.trainer.step(batch, learning_rate=learning_rate)
        except NotFinite as error:
            raise self._not_finite(batch, error) from None
        self.progress.step = batch.step + 1
        self.metrics.write(
            kind="step",
            step=self.progress.step,
            epoch=epoch + 1,
            **asdict(losses),
            learning_rate=learning_rate,
            logit_scale=self.trainer.model.logit_scale.item(),
            num_views=len(batch.view_numbers),
        )
        return losses.loss

    def _end_epoch(self, losses: list[float], *, begun: float, first: int, end: int) -> None:
        """Log, evaluate, save."""
        epoch, done = self.progress.step // self.data.steps_per_epoch, self.progress.step - first
        seconds = time.monotonic() - begun
        accuracy = ""
        if self.evaluate:
            top1 = self._evaluate(self.evaluate, epoch=epoch)
            # Of equals the later one, which has learned more.
            if self.progress.best_top1 is None or top1 >= self.progress.best_top1:
                self.progress.best_top1, self.progress.best_step = top1, self.progress.step
            accuracy = f", top-1 {top1:.1f} %"
        self._save()
        left = (time.monotonic() - begun) / done * (end - self.progress.step)
        console.log(
            f"epoch {epoch}/{self.trainer.plan.epochs}: loss {sum(losses) / len(losses):.4f}{accuracy}, "
            f"{done * self.data.batch_size / seconds:.1f} objects/s, {_clock(left)} left"
        )

    def _evaluate(self, evaluate: Evaluation, *, epoch: int) -> float:
        with self.trainer.accelerator.autocast():
            report = evaluate(self.trainer.model)
        self.metrics.write(kind="evaluation", step=self.progress.step, epoch=epoch, **report)
        return float(report["top1"])

    def _save(self) -> None:
        self.progress.metrics_bytes = self.metrics.sync()
        checkpointing.save(self.run_folder, self.trainer, self.progress, self.recipe)
        self.saved_step = self.progress.step

    def _not_finite(self, batch: Batch, error: NotFinite) -> UserError:
        """Leave the whole batch on disk and name it in a sentence."""
        step, file = batch.step + 1, self.run_folder.failed_step
        losses = {name: str(value) for name, value in asdict(error.losses).items()}  # JSON has no NaN
        with files.writing(file) as partial:
            document = {"step": step, **losses, "views": batch.view_numbers, "object_ids": batch.object_ids}
            partial.write_text(json.dumps(document, ensure_ascii=False, indent=1), encoding="utf-8")
        return UserError(
            f"{error} at step {step} with the objects {some(batch.object_ids)} (all in {file}): "
            f"mend their data, or lower train.learning_rate, and go on after step {self.saved_step} with --resume"
        )


def _check_width(data: TrainingData, model: MultiViewCLIP) -> None:
    """Targets of another backbone have another width; found before a run folder is made."""
    first = data[0]
    for name, targets in (("image", first.image_targets), ("text", first.text_targets)):
        if targets.shape[1] != model.embed_dim:
            raise UserError(
                f"data.{name}_targets are {targets.shape[1]} wide but the model's embeddings {model.embed_dim}: "
                "make them with the model's own backbone (ddclip encode-targets)"
            )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
