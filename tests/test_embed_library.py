"""Embedding a library as its owner has it: what counts as an object, going on after a kill, bringing up to date."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from mesh_files import OFF, gltf, textured_glb
from PIL import Image
from tiny import SIZE, embed, run, tiny_model, tiny_store

from ddclip_cli.data.hdf5 import opened
from ddclip_cli.errors import UserError
from ddclip_cli.model.checkpoints import save_checkpoint
from ddclip_cli.search import embeddings
from ddclip_cli.search.embed import ModelSpec, embed_library
from ddclip_cli.search.embeddings import ShapeEmbeddings
from ddclip_cli.search.embeddings_output import OldEmbeddings, write_embeddings
from ddclip_cli.search.journal import Embedded
from ddclip_cli.search.library import ViewSettings, find_objects

SMALL = ViewSettings(num_views=2, size=SIZE, render_size=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


def photos(folder: Path, number: int, colour=(200, 30, 30), suffix=".jpg") -> Path:
    folder.mkdir(parents=True)
    for view in range(number):
        Image.new("RGB", (40, 30 + view), colour).save(folder / f"photo{view}{suffix}")
    return folder


@pytest.fixture
def library(tmp_path):
    """Meshes flat and in folders, with a texture beside one; photos of two objects; a Zero123 render."""
    root = tmp_path / "library"
    (root / "flat").mkdir(parents=True)
    (root / "flat" / "quad.glb").write_bytes(textured_glb())
    (root / "flat" / "plate.off").write_text(OFF)
    for name in ("chair", "sofa"):
        folder = root / "downloads" / name
        folder.mkdir(parents=True)
        gltf(folder, name="model.gltf")
        Image.new("RGB", (8, 8)).save(folder / "texture.png")
        photos(folder / "textures", 2)
    photos(root / "photos" / "mug", 3)
    photos(root / "photos" / "cup", 1, (30, 30, 200))
    render = root / "renders" / "ship"
    render.mkdir(parents=True)
    for view in range(2):
        Image.new("RGBA", (64, 64), (0, 200, 0, 255)).save(render / f"{view:03d}.png")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.off").write_text(OFF)
    return root


def vectors(path: Path) -> dict[str, np.ndarray]:
    embeddings = ShapeEmbeddings(path)
    return dict(zip(embeddings.ids, embeddings.vectors.read(), strict=True))


# ---- what is an object


def test_a_folder_of_folders(library):
    found = {thing.object_id: thing.kind for thing in find_objects([library])}
    assert found == {
        "quad": "mesh",
        "plate": "mesh",
        "chair": "mesh",  # model.gltf of two folders: called as those are
        "sofa": "mesh",
        "mug": "images",
        "cup": "images",
        "ship": "zero123",
    }


def test_pictures_of_one_object_and_single_meshes(library):
    assert [thing.object_id for thing in find_objects([library / "photos" / "mug"])] == ["mug"]
    sources = [library / "flat" / "quad.glb", library / "photos"]
    assert [thing.object_id for thing in find_objects(sources)] == ["quad", "cup", "mug"]


def test_meshes_of_one_name_in_folders_of_one_name_go_by_their_path(tmp_path):
    for path in ("a/x/m.off", "b/x/m.off", "n.off"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(OFF)
    assert [thing.object_id for thing in find_objects([tmp_path])] == ["a/x/m", "b/x/m", "n"]


def test_a_link_that_leads_back_is_not_followed_for_ever(library):
    (library / "flat" / "again").symlink_to(library)
    assert len(find_objects([library])) == 7


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda root: [root / "nothing"], "nothing: no such file"),
        (lambda root: [root / ".hidden" / ".." / "renders" / "ship" / "000.png"], "one picture"),
        (lambda root: [root / "flat", root / "flat"], "both be object 'plate'"),
        (lambda root: [(root / "flat" / "readme.txt").write_text("x") and root / "flat" / "readme.txt"], "neither"),
        (lambda root: [(root / "empty").mkdir() or root / "empty"], "holds no mesh"),
    ],
)
def test_what_is_no_source_is_one_sentence(library, make, word):
    with pytest.raises(UserError, match=word):
        find_objects(make(library))


def test_mvimgnet_folders_are_read_as_pack_reads_them(tmp_path):
    photos(tmp_path / "mvi_00" / "7" / "0a1b" / "images", 2)
    (thing,) = find_objects([tmp_path])
    assert (thing.object_id, thing.kind) == ("7_0a1b", "mvimgnet")


# ---- embedding


def test_meshes_are_embedded_as_by_render_pack_and_embed(model, library, tmp_path):
    save_checkpoint(model, tmp_path / "checkpoint")
    overrides = [f"pack.image_size={SIZE}", "render.image_size=64", "render.num_views=2", "pack.num_views=2"]
    sets = [word for value in overrides for word in ("--set", value)]
    model_options = ["-c", tmp_path / "checkpoint", "--num-views", 2, "--device", "cpu"]
    meshes, renders, store = library / "flat", tmp_path / "renders", tmp_path / "store.h5"
    for step in (
        ["render", meshes, "--out", renders, *sets],
        ["pack-h5", renders, "--out", store, *sets],
        ["embed", store, "--out", tmp_path / "three.h5", *sets, *model_options],
        ["embed", meshes, "--out", tmp_path / "one.h5", *sets, *model_options],
    ):
        result = run(*step)
        assert result.code == 0, result.err
    one, three = vectors(tmp_path / "one.h5"), vectors(tmp_path / "three.h5")
    assert one.keys() == three.keys() == {"plate", "quad"}
    for object_id in one:
        np.testing.assert_array_equal(one[object_id], three[object_id])
    assert ShapeEmbeddings(tmp_path / "one.h5").source_path(1) == str(meshes / "quad.glb")


def test_photos_may_be_fewer_than_views(model, library, tmp_path):
    embed_library(model, find_objects([library / "photos"]), tmp_path / "emb.h5", views=SMALL)
    embeddings = ShapeEmbeddings(tmp_path / "emb.h5")
    assert embeddings.ids == ["cup", "mug"]
    pictures = np.broadcast_to(np.array([30, 30, 200], np.uint8)[:, None, None], (3, SIZE, SIZE))
    stored = np.asarray(Image.open(library / "photos" / "cup" / "photo0.jpg").resize((SIZE, SIZE))).transpose(2, 0, 1)
    assert abs(pictures.astype(int) - stored).max() < 4
    np.testing.assert_allclose(embeddings.vectors.take([0])[0], model.encode_views(stored.copy()).numpy(), atol=1e-6)


@pytest.mark.parametrize("options", [pytest.param({"jobs": 2}, marks=pytest.mark.slow), {"processes": 2}])
def test_more_processes_give_the_same(model, library, tmp_path, options):
    save_checkpoint(model, tmp_path / "checkpoint")
    spec = ModelSpec(str(tmp_path / "checkpoint"), None, "cpu", "fp32")
    objects = find_objects([library])
    for name, more in (("one.h5", {}), ("many.h5", options)):
        embed_library(model, objects, tmp_path / name, views=SMALL, batch_size=3, spec=spec, **more)
    one, many = vectors(tmp_path / "one.h5"), vectors(tmp_path / "many.h5")
    assert list(one) == list(many)
    np.testing.assert_allclose(list(one.values()), list(many.values()), atol=1e-6)


def test_a_bad_object_fails_the_run_loses_nothing_and_may_be_skipped(model, library, tmp_path, capsys):
    (library / "flat" / "broken.glb").write_bytes(b"glTF garbage")
    out = tmp_path / "emb.h5"
    with pytest.raises(UserError, match=r"1 of 8 objects could not be embedded.*broken.*--on-error skip"):
        embed_library(model, find_objects([library]), out, views=SMALL)
    assert not out.exists()
    assert "broken.glb" in capsys.readouterr().err
    run_ = embed_library(model, find_objects([library]), out, views=SMALL, on_error="skip")
    assert "7 of 8 objects were embedded by an earlier run" in capsys.readouterr().err
    assert list(run_.failed) == ["broken"]
    assert sorted(ShapeEmbeddings(out).ids) == ["chair", "cup", "mug", "plate", "quad", "ship", "sofa"]
    assert sorted(path.name for path in tmp_path.glob("*emb*")) == ["emb.h5", "emb_model_to_idx.json"]


@pytest.mark.parametrize("cut", [0, 1, 10])
def test_a_journal_that_was_cut_short_is_continued(model, tmp_path, monkeypatch, cut):
    store = tiny_store(tmp_path / "store.h5", [f"o{n}" for n in range(11)])
    embed(model, store, tmp_path / "whole.h5", batch_size=2)

    calls = []

    def dies(self, batch):
        calls.append(len(batch))
        if len(calls) == 4:
            raise KeyboardInterrupt
        add(self, batch)

    from ddclip_cli.search.journal import Journal

    add = Journal.add
    monkeypatch.setattr(Journal, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        embed(model, store, tmp_path / "emb.h5", batch_size=2)
    monkeypatch.undo()
    journal = tmp_path / ".emb.h5.unfinished"
    journal.write_bytes(journal.read_bytes()[: -cut or None])
    embed(model, store, tmp_path / "emb.h5", batch_size=2)
    assert (tmp_path / "emb.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert not journal.exists()


def test_what_changed_after_a_kill_is_embedded_as_it_is_now(model, library, tmp_path):
    out = tmp_path / "emb.h5"
    (library / "flat" / "broken.glb").write_bytes(b"glTF garbage")
    with pytest.raises(UserError, match="broken"):  # leaves a journal
        embed_library(model, find_objects([library]), out, views=SMALL)
    (library / "flat" / "plate.off").write_text(OFF.replace("0 1 0", "0 0.2 0"))
    (library / "flat" / "broken.glb").unlink()
    embed_library(model, find_objects([library]), out, views=SMALL)
    embed_library(model, find_objects([library]), tmp_path / "anew.h5", views=SMALL)
    one, two = vectors(out), vectors(tmp_path / "anew.h5")
    assert list(one) == list(two)
    np.testing.assert_allclose(list(one.values()), list(two.values()), atol=1e-6)


def test_a_journal_of_other_settings_or_of_garbage_is_begun_anew(model, tmp_path):
    store = tiny_store(tmp_path / "store.h5", ["a", "b", "c"])
    embed(model, store, tmp_path / "whole.h5", batch_size=2)
    for left in (b"garbage" * 100, b"ddcj" + b"\xff" * 12, b""):
        (tmp_path / ".emb.h5.unfinished").write_bytes(left)
        embed(model, store, tmp_path / "emb.h5", batch_size=2, force=True)
        assert (tmp_path / "emb.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def command_line(*words: object) -> list[str]:
    return [sys.executable, "-m", "ddclip_cli", *map(str, words)]


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_bytes(tmp_path):
    meshes = tmp_path / "meshes"
    meshes.mkdir()
    for number in range(40):
        (meshes / f"m{number:02d}.off").write_text(OFF.replace("1 0 0", f"1 {number / 40} 0"))
    words = ["--recipe", "sample", "--num-views", "3", "--device", "cpu"]
    subprocess.run(command_line("embed", meshes, "--out", tmp_path / "whole.h5", *words), check=True)
    out, kills = tmp_path / "emb.h5", 0
    journal = tmp_path / ".emb.h5.unfinished"
    while not out.exists():
        process = subprocess.Popen(command_line("embed", meshes, "--out", out, *words), stderr=subprocess.DEVNULL)
        before = journal.stat().st_size if journal.exists() else 0
        while process.poll() is None and not (journal.exists() and journal.stat().st_size > max(before, 1000)):
            time.sleep(0.02)
        if process.poll() is None and kills < 3:
            process.send_signal(signal.SIGKILL)
            kills += 1
        assert process.wait() in (0, -signal.SIGKILL)
    assert kills >= 1
    assert out.read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_two_runs_at_once_do_not_mix(model, tmp_path):
    from ddclip_cli.search.journal import Journal

    store = tiny_store(tmp_path / "store.h5", ["a", "b"])
    other = Journal(tmp_path / "emb.h5", {})
    with pytest.raises(UserError, match="another process is making"):
        embed(model, store, tmp_path / "emb.h5")
    other.close(remove=True)
    embed(model, store, tmp_path / "emb.h5")


# ---- bringing up to date


def test_update_embeds_what_is_new_or_changed_and_drops_what_is_gone(model, library, tmp_path):
    out = tmp_path / "emb.h5"
    embed_library(model, find_objects([library]), out, views=SMALL)
    before = vectors(out)
    thumbnails = {i: ShapeEmbeddings(out).thumbnail(row) for row, i in enumerate(ShapeEmbeddings(out).ids)}
    os.utime(library / "flat" / "plate.off")  # touched, not changed
    gltf(
        library / "downloads" / "sofa",
        name="model.gltf",
        positions=np.array([[0, 0, 0], [1, 0, 0], [0, 0.2, 0]], np.float32),
    )
    photos(library / "photos" / "bowl", 2, (10, 120, 10))
    shutil.rmtree(library / "photos" / "mug")
    done = embed_library(model, find_objects([library]), out, views=SMALL, update=True)
    assert (sorted(done.done), done.dropped) == (["bowl", "sofa"], ["mug"])
    assert sorted(done.kept) == ["chair", "cup", "plate", "quad", "ship"]
    after = vectors(out)
    assert after.keys() == {"bowl", "chair", "cup", "plate", "quad", "ship", "sofa"}
    embeddings = ShapeEmbeddings(out)
    for object_id in done.kept:
        np.testing.assert_array_equal(after[object_id], before[object_id])
        assert embeddings.thumbnail(embeddings.row(object_id)) == thumbnails[object_id]
    assert abs(after["sofa"] - before["sofa"]).max() > 1e-4
    again = embed_library(model, find_objects([library]), out, views=SMALL, update=True)
    assert (again.done, len(again.kept)) == ([], 7)
    # What is updated is what would have been made.
    embed_library(model, find_objects([library]), tmp_path / "anew.h5", views=SMALL)
    for object_id, vector in vectors(tmp_path / "anew.h5").items():
        np.testing.assert_allclose(after[object_id], vector, atol=1e-6)


def test_update_with_one_more_source_keeps_the_rest(model, library, tmp_path):
    out = tmp_path / "emb.h5"
    embed_library(model, find_objects([library / "flat"]), out, views=SMALL)
    done = embed_library(model, find_objects([library / "photos"]), out, views=SMALL, update=True)
    assert (sorted(done.done), sorted(done.kept)) == (["cup", "mug"], ["plate", "quad"])


def test_update_of_a_store_reads_its_pictures(model, tmp_path):
    store = tiny_store(tmp_path / "store.h5", ["a", "b", "c"])
    embed(model, store, tmp_path / "emb.h5")
    with h5py.File(store, "a") as file:
        file["imgs"][1] = 255 - file["imgs"][1]
    done = embed(model, store, tmp_path / "emb.h5", update=True)
    assert (done.done, done.kept) == (["b"], ["a", "c"])


def test_the_many_that_stay_are_read_in_blocks(tmp_path, monkeypatch):
    """Opening a file of HDF5 takes longer than reading an object from it."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2500, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    objects = [
        Embedded(f"o{number}", rng.bytes(16), vector, rng.bytes(number % 7), f"{number}.glb" if number % 5 else None)
        for number, vector in enumerate(vectors)
    ]
    (tmp_path / "7.glb").touch()
    out, record = tmp_path / "emb.h5", {"fingerprint": "0123456789abcdef"}
    write_embeddings(out, record, [thing.object_id for thing in objects], 4, iter(objects))
    opens = []
    monkeypatch.setattr(embeddings, "opened", lambda path: opens.append(path) or opened(path))
    old = OldEmbeddings(out, record)
    replaced = range(0, 1500, 3)
    kept = old.keep({f"o{number}" for number in replaced})
    there = [*range(0, 2500, 5), 7]  # what came from a store cannot be gone
    stay = sorted(set(there) - set(replaced))
    assert kept == [f"o{number}" for number in stay]
    assert old.dropped == [f"o{number}" for number in range(2500) if number % 5 and number != 7]
    for found, number in zip(old.read(), stay, strict=True):
        expected = objects[number]
        np.testing.assert_array_equal(found.vector, expected.vector)
        assert (found.object_id, found.digest, found.thumbnail, found.path) == (
            expected.object_id, expected.digest, expected.thumbnail, expected.path,
        )  # fmt: skip
    assert len(opens) < 20


def test_update_by_another_model_or_other_views_is_refused(model, library, tmp_path):
    out = tmp_path / "emb.h5"
    embed_library(model, find_objects([library / "flat"]), out, views=SMALL)
    before = out.read_bytes()
    other = ViewSettings(num_views=2, size=SIZE, render_size=80)
    with pytest.raises(UserError, match=r"made with views .*--force"):
        embed_library(model, find_objects([library]), out, views=other, update=True)
    with pytest.raises(UserError, match=r"made with fingerprint .*--force"):
        embed_library(tiny_model(tmp_path, seed=1), find_objects([library]), out, views=SMALL, update=True)
    assert out.read_bytes() == before


# ---- the command


def test_a_user_who_has_only_meshes(library, tmp_path):
    out = tmp_path / "my.h5"
    arguments = ["embed", library, "--out", out, "--recipe", "sample", "--num-views", 2]
    result = run(*arguments)
    assert (result.code, result.out) == (0, ""), result.err
    assert "7 objects embedded in" in result.err
    assert "objects/s" in result.err
    assert json.loads((tmp_path / "my_model_to_idx.json").read_text()).keys() == vectors(out).keys()
    answer = run("retrieve", "--index", out, "a green ship", "--paths", "--top-k", 7)
    assert answer.code == 0, answer.err
    assert {Path(line).exists() for line in answer.out.splitlines()} == {True}
    assert len(answer.out.splitlines()) == 7
    assert "exists already" in run(*arguments).err
    again = run(*arguments, "--update")
    assert "0 objects embedded, 7 kept" in again.err
    assert run(*arguments, "--update", "--force").code == 2


def test_the_rate_is_that_of_this_run(library, tmp_path):
    """What an earlier run embedded took this one no time."""
    (library / "flat" / "bad.off").write_text("no mesh")
    arguments = ["embed", library / "flat", "--out", tmp_path / "my.h5", "--recipe", "sample", "--num-views", 2]
    assert run(*arguments).code == 1
    result = run(*arguments, "--on-error", "skip")
    assert "going on: 2 of 3" in result.err
    assert "2 objects embedded, 1 left out in" in result.err
    assert "objects/s" not in result.err


def test_embeddings_find_their_checkpoint_when_both_have_moved(model, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    save_checkpoint(model, tmp_path / "here" / "checkpoint")
    store = tiny_store(tmp_path / "here" / "store.h5", ["a", "b"])
    monkeypatch.chdir(tmp_path / "here")
    assert run("embed", store.name, "-o", "emb.h5", "-c", "checkpoint", "--num-views", 2, "--device", "cpu").code == 0
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    result = run("retrieve", "a boat", "--index", "there/emb.h5")
    assert result.code == 0, result.err
    shutil.rmtree(tmp_path / "there" / "checkpoint")
    result = run("retrieve", "a boat", "--index", "there/emb.h5")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "checkpoint" in result.err
