"""Compiled blocks: what they compute, and machines that cannot compile."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from tiny import tiny_model

from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.model.trainable import trainable_parameters


def outputs_and_gradients(model: MultiViewCLIP, numbers_of_views: tuple[int, ...]) -> list[torch.Tensor]:
    generator, found = torch.Generator().manual_seed(0), []
    for num_views in numbers_of_views:
        output = model(torch.randn(2, num_views, 3, 32, 32, generator=generator))
        learning = [parameter for name, parameter in model.named_parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(output.square().sum(), learning, allow_unused=True)
        found += [output.detach(), *(gradient for gradient in gradients if gradient is not None)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("what", ["attention", "all"])
def test_compiled_blocks_compute_the_same_for_any_number_of_views(tmp_path, what):
    from torch._dynamo.utils import counters

    model = tiny_model(tmp_path)
    trainable_parameters(model, what)
    expected = outputs_and_gradients(model, (1, 3, 5, 2, 4))
    model.compile_blocks()
    first = outputs_and_gradients(model, (1, 3, 5))
    compiled = counters["stats"]["unique_graphs"]
    assert compiled
    outputs_and_gradients(model, (2, 4, 6))
    assert counters["stats"]["unique_graphs"] == compiled
    for found, tensor in zip(first, expected, strict=False):
        torch.testing.assert_close(found, tensor, rtol=1e-4, atol=1e-5)


def test_without_a_compiler_the_blocks_run_as_they_are_and_one_line_says_so(tmp_path):
    script = (
        "import pathlib, torch; from tiny import tiny_model; model = tiny_model(pathlib.Path('.'));"
        "pixels = torch.randn(2, 3, 3, 32, 32); before = model(pixels); model.compile_blocks();"
        "assert torch.equal(model(pixels), before)"
    )
    environment = {
        **os.environ,
        "CXX": str(tmp_path / "no-such-compiler"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("warning: ")]
    assert line.startswith("warning: the blocks run as they are, since torch.compile does not: ")
    assert "compiler" in line
