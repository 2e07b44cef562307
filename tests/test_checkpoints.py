"""Checkpoints: written and read again, from every container, and what is refused with one sentence."""

from __future__ import annotations

import json
import os
import resource
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddclip_cli.errors import UserError
from ddclip_cli.hub import OFFICIAL_CHECKPOINTS
from ddclip_cli.model.checkpoints import load_backbone, load_model, save_checkpoint
from ddclip_cli.model.safetensors_file import write_safetensors

ON_CPU = {"device": "cpu", "precision": "fp32"}


def same_weights(a, b) -> bool:
    first, second = a.clip.state_dict(), b.clip.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture
def folder(tiny_model, tmp_path):
    save_checkpoint(tiny_model, tmp_path / "checkpoint", recipe={"seed": 1})
    return tmp_path / "checkpoint"


def lightning(model, path, **network):
    """Write `model` as the reference's trainer does."""
    state = {f"duoduoclip.{name}": tensor for name, tensor in model.clip.state_dict().items()}
    state["contrastive_loss.logit_scale"] = state["duoduoclip.logit_scale"].clone()
    settings = {"base_name": "tiny", "pretrained_name": "", "layers_threshold": model.cross_view_from, **network}
    torch.save({"state_dict": state, "hyper_parameters": {"model": {"network": settings}}}, path)
    return path


def test_round_trip_is_exact(tiny_model, folder):
    loaded = load_model(folder, **ON_CPU)
    assert same_weights(loaded, tiny_model)
    assert not loaded.training
    assert loaded.cross_view_from == 1
    assert loaded.backbone == tiny_model.backbone
    assert json.loads((folder / "config.json").read_text())["recipe"] == {"seed": 1}
    pixels = torch.randn(1, 2, 3, 32, 32)
    assert torch.equal(loaded(pixels), tiny_model(pixels))
    assert torch.equal(loaded.text_features(["a chair"]), tiny_model.text_features(["a chair"]))  # the mask is rebuilt


def test_the_fingerprint_does_not_depend_on_the_container(tiny_model, folder, tiny_config_path, tmp_path):
    from_folder = load_model(folder, **ON_CPU)
    path = lightning(tiny_model, tmp_path / "run.ckpt")
    from_lightning = load_model(path, backbone=str(tiny_config_path), **ON_CPU)
    weights = tmp_path / "weights.pt"
    torch.save(tiny_model.clip.state_dict(), weights)
    from_weights = load_backbone(str(tiny_config_path), weights, cross_view_from=1, **ON_CPU)
    prints = {model.fingerprint for model in (tiny_model, from_folder, from_lightning, from_weights)}
    assert len(prints) == 1
    assert json.loads((folder / "config.json").read_text())["fingerprint"] in prints
    averaging = load_backbone(str(tiny_config_path), weights, **ON_CPU)
    assert averaging.cross_view_from == averaging.num_blocks
    assert averaging.fingerprint not in prints


def test_float16_is_half_as_large_and_rounded(tiny_model, folder, tmp_path):
    save_checkpoint(tiny_model, tmp_path / "half", dtype=torch.float16)
    loaded = load_model(tmp_path / "half", **ON_CPU)
    for name, tensor in tiny_model.clip.state_dict().items():
        assert torch.equal(loaded.clip.state_dict()[name], tensor.half().float())
    sizes = [(path / "model.safetensors").stat().st_size for path in (tmp_path / "half", folder)]
    assert sizes[0] < 0.55 * sizes[1]


def test_token_rows_that_are_zero_take_no_space(tiny_model, tmp_path):
    with torch.no_grad():
        tiny_model.clip.token_embedding.weight[100:] = 0
        tiny_model.clip.token_embedding.weight[49407] = 1
    save_checkpoint(tiny_model, tmp_path / "sparse")
    stored = load_file(tmp_path / "sparse" / "model.safetensors")
    assert stored["token_embedding.rows"].tolist() == [*range(100), 49407]
    assert stored["token_embedding.weight"].shape == (101, 8)
    loaded = load_model(tmp_path / "sparse", **ON_CPU)
    assert same_weights(loaded, tiny_model)
    assert loaded.fingerprint == tiny_model.fingerprint


def test_weights_are_written_as_the_library_of_their_format_writes_them(tmp_path):
    kinds = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32)
    tensors = {f"tensor.{number}": torch.arange(7).to(kind) for number, kind in enumerate(kinds)}
    tensors |= {"scale": torch.tensor(2.5), "größe": torch.ones(0, 3), "matrix": torch.randn(3, 5)}
    save_file(tensors, tmp_path / "theirs", metadata=None)
    write_safetensors(tensors, tmp_path / "ours")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    matrix = tensors["matrix"]
    write_safetensors({"strided": matrix.T, "shared": matrix[1:], "again": matrix[1:]}, tmp_path / "shared")
    stored = load_file(tmp_path / "shared")
    assert torch.equal(stored["strided"], matrix.T)
    assert torch.equal(stored["shared"], matrix[1:])
    assert torch.equal(stored["again"], matrix[1:])


def test_rows_that_point_outside_are_refused(tiny_model, tmp_path):
    with torch.no_grad():
        tiny_model.clip.token_embedding.weight[100:] = 0
    save_checkpoint(tiny_model, tmp_path / "sparse")
    path = tmp_path / "sparse" / "model.safetensors"
    stored = load_file(path)
    stored["token_embedding.rows"][5] = 10**6
    save_file(stored, path)
    with pytest.raises(UserError, match=r"damaged: token_embedding.rows"):
        load_model(tmp_path / "sparse", **ON_CPU)


def test_saving_replaces_an_older_checkpoint_and_leaves_nothing_else(tiny_model, folder, tmp_path):
    with torch.no_grad():
        tiny_model.logit_scale.add_(1)
    save_checkpoint(tiny_model, folder)
    assert load_model(folder, **ON_CPU).fingerprint == tiny_model.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "tiny.json"]


def test_a_failed_save_keeps_the_older_checkpoint(tiny_model, folder, tmp_path):
    before = tiny_model.fingerprint
    with torch.no_grad():
        tiny_model.logit_scale.add_(1)
    with pytest.raises(TypeError):
        save_checkpoint(tiny_model, folder, recipe={"seed": object()})
    assert load_model(folder, **ON_CPU).fingerprint == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "tiny.json"]


def test_a_full_disk_is_one_sentence_and_keeps_the_older_checkpoint(tiny_model, folder, tmp_path):
    before = tiny_model.fingerprint
    with torch.no_grad():
        tiny_model.logit_scale.add_(1)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limit[1]))
    try:
        with pytest.raises(UserError, match=r"checkpoint could not be written \(.*\): make room, or choose another"):
            save_checkpoint(tiny_model, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert load_model(folder, **ON_CPU).fingerprint == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "tiny.json"]


def test_the_learned_logit_scale_of_an_official_checkpoint_is_taken(tiny_model, tiny_config_path, tmp_path):
    path = lightning(tiny_model, tmp_path / "run.ckpt")
    document = torch.load(path, weights_only=True)
    document["state_dict"]["contrastive_loss.logit_scale"] = torch.tensor(4.0)
    torch.save(document, path)
    assert load_model(path, backbone=str(tiny_config_path), **ON_CPU).logit_scale.item() == 4.0


def test_an_official_name_is_found_in_the_cache(reference_model_dir, tmp_path, monkeypatch):
    found = {}

    def cached(repo, filename):
        found["asked"] = repo, filename
        return str(reference_model_dir / "reference_lightning.ckpt")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    config = str(reference_model_dir / "open_clip_config.json")
    assert load_model("Four_1to6F_bs1600_LT6", backbone=config, **ON_CPU).cross_view_from == 2
    assert found["asked"] == ("3dlg-hcvc/DuoduoCLIP", "Four_1to6F_bs1600_LT6.ckpt")


@pytest.mark.parametrize("name", OFFICIAL_CHECKPOINTS)
def test_an_official_checkpoint_that_is_not_here_names_the_command(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, filename: None)
    with pytest.raises(UserError, match=rf"{name} is not here: `ddclip download checkpoint` .*600 MB"):
        load_model(name, **ON_CPU)


def test_a_missing_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"there is no checkpoint .*gone.ckpt"):
        load_model(tmp_path / "gone.ckpt", **ON_CPU)
    with pytest.raises(UserError, match="an official name such as Four_MVPNet_1to6F_bs1600_LT6"):
        load_model("Four_MVPNet_1to6F", **ON_CPU)


def damaged_text(path):
    path.write_text("this is not a checkpoint\n")


def damaged_empty(path):
    path.write_bytes(b"")


def damaged_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damaged_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing here")


@pytest.mark.parametrize("damage", [damaged_text, damaged_empty, damaged_half, damaged_zip])
def test_a_file_that_is_no_checkpoint(tiny_model, tmp_path, damage):
    path = lightning(tiny_model, tmp_path / "run.ckpt")
    damage(path)
    with pytest.raises(UserError, match=r"run.ckpt is not a checkpoint, or a damaged one"):
        load_model(path, **ON_CPU)


@pytest.mark.parametrize("document", [[1, 2], {"state_dict": {}}, {"hyper_parameters": {"model": 3}}])
def test_a_pickle_of_something_else(tmp_path, document):
    path = tmp_path / "other.pt"
    torch.save(document, path)
    with pytest.raises(UserError, match="is not a checkpoint of Duoduo CLIP"):
        load_model(path, **ON_CPU)


class Malicious:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, zipped):
    path, trace = tmp_path / "evil.ckpt", tmp_path / "ran"
    torch.save({"state_dict": Malicious(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"evil.ckpt is refused: its pickle wants to run code"):
        load_model(path, **ON_CPU)
    assert not trace.exists()


def test_a_checkpoint_for_another_backbone_names_both(tiny_model, folder, tmp_path):
    for source in (folder, lightning(tiny_model, tmp_path / "run.ckpt")):
        with pytest.raises(UserError, match=r"holds weights of backbone tiny, not of ViT-B-32 \(\w+ has the shape"):
            load_model(source, backbone="ViT-B-32", **ON_CPU)
    with pytest.raises(UserError, match="holds weights of backbone tiny, not of ViT-B-32"):
        load_backbone("ViT-B-32", folder, **ON_CPU)


def test_an_unknown_backbone_names_the_nearest(tiny_model, tmp_path):
    with pytest.raises(UserError, match="no backbone 'ViT-B32': did you mean ViT-B-32"):
        load_backbone("ViT-B32", None, **ON_CPU)
    with pytest.raises(UserError, match=r"run.ckpt has the backbone 'tiny', which must be named with backbone="):
        load_model(lightning(tiny_model, tmp_path / "run.ckpt"), **ON_CPU)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"embed_dim": 4, "vision_cfg": {"wdith": 8}, "text_cfg": {}}'])
def test_a_config_that_is_none(tmp_path, content):
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"mine.* is not an open_clip model config"):
        load_backbone(str(path), None, **ON_CPU)
    with pytest.raises(UserError, match="there is no backbone config"):
        load_backbone(str(tmp_path / "gone.json"), None, **ON_CPU)


def test_a_folder_that_is_no_checkpoint(tmp_path, folder):
    with pytest.raises(UserError, match=r"is not a checkpoint folder: it has no config.json"):
        load_model(tmp_path, **ON_CPU)
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        load_model(folder, **ON_CPU)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"there is no file .*model.safetensors"):
        load_model(folder, **ON_CPU)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": "other"}, "not the config of a checkpoint of ddclip"),
        ({"version": 99}, "version 99 of the checkpoint format: update ddclip"),
        ({"backbone": {"name": "tiny"}}, "is damaged"),
        ({"cross_view_from": 9}, "cross_view_from is 9"),
        ({"cross_view_from": 2}, "are not of the same model"),
    ],
)
def test_a_config_that_was_changed(folder, change, sentence):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=sentence):
        load_model(folder, **ON_CPU)


def test_weights_that_diverged_are_refused(tiny_model, tmp_path):
    with torch.no_grad():
        tiny_model.clip.visual.proj[0, 0] = float("nan")
    save_checkpoint(tiny_model, tmp_path / "diverged")
    with pytest.raises(UserError, match=r"visual.proj has numbers that are not finite"):
        load_model(tmp_path / "diverged", **ON_CPU)


def test_pretrained_weights_that_are_not_here(tmp_path, monkeypatch):
    def offline(entry):
        raise OSError("offline")

    monkeypatch.setattr("ddclip_cli.model.backbone.try_to_load_from_cache", lambda repo, filename: None)
    monkeypatch.setattr("open_clip.download_pretrained", offline)
    with pytest.raises(UserError, match=r"ViT-B-32 laion2b_s34b_b79k .*run `ddclip download backbone`"):
        load_backbone("ViT-B-32", "laion2b_s34b_b79k", **ON_CPU)
    with pytest.raises(UserError, match=r"nearest: laion2b_s34b_b79k"):
        load_backbone("ViT-B-32", "laion2b_s34b", **ON_CPU)
    with pytest.raises(UserError, match="there is no pretrained weights file"):
        load_backbone("ViT-B-32", tmp_path / "gone.pt", **ON_CPU)


def test_pretrained_weights_are_found_in_the_cache(tiny_model, tiny_config, tmp_path, monkeypatch):
    weights = tmp_path / "open_clip_model.safetensors"
    save_file(tiny_model.clip.state_dict(), weights)
    asked = []

    def cached(repo, filename):
        asked.append((repo, filename))
        return str(weights)

    monkeypatch.setattr("ddclip_cli.model.backbone.try_to_load_from_cache", cached)
    monkeypatch.setattr("open_clip.get_model_config", lambda name: tiny_config)
    model = load_backbone("ViT-B-32", "laion2b_s34b_b79k", cross_view_from=1, **ON_CPU)
    assert model.fingerprint == tiny_model.fingerprint
    assert asked == [("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "open_clip_model.safetensors")]


def test_a_custom_text_tower_round_trips(tiny_config, tiny_config_path, tmp_path):
    tiny_config["custom_text"] = True
    tiny_config_path.write_text(json.dumps(tiny_config))
    model = load_backbone(str(tiny_config_path), None, **ON_CPU)
    save_checkpoint(model, tmp_path / "custom")
    loaded = load_model(tmp_path / "custom", **ON_CPU)
    assert torch.equal(loaded.encode_text("a chair"), model.encode_text("a chair"))
