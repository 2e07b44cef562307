"""Linear layers through oneDNN: torch's own are the oracle, for values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ddclip_cli.model import linear as onednn
from ddclip_cli.model.linear import gelu_of_linear, linear

KINDS = {"linear": (linear, F.linear), "gelu": (gelu_of_linear, lambda *tensors: F.gelu(F.linear(*tensors)))}


@pytest.fixture
def asked(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of the products for which oneDNN was asked."""
    shapes = []

    def product(x, weight, *others):
        shapes.append((*x.shape, weight.shape[0]))
        return original(x, weight, *others)

    original = onednn._product
    monkeypatch.setattr(onednn, "_product", product)
    return shapes


def tensors(shape: tuple[int, ...], out: int, bias: bool, learning: tuple[bool, ...] = (False,) * 3):
    generator = torch.Generator().manual_seed(0)
    sizes = [shape, (out, shape[-1]), (out,)]
    made = [torch.randn(size, generator=generator) for size in sizes]
    for tensor, learns in zip(made, learning, strict=True):
        tensor.requires_grad_(learns)
    return made if bias else [*made[:2], None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 24), (1, 24), (3, 7, 24), (2, 3, 4, 24), (0, 24)])
def test_values(kind, shape, bias):
    ours, torchs = KINDS[kind]
    made = tensors(shape, 40, bias)
    torch.testing.assert_close(ours(*made), torchs(*made), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(ours(*made), torchs(*made), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "learning",
    [(True, True, True), (True, False, False), (False, True, True), (False, False, True), (True, True, False)],
)
def test_gradients(kind, learning):
    ours, torchs = KINDS[kind]
    gradients = []
    for function in (ours, torchs):
        made = tensors((3, 7, 24), 40, bias=True, learning=learning)
        function(*made).square().sum().backward()
        gradients.append([tensor.grad for tensor in made])
    for gradient, expected, learns in zip(*gradients, learning, strict=True):
        assert (gradient is not None) == learns
        if learns:
            torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-4)


def test_rows_of_a_weight_and_tokens_of_an_image_need_no_copy():
    x, weight, bias = tensors((4, 9, 24), 40, bias=True)
    torch.testing.assert_close(linear(x[:, ::3], weight[10:], bias[10:]), F.linear(x[:, ::3], weight[10:], bias[10:]))


def test_an_input_is_not_kept_for_a_weight_that_does_not_learn():
    for learns in (False, True):
        y = linear(*tensors((5, 24), 40, bias=True, learning=(True, learns, False)))
        assert (y.grad_fn.saved_tensors[0] is not None) == learns


@pytest.mark.skipif(not onednn.ON_BOARD, reason="torch has no oneDNN here")
def test_single_precision_goes_through_onednn_and_nothing_else(asked):
    x, weight, bias = tensors((5, 24), 40, bias=True)
    linear(x, weight, bias)
    assert asked == [(5, 24, 40)]
    linear(x.double(), weight.double(), bias.double())
    linear(x.to(torch.bfloat16), weight.to(torch.bfloat16), bias.to(torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight, bias).dtype is torch.bfloat16
    assert asked == [(5, 24, 40)]
