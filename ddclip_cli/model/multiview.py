"""Multi-view CLIP: any number of views of an object -> one vector, beside stock open_clip's text vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddclip_cli import console
from ddclip_cli.errors import UserError
from ddclip_cli.model import towers
from ddclip_cli.model.fingerprint import fingerprint
from ddclip_cli.model.loss import at_least_single
from ddclip_cli.model.transforms import CLIP_MEAN, CLIP_STD, Crop, to_pixels
from ddclip_cli.model.views import read_views

VIEWS_AT_ONCE = 192
"""Views in one pass of `encode_views`, so that memory does not grow with the number of objects."""
TEXTS_AT_ONCE = 256
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class MultiViewCLIP(nn.Module):
    """A stock open_clip model whose image tower sees F views of an object at once, in any order.

    Blocks below `cross_view_from` attend inside each view; from that block on, attention runs over the tokens of all
    views. The CLS tokens of all views are averaged after the last norm. With `cross_view_from` = number of blocks this
    is the mean of stock features.
    """

    def __init__(
        self,
        clip: Any,
        *,
        cross_view_from: int,
        backbone: dict[str, Any] | None = None,
        precision: str = "fp32",
    ) -> None:
        """`backbone`: {"name", "config" (of open_clip), and perhaps "mean", "std" of its pixels}, kept for saving.

        `precision`: fp32, or bf16 / fp16 for autocast around the towers. Outputs are float32.
        """
        super().__init__()
        visual = towers.image_tower(clip)
        if not 0 <= cross_view_from <= len(towers.blocks(visual)):
            number = len(towers.blocks(visual))
            raise UserError(f"cross_view_from is {cross_view_from}, but the backbone's blocks allow 0 to {number}")
        self.clip = clip
        self.cross_view_from = cross_view_from
        self.backbone = backbone or {"name": "unnamed", "config": None}
        self.precision = precision
        self.recompute = False
        """Whether blocks that learn forget their activations and compute them again in the backward pass."""
        self._through_block: Callable[..., Tensor] = towers.through_block
        self._cls_of_last_block: Callable[..., Tensor] = towers.cls_of_last_block
        self.num_blocks = len(towers.blocks(visual))
        self.image_size = int(visual.image_size[0])
        self.embed_dim = int(visual.output_dim)
        self.mean: tuple[float, ...] = tuple(self.backbone.get("mean") or CLIP_MEAN)
        self.std: tuple[float, ...] = tuple(self.backbone.get("std") or CLIP_STD)
        self.tokenizer = towers.make_tokenizer(self.backbone["config"], clip.context_length)

    @property
    def logit_scale(self) -> nn.Parameter:
        """Natural logarithm of the factor before the cosines of the contrastive loss."""
        return self.clip.logit_scale

    @property
    def device(self) -> torch.device:
        return self.logit_scale.device

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name these weights and this `cross_view_from`, whatever file they came from."""
        return fingerprint(self.clip.state_dict(), self.cross_view_from)

    def with_views_meeting_from(self, cross_view_from: int) -> MultiViewCLIP:
        """The same weights, shared, with cross-view attention from block `cross_view_from` on."""
        other = MultiViewCLIP(
            self.clip, cross_view_from=cross_view_from, backbone=self.backbone, precision=self.precision
        )
        return other.train(self.training)  # the modules are this model's own, and so is their mode

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, F, 3, H, W) float, normalised -> (B, E) float32 (float64 of a float64 model), not normalised."""
        tokens = self.view_tokens(pixels.flatten(0, 1))  # (B, F, 3, H, W) -> (B*F, L, D)
        return self.join_views(tokens.unflatten(0, pixels.shape[:2]))  # (B, F, L, D)

    def view_tokens(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) float, normalised -> (N, L, D): each view after the blocks in which it is alone.

        What a view gives here does not depend on the views it will be joined with, so that it serves any number of
        sets of views. Where views never meet, L is 1: the CLS token.
        """
        visual = towers.image_tower(self.clip)
        frozen = self._frozen_stages(pixels)
        with self._arithmetic():
            with _no_grad_if(frozen > 0):
                x = towers.embed_patches(visual, pixels)
            return self._through_blocks(x, range(self.cross_view_from), x.shape[1], frozen)

    @property
    def learns_in_single_views(self) -> bool:
        """Whether `view_tokens` carries a gradient."""
        return self._first_that_learns() <= self.cross_view_from

    def join_views(self, tokens: Tensor) -> Tensor:
        """`view_tokens` of F views of B objects (B, F, L, D) -> (B, E) float32, not normalised."""
        visual = towers.image_tower(self.clip)
        num_objects, num_views, tokens_per_view, _ = tokens.shape
        x = tokens.flatten(1, 2)  # (B, F, L, D) -> (B, F*L, D)
        with self._arithmetic():
            blocks = range(self.cross_view_from, self.num_blocks)
            x = self._through_blocks(x, blocks, tokens_per_view, self._frozen_stages(tokens))
        cls = at_least_single(x.reshape(num_objects, num_views, -1))  # (B, F, D)
        return at_least_single(visual.ln_post(cls).mean(dim=1) @ visual.proj)

    def view_features(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) float, normalised -> (N, E) float32: each view alone, as stock `encode_image` sees it."""
        return self(pixels.unsqueeze(1))  # (N, 3, H, W) -> (N, 1, 3, H, W)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """N texts -> (N, E) float32, not normalised. A text longer than the context is cut, with a warning."""
        tokens = self.tokenize(texts)
        parts = []
        for chunk in tokens.split(TEXTS_AT_ONCE):
            with self._arithmetic():
                parts.append(self.clip.encode_text(chunk.to(self.device)).float())
        return torch.cat(parts)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """N texts -> (N, context length) int64."""
        texts = list(texts)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise UserError("encode_text takes a text or a list of texts, at least one")
        tokens = self.tokenizer(texts)
        context = tokens.shape[1]
        full = (tokens[:, -1] != 0).nonzero().flatten().tolist()
        cut = [texts[row] for row in full if len(self.tokenizer.encode(texts[row])) + 2 > context]
        if cut:
            what = f"{cut[0]!r} is" if len(texts) == 1 else f"{len(cut)} of {len(texts)} texts are"
            console.warn(f"{what} longer than the {context} tokens of the backbone's text tower; the rest was cut")
        return tokens

    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """One text or N texts -> (N, E) float32 of unit length."""
        return F.normalize(self.text_features([texts] if isinstance(texts, str) else texts), dim=-1)

    def to_pixels(self, views: Tensor, crop: Crop = "center", generator: torch.Generator | None = None) -> Tensor:
        """(..., 3, H, W) uint8 -> (..., 3, S, S): what this model's `forward` takes."""
        return to_pixels(
            views, image_size=self.image_size, crop=crop, generator=generator, mean=self.mean, std=self.std
        )

    @torch.no_grad()
    def encode_views(self, views: Any, crop: Crop = "center") -> Tensor:
        """Views of one object -> (E,), of B objects -> (B, E): float32 of unit length.

        views: uint8 numpy array or torch tensor (H, W, 3), (F, H, W, 3) or (B, F, H, W, 3), channels last or first, of
        any size, RGBA composited on white; or a PIL image, or a list of pictures of one object whose sizes may differ.
        """
        pictures, batch_dims = read_views(views)
        if batch_dims < 2:
            pixels = torch.stack([self.to_pixels(view.to(self.device), crop) for view in pictures])
            return F.normalize(self(pixels.unsqueeze(0)), dim=-1)[0]  # (F, 3, S, S) -> (1, F, 3, S, S)
        objects_at_once = max(1, VIEWS_AT_ONCE // len(pictures[0]))
        parts = []
        for start in range(0, len(pictures), objects_at_once):
            batch = torch.stack(pictures[start : start + objects_at_once]).to(self.device)
            parts.append(F.normalize(self(self.to_pixels(batch, crop)), dim=-1))
        return torch.cat(parts)

    def compile_blocks(self) -> None:
        """Have torch compile the blocks, for any number of views; without a C++ compiler, say so and leave them."""
        try:
            torch.compile(torch.sin)(torch.zeros(1, device=self.device))
        except RuntimeError as error:
            console.warn(f"the blocks run as they are, since torch.compile does not: {str(error).splitlines()[0]}")
            return
        self._through_block = torch.compile(towers.through_block, dynamic=True)
        self._cls_of_last_block = torch.compile(towers.cls_of_last_block, dynamic=True)

    def _arithmetic(self) -> AbstractContextManager:
        dtype = AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext()

    def _through_blocks(self, x: Tensor, indices: range, tokens_per_view: int, frozen: int) -> Tensor:
        """(G, T, D) -> the same after these blocks; the last block of the tower leaves only the CLS tokens."""
        for index in indices:
            learns = frozen <= index + 1
            with _no_grad_if(not learns):
                if learns and self.recompute:
                    x = checkpoint(self._block, index, x, tokens_per_view, use_reentrant=False)
                else:
                    x = self._block(index, x, tokens_per_view)
        return x

    def _block(self, index: int, x: Tensor, tokens_per_view: int) -> Tensor:
        block = towers.blocks(towers.image_tower(self.clip))[index]
        if index == self.num_blocks - 1:
            return self._cls_of_last_block(block, x, tokens_per_view)
        return self._through_block(block, x)

    def _frozen_stages(self, x: Tensor) -> int:
        """How many stages (patch embedding, then each block) come before the first that needs a gradient.

        `x` is what enters: if it carries a gradient, every stage passes it on.
        """
        return 0 if x.requires_grad else self._first_that_learns()

    def _first_that_learns(self) -> int:
        """Stage number: 0 is the patch embedding, 1 the first block; one more than there are if none learns."""
        visual = towers.image_tower(self.clip)
        stages = [towers.stem_parameters(visual), *[list(block.parameters()) for block in towers.blocks(visual)]]
        learning = [index for index, stage in enumerate(stages) if any(p.requires_grad for p in stage)]
        return learning[0] if learning else len(stages)


def _no_grad_if(frozen: bool) -> AbstractContextManager:
    return torch.no_grad() if frozen else nullcontext()
