"""Encoding over several runs and processes: the same bytes, and a caption for every view."""

from __future__ import annotations

import gzip
import json
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from tiny import run, tiny_model, tiny_store

from ddclip_cli.data import encode, unfinished
from ddclip_cli.data.encode import Encoder, encode_targets, encode_view_targets
from ddclip_cli.data.targets import ImageTargets, PerViewTextTargets
from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.errors import UserError

IDS = [f"o{number}" for number in range(7)]


@pytest.fixture
def store(tmp_path) -> Path:
    return tiny_store(tmp_path / "s.h5", IDS)


@pytest.fixture
def captions(tmp_path) -> Path:
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({object_id: [f"thing {object_id}", "a thing"] for object_id in IDS}))
    return path


@pytest.fixture
def view_captions(tmp_path) -> Path:
    """Gzipped, as the reference's `packed.json.gz`, with objects that are not in the store."""
    path = tmp_path / "packed.json.gz"
    document = {object_id: [f"{object_id} from side {view}" for view in range(4)] for object_id in [*IDS, "other"]}
    path.write_bytes(gzip.compress(json.dumps(document).encode()))
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def load(folder: Path, number: int):
    return tiny_model(folder)


# --- a caption for every view ------------------------------------------------------------------------------------


def test_every_view_has_its_own_text(tmp_path, store, view_captions):
    model = tiny_model(tmp_path)
    assert encode_view_targets(Encoder(model), store, view_captions, tmp_path / "t", batch_size=3) == (7, 28)
    path = tmp_path / "t" / "mvimgnet_embeddings.h5"
    with torch.no_grad():
        views = torch.from_numpy(ViewStore(store).read(range(7), range(4)))
        pictures = model.view_features(model.to_pixels(views, crop="none").flatten(0, 1)).reshape(7, 4, -1)
        texts = model.text_features([f"{i} from side {view}" for i in IDS for view in range(4)]).reshape(7, 4, -1)
    with h5py.File(path) as file:
        assert {name: file[name].dtype for name in ("img_feat", "text_feat")} == dict.fromkeys(
            ("img_feat", "text_feat"), np.float16
        )
        np.testing.assert_allclose(file["img_feat"], pictures.numpy(), rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(file["text_feat"], texts.numpy(), rtol=2e-3, atol=1e-4)
        assert all(file[name].id.get_offset() for name in ("img_feat", "text_feat"))
    rows = ImageTargets(path).rows(["o3", "o1"])
    expected = texts.numpy()[[3, 1]][:, [0, 2]].mean(axis=1)
    np.testing.assert_allclose(PerViewTextTargets(path).read(rows, [0, 2]), expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("document", "word"),
    [
        ([], "must be an object"),
        ({"o1": "one"}, "object 'o1' has one"),
        ({"o1": ["a", "b", "c"]}, "object 'o1' has 3 captions for 4 views"),
        ({"o1": ["a", "b", "c", ""]}, "must be a list of captions"),
        ({"o1": ["a", "b", "c", "d"]}, "no caption for 6 of the 7 objects"),
    ],
)
def test_bad_captions_of_views(tmp_path, store, document, word):
    (tmp_path / "c.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=word) as caught:
        encode_view_targets(Encoder(tiny_model(tmp_path)), store, tmp_path / "c.json", tmp_path / "t")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "t").exists()


def test_gzip_that_is_damaged_or_a_bomb(tmp_path, store, view_captions, monkeypatch):
    encode_it = partial(encode_view_targets, Encoder(tiny_model(tmp_path)), store, view_captions, tmp_path / "t")
    monkeypatch.setattr("ddclip_cli.data.json_files.MOST_UNPACKED", 100)
    with pytest.raises(UserError, match="unpacks to more than"):
        encode_it()
    monkeypatch.undo()
    whole = view_captions.read_bytes()
    for bad in (whole[:50], b"text", whole[:30] + b"xxxxxx" + whole[36:]):
        view_captions.write_bytes(bad)
        with pytest.raises(UserError, match=r"packed\.json\.gz"):
            encode_it()


# --- several runs and processes ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_several_processes_write_the_same_bytes(tmp_path, store, captions, view_captions, monkeypatch):
    monkeypatch.setattr(encode, "TEXTS_AT_ONCE", 5)
    for processes in (1, 2):
        encoder = Encoder(tiny_model(tmp_path), load=partial(load, tmp_path), processes=processes)
        encode_targets(encoder, store, captions, tmp_path / str(processes), batch_size=2)
        encode_view_targets(encoder, store, view_captions, tmp_path / str(processes), batch_size=2)
    assert len(content(tmp_path / "1")) == 3
    assert content(tmp_path / "1") == content(tmp_path / "2")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("per_view", [False, True])
@pytest.mark.parametrize("moment", [0, 2, 5, 6])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    tmp_path, store, captions, view_captions, monkeypatch, per_view, moment
):
    """Ended before piece number `moment` is recorded, with nothing tidied up, as by kill -9."""
    monkeypatch.setattr(encode, "TEXTS_AT_ONCE", 5)
    monkeypatch.setattr(unfinished, "SECONDS_AT_RISK", 0)
    encoder, captions = Encoder(tiny_model(tmp_path)), view_captions if per_view else captions
    function = partial(encode_view_targets if per_view else encode_targets, encoder, store, captions, batch_size=2)
    function(tmp_path / "whole")
    with monkeypatch.context() as dying:
        record, left = unfinished.Unfinished.record, [moment]

        def counted(self, piece):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            record(self, piece)

        dying.setattr(unfinished.Unfinished, "record", counted)
        dying.setattr(unfinished.Unfinished, "leave", lambda self: None)
        with pytest.raises(Killed):
            function(tmp_path / "t")
    pieces = []
    record = unfinished.Unfinished.record
    monkeypatch.setattr(
        unfinished.Unfinished, "record", lambda self, piece: pieces.append(piece) or record(self, piece)
    )
    function(tmp_path / "t")
    assert content(tmp_path / "t") == content(tmp_path / "whole")
    assert len(pieces) == (6 if per_view else 3) + 4 - moment  # what was recorded was not encoded again


@pytest.mark.parametrize("file", [1, 2])
def test_killed_as_soon_as_a_file_has_its_name(tmp_path, store, captions, monkeypatch, file):
    encode_it = partial(encode_targets, Encoder(tiny_model(tmp_path)), store, captions, batch_size=2)
    encode_it(tmp_path / "whole")
    with monkeypatch.context() as dying:
        clean_up, left = unfinished.Unfinished.clean_up, [file]

        def counted(self):
            left[0] -= 1
            if not left[0]:
                raise Killed
            clean_up(self)

        dying.setattr(unfinished.Unfinished, "clean_up", counted)
        with pytest.raises(Killed):
            encode_it(tmp_path / "t")
    assert any(path.name.endswith(".log") for path in (tmp_path / "t").iterdir())
    encode_it(tmp_path / "t")
    assert content(tmp_path / "t") == content(tmp_path / "whole")


def test_other_kinds_of_the_same_texts_are_other_targets(tmp_path, store, monkeypatch):
    encoder = Encoder(tiny_model(tmp_path))
    for kind in ("text", "retrieval"):
        path = tmp_path / f"{kind}.json"
        path.write_text(json.dumps({object_id: {kind: ["a thing"]} for object_id in IDS}))
        encode_targets(encoder, store, path, tmp_path / kind, batch_size=2)
    (tmp_path / "text" / "image_embeddings.h5").unlink()  # as if that had been cut short
    encode_targets(encoder, store, tmp_path / "retrieval.json", tmp_path / "text", batch_size=2)
    assert content(tmp_path / "text") == content(tmp_path / "retrieval")


def test_an_unfinished_file_of_another_model_is_not_mixed_in(tmp_path, store, captions, monkeypatch):
    model = tiny_model(tmp_path)

    def broken(pixels):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(1)
        return view_features(pixels)

    calls: list[int] = []
    view_features = model.view_features
    monkeypatch.setattr(model, "view_features", broken)
    with pytest.raises(KeyboardInterrupt):
        encode_targets(Encoder(model), store, captions, tmp_path / "t", batch_size=2)
    other = Encoder(tiny_model(tmp_path, seed=1))
    with pytest.raises(UserError, match="made otherwise"):
        encode_targets(other, store, captions, tmp_path / "t", batch_size=2)
    encode_targets(other, store, captions, tmp_path / "t", batch_size=2, force=True)
    encode_targets(other, store, captions, tmp_path / "u", batch_size=2)
    assert content(tmp_path / "t") == content(tmp_path / "u")


# --- the command -------------------------------------------------------------------------------------------------


def test_from_the_command_line(tmp_path, store, view_captions):
    tiny_model(tmp_path)  # for its config
    weights = ["--set", f"model.backbone={tmp_path / 'tiny.json'}", "--set", "model.pretrained=null"]
    arguments = ["encode-targets", store, "--out", tmp_path / "t", "--device", "cpu", "--json", *weights]
    neither = run(*arguments)
    assert neither.code == 2
    assert "either --captions or --per-view-captions" in neither.err
    done = run(*arguments, "--per-view-captions", view_captions)
    assert done.code == 0, done.err
    assert json.loads(done.out) == {"targets": str(tmp_path / "t"), "objects": 7, "texts": 28, "width": 12}
    again = run(*arguments, "--per-view-captions", view_captions)
    assert again.code == 1
    assert "exists already" in again.err
