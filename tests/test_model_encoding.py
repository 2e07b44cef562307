"""Views and texts as people have them -> unit vectors."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ddclip_cli.errors import UsageError, UserError
from ddclip_cli.model.checkpoints import load_backbone
from ddclip_cli.model.device import choose_device, choose_precision
from ddclip_cli.model.transforms import CLIP_MEAN, CLIP_STD, to_pixels


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (2, 3, 40, 52, 3), dtype=np.uint8)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_shapes_and_length(tiny_model, pictures):
    for views, shape in ((pictures[0, 0], (12,)), (pictures[0], (12,)), (pictures, (2, 12))):
        found = tiny_model.encode_views(views)
        assert found.shape == shape
        assert found.dtype == torch.float32
        close(found.norm(dim=-1), torch.ones(shape[:-1]))


def test_every_form_of_the_same_views_gives_the_same_vector(tiny_model, pictures):
    expected = tiny_model.encode_views(pictures[0])
    tensor = torch.from_numpy(pictures[0])
    forms = [
        tensor,
        tensor.movedim(-1, -3),
        list(pictures[0]),
        [Image.fromarray(view) for view in pictures[0]],
        [Image.fromarray(view).convert("RGBA") for view in pictures[0]],
        np.concatenate([pictures[0], np.full((3, 40, 52, 1), 255, np.uint8)], axis=-1),
        pictures[0][:, ::-1][:, ::-1],
    ]
    for form in forms:
        close(tiny_model.encode_views(form), expected)
    close(tiny_model.encode_views(pictures)[0], expected)


def test_a_large_batch_is_encoded_in_parts(tiny_model, pictures, monkeypatch):
    monkeypatch.setattr("ddclip_cli.model.multiview.VIEWS_AT_ONCE", 4)
    batch = np.concatenate([pictures, pictures[::-1]])
    close(tiny_model.encode_views(batch), torch.stack([tiny_model.encode_views(views) for views in batch]))


def test_views_of_one_object_may_differ_in_size(tiny_model, pictures):
    small = Image.fromarray(pictures[0, 0]).resize((20, 33))
    assert tiny_model.encode_views([pictures[0, 1], small]).shape == (12,)


def test_what_is_transparent_is_white(tiny_model, pictures):
    rgba = np.concatenate([pictures[0], np.zeros((3, 40, 52, 1), np.uint8)], axis=-1)
    white = tiny_model.encode_views(np.full((3, 40, 52, 3), 255, np.uint8))
    close(tiny_model.encode_views(rgba), white)
    palette = Image.new("P", (40, 40), 0)
    palette.info["transparency"] = 0
    close(tiny_model.encode_views([palette, Image.new("LA", (40, 40), (7, 0))]), white)


def test_half_transparent_is_half_white(tiny_model):
    half = np.zeros((40, 40, 4), np.uint8)
    half[..., 3] = 51
    close(tiny_model.encode_views(half), tiny_model.encode_views(np.full((40, 40, 3), 204, np.uint8)))


@pytest.mark.parametrize(
    ("views", "sentence"),
    [
        (np.zeros((8, 8, 3), np.float32), "uint8, 0 to 255, not float32"),
        (torch.zeros(3, 8, 8), "uint8, 0 to 255, not float32"),
        (np.zeros((8, 8), np.uint8), r"not an array of shape \(8, 8\)"),
        (np.zeros((2, 8, 8, 5), np.uint8), r"not an array of shape \(2, 8, 8, 5\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), "no pixels in an array"),
        ([], "no views"),
        ("couch.jpg", "not str"),
        ([np.zeros((1, 8, 8, 3), np.uint8)], "pictures of one object"),
    ],
)
def test_what_is_no_view_is_refused(tiny_model, views, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny_model.encode_views(views)


def test_a_truncated_picture_is_refused(tiny_model, tmp_path, pictures):
    path = tmp_path / "half.png"
    Image.fromarray(pictures[0, 0]).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"unreadable image .*half.png"):
        tiny_model.encode_views(Image.open(path))


def test_center_crop_is_the_middle_208_of_224():
    views = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inner = views[..., 8:216, 8:216]
    found = to_pixels(views, image_size=224, crop="center")
    torch.testing.assert_close(found, to_pixels(inner, image_size=224, crop="none"))
    exact = to_pixels(views, image_size=208, crop="center")  # no resize left: the pixels themselves
    by_hand = (inner / 255 - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
    torch.testing.assert_close(exact, by_hand)


def test_random_crop_is_one_position_drawn_from_the_generator():
    position = torch.arange(56 * 56, dtype=torch.int32).reshape(56, 56)
    views = (position % 251).to(torch.uint8).expand(4, 3, 56, 56)
    found = [
        to_pixels(views, image_size=52, crop="random", generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(found[0][0], found[0][3])
    windows = [
        to_pixels(views[..., top : top + 52, left : left + 52], image_size=52, crop="none")
        for top in range(5)
        for left in range(5)
    ]
    assert any(torch.equal(found[0], window) for window in windows)


def test_one_text_or_many(tiny_model):
    texts = ["a white couch", "a red chair"]
    found = tiny_model.encode_text(texts)
    close(found.norm(dim=-1), torch.ones(2))
    close(tiny_model.encode_text(texts[0]), found[:1])
    close(torch.nn.functional.normalize(tiny_model.text_features(texts), dim=-1), found)


def test_a_text_beyond_the_context_is_cut_with_a_warning(tiny_model, capsys):
    exact = " ".join(["chair"] * 14)  # with start and end: 16 tokens
    tiny_model.encode_text(exact)
    assert capsys.readouterr().err == ""
    close(tiny_model.encode_text(exact + " table"), tiny_model.encode_text(exact + " lamp"))
    assert "longer than the 16 tokens" in capsys.readouterr().err
    tiny_model.encode_text(["a chair", exact + " table"])
    assert "1 of 2 texts are longer" in capsys.readouterr().err


@pytest.mark.parametrize("texts", [[], [3], ["a", None]])
def test_what_is_no_text_is_refused(tiny_model, texts):
    with pytest.raises(UserError, match="takes a text or a list of texts"):
        tiny_model.encode_text(texts)


def test_bf16_is_near_fp32(tiny_model, tiny_config_path, pictures):
    torch.manual_seed(7)
    half = load_backbone(str(tiny_config_path), None, cross_view_from=1, device="cpu", precision="bf16")
    assert half.fingerprint == tiny_model.fingerprint
    for found, expected in (
        (half.encode_views(pictures), tiny_model.encode_views(pictures)),
        (half.encode_text(["a chair"]), tiny_model.encode_text(["a chair"])),
    ):
        assert found.dtype == torch.float32
        assert 0 < float((found - expected).norm() / expected.norm()) < 0.05


def test_device_and_precision(capsys):
    cpu = torch.device("cpu")
    assert choose_device("cpu") == cpu
    assert choose_precision("auto", cpu) == "fp32"
    assert "precision: fp32" in capsys.readouterr().err
    assert choose_device("auto").type in ("cpu", "cuda")
    assert "device: " in capsys.readouterr().err
    with pytest.raises(UsageError, match="fp16 does not run on a CPU: use --precision bf16"):
        choose_precision("fp16", cpu)
    for device in ("tpu", "cuda:x", "cuda:99", "cpu:1"):
        with pytest.raises(UsageError, match=device):
            choose_device(device)


def test_importing_the_package_imports_no_torch():
    program = "import sys, ddclip_cli; assert 'load_model' in dir(ddclip_cli); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
