"""Folders of meshes into views on disk: the same bytes however they are run, and the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from mesh_files import OFF, textured_glb
from PIL import Image
from tiny import run

from ddclip_cli.errors import UserError
from ddclip_cli.recipe import load_recipe
from ddclip_cli.render import render_mesh
from ddclip_cli.render.folder import find_meshes, render_folder


@pytest.fixture
def meshes(tmp_path: Path) -> Path:
    """Four meshes, one in a subfolder."""
    import trimesh

    folder = tmp_path / "meshes"
    (folder / "more").mkdir(parents=True)
    trimesh.creation.box((1, 0.5, 0.3)).export(folder / "box.stl")
    trimesh.creation.icosphere(subdivisions=2).export(folder / "ball.ply")
    trimesh.creation.cone(0.4, 1.0).export(folder / "more" / "cone.OFF", file_type="off")
    (folder / "quad.glb").write_bytes(textured_glb())
    (folder / "._quad.glb").write_text("what another system leaves")
    return folder


SMALL = {"num_views": 3, "image_size": 24}


def wait_for_workers_of(out: Path) -> None:
    """A killed run's workers end by themselves, soon."""
    deadline = time.monotonic() + 30
    while any(pid_runs(int(p.name.split(".")[-2])) for p in out.glob(".*.partial")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def pid_runs(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_views_are_the_same_bytes_whatever_the_number_of_jobs(tmp_path, meshes):
    done = render_folder([meshes], tmp_path / "one", **SMALL)
    assert done.done == ["ball", "box", "cone", "quad"]
    render_folder([meshes], tmp_path / "two", jobs=2, **SMALL)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 4 * 3 * 2
    render_folder([meshes / "quad.glb"], tmp_path / "alone", **SMALL)  # nor on which others are rendered
    assert contents(tmp_path / "alone" / "quad") == contents(tmp_path / "one" / "quad")
    views = render_mesh(meshes / "quad.glb", **SMALL)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "one" / "quad" / "001.png")), views[1])
    poses = [np.load(tmp_path / "one" / "quad" / f"{view:03d}.npy") for view in range(3)]
    assert np.shape(poses) == (3, 3, 4)


def test_finished_objects_are_kept_and_leftovers_removed(tmp_path, meshes):
    out = tmp_path / "out"
    render_folder([meshes / "box.stl"], out, **SMALL)
    before = (out / "box" / "000.png").stat().st_mtime_ns
    for name in ("ball", "box"):  # of a run that a forced one was
        leftover = out / f".{name}.{os.getpid()}.partial"
        leftover.mkdir()
        (leftover / "000.png").write_text("half")
    result = render_folder([meshes], out, **SMALL)
    assert result.kept == ["box"]
    assert result.done == ["ball", "cone", "quad"]
    assert (out / "box" / "000.png").stat().st_mtime_ns == before
    assert sorted(p.name for p in out.iterdir()) == ["ball", "box", "cone", "quad"]
    assert render_folder([meshes], out, force=True, **SMALL).done == ["ball", "box", "cone", "quad"]


@pytest.mark.parametrize(
    "other", [{"num_views": 2}, {"num_views": 4}, {"image_size": 32}, {"seed": 1}, {"camera": "ring"}]
)
def test_views_of_other_settings_are_not_mixed(tmp_path, meshes, other):
    render_folder([meshes / "box.stl"], tmp_path / "out", **SMALL)
    with pytest.raises(UserError, match="holds other views"):
        render_folder([meshes / "box.stl"], tmp_path / "out", **(SMALL | other))


def test_a_killed_run_ends_with_the_same_bytes(tmp_path, meshes):
    render_folder([meshes], tmp_path / "whole", **SMALL)
    out = tmp_path / "out"
    slow = tmp_path / "slow"  # every process of the run imports this first
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(
        "import time, numpy\nsave = numpy.save\nnumpy.save = lambda *a: (time.sleep(0.1), save(*a))\n"
    )
    program = f"""
from ddclip_cli.render.folder import render_folder
if __name__ == "__main__":
    render_folder([{str(meshes)!r}], {str(out)!r}, num_views=3, image_size=24)
"""
    script = tmp_path / "run.py"
    script.write_text(program)
    root = Path(__file__).parent.parent
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(slow), str(root)])}
    process = subprocess.Popen([sys.executable, str(script)], env=environment)
    deadline = time.monotonic() + 60
    while not (out / "ball").exists() or not list(out.glob(".*.partial")):  # in the middle of the second
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for_workers_of(out)
    result = render_folder([meshes], out, **SMALL)
    assert "ball" in result.kept
    assert result.done
    assert contents(out) == contents(tmp_path / "whole")


def test_two_files_of_one_name_are_an_error_that_names_both(tmp_path, meshes):
    (meshes / "more" / "box.off").write_text(OFF)
    with pytest.raises(UserError, match=r"box\.(stl|off) and .*box\.(stl|off) would both be object 'box'"):
        find_meshes([meshes])
    assert list(find_meshes([meshes / "box.stl", meshes / "box.stl"])) == ["box"]


def test_a_mesh_that_ends_its_process_is_reported_and_the_others_are_drawn(tmp_path, meshes):
    """As native code may; every process of the run imports what does it here."""
    (meshes / "crash.stl").write_text("")
    faulty = tmp_path / "faulty"
    faulty.mkdir()
    (faulty / "sitecustomize.py").write_text(
        "import os, pathlib\n"
        "read = pathlib.Path.read_bytes\n"
        "pathlib.Path.read_bytes = lambda path: os._exit(9) if path.name == 'crash.stl' else read(path)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(f"""
import json
from ddclip_cli.render.folder import render_folder
if __name__ == "__main__":
    result = render_folder([{str(meshes)!r}], {str(tmp_path / "out")!r}, num_views=1, image_size=16, jobs=2)
    print(json.dumps([result.done, result.failed]))
""")
    root = Path(__file__).parent.parent
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(faulty), str(root)])}
    ended = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    done, failed = json.loads(ended.stdout)
    assert done == ["ball", "box", "cone", "quad"]
    assert list(failed) == ["crash"]
    assert "crash.stl: the process that drew it ended" in failed["crash"]


def test_ids_may_come_from_paths(tmp_path, meshes):
    (meshes / "more" / "box.off").write_text(OFF)
    found = find_meshes([meshes], object_ids="path")
    assert list(found) == ["ball.ply", "box.stl", "more_box.off", "more_cone.OFF", "quad.glb"]
    (meshes / "more_box.off").write_text(OFF)
    with pytest.raises(UserError, match=r"would both be object 'more_box.off': rename one of them$"):
        find_meshes([meshes], object_ids="path")


# ---- the command


def test_rendered_folders_are_packed_as_they_are(tmp_path, meshes):
    out, store = tmp_path / "renders", tmp_path / "store.h5"
    ended = run("render", meshes, "--out", out, "--num-views", 3, "--size", 32, "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out) == {"renders": str(out), "rendered": 4, "kept": 0, "failed": {}}
    ended = run("pack-h5", out, "--out", store, "--num-views", 3, "--size", 16)
    assert ended.code == 0, ended.err
    with h5py.File(store) as file:
        assert file["imgs"].shape == (4, 3, 3, 16, 16)
        assert [i.decode() for i in file["ids"]] == ["ball", "box", "cone", "quad"]
        assert file["imgs"][0, 0, :, 0, 0].tolist() == [255, 255, 255]
    recipe = (out / "recipe.yaml").read_bytes()
    assert (
        load_recipe(str(out / "recipe.yaml")).render.model_dump()
        == load_recipe("four", ["render.num_views=3", "render.image_size=32"]).render.model_dump()
    )
    again = run("render", meshes, "--out", out, "--num-views", 3, "--size", 32)
    assert (out / "recipe.yaml").read_bytes() == recipe
    assert again.code == 0
    assert again.out.split()[-4:] == [str(out), "0", "4", "0"]


def test_meshes_that_fail_are_reported_after_the_rest(tmp_path, meshes):
    (meshes / "list.glb").write_text("butter, bread")
    arguments = ("render", meshes, "--out", tmp_path / "out", "--num-views", 1, "--size", 16)
    ended = run(*arguments)
    assert ended.code == 1
    assert "list.glb: cannot be read as a .glb mesh" in ended.err
    assert "error: 1 mesh could not be rendered" in ended.err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["ball", "box", "cone", "quad", "recipe.yaml"]
    skipped = run(*arguments, "--on-error", "skip", "--json")
    assert skipped.code == 0
    assert list(json.loads(skipped.out)["failed"]) == ["list"]
    assert json.loads(skipped.out)["kept"] == 4


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("gone.glb", "--out", "r"), 1, "gone.glb: no such file or folder"),
        ((".", "--out", "r"), 1, "holds no mesh"),
        (("gone.glb",), 2, "--out"),
        (("gone.glb", "--out", "r", "--device", "tpu"), 2, "unknown device 'tpu'"),
        (("gone.glb", "--out", "r", "--device", "cuda:99"), 2, "there is no cuda:99 here"),
        (("gone.glb", "--out", "r", "--num-views", "0"), 2, "render.num_views"),
        (("gone.glb", "--out", "r", "--camera", "drone"), 2, "--camera"),
        (("gone.glb", "--out", "r", "--up", "x"), 2, "--up"),
        (("gone.glb", "--out", "r", "--sheet", "s.jpg"), 2, "a sheet is a PNG"),
    ],
)
def test_mistakes_of_the_command_line(tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    ended = run("render", *arguments)
    assert ended.code == code
    assert words in ended.err
    assert ended.out == ""


def test_a_sheet_shows_the_views_of_every_object(tmp_path, meshes):
    sheet = tmp_path / "sheet.png"
    arguments = ("render", meshes, "--out", tmp_path / "out", "--num-views", 2, "--size", 32, "--sheet", sheet)
    assert run(*arguments).code == 0
    with Image.open(sheet) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape == (2 * 146 + 16, 3 * 464 + 16, 3)
    rows = pixels[16 + 18 : 16 + 130], pixels[16 + 146 + 18 : 16 + 146 + 130]
    for row, columns in ((0, 3), (1, 1)):  # ball box cone, quad
        for column in range(3):
            left = 16 + column * 464
            drawn = [(rows[row][:, left + 112 * place : left + 112 * (place + 1)] < 250).any() for place in range(4)]
            assert drawn == [column < columns] * 2 + [False] * 2
    again = run(*arguments)
    assert again.code == 1
    assert "sheet.png exists already" in again.err
    assert run(*arguments, "--force").code == 0


def test_settings_that_the_views_do_not_show_are_not_mixed_either(tmp_path, meshes):
    arguments = ("render", meshes / "quad.glb", "--out", tmp_path / "out", "--num-views", 1, "--size", 16)
    assert run(*arguments).code == 0
    ended = run(*arguments, "--up", "z")
    assert ended.code == 1
    assert "holds other views" in ended.err
    assert run(*arguments).code == 0
    (tmp_path / "out" / "recipe.yaml").write_text("render: [")
    assert "holds other views" in run(*arguments).err


def test_an_output_that_is_a_file_is_refused(tmp_path, meshes):
    (tmp_path / "out").write_text("")
    ended = run("render", meshes, "--out", tmp_path / "out")
    assert ended.code == 1
    assert "out is a file" in ended.err
