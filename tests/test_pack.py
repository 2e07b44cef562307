"""Packing: the reference's bytes, and what happens when something is wrong."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from tiny import run

from ddclip_cli.data import pictures
from ddclip_cli.data.pack import pack_store
from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.errors import UsageError, UserError

FORMATS = Path(__file__).parent / "data" / "reference_formats"
DATA = FORMATS / "dataset" / "data"
EXPECTED = json.loads((FORMATS / "expected.json").read_text())


def make_renders(root: Path, objects: int = 3, views: int = 2, size: int = 16) -> Path:
    """Zero123's layout, pictures of random RGBA."""
    rng = np.random.default_rng(1)
    for number in range(objects):
        folder = root / f"object-{number}"
        folder.mkdir(parents=True)
        for view in range(views):
            pixels = rng.integers(0, 256, (size, size, 4)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{view:03d}.png")
    return root


def pack_small(root: Path, out: Path, **options):
    return pack_store(root, out, **{"num_views": 2, "image_size": 16, **options})


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def says(action, *words: str, error: type[UserError] = UserError) -> str:
    with pytest.raises(error) as caught:
        action()
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence
    return sentence


# --- the reference's bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2])
def test_four_is_packed_byte_for_byte(tmp_path, jobs):
    out = tmp_path / "mv_images.h5"
    rows = DATA / "model_to_idx.json"
    packed = pack_store(
        FORMATS / "views_release", out, ids=rows, supplement=DATA / "supplement_mv_images.h5", jobs=jobs
    )
    with h5py.File(out) as file:
        assert hashlib.sha256(file["imgs"][()].tobytes()).hexdigest() == EXPECTED["four_imgs_sha256"]
        assert file["imgs"].shape == (5, 12, 3, 224, 224)
        assert file["imgs"].id.get_offset() is not None
        assert file["ids"].asstr()[()].tolist() == packed.object_ids
    assert packed.layout == "zero123"
    assert json.loads((tmp_path / "mv_images_model_to_idx.json").read_text()) == json.loads(rows.read_text())
    assert ViewStore(out).rows(["sup3_1"]).tolist() == [3]


def test_the_ids_of_a_supplement_can_be_given(tmp_path):
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps({"first": 0, "second": 1}))
    supplement = DATA / "supplement_mv_images.h5"
    packed = pack_store(
        FORMATS / "views_release", tmp_path / "s.h5", supplement=supplement, supplement_ids=rows, num_views=1
    )
    assert packed.object_ids == [f"0300000000000000000000000000000{i}" for i in range(3)] + ["first", "second"]
    with h5py.File(supplement) as file, h5py.File(tmp_path / "s.h5") as store:
        assert np.array_equal(store["imgs"][4], file["imgs"][1, :1])


def test_mvimgnet_is_packed_byte_for_byte(tmp_path, capfd):
    packed = pack_store(FORMATS / "mvimgnet_raw", tmp_path / "mvi.h5")
    expected = EXPECTED["mvimgnet_sorted_views_sha256"]
    assert packed.layout == "mvimgnet"
    assert packed.object_ids == sorted(expected)
    assert "left out 1 objects with fewer than 12 pictures: 23_1c00aa11" in capfd.readouterr().err
    store = ViewStore(tmp_path / "mvi.h5")
    for object_id, row in zip(store.ids, range(len(store)), strict=True):
        views = store.read([row], np.arange(12))[0]
        packed_bytes = b"".join(sorted(view.tobytes() for view in views))
        assert hashlib.sha256(packed_bytes).hexdigest() == expected[object_id]
        class_id, name = object_id.split("_")
        folder = next(FORMATS.glob(f"mvimgnet_raw/mvi_*/{class_id}/{name}/images"))
        for view, file_name in zip(views, EXPECTED["mvimgnet_files"][object_id], strict=True):
            assert np.array_equal(view, pictures.read_video_frame(folder / file_name, 224))


def test_the_store_says_what_made_it(tmp_path):
    root = make_renders(tmp_path / "r")
    (root / "object-1" / "001.png").unlink()
    recipe = {"pack": {"num_views": 2, "image_size": 16, "codec": "raw"}}
    pack_small(root, tmp_path / "core.h5", on_error="skip", recipe=recipe)
    ended = run("pack-h5", root, "--out", tmp_path / "s.h5", "--num-views", 2, "--size", 16, "--on-error", "skip")
    assert ended.code == 0, ended.err
    with h5py.File(tmp_path / "s.h5") as file:
        assert json.loads(file.attrs["made_by"]) == {"layout": "zero123", "recipe": recipe}
    assert sha256(tmp_path / "s.h5") == sha256(tmp_path / "core.h5")


def test_the_lookup_equals_the_reference_formula():
    """All pairs of colour and alpha, against the arithmetic written out."""
    colour, alpha = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    rgba = np.stack([colour, colour, colour, alpha], axis=-1).astype(np.uint8) / 255
    plain = ((rgba[..., :3] * rgba[..., 3:] + (1 - rgba[..., 3:])) * 255).astype(np.uint8)
    assert np.array_equal(pictures._white_table().T, plain[..., 0])


@pytest.mark.parametrize("side", [512, 448, 225, 224, 128, 100])
def test_resizing_what_is_seen_equals_resizing_everything(side):
    """Wherever it stands, at every edge of a block, with colours under what is transparent and without."""
    rng = np.random.default_rng(side)
    boxes = [(0, 0, side, side), (side - 1, side - 1, side, side), (0, 0, 1, 1)]
    boxes += [(n, side - n - 9, min(n + 5, side), side - n) for n in range(0, side - 9, 7)]
    for left, top, right, bottom in boxes:
        rgba = rng.integers(0, 256, (side, side, 4)).astype(np.uint8)
        kept = np.zeros((side, side), bool)
        kept[top:bottom, left:right] = True
        rgba[..., 3] *= kept
        image = Image.fromarray(rgba)
        assert np.array_equal(pictures.resized_on_white(image, 224), pictures._on_white(image.resize((224, 224))))
    clear = Image.new("RGBA", (side, side), (9, 9, 9, 0))
    assert (pictures.resized_on_white(clear, 224) == 255).all()


def test_jobs_do_not_change_the_file(tmp_path):
    root = make_renders(tmp_path / "r", objects=11)
    pack_small(root, tmp_path / "one.h5")
    pack_small(root, tmp_path / "two.h5", jobs=2)
    assert sha256(tmp_path / "one.h5") == sha256(tmp_path / "two.h5")


# --- layouts -----------------------------------------------------------------------------------------------------


def test_photos_are_sorted_turned_upright_and_laid_on_white(tmp_path):
    folder = tmp_path / "photos" / "mug"
    folder.mkdir(parents=True)
    red_left = np.zeros((8, 8, 3), np.uint8)
    red_left[:, :4, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter, clockwise, to see it upright
    Image.fromarray(red_left).save(folder / "b.png", exif=exif)
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(folder / "a.png")  # nothing but transparency
    (folder / "notes.txt").write_text("no picture")
    packed = pack_store(tmp_path / "photos", tmp_path / "s.h5", num_views=2, image_size=8)
    assert packed.layout == "images"
    clear, turned = ViewStore(tmp_path / "s.h5").read([0], [0, 1])[0]
    assert (clear == 255).all()
    assert turned[0, 0].min() > 200
    assert turned[0, -1].max() < 50  # red is on top


def test_more_photos_than_views_are_spread_out(tmp_path):
    folder = tmp_path / "photos" / "mug"
    folder.mkdir(parents=True)
    for number in range(7):
        Image.new("L", (4, 4), number * 30).save(folder / f"{number}.jpg", quality=100)
    pack_store(tmp_path / "photos", tmp_path / "s.h5", num_views=3, image_size=4)
    assert ViewStore(tmp_path / "s.h5").read([0], [0, 1, 2])[0, :, 0, 0, 0].tolist() == [0, 60, 120]


def test_hidden_folders_are_unfinished_work_of_others(tmp_path):
    root = make_renders(tmp_path / "r")
    shutil.copytree(root / "object-0", root / ".object-9.123.partial")
    assert len(pack_small(root, tmp_path / "s.h5").object_ids) == 3


def test_two_folders_of_one_id(tmp_path):
    for part in ("mvi_00", "mvi_01"):
        (tmp_path / "raw" / part / "7" / "x" / "images").mkdir(parents=True)
    says(lambda: pack_small(tmp_path / "raw", tmp_path / "s.h5"), "mvi_00", "mvi_01", "7_x")


# --- what is wrong with the input --------------------------------------------------------------------------------


def test_sources_that_hold_nothing(tmp_path):
    out = tmp_path / "out" / "s.h5"
    says(lambda: pack_small(tmp_path / "none", out), "none does not exist")
    (tmp_path / "empty").mkdir()
    says(lambda: pack_small(tmp_path / "empty", out), "holds no folders of pictures")
    (tmp_path / "file").write_text("x")
    says(lambda: pack_small(tmp_path / "file", out), "file is no tar archive")
    says(lambda: pack_small(tmp_path / "file", out, layout="images"), "file is a file", error=UsageError)
    root = make_renders(tmp_path / "r")
    says(lambda: pack_small(root, out, layout="mvimgnet"), "no object of layout mvimgnet")
    says(lambda: pack_small(root, out, layout="tar"), "'tar' is unknown", error=UsageError)
    assert not out.parent.exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_bad_pictures_fail_with_object_and_file_after_all_were_tried(tmp_path, capfd, jobs):
    root = make_renders(tmp_path / "r", objects=4)
    (root / "object-1" / "001.png").write_bytes(b"not a picture")
    whole = (root / "object-2" / "000.png").read_bytes()
    (root / "object-2" / "000.png").write_bytes(whole[:200])
    (tmp_path / "out").mkdir()
    says(lambda: pack_small(root, tmp_path / "out" / "s.h5", jobs=jobs), "2 of 4", "object-1, object-2", "--on-error")
    log = capfd.readouterr().err
    assert "object-1: 001.png cannot be read" in log
    assert "object-2: 000.png cannot be read" in log
    assert sorted(os.listdir(tmp_path / "out")) == ["s.h5.part", "s.h5.part.log"]
    shutil.rmtree(root / "object-0")  # it is not looked at again
    for bad in ("object-1", "object-2"):
        shutil.copytree(root / "object-3", root / bad, dirs_exist_ok=True)
    (root / "object-0").mkdir()
    pack_small(root, tmp_path / "out" / "s.h5", jobs=jobs)
    assert sorted(os.listdir(tmp_path / "out")) == ["s.h5", "s_model_to_idx.json"]
    store = ViewStore(tmp_path / "out" / "s.h5")
    assert np.array_equal(*store.read([1, 3], [0, 1]))
    assert not np.array_equal(*store.read([0, 3], [0, 1]))


def test_skip_leaves_bad_objects_out(tmp_path):
    root = make_renders(tmp_path / "r", objects=4)
    (root / "object-1" / "001.png").unlink()
    packed = pack_small(root, tmp_path / "s.h5", on_error="skip")
    assert packed.object_ids == ["object-0", "object-2", "object-3"]
    assert packed.skipped == {"object-1": "1 of 2 views are missing, the first is 001.png"}
    shutil.rmtree(root / "object-1")
    pack_small(root, tmp_path / "without.h5")
    assert sha256(tmp_path / "s.h5") == sha256(tmp_path / "without.h5")
    assert json.loads((tmp_path / "s_model_to_idx.json").read_text()) == {"object-0": 0, "object-2": 1, "object-3": 2}


def test_skipping_everything_is_a_failure(tmp_path):
    root = make_renders(tmp_path / "r", objects=2)
    says(lambda: pack_small(root, tmp_path / "s.h5", num_views=3, on_error="skip"), "none of the 2 objects")
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_fewer_views_than_wanted(tmp_path, capfd):
    root = make_renders(tmp_path / "r", objects=1)
    says(lambda: pack_small(root, tmp_path / "s.h5", num_views=12), "1 of 1", "object-0")
    assert "object-0: 10 of 12 views are missing, the first is 002.png" in capfd.readouterr().err
    says(lambda: pack_small(root, tmp_path / "s.h5", num_views=12, layout="images"), "object-0")
    assert "object-0: 2 pictures are fewer than the 12 views wanted" in capfd.readouterr().err


def test_ids_that_are_not_there(tmp_path):
    root = make_renders(tmp_path / "r")
    ids = tmp_path / "ids.txt"
    ids.write_text("object-2\nzebra\nobject-0\n")
    says(lambda: pack_small(root, tmp_path / "s.h5", ids=ids), "zebra", "1 of the 3")
    packed = pack_small(root, tmp_path / "s.h5", ids=ids, on_error="skip")
    assert packed.object_ids == ["object-2", "object-0"]


def test_a_supplement_that_does_not_fit(tmp_path):
    root = make_renders(tmp_path / "r")
    supplement = DATA / "supplement_mv_images.h5"
    says(lambda: pack_small(root, tmp_path / "s.h5", supplement=supplement), "224 pixels", "--size")
    says(lambda: pack_small(root, tmp_path / "s.h5", supplement=tmp_path / "no.h5"), "no.h5 does not exist")
    says(lambda: pack_small(root, tmp_path / "s.h5", supplement_ids=tmp_path / "i.json"), "--supplement")


def test_an_output_that_exists_needs_force(tmp_path):
    root = make_renders(tmp_path / "r")
    for mine in (tmp_path / "s.h5", tmp_path / "s_model_to_idx.json"):  # the second may be that of another store
        mine.write_text("mine")
        says(lambda: pack_small(root, tmp_path / "s.h5"), f"{mine} exists already", "--force")
        assert mine.read_text() == "mine"
        mine.unlink()
    (tmp_path / "s.h5").write_text("mine")
    pack_small(root, tmp_path / "s.h5", force=True)
    assert len(ViewStore(tmp_path / "s.h5")) == 3


def test_a_failed_run_with_force_leaves_the_old_store(tmp_path):
    root = make_renders(tmp_path / "r")
    pack_small(root, tmp_path / "s.h5")
    before = sha256(tmp_path / "s.h5")
    (root / "object-1" / "001.png").unlink()
    says(lambda: pack_small(root, tmp_path / "s.h5", force=True), "object-1")
    assert sha256(tmp_path / "s.h5") == before


def test_a_disk_that_is_too_small_is_said_before_the_first_byte(tmp_path, monkeypatch):
    root = make_renders(tmp_path / "r")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 100, 100))
    says(lambda: pack_small(root, tmp_path / "out" / "s.h5"), "s.h5 will take", "make room")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("limit", [0, 300, 1500, 8192, 20 * 2 * 3 * 16 * 16 + 2000])
def test_a_disk_that_fills_up(tmp_path, limit):
    root = make_renders(tmp_path / "r", objects=20)
    (tmp_path / "out").mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        says(lambda: pack_small(root, tmp_path / "out" / "s.h5"), "s.h5 could not be written", "make room")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    gc.collect()  # what a broken file leaves behind would crash here
    assert set(os.listdir(tmp_path / "out")) <= {"s.h5.part", "s.h5.part.log"}
    pack_small(root, tmp_path / "out" / "s.h5")
    pack_small(root, tmp_path / "whole.h5")
    assert sha256(tmp_path / "out" / "s.h5") == sha256(tmp_path / "whole.h5")


def test_what_a_killed_run_left_is_removed_before_there_is_too_little_space(tmp_path, monkeypatch):
    root = make_renders(tmp_path / "r")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f".s.h5.{os.getpid()}.partial").write_text("half")
    room = lambda path: shutil._ntuple_diskusage(10**9, 10**9, 0 if os.listdir(tmp_path / "out") else 10**9)  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", room)
    pack_small(root, tmp_path / "out" / "s.h5")
    assert sorted(os.listdir(tmp_path / "out")) == ["s.h5", "s_model_to_idx.json"]


# --- ended from outside ------------------------------------------------------------------------------------------

RUN = """
import sys
from ddclip_cli import app
if __name__ == "__main__":
    options = "--num-views 2 --size 512 --jobs 2"
    sys.argv = ["ddclip", "pack-h5", sys.argv[1], "--out", sys.argv[2], *options.split()]
    app.main()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_ended_leaves_its_beginning_and_no_worker(tmp_path, how):
    root = make_renders(tmp_path / "r", objects=2, size=256)
    for number in range(400):
        (root / f"copy-{number}").symlink_to(root / "object-0")
    (tmp_path / "run.py").write_text(RUN)
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "s.h5"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, str(tmp_path / "run.py"), str(root), str(out)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for(lambda: any(path.stat().st_size for path in out.parent.glob("*.part")))
        process.send_signal(how)
        assert process.wait(timeout=120) != 0
        assert {path.name for path in out.parent.iterdir()} == {"s.h5.part", "s.h5.part.log"}
        wait_for(lambda: not group_is_alive(process.pid))
    finally:
        if group_is_alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def group_is_alive(group: int) -> bool:
    """Whether a process of the group runs; a zombie that nobody waits for does not count."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rsplit(")", 1)[1].split()[:3]
        except (FileNotFoundError, ProcessLookupError):  # it ended just now
            continue
        if its_group == str(group) and state != "Z":
            return True
    return False
