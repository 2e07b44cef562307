"""Packing straight out of Zero123's tar: what is asked for, whatever the archive holds and wherever it ends."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from tiny import run

from ddclip_cli.data.pack import pack_store
from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.errors import UserError

FORMATS = Path(__file__).parent / "data" / "reference_formats"
DATA = FORMATS / "dataset" / "data"
EXPECTED = json.loads((FORMATS / "expected.json").read_text())
SUFFIXES = (".tar", ".tar.gz")


def make_archive(path: Path, objects: int = 5, *, order: list[str] | None = None) -> Path:
    """`views_release/object-N/000.png`, `001.png` and a pose beside each, `object-4` first."""
    rng = np.random.default_rng(1)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for number in reversed(range(objects)):
            for view in range(2):
                file = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (16, 16, 4)).astype(np.uint8)).save(file, "PNG")
                add(archive, f"views_release/object-{number}/{view:03d}.png", file.getvalue())
                add(archive, f"views_release/object-{number}/{view:03d}.npy", b"pose")
    return path


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **attributes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in attributes.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(data))


def pack(source: Path, out: Path, **options):
    return pack_store(source, out, **{"num_views": 2, "image_size": 16, **options})


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def imgs_of(path: Path) -> np.ndarray:
    store = ViewStore(path)
    return store.read(range(len(store)), range(store.num_views))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("jobs", [1, 2])
def test_four_comes_out_of_the_archive_byte_for_byte(tmp_path, suffix, jobs):
    path = tmp_path / f"views_release{suffix}"
    with tarfile.open(path, "w:gz" if suffix == ".tar.gz" else "w") as archive:
        archive.add(FORMATS / "views_release", "views_release")
    rows, supplement = DATA / "model_to_idx.json", DATA / "supplement_mv_images.h5"
    packed = pack_store(path, tmp_path / "s.h5", ids=rows, supplement=supplement, jobs=jobs)
    with h5py.File(tmp_path / "s.h5") as file:
        assert hashlib.sha256(file["imgs"][()].tobytes()).hexdigest() == EXPECTED["four_imgs_sha256"]
    assert packed.layout == "zero123"
    assert json.loads((tmp_path / "s_model_to_idx.json").read_text()) == json.loads(rows.read_text())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_only_what_is_asked_for_is_packed_and_nothing_is_unpacked(tmp_path, suffix):
    source = make_archive(tmp_path / f"a{suffix}")
    (tmp_path / "ids.txt").write_text("object-1\nobject-3\n")
    (tmp_path / "out").mkdir()
    packed = pack(source, tmp_path / "out" / "s.h5", ids=tmp_path / "ids.txt")
    assert packed.object_ids == ["object-1", "object-3"]
    assert sorted(os.listdir(tmp_path / "out")) == ["s.h5", "s_model_to_idx.json"]
    pack(source, tmp_path / "all.h5")
    assert ViewStore(tmp_path / "all.h5").ids == [f"object-{n}" for n in (4, 3, 2, 1, 0)]  # as they come
    assert np.array_equal(imgs_of(tmp_path / "out" / "s.h5"), imgs_of(tmp_path / "all.h5")[[3, 1]])


def test_the_archive_ends_with_the_last_that_is_asked_for(tmp_path):
    """Nothing is read behind it, so that it does not matter what is there."""
    source = make_archive(tmp_path / "a.tar")
    (tmp_path / "ids.txt").write_text("object-4\n")
    with open(source, "r+b") as file:
        file.truncate(8 * 1024)
    assert pack(source, tmp_path / "s.h5", ids=tmp_path / "ids.txt").object_ids == ["object-4"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.45, 0.7, 0.99])
@pytest.mark.parametrize("listed", [False, True])
def test_a_cut_archive_is_noticed_and_what_came_before_is_kept(tmp_path, suffix, share, listed, capfd):
    source = make_archive(tmp_path / f"a{suffix}")
    whole = source.read_bytes()
    options = {}
    if listed:
        (tmp_path / "ids.txt").write_text("".join(f"object-{n}\n" for n in range(5)))
        options["ids"] = tmp_path / "ids.txt"
    pack(source, tmp_path / "whole.h5", **options)
    out = tmp_path / "s.h5"
    end = len(whole) if suffix == ".tar.gz" else len(whole.rstrip(b"\0"))
    source.write_bytes(whole[: int(share * end)])
    with pytest.raises(UserError, match=r"a\.tar.* is cut off or damaged .*, after [1-5] objects, which are kept"):
        pack(source, out, **options)
    pack(source, tmp_path / "rest.h5", **options, on_error="skip")  # with what there is
    assert 0 < len(ViewStore(tmp_path / "rest.h5")) <= 5
    source.write_bytes(whole)
    pack(source, out, **options)
    assert sha256(out) == sha256(tmp_path / "whole.h5")


def test_a_plain_archive_cut_between_two_files_is_noticed(tmp_path):
    source = make_archive(tmp_path / "a.tar")
    with tarfile.open(source) as archive:
        third = next(member for member in archive if "object-2" in member.name).offset
    with open(source, "r+b") as file:
        file.truncate(third)
    with pytest.raises(UserError, match="after 2 objects"):
        pack(source, tmp_path / "s.h5")


def test_skipped_objects_leave_no_gap(tmp_path, capfd):
    source = make_archive(tmp_path / "a.tar.gz")
    (tmp_path / "ids.txt").write_text("zebra\nobject-1\nlion\nobject-4\n")
    with pytest.raises(UserError, match="2 of 4 objects could not be packed"):
        pack(source, tmp_path / "s.h5", ids=tmp_path / "ids.txt")
    assert f"2 objects never came: zebra, lion: not in {source}" in capfd.readouterr().err
    packed = pack(source, tmp_path / "s.h5", ids=tmp_path / "ids.txt", on_error="skip")
    assert packed.object_ids == ["object-1", "object-4"]
    assert packed.skipped == dict.fromkeys(["zebra", "lion"], f"not in {source}")
    pack(source, tmp_path / "all.h5")
    assert np.array_equal(imgs_of(tmp_path / "s.h5"), imgs_of(tmp_path / "all.h5")[[3, 0]])


def test_objects_that_lack_views_or_claim_too_much_are_named(tmp_path, capfd):
    source = make_archive(tmp_path / "a.tar", objects=1)
    with tarfile.open(source, "a") as archive:
        add(archive, "views_release/half/001.png", b"x")
        add(archive, "views_release/broken/000.png", b"no picture")
        add(archive, "views_release/broken/001.png", b"no picture")
        add(archive, "views_release/huge/000.png", bytes(70 << 20))
    packed = pack(source, tmp_path / "s.h5", on_error="skip")
    assert packed.object_ids == ["object-0"]
    assert packed.skipped["half"] == "1 of 2 views are missing, the first is 000.png"
    assert packed.skipped["broken"].startswith("000.png cannot be read (cannot identify image file")
    assert packed.skipped["huge"] == "000.png claims 73,400,320 bytes"


def test_names_and_links_lead_nowhere(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("../../evil/000.png", "/evil2/000.png", "000.png", "../000.png", "/000.png"):
            add(archive, name, b"x")
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            add(archive, f"views/link/{kind.decode()}00.png", type=kind, linkname=str(tmp_path / "secret.png"))
    before = sorted(os.listdir(tmp_path.parent)), sorted(os.listdir(tmp_path))
    with pytest.raises(UserError, match="none of the 2 objects"):
        pack(tmp_path / "a.tar", tmp_path / "s.h5", on_error="skip")
    assert (sorted(os.listdir(tmp_path.parent)), sorted(os.listdir(tmp_path))) == before


@pytest.mark.parametrize(
    "content", [b"", b"text", gzip.compress(b"text"), random.Random(0).randbytes(5000), b"\x1f\x8b\x08"]
)
def test_files_that_are_no_archive(tmp_path, content):
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tar\.gz is no tar archive") as caught:
        pack(tmp_path / "a.tar.gz", tmp_path / "out" / "s.h5")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_object_that_comes_in_two_pieces_is_put_together(tmp_path):
    source = make_archive(tmp_path / "a.tar")
    shuffled = tmp_path / "b.tar"
    with tarfile.open(source) as archive, tarfile.open(shuffled, "w") as other:
        members = archive.getmembers()
        random.Random(0).shuffle(members)
        for member in members:
            other.addfile(member, archive.extractfile(member))
    (tmp_path / "ids.txt").write_text("".join(f"object-{n}\n" for n in range(5)))
    pack(source, tmp_path / "a.h5", ids=tmp_path / "ids.txt")
    pack(shuffled, tmp_path / "b.h5", ids=tmp_path / "ids.txt")
    assert np.array_equal(imgs_of(tmp_path / "a.h5"), imgs_of(tmp_path / "b.h5"))


def test_from_the_command_line(tmp_path):
    source = make_archive(tmp_path / "a.tar.gz")
    done = run(
        "pack-h5", source, "--out", tmp_path / "s.h5", "--num-views", 2, "--size", 16, "--codec", "jpeg", "--json"
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["objects"] == 5
    source.write_bytes(source.read_bytes()[:5000])
    done = run("pack-h5", source, "--out", tmp_path / "t.h5", "--num-views", 2, "--size", 16)
    assert done.code == 1
    assert "which are kept: bring the whole archive" in done.err.splitlines()[-1]
