"""The one file that knows the inside of open_clip (3.3): its towers, their parts, and how to build them quickly."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from ddclip_cli.errors import UserError
from ddclip_cli.model.linear import gelu_of_linear, linear


def refuse_unsupported(config: dict[str, Any], name: str) -> None:
    """Raise UserError if an open_clip model config describes towers without a CLS token for every view."""
    vision, text = config.get("vision_cfg"), config.get("text_cfg")
    if not isinstance(vision, dict) or not isinstance(text, dict) or not isinstance(config.get("embed_dim"), int):
        raise UserError(f"{name} is not an open_clip model config: it needs embed_dim, vision_cfg and text_cfg")
    size = vision.get("image_size", 224)
    refused = [
        ("timm_model_name" in vision and vision["timm_model_name"], "a timm image tower"),
        (isinstance(vision.get("layers"), (list, tuple)), "a ResNet image tower"),
        (vision.get("attentional_pool"), "attentional pooling"),
        (vision.get("pool_type", "tok") != "tok", f"{vision.get('pool_type')!r} pooling"),
        (isinstance(size, (list, tuple)) and len(set(size)) != 1, "pictures that are not square"),
        ("multimodal_cfg" in config, "a CoCa text decoder"),
        (text.get("hf_model_name") or text.get("hf_tokenizer_name"), "a Hugging Face text tower or tokenizer"),
    ]
    for found, what in refused:
        if found:
            raise UserError(f"backbone {name} has {what}: choose an open_clip ViT with a CLS token, such as ViT-B-32")


def build_clip(config: dict[str, Any], name: str, *, meta: bool) -> CLIP | CustomTextCLIP:
    """An open_clip model with random weights (from torch's global generator), or on the meta device for `fill`."""
    refuse_unsupported(config, name)
    arguments = deepcopy(config)
    model_class = CustomTextCLIP if arguments.pop("custom_text", False) else CLIP
    try:
        with torch.device("meta" if meta else "cpu"):
            return model_class(**arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"{name} is not an open_clip model config: {' '.join(str(error).split())}") from error


def fill(clip: nn.Module, state: dict[str, Tensor]) -> None:
    """Give a model on the meta device its tensors: no random initialisation, no second copy.

    The causal mask of a text tower is a buffer outside the state dict, so it has to be made here.
    """
    clip.load_state_dict(state, assign=True)
    for module in clip.modules():
        for key, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                assert key == "attn_mask", f"open_clip has a buffer that is not known here: {key}"
                setattr(module, key, torch.full(buffer.shape, float("-inf")).triu_(1))


def image_tower(clip: nn.Module) -> VisionTransformer:
    visual = getattr(clip, "visual", None)
    if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None or visual.pool_type != "tok":
        raise UserError(
            f"the image tower {type(visual).__name__} cannot see several views: open_clip's ViT with a CLS token can"
        )
    return visual


def blocks(visual: VisionTransformer) -> Sequence[nn.Module]:
    return visual.transformer.resblocks


def embed_patches(visual: VisionTransformer, pixels: Tensor) -> Tensor:
    """(N, 3, H, W) float -> (N, L, D): CLS token first, then the patches."""
    return visual._embeds(pixels.to(visual.conv1.weight.dtype))


def stem_parameters(visual: VisionTransformer) -> list[nn.Parameter]:
    """What `embed_patches` uses."""
    modules = [*visual.conv1.parameters(), *visual.ln_pre.parameters()]
    return [visual.class_embedding, visual.positional_embedding, *modules]


def attention_parameters(block: nn.Module) -> list[nn.Parameter]:
    """Input and output projections of the block's attention."""
    return [parameter for name, parameter in block.named_parameters() if name.startswith("attn.")]


def through_block(block: nn.Module, x: Tensor) -> Tensor:
    """(G, T, D) -> the same: what `block(x)` gives, without the copies of torch's own attention module.

    That module cuts queries, keys and values out of one tensor in a way whose backward pass fills and adds up three
    tensors of that size; here it is one.
    """
    if not isinstance(block, ResidualAttentionBlock):  # open_clip's block with other kinds of attention
        return block(x)
    x = x + block.ls_1(_attention(block.attn, block.ln_1(x)))
    return x + block.ls_2(_mlp(block.mlp, block.ln_2(x)))


def cls_of_last_block(block: nn.Module, x: Tensor, tokens_per_view: int) -> Tensor:
    """(G, V*L, D) -> (G, V, D): every view's CLS token after `block`, exactly as if all tokens went through it.

    Only CLS tokens are read after the last block, so only they ask, and go through the out-projection and the MLP;
    keys and values still come from all tokens.
    """
    if not isinstance(block, ResidualAttentionBlock):
        return block(x)[:, ::tokens_per_view]
    keys = block.ln_1(x)
    cls = x[:, ::tokens_per_view] + block.ls_1(_attention(block.attn, keys, keys[:, ::tokens_per_view]))
    return cls + block.ls_2(_mlp(block.mlp, block.ln_2(cls)))


def _attention(attn: nn.MultiheadAttention, keys: Tensor, queries: Tensor | None = None) -> Tensor:
    """Attention of queries (G, Q, D), or of the keys themselves, over keys (G, T, D) -> (G, Q, D)."""
    weight, bias, width, heads = attn.in_proj_weight, attn.in_proj_bias, attn.embed_dim, attn.num_heads
    if queries is None:
        q, k, v = linear(keys, weight, bias).unflatten(-1, (3, heads, -1)).unbind(-3)  # (G, T, H, D / H) each
    else:
        q = linear(queries, weight[:width], bias[:width]).unflatten(-1, (heads, -1))
        k, v = linear(keys, weight[width:], bias[width:]).unflatten(-1, (2, heads, -1)).unbind(-3)
    mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))  # (G, H, Q, D / H)
    return linear(mixed.transpose(1, 2).flatten(-2), attn.out_proj.weight, attn.out_proj.bias)


def _mlp(mlp: Any, x: Tensor) -> Tensor:
    """(G, T, D) -> the same: what `mlp(x)` gives."""
    first, activation, last = mlp.c_fc, mlp.gelu, mlp.c_proj
    if isinstance(activation, nn.GELU) and activation.approximate == "none":
        hidden = gelu_of_linear(x, first.weight, first.bias)
    else:
        hidden = activation(linear(x, first.weight, first.bias))
    return linear(hidden, last.weight, last.bias)


def make_tokenizer(config: dict[str, Any] | None, context_length: int) -> SimpleTokenizer:
    """The tokenizer of the text tower, which cuts at `context_length` tokens."""
    options = ((config or {}).get("text_cfg") or {}).get("tokenizer_kwargs") or {}
    return SimpleTokenizer(context_length=context_length, **options)
