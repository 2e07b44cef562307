"""Shared by the tests: a model small enough to build in milliseconds, and the files of the reference's own run."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

# A shell that runs the tests in the background has SIGINT ignored, and processes inherit that: those that the tests
# interrupt must hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)

TINY_CONFIG = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 16, "patch_size": 16, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory):
    """Nothing is read from or left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDCLIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def reference_model_dir() -> Path:
    return Path(__file__).parent / "data" / "reference_model"


@pytest.fixture
def tiny_config() -> dict:
    """An open_clip config: 32 pixels, 3 blocks of width 16, embedding 12, 16 tokens of text."""
    return json.loads(json.dumps(TINY_CONFIG))


@pytest.fixture
def tiny_config_path(tiny_config: dict, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(tiny_config))
    return path


@pytest.fixture
def tiny_model(tiny_config_path: Path):
    """A MultiViewCLIP with random weights, the same in every test; views meet from block 1 on."""
    from ddclip_cli.model.checkpoints import load_backbone

    with torch.random.fork_rng():
        torch.manual_seed(7)
        return load_backbone(str(tiny_config_path), None, cross_view_from=1, device="cpu", precision="fp32")


@pytest.fixture
def one_thread():
    """Sums in one order, here and in the processes that tests start; and no waiting for threads in tiny networks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def sample_data(tmp_path: Path) -> Path:
    """A data directory for recipe `sample`: its own backbone, 24 objects made of noise."""
    from several_processes import write_sample_data

    return write_sample_data(tmp_path)
