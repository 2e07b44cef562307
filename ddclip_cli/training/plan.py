"""What a training run does, as plain values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainingPlan:
    """The settings that change a run's result; names and defaults are those of a recipe's `train` section."""

    seed: int = 123
    batch_size: int = 1600
    """Objects in a global batch."""
    num_views: tuple[int, int] = (1, 6)
    """Range, both ends included, of the number of views of a step."""
    view_choice: Literal["step", "object"] = "step"
    epochs: int = 80
    init_from: str | None = None
    """Where the model comes from, whose logit scale is then kept."""
    trainable: Literal["attention", "all", "none"] = "attention"
    trainable_from: int | None = None
    learning_rate: float = 5e-5
    min_learning_rate: float = 1e-7
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    decayed: Literal["all", "matrices"] = "all"
    ema_decay: float | None = None
    init_logit_scale: float = 2.658859956911438
    """Natural logarithm."""
    max_logit_scale: float | None = None
    image_loss_weight: float = 1.0
    text_loss_weight: float = 1.0
    crop: Literal["none", "center", "random"] = "random"
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp64"] = "auto"

    def learning_rate_of_step(self, step: int, steps_per_epoch: int) -> float:
        """That of the step's epoch, and in the first `warmup_steps` a part of it that grows by equal amounts."""
        return self.learning_rate_of_epoch(step // steps_per_epoch) * min(1.0, (step + 1) / (self.warmup_steps or 1))

    def learning_rate_of_epoch(self, epoch: int) -> float:
        """Half a cosine from `learning_rate` in epoch 0 to `min_learning_rate` after the last; constant in an epoch."""
        height = (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.min_learning_rate + (self.learning_rate - self.min_learning_rate) * height
