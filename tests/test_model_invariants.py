"""What stays true of the network whatever its weights: invariants, and the plain computation as oracle."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ddclip_cli.errors import UserError
from ddclip_cli.model.loss import contrastive_loss
from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.model.towers import build_clip
from ddclip_cli.model.trainable import trainable_parameters


@pytest.fixture
def pixels():
    return torch.randn(2, 5, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def plain(model: MultiViewCLIP, pixels: torch.Tensor) -> torch.Tensor:
    """The definition, without any saving: all tokens through every block, autograd everywhere."""
    visual = model.clip.visual
    num_objects, num_views = pixels.shape[:2]
    x = visual._embeds(pixels.flatten(0, 1))
    length = x.shape[1]
    for index, block in enumerate(visual.transformer.resblocks):
        if index == model.cross_view_from:
            x = x.reshape(num_objects, num_views * length, -1)
        x = block(x)
    x = x.reshape(num_objects, num_views, length, -1)
    return visual.ln_post(x)[:, :, 0].mean(dim=1) @ visual.proj


def with_threshold(model: MultiViewCLIP, cross_view_from: int) -> MultiViewCLIP:
    return MultiViewCLIP(model.clip, cross_view_from=cross_view_from, backbone=model.backbone)


def test_one_view_is_stock_open_clip(tiny_model, pixels):
    stock = tiny_model.clip.encode_image(pixels[:, 0])
    torch.testing.assert_close(tiny_model(pixels[:, :1]), stock)
    torch.testing.assert_close(tiny_model.view_features(pixels[:, 0]), stock)


def test_order_of_views_changes_nothing(tiny_model, pixels):
    torch.testing.assert_close(tiny_model(pixels[:, [3, 0, 4, 1, 2]]), tiny_model(pixels), rtol=1e-4, atol=1e-6)


def test_copies_of_a_view_are_that_view(tiny_model, pixels):
    one = tiny_model(pixels[:, :1])
    torch.testing.assert_close(tiny_model(pixels[:, :1].expand(-1, 7, -1, -1, -1)), one, rtol=1e-4, atol=1e-6)


def test_threshold_at_the_end_is_the_mean_of_stock_features(tiny_model, pixels):
    averaging = with_threshold(tiny_model, tiny_model.num_blocks)
    stock = tiny_model.clip.encode_image(pixels.flatten(0, 1)).reshape(2, 5, -1).mean(dim=1)
    torch.testing.assert_close(averaging(pixels), stock, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(tiny_model(pixels), stock, rtol=1e-3)  # the views do meet below the end


def test_objects_of_a_batch_do_not_meet(tiny_model, pixels):
    torch.testing.assert_close(tiny_model(pixels[1:]), tiny_model(pixels)[1:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cross_view_from", [0, 1, 2, 3])
@pytest.mark.parametrize("what", ["attention", "all"])
def test_savings_change_neither_outputs_nor_gradients(tiny_model, pixels, cross_view_from, what):
    model = with_threshold(tiny_model, cross_view_from)
    weight = torch.randn(model.embed_dim, generator=torch.Generator().manual_seed(5))
    gradients = []
    for encode in (model, lambda pixels: plain(model, pixels)):
        learning = trainable_parameters(model, what)[:-1]  # without the logit scale, which no embedding depends on
        output = encode(pixels)
        gradients.append(torch.autograd.grad((output * weight).sum(), learning) if learning else ())
    torch.testing.assert_close(model(pixels), plain(model, pixels), rtol=1e-4, atol=1e-6)
    for saved, full in zip(*gradients, strict=True):
        torch.testing.assert_close(saved, full, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cross_view_from", [0, 1, 2, 3])
def test_views_encoded_once_can_be_joined_in_any_sets(tiny_model, pixels, cross_view_from):
    model = with_threshold(tiny_model, cross_view_from)
    tokens = model.view_tokens(pixels.flatten(0, 1)).unflatten(0, (2, 5))
    for views in ([0], [3, 1], [0, 2, 4], [0, 1, 2, 3, 4]):
        torch.testing.assert_close(model.join_views(tokens[:, views]), model(pixels[:, views]), rtol=1e-4, atol=1e-6)


def test_frozen_blocks_record_no_gradient(tiny_model, pixels):
    trainable_parameters(tiny_model, "none")
    assert not tiny_model(pixels).requires_grad
    trainable_parameters(tiny_model, "attention")
    assert tiny_model(pixels).requires_grad
    assert tiny_model(pixels.requires_grad_()).requires_grad


def test_gradient_reaches_the_pixels_of_a_frozen_model(tiny_model, pixels):
    trainable_parameters(tiny_model, "none")
    pixels.requires_grad_()
    (found,) = torch.autograd.grad(tiny_model(pixels).sum(), pixels)
    (full,) = torch.autograd.grad(plain(tiny_model, pixels).sum(), pixels)
    torch.testing.assert_close(found, full, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"block_type": "custom", "qk_norm": True},
        {"ls_init_value": 0.1},
        {"no_ln_pre": True, "final_ln_after_pool": True},
        {"pos_embed_type": "sin_cos_2d"},
    ],
)
def test_other_vits_of_open_clip(tiny_config, pixels, options):
    tiny_config["vision_cfg"].update(options)
    model = MultiViewCLIP(build_clip(tiny_config, "other", meta=False).eval(), cross_view_from=1)
    torch.testing.assert_close(model(pixels), plain(model, pixels), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model(pixels[:, :1]), model.clip.encode_image(pixels[:, 0]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("section", "options", "named"),
    [
        ("vision_cfg", {"timm_model_name": "vit_base_patch16_siglip_224"}, "timm"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "ResNet"),
        ("vision_cfg", {"attentional_pool": True}, "attentional pooling"),
        ("vision_cfg", {"pool_type": "avg"}, "'avg' pooling"),
        ("vision_cfg", {"image_size": [32, 48]}, "not square"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "Hugging Face"),
    ],
)
def test_towers_that_cannot_be_used_are_refused_by_name(tiny_config, section, options, named):
    tiny_config[section].update(options)
    with pytest.raises(UserError, match=f"backbone thing has .*{named}"):
        build_clip(tiny_config, "thing", meta=True)


def test_threshold_outside_the_blocks_is_refused(tiny_model):
    with pytest.raises(UserError, match="cross_view_from is 4, but the backbone's blocks allow 0 to 3"):
        with_threshold(tiny_model, 4)


def test_trainable_parameters(tiny_model):
    def names():
        return {name for name, parameter in tiny_model.named_parameters() if parameter.requires_grad}

    trainable_parameters(tiny_model, "none")
    assert names() == {"clip.logit_scale"}
    trainable_parameters(tiny_model, "attention")
    attention = {f"clip.visual.transformer.resblocks.{i}.attn" for i in (1, 2)}
    parts = {"in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"}
    assert names() == {"clip.logit_scale"} | {f"{block}.{part}" for block in attention for part in parts}
    found = trainable_parameters(tiny_model, "all")
    assert names() == {"clip.logit_scale"} | {f"clip.visual.{n}" for n, _ in tiny_model.clip.visual.named_parameters()}
    assert len(found) == len(names())


def test_contrastive_loss_is_its_definition():
    a, b = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    scale = torch.tensor(1.5)
    cosines = torch.stack([torch.stack([F.cosine_similarity(x, y, dim=0) for y in b]) for x in a])
    logits = scale.exp() * cosines
    by_hand = -(logits.log_softmax(0).diagonal().mean() + logits.log_softmax(1).diagonal().mean()) / 2
    torch.testing.assert_close(contrastive_loss(a, b, scale), by_hand)
    torch.testing.assert_close(contrastive_loss(3 * a, b / 2, scale), by_hand)  # lengths do not count
