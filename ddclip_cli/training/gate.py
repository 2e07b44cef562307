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


def zero_shot_gate(start: float, model: MultiViewCLIP, evaluate: Evaluation) -> float:
    """Compare the top-1 accuracy of the untrained `model` (percent) with that of its backbone, which is returned.

    Warns, and goes on, when the start is below half of it.
    """
    averaging = model.with_views_meeting_from(model.num_blocks)
    backbone = start if model.cross_view_from == model.num_blocks else float(evaluate(averaging)["top1"])
    if start < FAR_BELOW * backbone:
        console.warn(
            f"training starts at {start:.1f} % top-1 but the backbone reaches {backbone:.1f} % by averaging views: "
            "check model.cross_view_from, the backbone's weights and the evaluation's class features before going on"
        )
    else:
        console.log(f"start: {start:.1f} % top-1 (the backbone by averaging views: {backbone:.1f} %)")
    return backbone
