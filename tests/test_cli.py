"""The command line as a user meets it: a process of its own, what it prints where, and its exit code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.main import get_command

from ddclip_cli.app import COMMANDS, app

ROOT = Path(__file__).parent.parent
HEAVY = {
    "torch",
    "torchvision",
    "open_clip",
    "timm",
    "h5py",
    "faiss",
    "accelerate",
    "trimesh",
    "huggingface_hub",
    "pydantic",
}
NAMES = [name for commands in COMMANDS.values() for name in commands]


def ddclip(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ddclip_cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from ddclip_cli.app import main; sys.argv = ['ddclip', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert all(name in done.stdout for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_help_of_a_command_ends_with_two_examples_of_options_it_has(name):
    command = get_command(app).commands[name]
    children = list(command.commands.values()) if hasattr(command, "commands") else [command]
    for child in children:
        examples = re.findall(r"^\s+(ddclip .*)$", child.help.split("Examples:")[-1], flags=re.MULTILINE)
        assert len(examples) >= (1 if len(children) > 1 else 2), f"{name} has too few examples"
        known = {option for parameter in child.params for option in [*parameter.opts, *parameter.secondary_opts]}
        for example in examples:
            assert set(re.findall(r"(?<=\s)--?[a-z][a-z0-9-]*", example)) <= known, example


@pytest.mark.parametrize("name", NAMES)
def test_paragraphs_of_help_are_broken_by_the_terminal_alone(name):
    command = get_command(app).commands[name]
    for child in getattr(command, "commands", {"": command}).values():
        prose, examples = child.help.split("Examples:")
        assert all("\n" not in paragraph for paragraph in prose.strip().split("\n\n"))
        assert all(line == "" or line.lstrip().startswith("ddclip ") for line in examples.replace("\b", "").split("\n"))


def test_version():
    done = ddclip("--version")
    assert done.returncode == 0
    assert re.fullmatch(r"ddclip \d+\.\d+\.\d+\n", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["retreive", "a couch"], "retrieve"),
        (["retrieve"], "QUERY"),
        (["retrieve", "a couch", "--top-q", "3"], "--top-k"),
        (["retrieve", ""], "empty"),
        (["pack-h5", "renders"], "--out"),
        (["pack-h5", "renders", "--out", "x.h5", "--num-views", "many"], "--num-views"),
        (["train", "--recipe", "fuor"], "'four'"),
        (["train", "--recipe", "sample", "train.epoch=1"], "train.epochs"),
        (["eval-lvis", "--views", "1,two"], "eval.views"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_2(arguments, word, tmp_path):
    done = ddclip(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert word in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["render", "nothing.glb", "--out", "renders"], "nothing.glb"),
        (["pack-h5", "nothing", "--out", "x.h5"], "nothing"),
        (["embed", "nothing.h5", "--out", "e.h5", "--recipe", "sample"], "nothing.h5"),
        (["retrieve", "a couch", "--index", "nothing.h5", "--recipe", "sample"], "nothing.h5"),
        (["encode-targets", "nothing.h5", "--captions", "c.json", "--out", "t", "--recipe", "sample"], "nothing.h5"),
        (["retrieve", "a couch"], "ddclip download"),
        (["eval-lvis"], "ddclip download lvis"),
    ],
)
def test_what_is_missing_is_one_sentence_and_1(arguments, word, tmp_path):
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = ddclip(*arguments, cwd=tmp_path, env=environment)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert word in done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "hf"] == []


def test_debug_shows_the_traceback():
    done = ddclip("--debug", "render", "nothing.glb", "--out", "renders")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m ddclip_cli recipe show base | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "0"


def test_interrupting_leaves_nothing_half_written_and_130(tmp_path):
    command = [sys.executable, "-m", "ddclip_cli", "sample", "--out", str(tmp_path / "library"), "--train", "100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    meshes = tmp_path / "library" / "meshes"
    deadline = time.monotonic() + 60
    while len(list(meshes.glob("*.glb"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
    assert all(path.read_bytes()[:4] == b"glTF" for path in meshes.glob("*.glb"))
    assert not list(meshes.glob(".*"))


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_demo_never_removes_a_folder_that_is_not_its_own(force, tmp_path):
    (tmp_path / "demo").mkdir()
    mine = tmp_path / "demo" / "mine.txt"
    mine.write_text("precious")
    done = ddclip("demo", *force, cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["mine.txt"]
    assert mine.read_text() == "precious"
