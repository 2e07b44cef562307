"""Class features from names: lists of classes, prompt templates, and the command that encodes them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny import run, tiny_model

from ddclip_cli.data.labels import Labels
from ddclip_cli.errors import UserError
from ddclip_cli.evaluation.class_features import class_features, clean_name, make_class_features, read_class_names
from ddclip_cli.evaluation.templates import SETS, read_templates


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


def test_names_are_said_clean_or_as_they_are_written(model):
    assert clean_name("bat_(animal)") == "bat (animal)"
    assert clean_name(" Band_Aid_") == "Band Aid"
    made = make_class_features(model, ["bat_(animal)"], ["a {}"], clean=False)
    torch.testing.assert_close(made, model.encode_text(["a bat_(animal)"]))
    assert not torch.allclose(made, make_class_features(model, ["bat_(animal)"], ["a {}"]))


def test_features_are_averaged_with_or_without_their_lengths(model):
    texts = ["a mug", "a 3D model of a mug"]
    plain = model.text_features(texts)
    raw = make_class_features(model, ["mug"], ["a {}", "a 3D model of a {}"], normalise=False)[0]
    torch.testing.assert_close(raw, plain.mean(dim=0))
    unit = make_class_features(model, ["mug"], ["a {}", "a 3D model of a {}"])[0]
    torch.testing.assert_close(unit, (plain / plain.norm(dim=1, keepdim=True)).mean(dim=0))


def test_many_classes_are_encoded_as_one_by_one(model):
    names, templates = [f"thing {i}" for i in range(7)], [f"{i} {{}}" for i in range(100)]
    each = torch.cat([make_class_features(model, [name], templates) for name in names])
    torch.testing.assert_close(make_class_features(model, names, templates), each)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("mug\nwhite couch\n", ["mug", "white couch"]),
        ("\ufeffmug\r\nlamp, tall\r\n\r\n", ["mug", "lamp, tall"]),
        ("0,bag\n1,bottle\n5,lamp, tall\n", ["bag", "bottle", "lamp, tall"]),
        ("3d printer\n2\n", ["3d printer", "2"]),
    ],
)
def test_class_names_of_a_text_file(tmp_path, text, names):
    (tmp_path / "classes.txt").write_bytes(text.encode())
    assert read_class_names(tmp_path / "classes.txt") == names


def test_class_names_of_labels(tmp_path):
    (tmp_path / "labels.csv").write_text("1,mug,a\n0,couch,b\n")
    assert read_class_names(tmp_path / "labels.csv") == ["couch", "mug"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names no class"),
        (b"mug\n\nlamp\n", ":2: the class has no name"),
        (b"0,mug\n1,\n", ":2: the class has no name"),
        (b"mug\nlamp\nmug\n", ":3: class 'mug' is in line 1 already"),
        (b"\xff\xfe\xfa", "not UTF-8"),
    ],
)
def test_lists_that_are_none(tmp_path, content, message):
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_class_names(tmp_path / "classes.txt")


def test_all_names_of_a_list_fill_the_gaps_of_the_labels(model, tmp_path, capsys):
    labels = Labels(["a", "b"], np.array([0, 2]), ["mug", "", "tall_lamp"])
    (tmp_path / "classes.txt").write_text("mug\ncouch\ntall lamp\nchair\n")
    features, names = class_features(tmp_path / "classes.txt", labels, model, ["a {}"])
    assert names == ["mug", "couch", "tall lamp", "chair"]
    torch.testing.assert_close(features, make_class_features(model, names, ["a {}"]))
    assert capsys.readouterr().err == ""
    (tmp_path / "classes.txt").write_text("mug\nlamp\ncouch\n")
    class_features(tmp_path / "classes.txt", labels, model, ["a {}"])
    assert "class 2 is 'tall_lamp' there and 'couch' here" in capsys.readouterr().err


# ---- templates


@pytest.mark.parametrize("name", SETS)
def test_every_set_has_one_place_a_template_and_none_twice(name):
    templates = read_templates(name)
    assert all(template.count("{}") == 1 for template in templates)
    assert len(set(templates)) == len(templates)


def test_templates_of_ones_own(tmp_path):
    (tmp_path / "mine.txt").write_text("a {} of wood\n\n{}!\n")
    assert read_templates(str(tmp_path / "mine.txt")) == ["a {} of wood", "{}!"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a thing\n", ":1: 'a thing' has not one {}"),
        (b"ok {}\n{} {}\n", ":2: "),
        (b"\n", "no template"),
        (b"\xff", "text"),
    ],
)
def test_templates_that_are_none(tmp_path, content, message):
    (tmp_path / "mine.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_templates(str(tmp_path / "mine.txt"))


# ---- the command


@pytest.fixture
def options(tmp_path, model):
    from ddclip_cli.model.checkpoints import save_checkpoint

    save_checkpoint(model, tmp_path / "checkpoint")
    (tmp_path / "classes.txt").write_text("bat_(animal)\nmug\n")
    (tmp_path / "mine.txt").write_text("one {}\nmy {}\n")
    return [tmp_path / "classes.txt", "--checkpoint", tmp_path / "checkpoint", "--device", "cpu"]


def test_command_writes_features_and_what_made_them(tmp_path, options, model):
    out = tmp_path / "classes.npy"
    result = run("encode-classes", *options, "--templates", tmp_path / "mine.txt", "--out", out)
    assert (result.code, result.out) == (0, ""), result.err
    expected = make_class_features(model, ["bat_(animal)", "mug"], ["one {}", "my {}"])
    np.testing.assert_allclose(np.load(out), expected.numpy(), rtol=1e-6)
    made_by = json.loads((tmp_path / "classes.json").read_text())
    assert made_by["classes"] == ["bat_(animal)", "mug"]
    assert made_by["templates"] == ["one {}", "my {}"]
    assert (made_by["names"], made_by["normalised"]) == ("clean", True)
    assert made_by["fingerprint"] == model.fingerprint

    refused = run("encode-classes", *options, "--out", out)
    assert refused.code == 1
    assert "exists already" in refused.err
    raw = run("encode-classes", *options, "--out", out, "--force", "--names", "raw", "--no-normalise")
    assert raw.code == 0, raw.err
    expected = make_class_features(model, ["bat_(animal)", "mug"], SETS["short"], normalise=False, clean=False)
    np.testing.assert_allclose(np.load(out), expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--out", "classes.h5"], 2, "an .npy file, which classes.h5 is not called"),
        (
            ["--out", "x.npy", "--templates", "nmae"],
            2,
            "no set of templates 'nmae' and no such file; the sets are name,",
        ),
        (["--out", "x.npy", "--checkpoint", "nowhere"], 1, "nowhere"),
    ],
)
def test_command_refuses_in_one_sentence(tmp_path, options, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    result = run("encode-classes", *options, *arguments)
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert result.err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
