"""Which file or model a value of a recipe or of the command line means."""

from __future__ import annotations

import pytest
from tiny import DATA, tiny_model

from ddclip_cli.commands.needs import require, sample_hint
from ddclip_cli.commands.sources import (
    checkpoint_source,
    load_recipe_backbone,
    load_recipe_model,
    model_source,
    recorded,
)
from ddclip_cli.errors import UsageError, UserError
from ddclip_cli.recipe import Recipe

OFFICIAL = "Four_1to6F_bs1600_LT6"


def test_official_names_stay_names_and_all_else_is_a_path(tmp_path):
    assert model_source(OFFICIAL, tmp_path) == OFFICIAL
    assert model_source(f"{OFFICIAL}.ckpt", tmp_path) == OFFICIAL
    (tmp_path / f"{OFFICIAL}.ckpt").touch()
    assert model_source(f"{OFFICIAL}.ckpt", tmp_path) == tmp_path / f"{OFFICIAL}.ckpt"
    assert model_source("runs/best", tmp_path) == tmp_path / "runs" / "best"


def test_a_path_of_the_command_line_starts_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "best").mkdir()
    recipe = Recipe.model_validate({"model": {"checkpoint": "mine"}})
    assert checkpoint_source(recipe, "best", tmp_path / "data").resolve() == (tmp_path / "best").resolve()
    assert checkpoint_source(recipe, None, tmp_path / "data") == tmp_path / "data" / "mine"
    with pytest.raises(UsageError, match="--checkpoint"):
        checkpoint_source(Recipe.model_validate({"model": {"checkpoint": None}}), None, tmp_path)


def test_models_of_a_recipe(tmp_path):
    from ddclip_cli.model.checkpoints import save_checkpoint

    model = tiny_model(tmp_path)
    save_checkpoint(model, tmp_path / "weights")
    recipe = Recipe.model_validate(
        {"model": {"backbone": "tiny.json", "pretrained": "weights", "checkpoint": "weights", "cross_view_from": 1}}
    )
    assert load_recipe_model(recipe, None, tmp_path, "cpu").fingerprint == model.fingerprint
    averaging = load_recipe_backbone(recipe, tmp_path, "cpu")
    assert averaging.cross_view_from == averaging.num_blocks
    assert load_recipe_backbone(recipe, tmp_path, "cpu", cross_view_from=1).fingerprint == model.fingerprint


def test_a_ckpt_takes_the_config_that_the_recipe_names():
    recipe = Recipe.model_validate({"model": {"backbone": "open_clip_config.json"}})
    folder = DATA / "reference_model"
    model = load_recipe_model(recipe, str(folder / "reference_lightning.ckpt"), folder, "cpu")
    assert (model.embed_dim, model.cross_view_from) == (32, 2)


def test_options_are_recorded_as_keys_of_the_recipe():
    recipe = Recipe()
    document = recorded(recipe, {"model.checkpoint": "best", "eval.store": None})
    assert document["model"]["checkpoint"] == "best"
    document["model"]["checkpoint"] = recipe.model.checkpoint
    assert document == recipe.model_dump(mode="json")


def test_nothing_missing_is_no_error(tmp_path):
    (tmp_path / "here").touch()
    require(tmp_path / "here", None, data_dir=tmp_path)


def test_everything_missing_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(UserError) as caught:
        require(
            tmp_path / "lvis.csv",
            tmp_path / "mine.h5",
            OFFICIAL,
            tmp_path / "lvis_images.h5",
            tmp_path / "mv_images.h5",
            data_dir=tmp_path,
            hint="or go home",
        )
    message = str(caught.value)
    assert f"{tmp_path / 'lvis.csv'} and {tmp_path / 'lvis_images.h5'} (`ddclip download lvis --data-dir" in message
    assert f"{tmp_path / 'mine.h5'} (check the path)" in message
    assert f"the checkpoint {OFFICIAL} (`ddclip download checkpoint` brings it, about 600 MB)" in message
    assert "ddclip pack-h5" in message
    assert message.endswith("; or go home")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("Four_1to6F_bs1600_LT7", f"(did you mean the official checkpoint {OFFICIAL}?)"),
        ("Four_MVPNet_1to6F_bs160_LT6.ckpt", "(did you mean the official checkpoint Four_MVPNet_1to6F_bs1600_LT6?)"),
        ("runs/Four_1to6F_bs1600_LT7", "(check the path)"),
        ("best", "(check the path)"),
    ],
)
@pytest.mark.parametrize("of_recipe", [True, False])
def test_an_official_name_that_is_misspelt(tmp_path, name, advice, of_recipe):
    recipe = Recipe.model_validate({"model": {"checkpoint": name}})
    source = checkpoint_source(recipe, None if of_recipe else name, tmp_path)
    with pytest.raises(UserError) as caught:
        require(source, data_dir=tmp_path)
    assert str(caught.value) == f"missing: {source} {advice}"


def test_a_checkpoint_that_is_here_may_have_nearly_an_official_name(tmp_path):
    (tmp_path / "Four_1to6F_bs1600_LT7").mkdir()
    require(tmp_path / "Four_1to6F_bs1600_LT7", data_dir=tmp_path)


def test_the_demo_makes_the_data_of_the_sample_alone(tmp_path):
    sample = Recipe.model_validate({"model": {"pretrained": "sample:backbone"}})
    assert "ddclip demo" in (sample_hint(sample, tmp_path / "train.h5", None) or "")
    assert sample_hint(sample, tmp_path, None) is None
    assert sample_hint(Recipe(), tmp_path / "train.h5") is None
