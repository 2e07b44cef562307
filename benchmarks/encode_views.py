"""Views a second of the encoder at ViT-B/32, beside the plain way: stock blocks on every token, autograd on.

Both have the same random weights, precision and threads; their outputs are compared before they are timed, and the two
take turns, so that a busy machine slows both.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ddclip_cli.model import towers
from ddclip_cli.model.checkpoints import load_backbone
from ddclip_cli.model.multiview import MultiViewCLIP

OBJECTS, VIEWS, ROUNDS = 2, 12, 5


def stock_blocks(model: MultiViewCLIP, pixels: Tensor) -> Tensor:
    """(B, F, 3, H, W) -> (B, E) with whole stock blocks and one reshape."""
    visual = towers.image_tower(model.clip)
    with torch.autocast("cpu", torch.bfloat16, enabled=model.precision == "bf16"):
        x = towers.embed_patches(visual, pixels.flatten(0, 1))  # (B*F, L, D)
        length = x.shape[1]
        for index, block in enumerate(towers.blocks(visual)):
            if index == model.cross_view_from:
                x = x.unflatten(0, pixels.shape[:2]).flatten(1, 2)  # (B, F*L, D)
            x = block(x)
    return visual.ln_post(x[:, ::length].float()).mean(dim=1) @ visual.proj  # the CLS tokens (B, F, D)


def seconds(function: Callable[[], Tensor]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def main() -> None:
    torch.manual_seed(0)
    model = load_backbone("ViT-B-32", None, cross_view_from=6, device="cpu", precision="fp32")
    pixels = torch.randn(OBJECTS, VIEWS, 3, 224, 224)

    def ours() -> Tensor:
        with torch.no_grad():
            return model(pixels)

    difference = (ours() - stock_blocks(model, pixels)).norm() / ours().norm()
    assert difference < 1e-5, difference
    times = [(seconds(ours), seconds(lambda: stock_blocks(model, pixels))) for _ in range(ROUNDS)]
    fast, slow = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(b / a for a, b in times)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, fp32"
    )
    print(f"ours   {OBJECTS * VIEWS / fast:7.1f} views/s")
    print(f"plain  {OBJECTS * VIEWS / slow:7.1f} views/s")
    print(f"ratio  {ratio:7.2f} (median of {ROUNDS} pairs), outputs differ by {difference:.0e}")


if __name__ == "__main__":
    main()
