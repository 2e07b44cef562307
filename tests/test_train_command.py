"""`ddclip train` from a recipe and files: what it writes, continues and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from tiny import run, tiny_model, tiny_store

from ddclip_cli.data.encode import Encoder, encode_targets
from ddclip_cli.model.checkpoints import load_model, save_checkpoint
from ddclip_cli.training.dry_run import Living

COLOURS = ("red", "green", "blue")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A data directory with a recipe `tiny.yaml`, six objects to train on and three to evaluate."""
    backbone = tiny_model(tmp_path, cross_view_from=None)
    save_checkpoint(backbone, tmp_path / "backbone")
    ids = [f"{COLOURS[i % 3]}-{i}" for i in range(6)]
    tiny_store(tmp_path / "train.h5", ids)
    tiny_store(tmp_path / "heldout.h5", ids[:3], seed=1)
    (tmp_path / "captions.json").write_text(json.dumps({i: [f"a {i}", "a thing"] for i in ids}))
    (tmp_path / "heldout.csv").write_text("".join(f"{i},{COLOURS[i]},{ids[i]}\n" for i in range(3)))
    encode_targets(Encoder(backbone), tmp_path / "train.h5", tmp_path / "captions.json", tmp_path / "targets")
    recipe = {
        "model": {"backbone": "tiny.json", "pretrained": "backbone", "cross_view_from": 1},
        "data": {
            "store": "train.h5",
            "objects": None,
            "image_targets": "targets/image_embeddings.h5",
            "text_targets": "targets/text_embeddings.h5",
        },
        "train": {"batch_size": 3, "num_views": [1, 2], "epochs": 2, "learning_rate": 1e-3, "precision": "auto"},
        "eval": {"store": "heldout.h5", "labels": "heldout.csv", "class_features": None, "validation_views": 3},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def train(library: Path, *arguments: object):
    places = ("--recipe", library / "tiny.yaml", "--data-dir", library, "--out", library / "run", "--device", "cpu")
    return run("train", *arguments, *places)


def test_a_recipe_is_trained_evaluated_and_loaded_again(library):
    ended = train(library, "train.epochs=3", "--json", "--seed", 5)
    assert ended.code == 0, ended.err
    summary = json.loads(ended.out)
    assert summary["steps"] == 6
    assert Path(summary["checkpoint"]) == library / "run" / "checkpoints" / "best"
    assert load_model(summary["checkpoint"], device="cpu").cross_view_from == 1
    saved = yaml.safe_load((library / "run" / "recipe.yaml").read_text())
    assert saved["train"]["epochs"] == 3
    assert saved["seed"] == 5
    lines = map(json.loads, (library / "run" / "metrics.jsonl").read_text().splitlines())
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    assert [line["epoch"] for line in evaluations] == [0, 1, 2, 3]
    assert all(line["objects"] == 3 and line["num_views"] == 3 for line in evaluations)
    assert "epoch 3/3: loss" in ended.err
    assert run("recipe", "check", library / "run" / "recipe.yaml").code == 0


def test_a_run_in_two_halves_equals_a_whole_one(library):
    assert train(library).code == 0
    whole = (library / "run" / "metrics.jsonl").read_bytes()
    weights = (library / "run" / "checkpoints" / "last" / "model.safetensors").read_bytes()
    refused = train(library)
    assert refused.code == 1
    assert "--resume" in refused.err
    assert train(library, "--force", "--max-steps", 1).code == 0
    assert train(library, "--resume").code == 0
    assert (library / "run" / "metrics.jsonl").read_bytes() == whole
    assert (library / "run" / "checkpoints" / "last" / "model.safetensors").read_bytes() == weights
    other = train(library, "--resume", "train.learning_rate=1")
    assert other.code == 1
    assert "train.learning_rate was 0.001, now 1.0" in other.err


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["train.precision=fp16"], 2, "train.precision=fp16 needs a GPU"),
        (["train.batch_size=7"], 1, "6 objects do not fill a batch of 7"),
        (["train.num_views=1,9"], 1, "up to 9 views but the store has 4"),
        (["eval.validation_views=9"], 1, "eval.validation_views is 9 but"),
        (["data.store=none.h5"], 1, "none.h5"),
        (["eval.store=none.h5"], 1, "--no-eval"),
        (["--resume", "--force"], 2, "give one of them"),
        (["train.trainble=all"], 2, "train.trainable"),
        (["--max-steps", "0"], 2, "max-steps"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence_and_leaves_nothing(library, arguments, code, sentence):
    ended = train(library, *arguments)
    assert (ended.code, ended.out) == (code, "")
    said = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert sentence in said[0]
    assert not (library / "run").exists()


def test_without_evaluation_its_files_are_not_needed(library):
    (library / "heldout.h5").unlink()
    assert train(library, "--no-eval", "--max-steps", 1).code == 0


def test_targets_of_another_backbone_are_warned_of(library):
    (library / "other").mkdir()
    save_checkpoint(tiny_model(library / "other", seed=1), library / "other" / "backbone")
    assert "another backbone" not in train(library, "--no-eval", "--max-steps", 1).err
    ended = train(library, "--no-eval", "--max-steps", 1, "--force", "model.pretrained=other/backbone")
    assert ended.code == 0, ended.err
    assert ended.err.count("image_embeddings.h5 was made by another backbone") == 1


def test_the_sample_without_its_data_names_the_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = run("train", "--recipe", "sample")
    assert ended.code == 1
    assert "train.h5" in ended.err
    assert ended.err.endswith("; `ddclip demo` makes the sample's files: then add --data-dir demo\n")
    assert ended.err.count("\n") == 1


def with_extra(library: Path) -> Path:
    """The library with a second set whose captions are of its views, four each."""
    ids = [f"photo-{i}" for i in range(5)]
    tiny_store(library / "photos.h5", ids, seed=3)
    rng = np.random.default_rng(0)
    with h5py.File(library / "photos_features.h5", "w") as file:
        for name in ("img_feat", "text_feat"):
            file[name] = rng.standard_normal((5, 4, 12)).astype(np.float16)
        file.create_dataset("ids", data=ids, dtype=h5py.string_dtype())
    recipe = yaml.safe_load((library / "tiny.yaml").read_text())
    features = {"image_targets": "photos_features.h5", "text_targets": "photos_features.h5"}
    recipe["data"]["extra"] = {"store": "photos.h5", "batch_size": 2, **features}
    (library / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return library


def test_a_second_set_joins_every_step_with_captions_of_its_views(library):
    assert train(library, "--no-eval").code == 0
    alone = (library / "run" / "metrics.jsonl").read_bytes()
    with_extra(library)
    ended = train(library, "--no-eval", "--force", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["steps"] == 4
    assert (library / "run" / "metrics.jsonl").read_bytes() != alone
    (library / "photos_features.h5").unlink()
    assert "photos_features.h5" in train(library, "--no-eval", "--force").err
    assert train(library, "--no-eval", "--force", "data.extra=null").code == 0
    assert (library / "run" / "metrics.jsonl").read_bytes() == alone


def test_training_starts_from_a_checkpoint_if_told_so(library, monkeypatch):
    assert train(library, "--no-eval").code == 0
    (library / "run").rename(library / "first")
    trained = load_model(library / "first" / "checkpoints" / "last", device="cpu")
    monkeypatch.chdir(library)
    ended = train(
        library, "--no-eval", "--init-from", "first/checkpoints/last", "train.learning_rate=0", "--max-steps", 1
    )
    assert ended.code == 0, ended.err
    model = load_model(library / "run" / "checkpoints" / "last", device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(model.clip.parameters(), trained.clip.parameters(), strict=True))
    saved = yaml.safe_load((library / "run" / "recipe.yaml").read_text())
    assert Path(saved["train"]["init_from"]) == library / "first" / "checkpoints" / "last"
    assert "there is no checkpoint" not in ended.err
    missing = train(library, "--force", "--init-from", "none.ckpt")
    assert missing.code == 1
    assert "none.ckpt" in missing.err


def test_options_that_change_nothing_but_memory_and_logs_are_taken(library):
    assert train(library, "--no-eval").code == 0
    before = [json.loads(line) for line in (library / "run" / "metrics.jsonl").read_text().splitlines()]
    ended = train(library, "--no-eval", "--force", "--micro-batch", 1, "--recompute", "--keep", 3, "--save-every", 1)
    assert ended.code == 0, ended.err
    after = [json.loads(line) for line in (library / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in after] == pytest.approx([line["loss"] for line in before], rel=1e-4)
    assert len(list((library / "run" / "checkpoints").glob("step-*"))) == 3


@pytest.mark.slow
def test_compiled_blocks_train_alike(library):
    from torch._dynamo.utils import counters

    losses, compiled = [], counters["stats"]["unique_graphs"]
    for arguments in ((), ("--compile", "--force")):
        ended = train(library, *arguments)
        assert ended.code == 0, ended.err
        lines = map(json.loads, (library / "run" / "metrics.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in lines if line["kind"] == "step"])
    assert counters["stats"]["unique_graphs"] > compiled
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_tracker_that_is_not_installed_is_an_error_at_the_start(library, monkeypatch):
    from ddclip_cli.training import tracking

    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    ended = train(library, "--tracker", "wandb")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.endswith("error: the tracker wandb is not installed: `pip install ddclip[wandb]` brings it\n")
    assert not (library / "run").exists()


def test_a_dry_run_tells_what_a_run_takes_and_leaves_nothing(library):
    ended = train(with_extra(library), "--dry-run", "--json", "train.trainable=all", "train.batch_size=4")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    model = load_model(library / "backbone", device="cpu")
    assert (found["objects"], found["batch_size"], found["steps_per_epoch"], found["steps"]) == (11, 6, 2, 4)
    assert found["numbers"] == sum(parameter.numel() for parameter in model.clip.parameters())
    assert found["trained_numbers"] == sum(parameter.numel() for parameter in model.clip.visual.parameters()) + 1
    assert found["seconds"] == pytest.approx(4 * max(found["step_seconds"], found["reading_seconds"] / 2))
    assert found["memory_gb"] > 4 * (found["numbers"] + 3 * found["trained_numbers"]) / 1e9
    assert not (library / "run").exists()
    small = json.loads(
        train(library, "--dry-run", "--json", "train.trainable=all", "--processes", 2, "train.batch_size=4").out
    )
    assert small["steps"] == found["steps"]
    assert small["memory_gb"] < found["memory_gb"]
    shown = train(library, "--dry-run")
    assert "numbers that are trained" in shown.out
    assert "all steps, about" in shown.out


def test_memory_is_counted_at_the_moment_when_there_is_most():
    with Living() as living:
        for _ in range(3):
            made = torch.ones(1000) + 1  # two of 4,000 bytes at a time
            made.add_(1)
            made.view(10, 100)
            del made
        torch.ones(500)
    assert living.most == 8000
