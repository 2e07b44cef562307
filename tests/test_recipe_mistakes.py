"""Every mistake in a recipe has its sentence, with the file and line, and all of them are told at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from ddclip_cli.errors import UsageError
from ddclip_cli.recipe import Recipe, RecipeError, library, load_recipe
from ddclip_cli.recipe.keys import expectation, is_section, keys

NAMES = "base, four, four-all-blocks, four-averaging, four-mvimgnet, four-mvpnet, four-no-lvis, sample"
TOP = (
    "a recipe has extends, seed, render, pack, model, data, train, eval, mvpnet, scanobjectnn, text2shape, embed, "
    "retrieve"
)
EPOCHS = "'train.epochs' must be an integer, at least 1"
RATE = "'train.learning_rate' must be a number, at least 0"
RANGE = "'train.num_views' must be a list of two integers, each at least 1"
VIEWS = "'eval.views' must be a list of integers, each at least 1, not empty"
TEMPLATES = "'eval.templates' must be texts with one {} each, where the class name goes"
EXTENDS = "'extends' must be the name of one recipe, or a path beside this file"
SHAPE = "a recipe is made of 'key: value' lines"
NOT_YAML = "this is not YAML"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Recipes are written to, and named relative to, a folder of the test's own."""
    monkeypatch.chdir(tmp_path)


def problems(recipe: str, overrides: Sequence[str] = ()) -> list[str]:
    """The mistakes that loading a recipe reports."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, overrides)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return list(caught.value.problems)


def problems_of(text: str | bytes, overrides: Sequence[str] = ()) -> list[str]:
    Path("mine.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return problems("mine.yaml", overrides)


IN_A_FILE = [  # text, line, sentence
    # keys
    ("seed: 1\ntrain:\n  btch_size: 3\n", 3, "unknown key 'train.btch_size', did you mean 'train.batch_size'?"),
    ("trian:\n  epochs: 3\n", 1, "unknown key 'trian', did you mean 'train'?"),
    ("epochs: 3\n", 1, "unknown key 'epochs', did you mean 'train.epochs'?"),
    ("extend: four\n", 1, "unknown key 'extend', did you mean 'extends'?"),
    ("train: {lr: 1}\n", 1, "unknown key 'train.lr', did you mean 'train.learning_rate'?"),
    ("train: {index: 1}\n", 1, "unknown key 'train.index', did you mean 'retrieve.index'?"),
    ("\nembed: {qqq: 1}\n", 2, "unknown key 'embed.qqq'; 'embed' has num_views, crop"),
    ("qqq: 3\n", 1, f"unknown key 'qqq'; {TOP}"),
    ("<<: {seed: 3}\n", 1, f"unknown key '<<'; {TOP}"),
    ("1: 3\n", 1, f"unknown key '1'; {TOP}"),
    ("train.epochs: 3\n", 1, "'train.epochs' is written as 'epochs' inside the section 'train'"),
    ("seed: 1\nseed: 2\n", 2, "the key 'seed' stands here twice, first in line 1"),
    ("train:\n  epochs: 1\n\n  epochs: 1\n", 4, "the key 'train.epochs' stands here twice, first in line 2"),
    ("extends: four\nextends: base\n", 2, "the key 'extends' stands here twice, first in line 1"),
    ("? [a, b]\n: 3\n", 1, "a key must be one word (is a list)"),
    # values
    ("train:\n  epochs: abc\n", 2, f"{EPOCHS} (is 'abc')"),
    ("train:\n  epochs: '3'\n", 2, f"{EPOCHS} (is '3')"),
    ("train:\n  epochs: true\n", 2, f"{EPOCHS} (is true)"),
    ("train:\n  epochs: 3.0\n", 2, f"{EPOCHS} (is 3.0)"),
    ("train:\n  epochs: 0\n", 2, f"{EPOCHS} (is 0)"),
    ("train:\n  epochs:\n", 2, f"{EPOCHS} (is null)"),
    ("train:\n  epochs: [3]\n", 2, f"{EPOCHS} (is [3])"),
    ("train:\n  epochs: {a: 3}\n", 2, f"{EPOCHS} (is a section of keys)"),
    (f"train:\n  epochs: {'9' * 5000}\n", 2, f"{EPOCHS} (is '{'9' * 76}...)"),
    ("seed: -1\n", 1, "'seed' must be an integer, at least 0 (is -1)"),
    ("train: {learning_rate: fast}\n", 1, f"{RATE} (is 'fast')"),
    ("train: {learning_rate: true}\n", 1, f"{RATE} (is true)"),
    ("train: {learning_rate: -5e-5}\n", 1, f"{RATE} (is -5e-05)"),
    ("train: {learning_rate: .inf}\n", 1, f"{RATE} (is .inf)"),
    ("train: {learning_rate: .nan}\n", 1, f"{RATE} (is .nan)"),
    ("train: {learning_rate: 1e999}\n", 1, f"{RATE} (is .inf)"),
    ("train: {crop: middle}\n", 1, "'train.crop' must be one of none, center, random (is 'middle')"),
    ("train: {num_views: [6, 1]}\n", 1, "'train.num_views' must be [fewest, most] (is [6, 1])"),
    ("train: {num_views: 6}\n", 1, f"{RANGE} (is 6)"),
    ("train: {num_views: [1]}\n", 1, f"{RANGE} (is [1])"),
    ("train: {num_views: [1, 2, 3]}\n", 1, f"{RANGE} (is [1, 2, 3])"),
    ("train: {num_views: [0, x]}\n", 1, f"{RANGE} (is [0, x])"),
    (
        "train: {betas: [0.9, 1.0]}\n",
        1,
        "'train.betas' must be a list of two numbers, each at least 0 and below 1 (is [0.9, 1.0])",
    ),
    ("eval: {views: []}\n", 1, f"{VIEWS} (is [])"),
    ("eval: {views: [1, [2]]}\n", 1, f"{VIEWS} (is a list that holds a list)"),
    ("eval: {templates: [a chair]}\n", 1, f"{TEMPLATES} (is [a chair])"),
    ("eval: {templates: ['{} {x}']}\n", 1, f"{TEMPLATES} (is ['{{}} {{x}}'])"),
    ("data: {store: 12}\n", 1, "'data.store' must be text, not empty (is 12; put it in quotes)"),
    ("data: {store: ''}\n", 1, "'data.store' must be text, not empty (is '')"),
    ("data: {ids: [a]}\n", 1, "'data.ids' must be text, not empty, or null (is [a])"),
    ("embed: 12\n", 1, "'embed' is a section, which holds num_views, crop (is 12)"),
    ("embed:\n", 1, "'embed' is a section, which holds num_views, crop (is null)"),
    ("seed: !!python/object/apply:os.system [echo]\n", 1, "'seed' must be an integer, at least 0 (is [echo])"),
    ("seed: !!python/name:os.system\n", 1, "'seed': the tag 'tag:yaml.org,2002:python/name:os.system' is not allowed"),
    ("seed: !!int abc\n", 1, "'seed': 'abc' is not of the kind 'int'"),
    # files
    ("", 1, f"{SHAPE} (this one is empty)"),
    ("# nothing\n", 1, f"{SHAPE} (this one is empty)"),
    ("\n- seed\n", 2, f"{SHAPE} (this one is a list)"),
    ("seed\n", 1, f"{SHAPE} (this one is a single value)"),
    ("seed: 1\ntrain: epochs: 3\n", 2, f"{NOT_YAML}: mapping values are not allowed here"),
    ("train:\n\tepochs: 3\n", 2, f"{NOT_YAML}: found character '\\t' that cannot start any token"),
    ("seed: *other\n", 1, f"{NOT_YAML}: found undefined alias 'other'"),
    ("seed: 1\nmodel: \x07\n", 2, f"{NOT_YAML}: the character '\\x07' is not allowed"),
    ("[" * 5000, 1, f"{NOT_YAML}: nested too deeply"),
    (
        "train:\n  epochs: 3\n crop: none\n",
        3,
        f"{NOT_YAML}: expected <block end>, but found '<block mapping start>': check the indentation",
    ),
    (
        "seed: 1\n---\nseed: 2\n",
        2,
        f"{NOT_YAML}: expected a single document in the stream, but found another document",
    ),
    (b"seed: 1\ndata: {store: caf\xe9}\n", 2, "not UTF-8 text: save the file as UTF-8"),
    # parents
    (
        "extends: fuor\n",
        1,
        "no recipe is called 'fuor', did you mean 'four'? (your own: give the path of a .yaml file)",
    ),
    ("seed: 1\nextends: gone.yaml\n", 2, "there is no recipe file 'gone.yaml'"),
    ("extends: [base, four]\n", 1, EXTENDS),
    ("extends:\n", 1, EXTENDS),
    ("extends: ./mine.yaml\n", 1, "'extends' goes round in a circle: mine.yaml -> mine.yaml"),
]


@pytest.mark.parametrize(("text", "line", "sentence"), IN_A_FILE, ids=range(len(IN_A_FILE)))
def test_a_mistake_in_a_file(text, line, sentence):
    assert problems_of(text) == [f"mine.yaml:{line}: {sentence}"]


IN_AN_OVERRIDE = [
    ("train.epchs=1", "unknown key 'train.epchs', did you mean 'train.epochs'?"),
    ("train.epochs=abc", f"{EPOCHS} (is 'abc')"),
    ("train.epochs", "an override is KEY=VALUE, such as train.epochs=1"),
    ("=1", "an override is KEY=VALUE, such as train.epochs=1"),
    ("train.epochs.x=1", "unknown key 'train.epochs.x', did you mean 'train.epochs'?"),
    ("trian.epochs=1", "unknown key 'trian.epochs', did you mean 'train.epochs'?"),
    ("train=3", f"'train' is a section, which holds {', '.join(Recipe().train.model_dump())} (is 3)"),
    ("embed={num_views: 1, num_views: 2}", "the key 'embed.num_views' stands here twice, in one override"),
    ("extends=four", "'extends' belongs in a recipe file; choose the recipe with --recipe"),
    ("eval.views=1,,6", f"{VIEWS} (is [1, null, 6])"),
    ("eval.views=1-6", f"{VIEWS} (is [1-6])"),
    ("eval.views=", f"{VIEWS} (is [null])"),
    ("train.num_views=6,1", "'train.num_views' must be [fewest, most] (is [6, 1])"),
    (
        "eval.templates=a: {}",
        "'eval.templates' must be a list of texts, not empty (is a list that holds a section of keys)",
    ),
    ("data.store='x", "the value is not YAML: found unexpected end of stream (text may need quotes of its own)"),
]


@pytest.mark.parametrize(("override", "sentence"), IN_AN_OVERRIDE, ids=range(len(IN_AN_OVERRIDE)))
def test_a_mistake_in_an_override(override, sentence):
    assert problems("base", [override]) == [f"--set {override}: {sentence}"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("fuor", "no recipe is called 'fuor', did you mean 'four'? (your own: give the path of a .yaml file)"),
        ("zzz", f"no recipe is called 'zzz', there are {NAMES} (your own: give the path of a .yaml file)"),
        ("gone.yaml", "there is no recipe file 'gone.yaml'"),
        ("four.yaml", "there is no recipe file 'four.yaml'; the recipe of ours is called 'four'"),
        ("folder.yaml", "'folder.yaml' is a folder: give the .yaml file in it"),
        ("no/where", "there is no recipe file 'no/where'"),
    ],
)
def test_a_recipe_that_is_not_there(name, sentence):
    Path("folder.yaml").mkdir()
    assert problems(name) == [sentence]


def test_a_recipe_mistake_is_a_usage_error():
    with pytest.raises(UsageError) as caught:
        load_recipe("fuor")
    assert caught.value.exit_code == 2


def test_an_unreadable_recipe(monkeypatch):
    def deny(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(library, "open", deny, raising=False)
    assert problems_of("seed: 1\n") == ["mine.yaml: the recipe file can not be read: Permission denied"]


def test_a_recipe_file_that_is_far_too_large():
    assert problems_of(b"#" * 100_001) == ["mine.yaml: larger than 100,000 bytes, which no recipe is"]


def test_a_section_that_lacks_keys_is_told_where_it_was_opened():
    lacking = ["store", "image_targets", "text_targets"]
    told = [f"mine.yaml:2: 'data.extra.{key}' is missing, which 'data.extra' needs" for key in lacking]
    assert problems_of("data:\n  extra:\n    batch_size: 3\n") == told
    assert problems_of("data:\n  extra: {batch_size: 3}\n") == told
    assert len(problems_of("data:\n  extra: {}\n")) == 4
    override = "data.extra.batch_size=3"
    assert problems("base", [override]) == [sentence.replace("mine.yaml:2", f"--set {override}") for sentence in told]


def test_all_mistakes_are_told_at_once_those_of_parents_too():
    Path("parent.yaml").write_text("extends: base\ntrian: {}\ntrain:\n  crop: middle\n")
    text = "extends: parent.yaml\ntrain:\n  epochs: abc\n  btch_size: 3\nseed: 1\nseed: 2\n"
    assert problems_of(text, ["train.lr=1", "eval.views=0"]) == [
        "parent.yaml:2: unknown key 'trian', did you mean 'train'?",
        "mine.yaml:4: unknown key 'train.btch_size', did you mean 'train.batch_size'?",
        "mine.yaml:6: the key 'seed' stands here twice, first in line 5",
        "--set train.lr=1: unknown key 'train.lr', did you mean 'train.learning_rate'?",
        f"mine.yaml:3: {EPOCHS} (is 'abc')",
        "parent.yaml:4: 'train.crop' must be one of none, center, random (is 'middle')",
        f"--set eval.views=0: {VIEWS} (is [0])",
    ]


def test_a_broken_parent_does_not_hide_the_childs_mistakes():
    Path("parent.yaml").write_text("a: b: c\n")
    assert problems_of("extends: parent.yaml\nsed: 1\n") == [
        f"parent.yaml:1: {NOT_YAML}: mapping values are not allowed here",
        "mine.yaml:2: unknown key 'sed', did you mean 'seed'?",
    ]


def test_a_circle_of_three_is_named():
    Path("a.yaml").write_text("extends: b.yaml\n")
    Path("b.yaml").write_text("\nextends: ./mine.yaml\n")
    assert problems_of("seed: 1\nextends: a.yaml\n") == [
        "b.yaml:2: 'extends' goes round in a circle: mine.yaml -> a.yaml -> b.yaml -> mine.yaml"
    ]


@pytest.mark.parametrize("key", ["seed", "data.ids", "eval.views"])
def test_a_bomb_of_aliases_is_never_built(key):
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))]
    section, _, last = key.rpartition(".")
    told = problems_of("\n".join([*lines, f"{section}: {{{last}: *a29}}" if section else f"{last}: *a29"]))
    assert told[-1].endswith("(is a list that holds a list)")
    assert len(told) == 31  # this one, and 30 unknown keys


def test_every_key_says_what_it_must_be():
    for key in keys():
        assert is_section(key) or re.match(r"an? |one of |text", expectation(key)), key
