"""One uninterrupted stretch of a run: its steps, evaluations and checkpoints, and how it ends."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, TypeVar

from ddclip_cli import console, files
from ddclip_cli.data.dataset import Mixture, StepBatches, batches
from ddclip_cli.errors import UserError, some
from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.training import checkpointing, tracking
from ddclip_cli.training.checkpointing import Progress
from ddclip_cli.training.ending import TERMINATED, Ending
from ddclip_cli.training.gate import Evaluation, zero_shot_gate
from ddclip_cli.training.run_folder import JsonLines, RunFolder
from ddclip_cli.training.trainer import NotFinite, Trainer

T = TypeVar("T")

SAVE_SECONDS = 600
"""A checkpoint at least this often, beside the one at the end of every epoch."""


class Session:
    """One uninterrupted stretch of a run."""

    def __init__(
        self,
        run: RunFolder,
        trainer: Trainer,
        data: Mixture,
        progress: Progress,
        evaluate: Evaluation | None,
        recipe: dict[str, Any],
        keep: int,
        tracker: str,
    ) -> None:
        self.run_folder, self.trainer, self.data, self.progress = run, trainer, data, progress
        self.evaluate, self.recipe, self.keep = evaluate, recipe, keep
        self.processes = trainer.processes
        self.evaluates = self.processes.from_main(evaluate is not None)
        main = self.processes.is_main
        with self.processes.together():
            self.tracker = tracking.start(tracker if main else "none", run.logs, recipe)
        self.metrics, self.timings = JsonLines(run.metrics if main else None), JsonLines(run.timings if main else None)
        self.total_steps = trainer.plan.epochs * data.steps_per_epoch
        self.saved_step = progress.step
        self.ending = Ending()

    def run(self, *, max_steps: int | None, save_every: int | None, jobs: int) -> None:
        """Take the remaining steps, up to step `max_steps`, with all evaluations that are due."""
        first, end = self.progress.step, min(self.total_steps, max_steps or self.total_steps)
        with self.ending:
            self._evaluate_if_due()
            if first >= end:
                console.log(f"{self.run_folder.path}: all {end} steps are done already")
                return
            pin = self.trainer.accelerator.device.type == "cuda"
            epoch_losses: list[float] = []
            begun = last_time = last_save = time.monotonic()
            with console.progress_bar(total=(end - first) * self.data.batch_size, label="train") as bar:
                reading = batches(self.data, first, end, jobs=jobs, pin=pin)
                for _ in range(first, end):
                    batch = self._read(reading)
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
                    self._end_if_asked()
                    last_time = time.monotonic()
            if self.saved_step != self.progress.step:
                self._save()

    def _read(self, reading: Iterator[StepBatches]) -> StepBatches:
        """The next step's batches, once every process has its own."""
        batch, error = None, None
        try:
            batch = next(reading)
        except UserError as failed:
            error = failed
        if self.processes.any(error is not None)[0]:
            self.processes.agree(error)
        assert batch is not None
        return batch

    def _end_if_asked(self) -> None:
        """After SIGTERM to any of the processes: save, and end all of them after the same step."""
        if self.processes.any(self.ending.asked)[0]:
            if self.saved_step != self.progress.step:
                self._save()
            console.log(f"terminated after step {self.progress.step}: saved, --resume goes on from there")
            sys.exit(TERMINATED)

    def _evaluate_if_due(self) -> None:
        """The evaluation before the first step, with the zero-shot gate, or one in which the run was ended."""
        if not self.evaluates or self.progress.step % self.data.steps_per_epoch:
            return
        if self.progress.evaluated_step == self.progress.step:
            return
        top1 = self._evaluate()
        if self.progress.step == 0:
            self._by_main(lambda model, evaluate: zero_shot_gate(top1, model, evaluate))
        else:
            self._note(top1)

    def close(self, *, failed: bool = False) -> None:
        self.metrics.close()
        self.timings.close()
        self.tracker.close(failed=failed)

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

    def _step(self, batch: StepBatches) -> float:
        step = batch[0].step
        epoch = step // self.data.steps_per_epoch
        learning_rate = self.trainer.plan.learning_rate_of_step(step, self.data.steps_per_epoch)
        try:
            losses = self.trainer.step(batch, learning_rate=learning_rate)
        except NotFinite as error:
            raise self._not_finite(batch, error) from None
        self.progress.step = step + 1
        values = {
            **asdict(losses),
            "learning_rate": learning_rate,
            "logit_scale": self.trainer.model.logit_scale.item(),
            "num_views": batch[0].views.shape[1],
        }
        if (scale := self.trainer.loss_scale) is not None:
            values["loss_scale"] = scale
        self.metrics.write(kind="step", step=self.progress.step, epoch=epoch + 1, **values)
        self.tracker.log("train", values, self.progress.step)
        return losses.loss

    def _end_epoch(self, losses: list[float], *, begun: float, first: int, end: int) -> None:
        """Save, evaluate, log. In this order: an evaluation that is cut short is repeated, and nothing else."""
        epoch, done = self.progress.step // self.data.steps_per_epoch, self.progress.step - first
        seconds = time.monotonic() - begun
        self._save()
        accuracy = ""
        if self.evaluates:
            top1 = self._evaluate()
            self._note(top1)
            accuracy = f", top-1 {top1:.1f} %"
        left = (time.monotonic() - begun) / done * (end - self.progress.step)
        console.log(
            f"epoch {epoch}/{self.trainer.plan.epochs}: loss {sum(losses) / len(losses):.4f}{accuracy}, "
            f"{done * self.data.batch_size / seconds:.1f} objects/s, {_clock(left)} left"
        )

    def _evaluate(self) -> float:
        report = self._by_main(lambda model, evaluate: evaluate(model))
        epoch = self.progress.step // self.data.steps_per_epoch
        self.metrics.write(kind="evaluation", step=self.progress.step, epoch=epoch, **report)
        self.tracker.log("evaluation", report, self.progress.step)
        self.progress.evaluated_step = self.progress.step
        return float(report["top1"])

    def _by_main(self, work: Callable[[MultiViewCLIP, Evaluation], T]) -> T:
        """What takes long and is done in the main process, for all; a signal cuts it short."""
        result = None
        with self.ending.may_be_cut_short():
            if self.evaluate is not None and self.processes.is_main:
                with self.trainer.evaluated() as model:
                    result = work(model, self.evaluate)
            result = self.processes.from_main(result, patiently=True)
        assert result is not None
        return result

    def _note(self, top1: float) -> None:
        """Record an evaluation of the last checkpoint, which may be the best."""
        # Of equals the later one, which has learned more.
        if self.progress.best_top1 is None or top1 >= self.progress.best_top1:
            self.progress.best_top1, self.progress.best_step = top1, self.progress.step
        self.progress.metrics_bytes = self.metrics.sync()
        if self.processes.is_main:
            checkpointing.note(self.run_folder, self.progress, keep=self.keep)

    def _save(self) -> None:
        if self.processes.is_main:
            self.progress.metrics_bytes = self.metrics.sync()
            checkpointing.save(self.run_folder, self.trainer, self.progress, self.recipe, keep=self.keep)
        self.saved_step = self.progress.step

    def _not_finite(self, batch: StepBatches, error: NotFinite) -> UserError:
        """Leave the batch and the model before it on disk, and name them in a sentence."""
        step, file = batch[0].step + 1, self.run_folder.failed_step
        object_ids = self.data.object_ids_of(batch[0].step)
        if self.processes.is_main:
            losses = {name: str(value) for name, value in asdict(error.losses).items()}  # JSON has no NaN
            views = [part.view_numbers for part in batch]
            document = {"step": step, **losses, "views": views, "object_ids": object_ids}
            with files.writing(file) as partial:
                partial.write_text(json.dumps(document, ensure_ascii=False, indent=1), encoding="utf-8")
            checkpointing.write(self.run_folder.failed_state, self.trainer, self.progress, self.recipe)
        failed = UserError(
            f"{error} at step {step} with the objects {some(object_ids)} (all in {file}, the model before the step in "
            f"{self.run_folder.failed_state.name}): mend their data and go on after step {self.saved_step} with "
            "--resume, or start a run with a lower train.learning_rate"
        )
        failed.is_shared = True
        return failed


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
