"""Embedding a view store, and reading embeddings of ours and of the reference."""

from __future__ import annotations

import io
import json
import resource
import shutil

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import DATA, embed, run, tiny_model, tiny_store

from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.errors import UserError
from ddclip_cli.search.embeddings import ShapeEmbeddings
from ddclip_cli.search.thumbnails import best_views

IDS = ["white-couch-000001", "red, chair", "../x\n<b>", "d", "e"]
OFFICIAL = DATA / "reference_embeddings" / "Four_1to6F_bs1600_LT6" / "shape_emb_objaverse.h5"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return ViewStore(tiny_store(tmp_path_factory.mktemp("store") / "store.h5", IDS))


def write(path, vectors, ids=None, **datasets):
    """A file of embeddings by hand."""
    with h5py.File(path, "w") as file:
        file["shape_feat"] = vectors
        ids = [f"object-{i}" for i in range(len(vectors))] if ids is None else ids
        file.create_dataset("ids", data=ids, dtype=h5py.string_dtype())
        for name, value in datasets.items():
            file[name] = value
    return path


# ---- writing


def test_embeddings_are_those_of_the_model(model, store, tmp_path):
    made_by = {"checkpoint": "tiny"}
    embed(model, store.path, tmp_path / "emb.h5", num_views=3, crop="none", batch_size=2, made_by=made_by)
    embeddings = ShapeEmbeddings(tmp_path / "emb.h5")
    views = store.read(np.arange(5), np.arange(3))
    expected = model.encode_views(torch.from_numpy(views), crop="none").numpy()
    np.testing.assert_allclose(embeddings.vectors.read(), expected, atol=1e-6)
    assert embeddings.ids == IDS
    assert embeddings.made_by == {
        "checkpoint": "tiny",
        "fingerprint": model.fingerprint,
        "num_views": 3,
        "crop": "none",
    }
    embeddings.check_model(model)


def test_same_bytes_again(model, store, tmp_path):
    for name in ("a.h5", "b.h5"):
        embed(model, store.path, tmp_path / name, num_views=4, batch_size=2)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_thumbnails_are_the_best_views(model, store, tmp_path):
    embed(model, store.path, tmp_path / "emb.h5", num_views=4, batch_size=2)
    embeddings = ShapeEmbeddings(tmp_path / "emb.h5")
    for row in range(5):
        picture = np.asarray(Image.open(io.BytesIO(embeddings.thumbnail(row))))
        views = store.read([row], range(4))
        original = views[0, best_views(views)[0]].transpose(1, 2, 0)
        assert picture.shape == original.shape
        assert abs(picture.mean((0, 1)) - original.mean((0, 1))).max() < 3


def test_the_view_to_show_is_bright_and_shows_much():
    views = np.full((1, 4, 3, 32, 32), 255, dtype=np.uint8)
    views[0, 0, :, 4:28, 4:28] = 40  # from below
    views[0, 1, :, 4:28, 4:28] = 90  # from the side
    views[0, 2, :, 8:28, 4:28] = 200  # from above
    views[0, 3, :, 12:16, 12:16] = 240  # from its end
    assert best_views(views).tolist() == [2]
    assert best_views(views[:, [3, 1, 0]]).tolist() == [1]


def test_the_reference_can_read_ours(model, store, tmp_path):
    """It reads `shape_feat` by row, and the rows from the JSON beside the file."""
    embed(model, store.path, tmp_path / "emb.h5", num_views=4)
    with h5py.File(tmp_path / "emb.h5") as file:
        assert file["shape_feat"].shape == (5, model.embed_dim)
        assert file["shape_feat"].dtype == np.float32
    assert json.loads((tmp_path / "emb_model_to_idx.json").read_text()) == {i: row for row, i in enumerate(IDS)}


def test_existing_output_is_kept(model, store, tmp_path):
    for name in ("emb_model_to_idx.json", "emb.h5"):  # the rows may be those of another store
        (tmp_path / name).write_text("precious")
        with pytest.raises(UserError, match=f"{name} exists already.*--force"):
            embed(model, store.path, tmp_path / "emb.h5", num_views=4)
        assert (tmp_path / name).read_text() == "precious"
    embed(model, store.path, tmp_path / "emb.h5", num_views=4, force=True)
    assert len(ShapeEmbeddings(tmp_path / "emb.h5")) == 5


def test_failure_leaves_nothing_half_written(store, tmp_path):
    broken = tiny_model(tmp_path)
    broken.clip.visual.proj.data.fill_(float("nan"))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="white-couch-000001 is not finite"):
        embed(broken, store.path, tmp_path / "out" / "emb.h5", num_views=4)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_one_sentence_and_leaves_nothing(model, store, tmp_path):
    (tmp_path / "out").mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(UserError, match=r"emb\.h5 could not be written .* make room"):
            embed(model, store.path, tmp_path / "out" / "emb.h5", num_views=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "out").iterdir()) == []


def test_more_views_than_stored(model, store, tmp_path):
    with pytest.raises(UserError, match="the store has 4"):
        embed(model, store.path, tmp_path / "emb.h5", num_views=12)


# ---- reading


def test_reference_embeddings():
    embeddings = ShapeEmbeddings(OFFICIAL)
    rows = json.loads((OFFICIAL.parent / "shape_emb_objaverse_model_to_idx.json").read_text())
    with h5py.File(OFFICIAL) as file:
        raw = file["shape_feat"][:].astype(np.float32)
    assert {object_id: row for row, object_id in enumerate(embeddings.ids)} == rows
    np.testing.assert_allclose(np.linalg.norm(embeddings.vectors.read(), axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(embeddings.vectors.read(), raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-6)
    assert embeddings.made_by is None
    assert embeddings.thumbnail(0) is None


class Other:
    embed_dim, fingerprint = 32, "0123456789abcdef"


def test_reference_embeddings_are_trusted_with_one_warning(tmp_path, capsys):
    ShapeEmbeddings(OFFICIAL).check_model(Other(), checkpoint="Four_1to6F_bs1600_LT6")
    ShapeEmbeddings(OFFICIAL).check_model(Other(), checkpoint="somewhere/Four_1to6F_bs1600_LT6.ckpt")
    assert capsys.readouterr().err == ""  # the official pair
    ShapeEmbeddings(OFFICIAL).check_model(Other(), checkpoint="mine")
    assert capsys.readouterr().err.count("warning:") == 1


def test_another_width_is_refused():
    class Wide(Other):
        embed_dim = 512

    with pytest.raises(UserError, match="width 32, the model makes 512"):
        ShapeEmbeddings(OFFICIAL).check_model(Wide())


def test_another_model_is_refused_and_both_are_named(model, store, tmp_path):
    embed(model, store.path, tmp_path / "emb.h5", num_views=4, made_by={"checkpoint": "first"})
    other = tiny_model(tmp_path, seed=1)
    with pytest.raises(UserError) as caught:
        ShapeEmbeddings(tmp_path / "emb.h5").check_model(other, checkpoint="second")
    for word in ("first", model.fingerprint, "second", other.fingerprint):
        assert word in str(caught.value)


def test_vectors_come_out_at_unit_length(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32) * 50
    embeddings = ShapeEmbeddings(write(tmp_path / "emb.h5", vectors))
    np.testing.assert_allclose(np.linalg.norm(embeddings.vectors.read(), axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_a_row_without_direction_is_refused_by_name(tmp_path, bad):
    vectors = np.ones((4, 3), np.float32)
    vectors[2] = bad
    with pytest.raises(UserError, match=r"object-2 \(row 2\)"):
        ShapeEmbeddings(write(tmp_path / "emb.h5", vectors)).vectors.read()


def test_what_is_no_file_of_embeddings(tmp_path, store):
    with pytest.raises(UserError, match="does not exist"):
        ShapeEmbeddings(tmp_path / "nowhere.h5")
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(UserError, match="not an HDF5 file"):
        ShapeEmbeddings(tmp_path / "text.h5")
    with pytest.raises(UserError, match="shape_feat"):
        ShapeEmbeddings(store.path)
    with pytest.raises(UserError, match="empty"):
        ShapeEmbeddings(write(tmp_path / "empty.h5", np.zeros((0, 4), np.float32)))
    with pytest.raises(UserError, match="objects, width"):
        ShapeEmbeddings(write(tmp_path / "flat.h5", np.ones(4, np.float32)))
    with pytest.raises(UserError, match="objects, width"):
        ShapeEmbeddings(write(tmp_path / "ints.h5", np.ones((4, 4), np.int64)))
    with pytest.raises(UserError, match="ids"):
        ShapeEmbeddings(write(tmp_path / "ids.h5", np.ones((4, 4), np.float32), ids=["a", "b"]))


def test_a_truncated_file_is_refused(tmp_path):
    whole = write(tmp_path / "whole.h5", np.ones((100, 64), np.float32)).read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut off"):
        ShapeEmbeddings(tmp_path / "cut.h5")


def test_a_huge_promise_takes_no_memory(tmp_path):
    with h5py.File(tmp_path / "emb.h5", "w") as file:
        file.create_dataset("shape_feat", shape=(10**9, 512), dtype="f4", chunks=(1024, 512))
    with pytest.raises(UserError, match="claims"):
        ShapeEmbeddings(tmp_path / "emb.h5")


def test_vectors_of_another_file_are_not_read(tmp_path):
    write(tmp_path / "target.h5", np.ones((2, 3), np.float32))
    with h5py.File(tmp_path / "emb.h5", "w") as file:
        file["shape_feat"] = h5py.ExternalLink(str(tmp_path / "target.h5"), "shape_feat")
    with pytest.raises(UserError, match="another file"):
        ShapeEmbeddings(tmp_path / "emb.h5")


@pytest.mark.parametrize("record", ["not json", "[1]", 7])
def test_a_damaged_record_is_refused(tmp_path, record):
    with h5py.File(write(tmp_path / "emb.h5", np.ones((2, 3), np.float32)), "a") as file:
        file.attrs["made_by"] = record
    with pytest.raises(UserError, match="damaged record"):
        ShapeEmbeddings(tmp_path / "emb.h5")


@pytest.mark.parametrize("offsets", [[0, 5, 999], [0, 8, 4], [1, 2, 3], [0, 1], [0.0, 1.0, 2.0]])
def test_thumbnails_that_do_not_fit_are_left_out(tmp_path, offsets):
    path = write(
        tmp_path / "emb.h5",
        np.ones((2, 3), np.float32),
        thumbnail_bytes=np.zeros(10, np.uint8),
        thumbnail_offsets=np.array(offsets),
    )
    assert ShapeEmbeddings(path).thumbnail(1) is None


# ---- the command


@pytest.fixture
def checkpoint(model, tmp_path):
    from ddclip_cli.model.checkpoints import save_checkpoint

    save_checkpoint(model, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_command(store, model, checkpoint, tmp_path):
    arguments = ["embed", store.path, "--out", tmp_path / "emb.h5", "--checkpoint", checkpoint, "--device", "cpu"]
    result = run(*arguments, "--num-views", 2)
    assert (result.code, result.out) == (0, "")
    made_by = ShapeEmbeddings(tmp_path / "emb.h5").made_by
    assert made_by["fingerprint"] == model.fingerprint
    assert made_by["checkpoint"] == str(checkpoint)
    assert made_by["precision"] == "fp32"
    assert (made_by["num_views"], made_by["recipe"]["embed"]["num_views"]) == (2, 2)
    again = run(*arguments, "--num-views", 2)
    assert again.code == 1
    assert "--force" in again.err
    assert run(*arguments, "--num-views", 3, "--force").code == 0
    assert ShapeEmbeddings(tmp_path / "emb.h5").made_by["num_views"] == 3


def test_command_takes_the_rows_of_a_json(store, checkpoint, tmp_path):
    shutil.copy(store.path, tmp_path / "bare.h5")
    with h5py.File(tmp_path / "bare.h5", "a") as file:
        del file["ids"]
    (tmp_path / "rows.json").write_text(json.dumps({f"named-{row}": row for row in range(5)}))
    out = tmp_path / "emb.h5"
    arguments = ["embed", tmp_path / "bare.h5", "-o", out, "-c", checkpoint, "--num-views", 2, "--device", "cpu"]
    assert run(*arguments).code == 1  # no ids anywhere
    result = run(*arguments, "--ids", tmp_path / "rows.json")
    assert result.code == 0, result.err
    assert ShapeEmbeddings(out).ids == [f"named-{row}" for row in range(5)]


def test_command_with_what_is_not_there(store, checkpoint, tmp_path):
    out = tmp_path / "emb.h5"
    result = run("embed", tmp_path / "no.h5", "--out", out, "--checkpoint", checkpoint)
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "no.h5 (check the path)" in result.err
    result = run("embed", store.path, "--out", out, "--checkpoint", checkpoint, "--num-views", "0")
    assert result.code == 2
    result = run("embed", store.path, "--out", out, "--checkpoint", checkpoint, "--device", "cpu")
    assert (result.code, result.err.count("error:")) == (1, 1)
    assert "12 views were asked for" in result.err
    assert not out.exists()
