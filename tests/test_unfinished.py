"""Output that goes on after a kill at any moment, and ends with the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddclip_cli.data import unfinished
from ddclip_cli.data.convert import convert_store
from ddclip_cli.data.pack import pack_store
from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.errors import UserError


def make_renders(root: Path, objects: int = 6, size: int = 16) -> Path:
    rng = np.random.default_rng(3)
    for number in range(objects):
        folder = root / f"object-{number}"
        folder.mkdir(parents=True)
        for view in range(2):
            Image.fromarray(rng.integers(0, 256, (size, size, 4)).astype(np.uint8)).save(folder / f"{view:03d}.png")
    return root


def pack(root: Path, out: Path, **options):
    return pack_store(root, out, **{"num_views": 2, "image_size": 16, **options})


def content(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def dies_at(moment: int, action) -> bool:
    """Run `action` in a forked process that ends, as by kill -9, before its write, sync or rename number `moment`.

    False if it ended well before that."""
    child = os.fork()
    if child == 0:
        left = moment

        def count(function):
            def counting(*arguments, **options):
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(9)
                return function(*arguments, **options)

            return counting

        class Counted(unfinished.FileIO):
            def write(self, data):
                return count(super().write)(data)

        unfinished.FileIO, unfinished.SECONDS_AT_RISK, unfinished.BYTES_AT_ONCE = Counted, 0, 3000
        os.fsync, Path.replace, Path.unlink = count(os.fsync), count(Path.replace), count(Path.unlink)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.parametrize("codec", ["raw", "jpeg"])
@pytest.mark.parametrize("gap", [False, True])
def test_killed_before_every_single_write_packing_ends_with_the_same_bytes(tmp_path, codec, gap):
    root = make_renders(tmp_path / "r")
    if gap:
        (root / "object-1" / "000.png").write_bytes(b"no picture")
        (root / "object-3" / "001.png").unlink()
    options = {"codec": codec, "on_error": "skip"}
    pack(root, tmp_path / "whole" / "s.h5", **options)
    whole = content(tmp_path / "whole")
    for moment in range(1000):
        out = tmp_path / str(moment) / "s.h5"
        died = dies_at(moment, lambda out=out: pack(root, out, **options))
        if died:
            pack(root, out, **options)
        assert content(out.parent) == whole, moment
        if not died:
            break
    assert moment > 20


def test_killed_again_and_again(tmp_path):
    """Every run gets one write further than what the one before left, whatever that was."""
    root = make_renders(tmp_path / "r", objects=4)
    pack(root, tmp_path / "whole" / "s.h5")
    out = tmp_path / "out" / "s.h5"
    moments = random.Random(0)
    while dies_at(moments.randrange(60), lambda: pack(root, out)):
        pass
    assert content(out.parent) == content(tmp_path / "whole")


def test_conversion_goes_on_too(tmp_path):
    pack(make_renders(tmp_path / "r"), tmp_path / "s.h5")
    convert_store(tmp_path / "s.h5", tmp_path / "whole" / "j.h5", codec="lossless")
    for moment in (3, 9, 17):
        out = tmp_path / str(moment) / "j.h5"
        assert dies_at(moment, lambda out=out: convert_store(tmp_path / "s.h5", out, codec="lossless"))
        convert_store(tmp_path / "s.h5", out, codec="lossless")
        assert content(out.parent) == content(tmp_path / "whole")


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch, capfd):
    root = make_renders(tmp_path / "r")
    (root / "object-4" / "000.png").unlink()
    with pytest.raises(UserError):
        pack(root, tmp_path / "s.h5")
    assert "s.h5.part: the same command goes on from there" in capfd.readouterr().err
    Image.new("RGBA", (16, 16)).save(root / "object-4" / "000.png")
    opened = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda file, **options: opened.append(file) or original(file, **options))
    pack(root, tmp_path / "s.h5")
    assert {path.parent.name for path in opened} == {"object-4"}


def test_a_beginning_of_another_store_is_not_mixed_in(tmp_path):
    root = make_renders(tmp_path / "r")
    (root / "object-4" / "000.png").unlink()
    with pytest.raises(UserError):
        pack(root, tmp_path / "s.h5")
    with pytest.raises(UserError, match=r"s\.h5\.part is the beginning of .* made otherwise: .*--force"):
        pack(root, tmp_path / "s.h5", num_views=1)
    pack(root, tmp_path / "s.h5", num_views=1, on_error="skip", force=True)
    assert ViewStore(tmp_path / "s.h5").num_views == 1


@pytest.mark.parametrize("rubbish", [b"\0" * 100, b'["object-5",[15', b"[}\n"])
def test_records_that_a_power_cut_spoiled_do_not_count(tmp_path, rubbish):
    root = make_renders(tmp_path / "r")
    pack(root, tmp_path / "whole" / "s.h5")
    picture = (root / "object-4" / "000.png").read_bytes()
    (root / "object-4" / "000.png").unlink()
    out = tmp_path / "out" / "s.h5"
    with pytest.raises(UserError):
        pack(root, out)
    with open(unfinished.log_path(out), "ab") as file:
        file.write(rubbish)
    (root / "object-4" / "000.png").write_bytes(picture)
    pack(root, out)
    assert content(out.parent) == content(tmp_path / "whole")


def test_two_runs_do_not_write_one_store(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    with open(unfinished.log_path(tmp_path / "s.h5"), "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="written by another run"):
            pack(make_renders(tmp_path / "r"), tmp_path / "s.h5")


@pytest.mark.slow
def test_killed_at_a_hundred_moments_with_workers(tmp_path):
    """The command itself, by kill -9 from outside."""
    root = make_renders(tmp_path / "r", objects=60, size=512)
    arguments = [sys.executable, "-m", "ddclip_cli", "pack-h5", root, "--num-views", "2", "--jobs", "2", "--out"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([*arguments, tmp_path / "whole" / "s.h5"], env=environment, check=True, capture_output=True)
    moments, out = random.Random(0), tmp_path / "out" / "s.h5"
    for _ in range(100):
        process = subprocess.Popen(
            [*arguments, out], env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        time.sleep(moments.uniform(0.5, 3))
        process.send_signal(signal.SIGKILL)
        ended_well = process.wait() == 0
        finished = out.parent.is_dir() and content(out.parent) == content(tmp_path / "whole")
        assert finished or not ended_well
        if finished:  # perhaps killed after its last write; finished output would be refused
            for path in out.parent.iterdir():
                path.unlink()
    subprocess.run([*arguments, out], env=environment, check=True, capture_output=True)
    assert content(out.parent) == content(tmp_path / "whole")
    assert len(json.loads((out.parent / "s_model_to_idx.json").read_text())) == 60
