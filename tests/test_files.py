"""Output that is whole or not there, however the process that writes it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import run

from ddclip_cli import app, files
from ddclip_cli.errors import UserError


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def write_folder(path: Path, text: str) -> None:
    with files.writing(path) as partial:
        partial.mkdir()
        (partial / "text").write_text(text)


PROGRAM = """
import sys, time
from ddclip_cli import app, files

@app.app.command()
def slow(out: str):
    with files.writing(out) as partial:
        partial.mkdir()
        (partial / "half").write_text("half")
        print("ready", flush=True)
        time.sleep(60)

sys.argv = ["ddclip", "slow", sys.argv[1]]
app.main()
"""


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_ended_command_cleans_up_and_a_killed_one_is_cleaned_up_after(tmp_path, how, code):
    out = tmp_path / "out"
    write_folder(out, "old")
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    files.remove_leftovers(tmp_path, ["out"])  # not of a process that runs
    assert names(tmp_path) == [f".out.{process.pid}.partial", "out"]
    process.send_signal(how)
    assert process.wait(timeout=60) == code
    process.stdout.close()
    if how == signal.SIGKILL:
        files.remove_leftovers(tmp_path, ["out"])
    assert names(tmp_path) == ["out"]
    assert (out / "text").read_text() == "old"


DROPPED = """
import os, sys, time, weakref
from ddclip_cli import app

class Thing: pass

@app.app.command()
def slow(number: int):
    thing = Thing()
    reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), number))
    del thing
    time.sleep(60)

sys.argv = ["ddclip", "slow", sys.argv[1]]
app.main()
"""


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_that_python_drops_ends_the_command_too(how, code):
    done = subprocess.run(
        [sys.executable, "-c", DROPPED, str(int(how))], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_leftovers_are_those_of_the_names_given(tmp_path):
    dead = dead_process()
    kept = [
        ".mine.partial",
        ".other.h5." + str(dead) + ".partial",
        f"s.h5.{dead}.partial",
        f".s.h5.{os.getppid()}.partial",
    ]
    gone = [f".s.h5.{dead}.partial", f"..s.h5.{dead}.partial.{dead}.partial", f".s.h5.{os.getpid()}.partial"]
    for name in kept + gone:
        (tmp_path / name).write_text("half")
    files.remove_leftovers(tmp_path, ["s.h5"])
    assert names(tmp_path) == sorted(kept)
    files.remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted(name for name in kept if "other" not in name)
    files.remove_leftovers(tmp_path / "none")


def test_a_folder_is_there_again_after_a_kill_in_the_middle_of_its_replacement(tmp_path):
    out = tmp_path / "out"
    for again in (lambda: files.remove_leftovers(tmp_path, ["out"]), lambda: fail_to_write(out)):
        write_folder(out, "old")
        out.rename(files._aside(out))
        again()
        assert names(tmp_path) == ["out"]
        assert (out / "text").read_text() == "old"
        write_folder(files._aside(out), "older")  # killed before it was removed
        again()
        assert names(tmp_path) == ["out"]
        assert (out / "text").read_text() == "old"
    write_folder(out, "new")
    assert names(tmp_path) == ["out"]
    assert (out / "text").read_text() == "new"


def fail_to_write(out: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), files.writing(out) as partial:
        partial.mkdir()
        raise KeyboardInterrupt


def test_a_folder_that_cannot_take_its_name_leaves_the_old_one(tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_folder(out, "old")
    rename = Path.rename

    def fails(path, target):
        if path.name.endswith(".partial"):
            raise OSError(errno.EIO, "broken")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="broken"):
        write_folder(out, "new")
    assert names(tmp_path) == ["out"]
    assert (out / "text").read_text() == "old"


def test_refusing_names_the_option(tmp_path):
    files.refuse_existing(tmp_path / "none", force=False)
    files.refuse_existing(tmp_path, force=True)
    with pytest.raises(UserError, match="choose another --out"):
        files.refuse_existing(tmp_path, force=False)
    with pytest.raises(UserError, match="choose another --sheet"):
        files.refuse_existing(tmp_path, force=False, option="--sheet")


def test_a_full_disk_says_what_to_do():
    full = OSError(errno.ENOSPC, "No space left on device", "out/captions.json")
    assert app._explain(full) == (
        1,
        "No space left on device: out/captions.json: make room, or choose another --out",
    )
    assert app._explain(OSError(errno.EACCES, "Permission denied", "x")) == (1, "Permission denied: x")


def test_a_full_disk_in_a_command_is_one_sentence(tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_sync", full)
    ended = run("sample", "--out", tmp_path / "library", "--train", 1, "--heldout", 0)
    assert ended.code == 1
    assert "error: No space left on device: make room, or choose another --out" in ended.err
