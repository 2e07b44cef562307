"""Views a second of a training step at ViT-B/32, beside a plain one: stock blocks on every token, autograd as it comes.

The plain step is what one writes first: whole open_clip blocks with one reshape, the paper's parameters requiring
gradients and the others not, the loss over the batch, AdamW. Both have the same weights, batch, arithmetic and threads;
their gradients are compared before anything is timed, and the two take turns, so that a busy machine slows both. The
rate of the machine is that of a large matrix product, measured in the same run; what a step needs is counted as the
multiplications of the plain step, so a step that leaves some out may come above it.

    python benchmarks/train_step.py [--objects 8] [--views 4] [--rounds 4] [--device cuda] [--compile] [--profile]

With `--measures` it takes what makes the step fast away, one thing after the other, and prints what is left.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from unittest import mock

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ddclip_cli.data.dataset import Batch
from ddclip_cli.model import linear, towers
from ddclip_cli.model.checkpoints import load_backbone
from ddclip_cli.model.loss import contrastive_loss
from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.model.trainable import trainable_parameters
from ddclip_cli.training.plan import TrainingPlan
from ddclip_cli.training.trainer import Trainer


class PlainStep:
    """A step as one writes it first."""

    def __init__(self, model: MultiViewCLIP, dtype: torch.dtype | None) -> None:
        self.model, self.dtype = model, dtype
        self.parameters = trainable_parameters(model, "attention")
        self.optimizer = torch.optim.AdamW(self.parameters, lr=5e-5)
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=dtype is torch.float16)

    def __call__(self, batch: Batch) -> None:
        device = self.model.device
        pixels = self.model.to_pixels(batch.views.to(device), "none")
        with torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype is not None):
            shape = self._encode(pixels)
        loss = contrastive_loss(shape, batch.image_targets.to(device), self.model.logit_scale)
        loss = loss + contrastive_loss(shape, batch.text_targets.to(device), self.model.logit_scale)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _encode(self, pixels: Tensor) -> Tensor:
        """(B, F, 3, H, W) -> (B, E)"""
        visual = towers.image_tower(self.model.clip)
        x = towers.embed_patches(visual, pixels.flatten(0, 1))  # (B*F, L, D)
        length = x.shape[1]
        for index, block in enumerate(towers.blocks(visual)):
            if index == self.model.cross_view_from:
                x = x.unflatten(0, pixels.shape[:2]).flatten(1, 2)  # (B, F*L, D)
            x = block(x)
        return visual.ln_post(x[:, ::length]).mean(dim=1) @ visual.proj


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Multiply-adds a second, counted as two operations each, of a large matrix product: the best of several."""
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(6))


def seconds(function: Callable[[], object], device: torch.device) -> float:
    _finish(device)
    begin = time.perf_counter()
    function()
    _finish(device)
    return time.perf_counter() - begin


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step_by_step(trainer: Trainer, step: Callable[[], None], plain: Callable[[], None], rounds: int) -> None:
    """Print how much faster than the plain step ours is with all its measures, and as they are taken away in turn."""

    model = trainer.model

    def whole_last_block(block: torch.nn.Module, x: Tensor, tokens_per_view: int) -> Tensor:
        return model._through_block(block, x)[:, ::tokens_per_view]

    measures = {
        "without products by oneDNN": mock.patch.object(linear, "ON_BOARD", False),
        "nor attention of our own": mock.patch.object(model, "_through_block", lambda block, x: block(x)),
        "nor CLS tokens alone in the last block": mock.patch.object(model, "_cls_of_last_block", whole_last_block),
    }
    ratios: dict[str, list[float]] = {name: [] for name in ("all measures", *measures)}
    for _ in range(rounds):
        with ExitStack() as taken_away:
            for measure, found in zip([None, *measures.values()], ratios.values(), strict=True):
                if measure is not None:
                    taken_away.enter_context(measure)
                slow, fast = seconds(plain, model.device), seconds(step, model.device)
                found.append(slow / fast)
    for name, found in ratios.items():
        print(f"{statistics.median(found):6.2f} times the plain step, {name}")


def fresh_model(device: str) -> MultiViewCLIP:
    torch.manual_seed(0)
    return load_backbone("ViT-B-32", None, cross_view_from=6, device=device, precision="fp32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="Our step with its blocks compiled.")
    parser.add_argument("--measures", action="store_true", help="Print what each measure brings.")
    parser.add_argument("--profile", action="store_true", help="Print where the time of a step goes.")
    options = parser.parse_args()
    on_gpu = options.device.startswith("cuda")
    plan = TrainingPlan(precision="bf16" if on_gpu else "fp32", crop="none")
    trainer = Trainer(fresh_model(options.device), plan)
    if options.compile:
        trainer.model.compile_blocks()
    plain = PlainStep(fresh_model(options.device), torch.float16 if on_gpu else None)
    plain.model.logit_scale.data.fill_(plan.init_logit_scale)
    device = trainer.model.device
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randint(0, 256, (options.objects, options.views, 3, 224, 224), generator=generator)
    image_targets, text_targets = torch.randn(2, options.objects, 512, generator=generator)
    ids = [str(number) for number in range(options.objects)]
    batch = Batch(0, ids, list(range(options.views)), pictures.to(torch.uint8), image_targets, text_targets)

    def ours() -> None:
        trainer.step([batch], learning_rate=5e-5)

    ours()
    with FlopCounterMode(display=False) as counter:
        plain(batch)
    if not on_gpu:  # there the two have other arithmetic
        pairs = [(p.grad, q.grad) for p, q in zip(trainer.parameters, plain.parameters, strict=True)]
        difference = sum(float((p - q).norm()) ** 2 for p, q in pairs) ** 0.5
        difference /= sum(float(q.norm()) ** 2 for _, q in pairs) ** 0.5
        assert difference < 1e-5, difference
    if options.profile:
        for step in (ours, lambda: plain(batch)):
            with torch.profiler.profile() as profile:
                step()
            print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=18))
    if options.measures:
        step_by_step(trainer, ours, lambda: plain(batch), options.rounds)
    times = [(seconds(ours, device), seconds(lambda: plain(batch), device)) for _ in range(options.rounds)]
    fast, slow = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(b / a for a, b in times)
    rate = matrix_rate(device, torch.bfloat16 if on_gpu else torch.float32, 8192 if on_gpu else 2048)
    views, needed = options.objects * options.views, counter.get_total_flops()
    name = torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine()
    print(f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    print(f"ViT-B/32, {options.objects} objects of {options.views} views; {'bf16 and fp16' if on_gpu else 'fp32'}")
    print(f"ours   {views / fast:7.1f} views/s   {needed / fast / rate:5.0%} of {rate / 1e9:.0f} GFLOP/s")
    print(f"plain  {views / slow:7.1f} views/s   {needed / slow / rate:5.0%}")
    gradients = "" if on_gpu else f", gradients differ by {difference:.0e}"
    print(f"ratio  {ratio:7.2f} (median of {options.rounds} pairs){gradients}")


if __name__ == "__main__":
    main()
