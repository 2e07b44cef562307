"""Which parameters of the model learn."""

from __future__ import annotations

from typing import Literal

from torch import nn

from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.model.towers import attention_parameters, blocks, image_tower


def trainable_parameters(
    model: MultiViewCLIP, what: Literal["attention", "all", "none"], first_block: int | None = None
) -> list[nn.Parameter]:
    """Set `requires_grad` of every parameter of `model`, and return those that learn; the logit scale always does.

    "attention": the attention from `first_block` on (None: of the blocks in which views meet, as in the released
    model); "all": the image tower; "none": nothing but the logit scale. The text tower never learns: its features are
    targets made beforehand.
    """
    visual = image_tower(model.clip)
    chosen: list[nn.Parameter] = []
    if what == "attention":
        for block in blocks(visual)[model.cross_view_from if first_block is None else first_block :]:
            chosen += attention_parameters(block)
    elif what == "all":
        chosen += list(visual.parameters())
    elif what != "none":
        raise ValueError(f"trainable is 'attention', 'all' or 'none', not {what!r}")
    chosen.append(model.logit_scale)
    model.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen
