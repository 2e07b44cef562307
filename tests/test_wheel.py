"""The wheel as a stranger gets it: built, unpacked elsewhere, run outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_answers_outside_the_checkout(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)

    def ddclip(*words: str) -> str:
        command = [sys.executable, "-m", "ddclip_cli", *words]
        environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "import ddclip_cli; print(ddclip_cli.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    assert str(site) in subprocess.check_output([sys.executable, "-c", where], cwd=tmp_path, env=environment, text=True)
    assert all(name in ddclip("recipe", "list") for name in ("base", "four", "sample"))
    answers = ddclip("retrieve", "--recipe", "sample", "a white couch", "--sheet", "out.png")
    assert answers.count("white-couch-") == 5
    assert (tmp_path / "out.png").stat().st_size > 10_000

    # A user who has only meshes.
    ddclip("sample", "--out", "library", "--train", "0", "--heldout", "4")
    ddclip("embed", "library/meshes", "--out", "my.h5", "--recipe", "sample", "--num-views", "3")
    found = ddclip("retrieve", "--index", "my.h5", "a red chair", "--paths", "--html", "page.html")
    assert all((tmp_path / line).is_file() for line in found.splitlines())
    assert (tmp_path / "page.html").read_text().count("data:image/jpeg") == len(found.splitlines()) == 4
