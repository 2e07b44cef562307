"""Recipes: the ones we ship, how files and overrides combine, what `ddclip recipe` prints."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from ddclip_cli import shipped
from ddclip_cli.commands.recipe import command
from ddclip_cli.errors import UserError
from ddclip_cli.recipe import Recipe, data_path, library, list_recipes, load_recipe, resolve
from ddclip_cli.recipe.loader import flatten
from ddclip_cli.recipe.show import as_yaml
from ddclip_cli.recipe.yaml_text import parse, scalar, write

VARIANTS = ["four-all-blocks", "four-averaging", "four-mvimgnet", "four-mvpnet", "four-no-lvis"]
SHIPPED = ["base", "four", *VARIANTS, "sample"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Recipes are written to, and named relative to, a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# What we ship


def test_the_shipped_recipes_are_these():
    assert [name for name, _ in list_recipes()] == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_loads_and_opens_with_its_five_facts(name):
    assert isinstance(load_recipe(name), Recipe)
    header = library.shipped(name).read().split("\n\n")[0]
    about = dict(list_recipes())[name]
    assert header.startswith(f"# {about}\n")
    assert 20 < len(about) <= 64  # one line of `ddclip recipe list`
    for fact in ["Needs:", "Run:", "Override:", "Result:"]:
        assert header.count(f"# {fact}") == 1


@pytest.mark.parametrize("name", SHIPPED)
def test_commands_in_a_shipped_header_name_real_recipes_and_keys(name):
    header = library.shipped(name).read().split("\n\n")[0]
    for command_line in re.findall(r"ddclip [^\n]*", header):
        recipe = re.search(r"--recipe ([\w-]+)|recipe show ([\w-]+)", command_line)
        overrides = re.findall(r"[a-z_]+\.[a-z_.]+=\S+", command_line)
        load_recipe((recipe[1] or recipe[2]) if recipe else "four", [text.rstrip(").") for text in overrides])


def test_base_writes_out_every_default():
    assert load_recipe("base") == Recipe()
    assert set(resolve("base").origins.values()).isdisjoint({"default"})


def test_variants_of_four_change_only_their_names_and_what_they_are_about():
    four = flatten(load_recipe("four"))
    about = ("data.objects", "data.extra.", "model.cross_view_from", "train.trainable_from")
    for name in VARIANTS:
        other = flatten(load_recipe(name))
        changed = {key for key in other if other[key] != four.get(key)} - {"model.checkpoint", "retrieve.index"}
        assert changed
        assert all(key.startswith(about) for key in changed)


def test_extra_batches_are_the_papers():
    assert load_recipe("four-mvpnet").data.extra.batch_size == 400 // 12 * 4
    assert load_recipe("four-mvimgnet").data.extra.batch_size == 400 // 4 * 4


def test_recipes_lie_inside_a_wheel_and_beside_the_package_in_a_checkout(here, monkeypatch):
    assert library.recipes_dir() == Path(library.__file__).resolve().parents[2] / "recipes"
    package = here / "site-packages" / "ddclip_cli"
    (package / "recipes").mkdir(parents=True)
    (package / "recipes" / "only.yaml").write_text("# the only one\nseed: 7\n")
    monkeypatch.setattr(library, "PACKAGE", package)
    assert library.recipes_dir() == package / "recipes"
    assert list_recipes() == [("only", "the only one")]
    assert load_recipe("only").seed == 7


# How files and overrides combine


def test_a_child_changes_its_parents_keys_and_overrides_change_both():
    Path("parent.yaml").write_text("extends: base\ntrain:\n  epochs: 3\n  batch_size: 8\n")
    Path("child.yaml").write_text("# c\ntrain:\n  epochs: 4\nextends: parent.yaml\n")
    resolved = resolve("child.yaml", ["train.crop=none"])
    train = resolved.recipe.train
    assert (train.epochs, train.batch_size, train.crop, train.num_views) == (4, 8, "none", (1, 6))
    assert resolved.origins["train.epochs"] == "child.yaml:3"
    assert resolved.origins["train.batch_size"] == "parent.yaml:4"
    assert resolved.origins["train.crop"] == "--set train.crop=none"
    assert resolved.origins["seed"].startswith("recipes/base.yaml:")


def test_a_parents_path_is_relative_to_the_child():
    Path("a/b").mkdir(parents=True)
    Path("a/parent.yaml").write_text("seed: 9\n")
    Path("a/b/child.yaml").write_text("extends: ../parent.yaml\n")
    resolved = resolve("a/b/child.yaml")
    assert resolved.recipe.seed == 9
    assert resolved.origins["seed"] == "a/parent.yaml:1"


def test_a_name_is_ours_even_beside_a_file_of_that_name():
    Path("base.yaml").write_text("seed: 9\n")
    Path("mine.yaml").write_text("extends: base\n")
    Path("other.yaml").write_text("extends: base.yaml\n")
    assert load_recipe("mine.yaml").seed == 123
    assert load_recipe("other.yaml").seed == 9


def test_null_takes_a_section_away_and_a_key_brings_it_back():
    assert load_recipe("four-mvpnet", ["data.extra=null"]).data.extra is None
    assert load_recipe("four-mvpnet", ["data.extra.batch_size=9"]).data.extra.objects == "mvpnet_train_model_ids.txt"
    again = ["data.extra=null", "data.extra={store: s, image_targets: i, text_targets: t, batch_size: 1}"]
    extra = load_recipe("four-mvpnet", again).data.extra
    assert (extra.store, extra.objects) == ("s", None)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.learning_rate=5e-5", "train.learning_rate", 5e-5),
        ("train.learning_rate=1", "train.learning_rate", 1.0),
        ("train.learning_rate=.5E-3", "train.learning_rate", 5e-4),
        ("train.num_views=[1, 6]", "train.num_views", [1, 6]),
        ("train.num_views=1,6", "train.num_views", [1, 6]),
        ("eval.views=1,6,12", "eval.views", [1, 6, 12]),
        ("eval.views=12", "eval.views", [12]),
        ("eval.templates=a {}, seen from afar", "eval.templates", ["a {}, seen from afar"]),
        ("eval.templates=['a {}', 'one {}']", "eval.templates", ["a {}", "one {}"]),
        ("model.checkpoint=null", "model.checkpoint", None),
        ("model.checkpoint=", "model.checkpoint", None),
        ("model.checkpoint='null'", "model.checkpoint", "null"),
        ("data.store=runs/a=b.h5", "data.store", "runs/a=b.h5"),
        ("data.store=no", "data.store", "no"),
        ("data.store=2024-01-01", "data.store", "2024-01-01"),
        ("data.store=sample:train.h5", "data.store", "sample:train.h5"),
        (" seed =7", "seed", 7),
    ],
)
def test_override_values(override, key, value):
    assert flatten(load_recipe("base", [override]))[key] == value


def test_the_last_of_equal_overrides_counts():
    assert load_recipe("base", ["seed=1", "seed=2"]).seed == 2


def test_aliases_of_single_values_work():
    Path("mine.yaml").write_text("eval: {seed: &s 5}\nseed: *s\n")
    assert load_recipe("mine.yaml").seed == 5


def test_a_recipe_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        load_recipe("base").train.epochs = 3  # type: ignore[misc]


def test_a_saved_recipe_is_the_recipe():
    for name in SHIPPED:
        recipe = load_recipe(name)
        assert Recipe.model_validate(json.loads(json.dumps(recipe.model_dump(mode="json")))) == recipe


@pytest.mark.parametrize("name", SHIPPED)
def test_what_show_prints_is_the_same_recipe(name):
    resolved = resolve(name, ["seed=5"])
    Path("shown.yaml").write_text(as_yaml(resolved), encoding="utf-8")
    assert load_recipe("shown.yaml") == resolved.recipe


def test_any_values_survive_show_and_load():
    random_ = random.Random(0)
    odd = [*"'\"~1%@=\t\x00\x85\n", "5e-5", "null", "true", "-.inf", "010", "#x", "a: b", "- a", "a # b", "é☃", " x "]
    odd += ["*a", "&a", "!t", "{}", "[1", "no", "0x10", "1_000", "...", "---", "<<"]
    for _ in range(60):
        text = "".join(random_.choices(odd, k=random_.randint(1, 3)))
        rate = random_.choice([0.0, 1e-300, 1.5, 1e22, 123456.789, random_.random() * 10 ** random_.randint(-9, 9)])
        recipe = Recipe.model_validate(
            {
                "seed": random_.randrange(10**9),
                "data": {"store": text, "objects": random_.choice([None, text])},
                "train": {"learning_rate": rate},
                "eval": {"templates": [text.replace("{}", "") + "{}"] * 2, "views": [random_.randint(1, 99)]},
            }
        )
        resolved = resolve("base")
        shown = as_yaml(type(resolved)(recipe, resolved.origins))
        Path("shown.yaml").write_text(shown, encoding="utf-8")
        assert load_recipe("shown.yaml") == recipe, shown


@pytest.mark.parametrize("text", ["5e-5", "true", "", "~", "12", "1.", "-.5e3", "off", "1:30", "0o7", "+1", ".nan"])
def test_text_that_looks_like_something_else_is_written_in_quotes(text):
    assert scalar(parse(write(text))) == text  # type: ignore[arg-type]


def test_show_names_the_origin_of_every_value():
    lines = as_yaml(resolve("four", ["train.epochs=1"])).splitlines()
    values = [line for line in lines if not line.endswith(":")]
    assert len(values) == len(flatten(load_recipe("four")))
    number = next(i for i, line in enumerate(library.shipped("four").read().splitlines(), 1) if "bs1600:" in line)
    assert any(re.fullmatch(rf"  batch_size: 1600 +# recipes/four.yaml:{number}", line) for line in values)
    assert any(re.fullmatch(r"  epochs: 1 +# --set", line) for line in values)
    assert {line.rindex("  # ") for line in values if len(line.split("  # ")[0].rstrip()) <= 56} == {56}
    Path("bare.yaml").write_text("seed: 1\n")
    assert "epochs: 80" in (shown := as_yaml(resolve("bare.yaml")))
    assert re.search(r"epochs: 80 +# default\n", shown)


# Paths


def test_data_paths(here, monkeypatch):
    assets = here / "assets"
    (assets / "model").mkdir(parents=True)
    monkeypatch.setattr(shipped, "ASSETS", assets)
    assert data_path("mv_images.h5", Path("data")) == Path("data/mv_images.h5")
    assert data_path(str(here / "x.h5"), Path("data")) == here / "x.h5"
    assert data_path("~/x.h5", Path("data")) == Path.home() / "x.h5"
    assert data_path("sample:model", Path("data")) == assets / "model"
    with pytest.raises(UserError) as caught:
        data_path("sample:modle", Path("data"))
    assert str(caught.value) == (
        "'sample:modle' is not shipped with this ddclip (sample:model): correct the name, or reinstall"
    )
    with pytest.raises(UserError, match="leads outside the files shipped with ddclip"):
        data_path("sample:../../etc/passwd", Path("data"))


# The command


def run(*arguments: str):
    return CliRunner().invoke(command, list(arguments))


def test_list_command():
    result = run("list")
    assert result.exit_code == 0
    for name, about in list_recipes():
        assert re.search(rf"^ *{name} +{re.escape(about)}", result.stdout, re.MULTILINE)
    assert [entry["name"] for entry in json.loads(run("list", "--json").stdout)] == SHIPPED


def test_show_command_prints_yaml_or_json():
    result = run("show", "sample", "train.epochs=1", "--set", "eval.views=1,12")
    assert result.exit_code == 0
    assert re.search(r"^  epochs: 1 +# --set$", result.stdout, re.MULTILINE)
    as_json = json.loads(run("show", "sample", "train.epochs=1", "--set", "eval.views=1,12", "--json").stdout)
    assert Recipe.model_validate(as_json) == load_recipe("sample", ["train.epochs=1", "eval.views=1,12"])


def test_check_command():
    Path("mine.yaml").write_text("extends: four\n")
    result = run("check", "mine.yaml")
    assert (result.exit_code, result.stdout) == (0, "mine.yaml: OK\n")
    Path("mine.yaml").write_text("extends: four\nsed: 1\n")
    assert run("check", "mine.yaml").exit_code != 0


def ddclip(*arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(library.__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, "-m", "ddclip_cli", *arguments],
        capture_output=True, text=True, env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"}, check=False,
    )  # fmt: skip


def test_the_program_shows_a_recipe_and_refuses_a_wrong_one():
    shown = ddclip("recipe", "show", "sample", "train.epochs=1")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "  # recipes/sample.yaml:" in shown.stdout
    refused = ddclip("recipe", "show", "sample", "train.epchs=1")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--set train.epchs=1: unknown key 'train.epchs', did you mean 'train.epochs'?" in refused.stderr
