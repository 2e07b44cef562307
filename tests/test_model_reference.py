"""The network against values that the reference's own code computed with the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ddclip_cli.model.checkpoints import load_model
from ddclip_cli.model.loss import contrastive_loss
from ddclip_cli.model.trainable import trainable_parameters
from ddclip_cli.model.transforms import crop_at, normalise, resize

TOLERANCE = 1e-5
TEXTS = ["a 3D model of a white couch", "a red chair", "Ein grüner Tisch, 50% größer!"]


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over norm."""
    return float((found.detach() - expected).norm() / expected.norm())


@pytest.fixture
def model(reference_model_dir):
    return load_model(
        reference_model_dir / "reference_lightning.ckpt",
        backbone=str(reference_model_dir / "open_clip_config.json"),
        device="cpu",
    )


@pytest.fixture(scope="module")
def expected(reference_model_dir):
    return load_file(reference_model_dir / "expected.safetensors")


@pytest.fixture(scope="module")
def views(reference_model_dir):
    return torch.from_numpy(np.load(reference_model_dir / "views.npz")["views"])


@pytest.mark.parametrize("num_views", [1, 2, 5, 12])
def test_shape_embeddings(model, views, expected, num_views):
    found = model(model.to_pixels(views[:, :num_views], crop="none"))
    assert distance(found, expected[f"shape_embedding_f{num_views}"]) < TOLERANCE


def test_tokens_and_text_features(model, expected):
    assert torch.equal(model.tokenize(TEXTS), expected["text_tokens"])
    assert distance(model.text_features(TEXTS), expected["text_features"]) < TOLERANCE


def test_crop(views, expected):
    found = normalise(resize(crop_at(views[0, :2], top=5, left=11, side=208), 224))
    assert distance(found, expected["cropped_5_11"]) < TOLERANCE


def losses(model, views, expected):
    embedding = model(model.to_pixels(views[:, :4], crop="none"))
    return [
        contrastive_loss(embedding, expected[f"train_{kind}_features"], model.logit_scale) for kind in ("image", "text")
    ]


def in_reference_names(model, parameters):
    names = {id(p): "duoduoclip." + n for n, p in model.clip.named_parameters()}
    names[id(model.logit_scale)] = "contrastive_loss.logit_scale"
    return {names[id(p)]: p for p in parameters}


def test_losses_and_every_gradient(model, views, expected):
    learning = in_reference_names(model, trainable_parameters(model, "attention"))
    assert learning.keys() == {name.removeprefix("grad.") for name in expected if name.startswith("grad.")}
    image, text = losses(model, views, expected)
    assert distance(image, expected["loss_image"]) < TOLERANCE
    assert distance(text, expected["loss_text"]) < TOLERANCE
    (image + text).backward()
    for name, parameter in learning.items():
        assert distance(parameter.grad, expected[f"grad.{name}"]) < TOLERANCE, name
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_three_optimizer_steps(model, views, expected):
    learning = trainable_parameters(model, "attention")
    optimizer = torch.optim.AdamW(learning, lr=5e-5)
    found = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = sum(losses(model, views, expected))
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    assert distance(torch.stack(found), expected["losses"]) < TOLERANCE
    for name, parameter in in_reference_names(model, learning).items():
        # The true gradient of a key bias is zero, and Adam makes steps of its rounding noise.
        assert distance(parameter, expected[f"after3.{name}"]) < 1e-3, name
