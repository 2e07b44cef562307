"""Make the sample's backbone: a small CLIP trained from scratch on single views of sample objects and their captions.

    python -m ddclip_cli.sample.pretrain --out build/pretrain

Plain image-text contrastive training. Every batch holds one object of every (category, colour) pair, so that no
caption of a batch fits another's picture. Matrices of the blocks learn by Muon (Jordan et al. 2024), the rest by AdamW;
both take PyTorch 2.9 or later. A stopped run goes on where it was; the weights after any step are at `--out`/backbone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddclip_cli import console, files
from ddclip_cli.model.checkpoints import load_backbone, save_checkpoint
from ddclip_cli.model.loss import contrastive_loss
from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.model.transforms import Crop
from ddclip_cli.sample.captions import all_captions
from ddclip_cli.sample.measure import measure
from ddclip_cli.sample.objects import PAIRS, make_object
from ddclip_cli.sample.pictures import render_pairs
from ddclip_cli.shipped import ASSETS

CONFIG = ASSETS / "backbone" / "open_clip_config.json"
TRAIN_SEED, FRESH_SEED = 1000, 2000  # the demo has other seeds, unless told otherwise
NUM_VIEWS = 8
SAVE_EVERY = 200
WARM_UP, COOL_DOWN = 100, 0.35  # steps at the start; share of the steps at the end
LEARNING_RATE = 2e-3
MAX_LOGIT_SCALE = float(np.log(100))


def pretrain(out: Path, *, objects_per_pair: int, steps: int, jobs: int) -> MultiViewCLIP:
    """Train for `steps` batches of one object a pair; goes on from `out`/state.pt if that is there."""
    torch.manual_seed(TRAIN_SEED)
    model = load_backbone(str(CONFIG), None, device="cpu", precision="bf16").train()
    state_file = out / "state.pt"
    step = 0
    optimizers = _optimizers(model)
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        step = state["step"]
    views = render_pairs(
        out / "views.bin",
        seed=TRAIN_SEED,
        objects_per_pair=objects_per_pair,
        num_views=NUM_VIEWS,
        image_size=model.image_size,
        jobs=jobs,
    )
    tokens = [_tokens(model, number) for number in range(objects_per_pair)]
    with console.progress_bar(total=steps, label="pretraining", unit="steps") as bar:
        bar.update(step)
        while step < steps:
            loss = _step(model, optimizers, views, tokens, step, steps)
            step += 1
            bar.update()
            bar.set_postfix_str(f"loss {loss:.3f}")
            if step % 50 == 0:
                console.log(f"step {step} loss {loss:.4f} scale {model.logit_scale.exp().item():.1f}")
            if step % SAVE_EVERY == 0 or step == steps:
                kept = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step}
                with files.writing(state_file) as partial:
                    torch.save(kept, partial)
    return model.eval()


def _optimizers(model: MultiViewCLIP) -> list[torch.optim.Optimizer]:
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if "resblocks" in name and parameter.ndim == 2 else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=LEARNING_RATE / 2, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _step(
    model: MultiViewCLIP,
    optimizers: list[torch.optim.Optimizer],
    views: np.ndarray,
    tokens: list[list[Tensor]],
    step: int,
    steps: int,
) -> float:
    """One batch: of every pair one object, one view, one caption, all functions of `step` alone."""
    rng = np.random.default_rng([TRAIN_SEED, step])
    numbers = rng.integers(len(views), size=len(PAIRS))
    chosen = rng.integers(views.shape[2], size=len(PAIRS))
    batch = torch.from_numpy(views[numbers, np.arange(len(PAIRS)), chosen])  # (B, 3, S, S)
    captions = [tokens[number][pair] for pair, number in enumerate(numbers)]
    text = torch.stack([options[rng.integers(len(options))] for options in captions])  # (B, L)
    # Both as evaluation crops pictures and as targets are encoded.
    crop: Crop = "random" if step % 2 else "none"
    pixels = model.to_pixels(batch, crop, torch.Generator().manual_seed(step))
    # Attention over 50 tokens is faster as plain matrix products than by the fused CPU kernel.
    with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", dtype=torch.bfloat16):
        image_features, text_features = model.clip.encode_image(pixels), model.clip.encode_text(text)
    loss = contrastive_loss(image_features.float(), text_features.float(), model.logit_scale)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    rate = min(1.0, (step + 1) / WARM_UP, (steps - step) / (steps * COOL_DOWN))
    for optimizer, full in zip(optimizers, (LEARNING_RATE, LEARNING_RATE / 2), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = full * rate
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
    return loss.item()


def _tokens(model: MultiViewCLIP, number: int) -> list[Tensor]:
    """Tokens (captions, L) of object `number` of every pair."""
    things = [make_object(TRAIN_SEED, category, colour, number) for category, colour in PAIRS]
    return [model.tokenize(all_captions(thing.captions)) for thing in things]


def forget_unused_tokens(model: MultiViewCLIP, used: Tensor) -> None:
    """Set the token rows that no caption has to zero: they are noise, and zeros need no space."""
    rows = model.clip.token_embedding.weight
    unused = torch.ones(len(rows), dtype=torch.bool)
    unused[used.unique()] = False
    with torch.no_grad():
        rows[unused] = 0


def main(
    out: Annotated[Path, typer.Option(help="Folder of the pictures, the state and the weights.")],
    objects_per_pair: Annotated[int, typer.Option(help=f"Objects of each of the {len(PAIRS)} pairs.")] = 40,
    steps: Annotated[int, typer.Option(help="Batches; a resumed run may ask for more.")] = 4000,
    fresh_per_pair: Annotated[int, typer.Option(help="Objects of each pair, of a fresh seed, to measure on.")] = 4,
    jobs: Annotated[int, typer.Option(help="Processes that render.")] = 2,
) -> None:
    model = pretrain(out, objects_per_pair=objects_per_pair, steps=steps, jobs=jobs)
    used = [tokens for number in range(objects_per_pair) for tokens in _tokens(model, number)]
    forget_unused_tokens(model, torch.cat([tokens.flatten() for tokens in used]))
    save_checkpoint(model, out / "backbone", dtype=torch.float16)
    fresh = render_pairs(
        out / "fresh.bin",
        seed=FRESH_SEED,
        objects_per_pair=fresh_per_pair,
        num_views=12,
        image_size=model.image_size,
        jobs=jobs,
    )
    console.print_json(measure(model, fresh))


if __name__ == "__main__":
    typer.run(main)
