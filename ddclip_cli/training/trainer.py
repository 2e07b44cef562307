"""One optimizer step, and everything that lives from step to step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ddclip_cli.data import view_sampler
from ddclip_cli.data.dataset import Batch
from ddclip_cli.errors import UsageError
from ddclip_cli.model.device import choose_precision
from ddclip_cli.model.loss import contrastive_loss
from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.model.trainable import trainable_parameters
from ddclip_cli.training.plan import TrainingPlan


@dataclass(frozen=True)
class Losses:
    """The loss of one step and its two parts before their weights."""

    loss: float
    loss_image: float
    loss_text: float


class NotFinite(ArithmeticError):
    """The loss of a step is not a number or infinite; the weights are still those before the step."""

    def __init__(self, losses: Losses) -> None:
        super().__init__(f"the loss is {losses.loss}")
        self.losses = losses


class Trainer:
    """The model with its optimizer on one device.

    It trains `model` in place: sets its logit scale to the plan's, and `requires_grad` to what the plan trains.
    Raises UsageError for a precision that the device does not have.
    """

    def __init__(self, model: MultiViewCLIP, plan: TrainingPlan) -> None:
        self.plan = plan
        self.accelerator = _accelerator(model.device, plan.precision)
        self.model = model
        with torch.no_grad():
            model.logit_scale.fill_(plan.init_logit_scale)
        parameters = trainable_parameters(model, plan.trainable)
        optimizer = torch.optim.AdamW(
            parameters, lr=plan.learning_rate, betas=plan.betas, weight_decay=plan.weight_decay
        )
        self.network, self.optimizer = self.accelerator.prepare(model, optimizer)

    def step(self, batch: Batch, *, learning_rate: float) -> Losses:
        """Train on one global batch. Raises NotFinite before anything changes."""
        device = self.accelerator.device
        generator = view_sampler.crop_generator(seed=self.plan.seed, step=batch.step)
        views = batch.views.to(device, non_blocking=True)
        pixels = self.model.to_pixels(views, self.plan.crop, generator)  # (B, F, 3, S, S)
        # Nothing in these networks is random or counts batches, but torch's attention rounds differently in the two
        # modes, and an evaluation may have left either.
        self.network.eval()
        shape = self.network(pixels)  # (B, E)
        image = contrastive_loss(shape, batch.image_targets.to(device, non_blocking=True), self.model.logit_scale)
        text = contrastive_loss(shape, batch.text_targets.to(device, non_blocking=True), self.model.logit_scale)
        total = self.plan.image_loss_weight * image + self.plan.text_loss_weight * text

        losses = Losses(*torch.stack([total, image, text]).tolist())
        if not math.isfinite(losses.loss):
            raise NotFinite(losses)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(total)
        self.optimizer.step()
        return losses

    def close(self) -> None:
        """Take Accelerate's wrapping off the model."""
        self.accelerator.unwrap_model(self.network, keep_fp32_wrapper=False)

    def state_dict(self) -> dict:
        """What a continued run needs beside the model's own checkpoint."""
        scaler = self.accelerator.scaler
        return {"optimizer": self.optimizer.state_dict(), "scaler": scaler.state_dict() if scaler else None}

    def load_state_dict(self, state: dict) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def _accelerator(device: torch.device, precision: str) -> Accelerator:
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("train.precision=fp16 needs a GPU: set train.precision=auto, which is fp32 on a CPU")
    precision = choose_precision(precision, device)
    if device.index is not None:
        torch.cuda.set_device(device)
    # Accelerate keeps the first run's precision and device for the whole process; a notebook may train twice.
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no" if precision == "fp32" else precision)
    if accelerator.num_processes > 1:
        raise UsageError("training runs in one process: start it without torchrun or accelerate launch")
    return accelerator
