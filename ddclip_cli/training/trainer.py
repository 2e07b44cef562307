"""One optimizer step, and everything that lives from step to step."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from ddclip_cli.data import view_sampler
from ddclip_cli.data.dataset import Batch
from ddclip_cli.errors import UsageError, UserError
from ddclip_cli.model.device import choose_precision
from ddclip_cli.model.loss import contrastive_loss_of_rows
from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.model.trainable import trainable_parameters
from ddclip_cli.training.plan import TrainingPlan
from ddclip_cli.training.processes import Processes


@dataclass(frozen=True)
class Losses:
    """The loss of one step and its two parts before their weights."""

    loss: float
    loss_image: float
    loss_text: float


class NotFinite(ArithmeticError):
    """The loss of a step or its gradient is not a number or infinite; the weights are still those before the step."""

    def __init__(self, what: str, losses: Losses) -> None:
        super().__init__(what)
        self.losses = losses


class Trainer:
    """The model with its optimizer on one device, together with its copies in the other processes.

    It trains `model` in place: sets its logit scale to the plan's, `requires_grad` to what the plan trains, and its
    type to float64 if the plan's precision is that.

    Args:
        processes: those that share every global batch; each trains on its own part, and all get the same weights.
        micro_batch: objects that go through the network at once. The features of all are computed first, then the
            gradient of the loss of the whole batch at the features, then piece by piece that of the weights: the same
            gradient, with the activations of one piece in memory.
        recompute: forget the activations of the blocks that learn, and compute them again in the backward pass.

    Raises UsageError for a precision that the device does not have, and UserError for a plan that trains nothing where
    it should.
    """

    def __init__(
        self,
        model: MultiViewCLIP,
        plan: TrainingPlan,
        *,
        processes: Processes | None = None,
        micro_batch: int | None = None,
        recompute: bool = False,
    ) -> None:
        self.plan, self.model, self.micro_batch = plan, model, micro_batch
        self.processes = processes or Processes()
        self.accelerator = _accelerator(model.device, plan.precision)
        model.recompute = recompute
        if plan.precision == "fp64":
            model.double()
        if plan.init_from is None:
            with torch.no_grad():
                model.logit_scale.fill_(plan.init_logit_scale)
        self.parameters = trainable_parameters(model, plan.trainable, plan.trainable_from)
        if plan.trainable == "attention" and len(self.parameters) == 1:
            first = model.cross_view_from if plan.trainable_from is None else plan.trainable_from
            raise UserError(
                f"there is no attention to train from block {first} on, as the backbone has {model.num_blocks} blocks: "
                "set train.trainable_from, or train.trainable to all or none"
            )
        self.optimizer = self.accelerator.prepare(_optimizer(self.parameters, plan))
        self._average = None if plan.ema_decay is None else [p.detach().clone() for p in self.parameters]

    def step(self, batches: Sequence[Batch], *, learning_rate: float) -> Losses:
        """Train on this process's share of a global batch of every set. Raises NotFinite before anything changes."""
        # Nothing in these networks is random or counts batches, but torch's attention rounds differently in the two
        # modes, and an evaluation may have left either.
        self.model.eval()
        self.optimizer.zero_grad(set_to_none=True)
        pieces = [piece for number, batch in enumerate(batches) for piece in self._pieces(batch, number)]
        in_pieces = self.micro_batch is not None and sum(len(batch.object_ids) for batch in batches) > self.micro_batch
        if in_pieces:
            with torch.no_grad():
                features = [self._encode(piece) for piece in pieces]
        else:
            features = [self._encode(piece) for piece in pieces]
        at_features = [part.detach().requires_grad_() for part in features]
        losses = self._losses(torch.cat(at_features), batches)  # and the gradient of the loss at the features
        for piece, part, leaf in zip(pieces, features, at_features, strict=True):
            again = self._encode(piece) if in_pieces else part
            if again.requires_grad:  # not if the logit scale alone is trained
                again.backward(leaf.grad)
        self._add_up_gradients()
        if self.accelerator.scaler is None and not _all_finite(self.parameters):
            raise NotFinite("the gradient is not finite", losses)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()  # fp16: left out, and the scale of the loss halved, where the gradient is not finite
        if self.loss_scale is not None and self.loss_scale < 1:
            raise NotFinite("the gradient is not finite at any scale of the loss", losses)
        self._after_the_step()
        return losses

    @property
    def loss_scale(self) -> float | None:
        """By how much fp16 multiplies the loss, to keep small gradients; None in other arithmetic."""
        scaler = self.accelerator.scaler
        return None if scaler is None else scaler.get_scale()

    @contextmanager
    def averaged(self) -> Iterator[MultiViewCLIP]:
        """The model as it is evaluated and saved: with the average of its weights, if there is one."""
        if self._average is None:
            yield self.model
            return
        trained = [parameter.detach().clone() for parameter in self.parameters]
        _assign(self.parameters, self._average)
        try:
            yield self.model
        finally:
            _assign(self.parameters, trained)

    @contextmanager
    def evaluated(self) -> Iterator[MultiViewCLIP]:
        """The same, in the arithmetic in which it is evaluated."""
        with self.averaged() as model, self.accelerator.autocast():
            yield copy.deepcopy(model).float() if self.plan.precision == "fp64" else model

    def state_dict(self) -> dict:
        """What a continued run needs beside the model's own checkpoint."""
        scaler = self.accelerator.scaler
        # The checkpoint has the averaged weights, and is read as float32.
        own = self._average is not None or self.plan.precision == "fp64"
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "parameters": [parameter.detach() for parameter in self.parameters] if own else None,
            "average": self._average,
        }

    def load_state_dict(self, state: dict) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if state["parameters"] is not None:
            _assign(self.parameters, state["parameters"])
        if self._average is not None:
            self._average = [a.to(p.device) for a, p in zip(state["average"], self.parameters, strict=True)]

    def copy_from_main(self) -> None:
        """Have the weights and the optimizer's state of the main process in all."""
        if self.processes.number == 1:
            return
        self.processes.copy_from_main(tensor.data for tensor in self.model.clip.state_dict().values())
        state = io.BytesIO()
        if self.processes.is_main:
            torch.save(self.state_dict(), state)
        state = io.BytesIO(self.processes.from_main(state.getvalue()))
        self.load_state_dict(torch.load(state, map_location="cpu", weights_only=True))

    def _pieces(self, batch: Batch, number: int) -> list[_Piece]:
        """The objects of set `number`, as many at once as go through the network."""
        crop_seed = view_sampler.seed_of_set(self.plan.seed, number)
        count = len(batch.object_ids)
        size = min(self.micro_batch or count, count)
        return [_Piece(batch.views[i : i + size], batch.step, crop_seed) for i in range(0, count, size)]

    def _encode(self, piece: _Piece) -> Tensor:
        """(B, E) features; the stage of a piece that carries no gradient is kept, and not computed twice."""
        with self.accelerator.autocast():
            tokens = piece.tokens
            if tokens is None:
                views = piece.views.to(self.accelerator.device, non_blocking=True)  # (B, F, 3, H, W)
                generator = view_sampler.crop_generator(seed=piece.crop_seed, step=piece.step)
                pixels = self.model.to_pixels(views, self.plan.crop, generator)  # (B, F, 3, S, S)
                tokens = self.model.view_tokens(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])  # (B, F, L, D)
                if self.micro_batch is not None and not self.model.learns_in_single_views:
                    piece.tokens = tokens
            return self.model.join_views(tokens)

    def _losses(self, features: Tensor, batches: Sequence[Batch]) -> Losses:
        """The losses of the global batch; leaves their gradient at the features and the logit scale."""
        processes, device = self.processes, features.device
        shape = processes.gather(features)  # (B, E) of the global batch, process by process
        own = processes.share(len(shape))
        parts = []
        for name in ("image_targets", "text_targets"):
            targets = torch.cat([getattr(batch, name).to(device, non_blocking=True) for batch in batches])
            targets = processes.gather(targets.to(features.dtype))
            parts.append(contrastive_loss_of_rows(own, shape, targets, self.model.logit_scale) / processes.number)
        image, text = parts
        total = self.plan.image_loss_weight * image + self.plan.text_loss_weight * text
        summed = torch.stack([total, image, text]).detach()
        processes.add_up([summed])
        losses = Losses(*summed.tolist())
        if not math.isfinite(losses.loss):
            raise NotFinite(f"the loss is {losses.loss}", losses)
        self.accelerator.scaler.scale(total).backward() if self.accelerator.scaler else total.backward()
        return losses

    def _add_up_gradients(self) -> None:
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.processes.add_up(parameter.grad for parameter in self.parameters if parameter.grad is not None)

    @torch.no_grad()
    def _after_the_step(self) -> None:
        if self.plan.max_logit_scale is not None:
            self.model.logit_scale.clamp_(max=self.plan.max_logit_scale)
        if self._average is not None and self.plan.ema_decay is not None:
            torch._foreach_lerp_(self._average, [p.detach() for p in self.parameters], 1 - self.plan.ema_decay)


@dataclass
class _Piece:
    """Objects that go through the network at once."""

    views: Tensor
    """(B, F, 3, H, W) uint8."""
    step: int
    crop_seed: int
    tokens: Tensor | None = None
    """(B, F, L, D): each view alone, where that part of the network does not learn."""


def _optimizer(parameters: Sequence[nn.Parameter], plan: TrainingPlan) -> torch.optim.AdamW:
    groups = [{"params": list(parameters), "weight_decay": plan.weight_decay}]
    if plan.decayed == "matrices":
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": plan.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=plan.betas, fused=True)  # one pass over the numbers


@torch.no_grad()
def _assign(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _all_finite(parameters: Sequence[nn.Parameter]) -> bool:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return math.isfinite(torch.nn.utils.get_total_norm(gradients).item())


def _accelerator(device: torch.device, precision: str) -> Accelerator:
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("train.precision=fp16 needs a GPU: set train.precision=auto, which is fp32 on a CPU")
    arithmetic = "fp32" if precision == "fp64" else choose_precision(precision, device)
    if device.index is not None:
        torch.cuda.set_device(device)
    # Accelerate keeps the first run's precision and device for the whole process; a notebook may train twice.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=device.type == "cpu", mixed_precision="no" if arithmetic == "fp32" else arithmetic)
