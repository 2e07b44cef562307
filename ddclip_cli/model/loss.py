"""The contrastive loss of CLIP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(a: Tensor, b: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric cross entropy over exp(logit_scale) * cosine(a, b), where row i of `a` belongs to row i of `b`.

    a, b: (B, E), any length and float type; logit_scale: scalar, natural logarithm. Scalar float32, whatever the
    surrounding autocast: half precision has too few digits for the logarithm of a sum over a large batch.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = F.normalize(a.float(), dim=-1), F.normalize(b.float(), dim=-1)
        logits = logit_scale.float().exp() * a @ b.T  # (B, B)
        target = torch.arange(len(a), device=a.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
