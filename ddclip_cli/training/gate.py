"""The zero-shot gate: a run that starts far below what its backbone can do already has something broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ddclip_cli import console
from ddclip_cli.model.multiview import MultiViewCLIP

Evaluation = Callable[[MultiViewCLIP], dict[str, Any]]
"""Takes a model, returns a report with `top1` in percent; anything else in it is recorded as it is."""

FAR_BELOW = 0.5
"""The part of the backbone's accuracy under which a start is suspicious: cross-view attention that is not trained yet
costs a few points, broken weights or pixels cost nearly all."""


def plain_averaging(model: MultiViewCLIP) -> MultiViewCLIP:
    """The same weights, shared, without cross-view attention: the backbone as it is, averaged over the views."""
    averaging = MultiViewCLIP(
        model.clip, cross_view_from=model.num_blocks, backbone=model.backbone, precision=model.precision
    )
    return averaging.train(model.training)  # the modules are the model's own, and so is their mode


def zero_shot_gate(start: float, model: MultiViewCLIP, evaluate: Evaluation) -> float:
    """Compare the top-1 accuracy of the untrained `model` (percent) with that of its backbone, which is returned.

    Warns, and goes on, when the start is below half of it.
    """
    backbone = start if model.cross_view_from == model.num_blocks else float(evaluate(plain_averaging(model))["top1"])
    if start < FAR_BELOW * backbone:
        console.warn(
            f"training starts at {start:.1f} % top-1 but the backbone reaches {backbone:.1f} % by averaging views: "
            "check model.cross_view_from, the backbone's weights and the evaluation's class features before going on"
        )
    else:
        console.log(f"start: {start:.1f} % top-1 (the backbone by averaging views: {backbone:.1f} %)")
    return backbone
