"""Linear layers on a CPU through oneDNN, which multiplies float32 faster than the BLAS that torch would ask.

On an AMD processor the BLAS of torch (MKL) reaches about nine tenths of the rate of oneDNN; torch has oneDNN on board,
but asks it only for lower precisions. Gradients of weights, where MKL is the faster of the two, stay with it.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ON_BOARD = (
    platform.machine().lower() in ("x86_64", "amd64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K), weight (N, K), bias (N) -> (..., N): what `F.linear` gives, to rounding."""
    if not _asks_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)
    return _product(x, weight, bias)


def gelu_of_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The exact GELU of `linear`, taken while the product is in the cache if no gradient will ask for the product."""
    if torch.is_grad_enabled() or not _asks_onednn(x, weight):
        return F.gelu(linear(x, weight, bias))
    return _product(x, weight, bias, "gelu")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            _product(grad, weight.t()) if of_x else None,
            rows.t() @ x.flatten(0, -2) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _asks_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        ON_BOARD
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """The operation with which torch.compile runs linear layers on a CPU."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")
