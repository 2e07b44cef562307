"""The contrastive loss of CLIP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(a: Tensor, b: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric cross entropy over exp(logit_scale) * cosine(a, b), where row i of `a` belongs to row i of `b`.

    a, b: (B, E), any length and float type; logit_scale: scalar, natural logarithm. Scalar float32 (float64 of
    float64), whatever the surrounding autocast: half precision has too few digits for the logarithm of a sum over a
    large batch.
    """
    return contrastive_loss_of_rows(slice(0, len(a)), a, b, logit_scale)


def contrastive_loss_of_rows(rows: slice, a: Tensor, b: Tensor, logit_scale: Tensor) -> Tensor:
    """The part of `contrastive_loss` that belongs to some rows of a batch: these against all columns, both ways.

    Its mean over parts of equal size is the loss of the batch, so that no process needs more than (rows, B) logits.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = F.normalize(at_least_single(a), dim=-1), F.normalize(at_least_single(b), dim=-1)
        scale = at_least_single(logit_scale).exp()
        target = torch.arange(len(a), device=a.device)[rows]
        forth, back = scale * a[rows] @ b.T, scale * b[rows] @ a.T  # (rows, B)
        return (F.cross_entropy(forth, target) + F.cross_entropy(back, target)) / 2


def at_least_single(x: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
