"""Training targets: made by the frozen backbone, read by row and view, drawn by the reference's rule."""

from __future__ import annotations

import gc
import json
import os
import pickle
import resource
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ddclip_cli.data.captions import read_captions
from ddclip_cli.data.encode import Encoder, encode_targets
from ddclip_cli.data.pack import pack_store
from ddclip_cli.data.safe_pickle import read_pickled_dict
from ddclip_cli.data.targets import ImageTargets, PerViewTextTargets
from ddclip_cli.data.text_targets import BLIP, MSFT, RETRIEVAL, TEXT, TextTargets, choose_caption
from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.errors import UserError

DATA = Path(__file__).parent / "data" / "reference_formats" / "dataset" / "data"
FEATURES = DATA / "ViT-B-32_laion2b_s34b_b79k"
CAPTIONS = {
    "a": "a red chair",
    "b": ["a blue mug", "a red chair", " "],
    "c": {"text": ["a table"], "blip": "a wooden table", "msft": "furniture", "retrieval": ["table for sale", "desk"]},
    "unpacked": "something else",
}


@pytest.fixture
def store(tmp_path) -> Path:
    views = np.random.default_rng(2).integers(0, 256, (3, 4, 3, 40, 40)).astype(np.uint8)
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["imgs"] = views
        file.create_dataset("ids", data=["b", "a", "c"], dtype=h5py.string_dtype())
    return tmp_path / "s.h5"


@pytest.fixture
def captions(tmp_path) -> Path:
    return write_json(tmp_path / "captions.json", CAPTIONS)


def write_json(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def says(action, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        action()
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence
    return sentence


# --- made ... ----------------------------------------------------------------------------------------------------


def test_targets_are_what_the_backbone_says_of_each_view_and_text(tiny_model, store, captions, tmp_path):
    assert encode_targets(Encoder(tiny_model), store, captions, tmp_path / "t", batch_size=2) == (3, 8)
    views = torch.from_numpy(ViewStore(store).read([0, 1, 2], range(4)))
    with torch.no_grad():
        expected = tiny_model.view_features(tiny_model.to_pixels(views, crop="none").flatten(0, 1)).reshape(3, 4, 12)
        texts = ["a blue mug", "a red chair", "a red chair", "a table", "a wooden table", "furniture"]
        expected_texts = tiny_model.text_features([*texts, "table for sale", "desk"])
    with h5py.File(tmp_path / "t" / "image_embeddings.h5") as file:
        assert file["img_feat"].dtype == np.float16
        assert file["ids"].asstr()[()].tolist() == ["b", "a", "c"]
        assert json.loads(file.attrs["made_by"])["fingerprint"] == tiny_model.fingerprint
        np.testing.assert_allclose(file["img_feat"][()], expected.numpy(), rtol=2e-3, atol=1e-4)
    with h5py.File(tmp_path / "t" / "text_embeddings.h5") as file:
        assert file["features"].dtype == np.float16
        np.testing.assert_allclose(file["features"][()], expected_texts.numpy(), rtol=2e-3, atol=1e-4)
        assert file["kind"][()].tolist() == [TEXT] * 4 + [BLIP, MSFT, RETRIEVAL, RETRIEVAL]
        assert file["offsets"][()].tolist() == [0, 2, 3, 8]


def test_the_batch_size_does_not_change_the_targets(tiny_model, store, captions, tmp_path):
    for size in (1, 3):
        encode_targets(Encoder(tiny_model), store, captions, tmp_path / str(size), batch_size=size)
    one, three = (ImageTargets(tmp_path / str(size) / "image_embeddings.h5").read([0, 1, 2], [0, 3]) for size in (1, 3))
    np.testing.assert_allclose(one, three, rtol=2e-3, atol=1e-4)


def test_targets_that_exist_need_force(tiny_model, store, captions, tmp_path):
    encode_targets(Encoder(tiny_model), store, captions, tmp_path / "t")
    says(lambda: encode_targets(Encoder(tiny_model), store, captions, tmp_path / "t"), "exists already", "--force")
    encode_targets(Encoder(tiny_model), store, captions, tmp_path / "t", force=True)


def test_a_failure_leaves_nothing(tiny_model, store, captions, tmp_path, monkeypatch):
    def broken(pixels):
        return torch.full((len(pixels), 12), torch.nan)

    monkeypatch.setattr(tiny_model, "view_features", broken)
    says(lambda: encode_targets(Encoder(tiny_model), store, captions, tmp_path / "t"), "no finite numbers")
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["text_embeddings.h5"]  # which is whole


@pytest.mark.parametrize("limit", [0, 100, 500, 1000, 3000, 4000, 5000])
def test_a_disk_that_fills_up(tiny_model, store, captions, tmp_path, limit):
    """Wherever it fills up: within HDF5's own bookkeeping, within the features, as the file is closed."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        encode = lambda: encode_targets(Encoder(tiny_model), store, captions, tmp_path / "t")  # noqa: E731
        says(encode, "could not be written", "make room")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    gc.collect()  # what a broken file leaves behind would crash here
    assert not (tmp_path / "t" / "image_embeddings.h5").exists()
    encode()
    encode_targets(Encoder(tiny_model), store, captions, tmp_path / "whole")
    assert content(tmp_path / "t") == content(tmp_path / "whole")


def test_every_object_needs_a_caption(tiny_model, store, tmp_path):
    path = write_json(tmp_path / "captions.json", {"a": "", "b": [], "c": "a table"})
    says(
        lambda: encode_targets(Encoder(tiny_model), store, path, tmp_path / "t"),
        "no caption for 2 of the 3 objects",
        "b, a",
    )
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("document", "word"),
    [
        (["a", "b"], "must be an object"),
        ({"a": 3}, "object 'a' has 3 as"),
        ({"a": ["x", 3]}, "object 'a'"),
        ({"a": {"txt": "x"}}, "unknown kind 'txt'"),
        ({"a": {"blip": ["x", "y"]}}, "must be one text"),
    ],
)
def test_bad_captions_name_the_object(tmp_path, document, word):
    says(lambda: read_captions(write_json(tmp_path / "c.json", document)), "c.json", word)


# --- ... and read ------------------------------------------------------------------------------------------------


def test_image_targets_average_exactly_the_given_views():
    with h5py.File(FEATURES / "image_embeddings.h5") as file:
        features = file["img_feat"][()].astype(np.float64)
    targets = ImageTargets(FEATURES / "image_embeddings.h5")
    rows, views = np.array([4, 1]), np.array([0, 7, 11])
    read = targets.read(rows, views)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, features[rows][:, views].mean(axis=1), rtol=1e-6)
    assert targets.num_views == 12
    assert targets.rows(["sup3_1", "sup3_0"]).tolist() == [3, 0]  # from model_to_idx.json, one folder up


def test_text_features_of_views_are_read_like_those_of_pictures(tmp_path):
    features = np.random.default_rng(3).normal(size=(2, 12, 6)).astype(np.float16)
    with h5py.File(tmp_path / "mvimgnet_embeddings.h5", "w") as file:
        file["text_feat"] = features
    read = PerViewTextTargets(tmp_path / "mvimgnet_embeddings.h5").read([1], [2, 5])
    np.testing.assert_allclose(read, features[[1]][:, [2, 5]].astype(np.float64).mean(axis=1), rtol=1e-6)
    says(lambda: ImageTargets(tmp_path / "mvimgnet_embeddings.h5"), "no dataset 'img_feat'")


@pytest.mark.parametrize("features", [np.zeros((2, 3), np.float16), np.zeros((2, 3, 4), np.int16)])
def test_image_targets_of_the_wrong_form(tmp_path, features):
    with h5py.File(tmp_path / "i.h5", "w") as file:
        file["img_feat"] = features
    says(lambda: ImageTargets(tmp_path / "i.h5"), "'img_feat'", str(features.shape))


def draws(targets: TextTargets, object_id: str, count: int = 4000) -> np.ndarray:
    return targets.draw([object_id] * count, np.random.default_rng(5))


def test_the_reference_text_file_is_drawn_by_its_rule():
    """Shares of every feature in many draws, against the rule worked out by hand."""
    targets = TextTargets(FEATURES / "text_embeddings.npy")
    document = np.load(FEATURES / "text_embeddings.npy", allow_pickle=True).item()  # a file of our own making
    object_id = "03000000000000000000000000000001"
    entry = document[object_id]  # 5 texts, a BLIP and an MSFT caption, 2 retrieved texts
    shares = [(feature, 1 / 3 / 5) for feature in entry["text_feat"]]
    shares += [(entry["blip_caption_feat"], 1 / 6), (entry["msft_caption_feat"], 1 / 6)]
    shares += [(feature, 1 / 3 / 2) for feature in entry["retrieval_text_feat"]]
    drawn = draws(targets, object_id)
    assert drawn.dtype == np.float32
    for feature, share in shares:
        assert (drawn == feature.astype(np.float32)).all(axis=1).mean() == pytest.approx(share, abs=0.025)


def test_a_caption_that_is_missing_is_a_candidate_less():
    """No texts and no BLIP caption: MSFT in a quarter of the draws, when the coin falls its way."""
    document = np.load(FEATURES / "text_embeddings.npy", allow_pickle=True).item()
    object_id = "03000000000000000000000000000002"
    drawn = draws(TextTargets(FEATURES / "text_embeddings.npy"), object_id)
    msft = document[object_id]["msft_caption_feat"].astype(np.float32)
    assert (drawn == msft).all(axis=1).mean() == pytest.approx(0.25, abs=0.025)


def test_choose_caption():
    kinds = np.array([TEXT, TEXT, BLIP, MSFT, RETRIEVAL, RETRIEVAL])
    assert choose_caption(kinds, np.array([0.0, 0, 0, 0])) == 0
    assert choose_caption(kinds, np.array([0.9, 0, 0, 0])) == 1
    assert choose_caption(kinds, np.array([0.0, 0.49, 0, 0.5])) == 2
    assert choose_caption(kinds, np.array([0.0, 0.5, 0, 0.5])) == 3
    assert choose_caption(kinds, np.array([0.0, 0, 0.4, 0.99])) == 4
    assert choose_caption(kinds, np.array([0.0, 0, 0.6, 0.99])) == 5
    assert choose_caption(np.array([BLIP]), np.array([0.5, 0.9, 0.5, 0.5])) == 0  # the coin chose the one it lacks


def test_draws_depend_on_the_generator_and_the_place_alone(tiny_model, store, captions, tmp_path):
    encode_targets(Encoder(tiny_model), store, captions, tmp_path / "t")
    targets = TextTargets(tmp_path / "t" / "text_embeddings.h5")
    first = targets.draw(["a", "c", "b"], np.random.default_rng(9))
    assert np.array_equal(first, targets.draw(["a", "c", "b"], np.random.default_rng(9)))
    assert np.array_equal(first[1:], targets.draw(["b", "c", "b"], np.random.default_rng(9))[1:])
    many = ["c"] * 50
    assert not np.array_equal(
        targets.draw(many, np.random.default_rng(9)), targets.draw(many, np.random.default_rng(10))
    )
    assert np.array_equal(first, pickle.loads(pickle.dumps(targets)).draw(["a", "c", "b"], np.random.default_rng(9)))
    says(lambda: targets.draw(["a", "zebra"], np.random.default_rng(0)), "zebra")


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("offsets", np.array([0, 2, 9], np.int64), "do not fit"),
        ("offsets", np.array([0, 3, 2], np.int64), "do not fit"),
        ("offsets", np.array([0, 0, 3], np.int64), "do not fit"),
        ("offsets", np.array([0.0, 1, 3]), "'offsets'"),
        ("kind", np.array([0, 0, 4], np.uint8), "do not fit"),
        ("kind", np.zeros(2, np.uint8), "'kind'"),
        ("features", np.zeros((3, 4), np.int32), "'features'"),
        ("features", np.zeros((0, 4), np.float16), "'features'"),
    ],
)
def test_text_targets_of_the_wrong_form(tmp_path, name, data, word):
    good = {
        "features": np.zeros((3, 4), np.float16),
        "kind": np.zeros(3, np.uint8),
        "offsets": np.array([0, 1, 3], np.int64),
    }
    with h5py.File(tmp_path / "t.h5", "w") as file:
        for key, value in (good | {name: data}).items():
            file[key] = value
        file.create_dataset("ids", data=["a", "b"], dtype=h5py.string_dtype())
    says(lambda: TextTargets(tmp_path / "t.h5"), "t.h5", word)


def test_text_targets_that_claim_more_than_the_file_can_hold(tmp_path):
    texts = 10**12
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file.create_dataset("features", (texts, 4), np.float16, chunks=(8, 4))
        file.create_dataset("kind", (texts,), np.uint8, chunks=(8,))
        file["offsets"] = np.array([0, texts], np.int64)
        file["ids"] = ["a"]
    says(lambda: TextTargets(tmp_path / "t.h5"), "'features' claims")


def test_targets_know_their_backbone(tiny_model, store, captions, tmp_path):
    encode_targets(Encoder(tiny_model), store, captions, tmp_path / "t")
    path = tmp_path / "t" / "image_embeddings.h5"
    assert ImageTargets(path).backbone_fingerprint == tiny_model.fingerprint
    for record in ("{", "[]", 3):
        with h5py.File(path, "r+") as file:
            file.attrs["made_by"] = record
        assert ImageTargets(path).backbone_fingerprint is None
    assert ImageTargets(FEATURES / "image_embeddings.h5").backbone_fingerprint is None


# --- pickles of others -------------------------------------------------------------------------------------------


class Payload:
    """Pickles as a call."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def save_pickled(path: Path, document: object) -> Path:
    array = np.empty((), dtype=object)
    array[()] = document
    np.save(path, array, allow_pickle=True)
    return path


@pytest.mark.parametrize("version", ["numpy._core.multiarray", "numpy.core.multiarray"])
def test_arrays_come_out_of_a_pickle_as_they_went_in(tmp_path, version):
    rng = np.random.default_rng(4)
    arrays: list[np.ndarray] = [
        rng.normal(size=(2, 3)),
        np.asfortranarray(rng.normal(size=(4, 5)).astype(np.float16)),
        np.arange(3),
    ]
    big_endian = np.arange(4, dtype=">f4")
    path = save_pickled(tmp_path / "p.npy", {"arrays": [*arrays, big_endian, np.zeros(0, np.float16)]})
    # The file of another numpy differs by the name of one module.
    content = path.read_bytes().replace(b"\x8c\x16numpy._core.multiarray", _short_string(version.encode()))
    path.write_bytes(_without_frames(content))
    read = [array.value for array in read_pickled_dict(path)["arrays"]]
    for array, back in zip([*arrays, big_endian, np.zeros(0, np.float16)], read, strict=True):
        assert np.array_equal(array, back)
        assert array.dtype == back.dtype


def _short_string(text: bytes) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text


def _without_frames(content: bytes) -> bytes:
    """Frame opcodes hold lengths, which an edit makes wrong; they may be left out."""
    start = content.index(b"\x80\x04\x95")
    return content[: start + 2] + content[start + 11 :]


@pytest.mark.parametrize(
    "make",
    [
        lambda mark: Payload(os.system, f"touch {mark}"),
        lambda mark: Payload(eval, f"open({str(mark)!r}, 'w')"),
        lambda mark: Payload(open, str(mark), "w"),
        lambda mark: Payload(np.save, str(mark), np.zeros(1)),
        lambda mark: Payload(getattr, "text", "upper"),
        lambda mark: Payload(np.load, str(mark)),
    ],
)
def test_a_pickle_that_calls_something_is_refused(tmp_path, make):
    mark = tmp_path / "ran.npy"
    path = save_pickled(tmp_path / "p.npy", {"a": {"text_feat": [make(mark)]}})
    says(lambda: TextTargets(path), "p.npy", "refused")
    assert not mark.exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Payload(np.ndarray, (10**12,)),  # a huge size that no bytes stand for
        lambda: Payload(np.dtype, "U99999999"),
        lambda: np.zeros(2, dtype=[("x", "f4")]),
        lambda: np.zeros(2, dtype="U3"),
    ],
)
def test_arrays_of_another_make_are_refused(tmp_path, make):
    path = save_pickled(tmp_path / "p.npy", {"a": {"text_feat": [make()]}})
    says(lambda: TextTargets(path), "p.npy", "is no pickled dict of numpy arrays")


def test_an_array_with_fewer_bytes_than_its_shape_says(tmp_path):
    path = save_pickled(tmp_path / "p.npy", {"a": {"text_feat": [np.zeros(37, np.float16)]}})
    path.write_bytes(path.read_bytes().replace(b"K%", b"K&"))  # the pickled number 37 -> 38
    says(lambda: TextTargets(path), "wrong length")


@pytest.mark.parametrize(
    ("document", "word"),
    [
        ({}, "no object"),
        ([1], "no dict"),
        ({"a": 3}, "'a' has no features"),
        ({"a": {}}, "'a' has no features"),
        ({3: {}}, "'3' has no features"),
        ({"a": {"text_feat": "x"}}, "'a' has no features"),
        ({"a": {"text_feat": [np.zeros((2, 2))]}}, "'a' has no features"),
        ({"a": {"text_feat": [np.zeros(2)]}, "b": {"text_feat": [np.zeros(3)]}}, "'b' has a feature of (3,)"),
    ],
)
def test_pickles_without_features(tmp_path, document, word):
    says(lambda: TextTargets(save_pickled(tmp_path / "p.npy", document)), "p.npy", word)


def test_damaged_pickles(tmp_path):
    whole = (FEATURES / "text_embeddings.npy").read_bytes()
    path = tmp_path / "p.npy"
    for length in (0, 5, 60, 130, 500, len(whole) - 1):
        path.write_bytes(whole[:length])
        says(lambda: TextTargets(path), "p.npy", "damaged")
    np.save(path, np.zeros(3))
    says(lambda: TextTargets(path), "plain array")
    says(lambda: TextTargets(tmp_path / "none.npy"), "cannot be opened")


# --- the commands ------------------------------------------------------------------------------------------------


def run(module: str, *arguments: object):
    import importlib

    import typer
    from typer.testing import CliRunner

    app = typer.Typer()
    app.command()(importlib.import_module(f"ddclip_cli.commands.{module}").command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_pack_and_encode_from_the_command_line(tmp_path, tiny_config_path):
    renders = DATA.parents[1] / "views_release"
    result = run("pack_h5", renders, "--out", tmp_path / "s.h5", "--num-views", 2, "--size", 32, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["objects"] == 3
    captions = write_json(tmp_path / "c.json", dict.fromkeys(ViewStore(tmp_path / "s.h5").ids, "a thing"))
    arguments = [tmp_path / "s.h5", "--captions", captions, "--out", tmp_path / "t", "--device", "cpu", "--json"]
    backbone = ["--set", f"model.backbone={tiny_config_path}", "--set", "model.pretrained=null"]
    result = run("encode_targets", *arguments, *backbone)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["width"] == 12
    assert ImageTargets(tmp_path / "t" / "image_embeddings.h5").read([0], [0, 1]).shape == (1, 12)
    with h5py.File(tmp_path / "t" / "text_embeddings.h5") as file:
        assert json.loads(file.attrs["made_by"])["recipe"]["model"]["pretrained"] is None
    again = run("encode_targets", *arguments, *backbone)
    assert isinstance(again.exception, UserError)


def test_a_store_from_packing_is_read_back(tmp_path):
    packed = pack_store(DATA.parents[1] / "views_release", tmp_path / "s.h5", num_views=3, image_size=16)
    assert ViewStore(tmp_path / "s.h5").ids == packed.object_ids
