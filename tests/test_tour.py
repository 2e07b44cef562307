"""The demo: its steps in order, a failure that ends it, going on where it stopped, and the whole of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from ddclip_cli.errors import UserError
from ddclip_cli.sample import tour

MAKE = ("make", "sample --out {out}/library --train 0 --heldout 2 --seed {seed}")
SHOW = ("show", "recipe show base")
FAIL = ("fail", "recipe check {out}/nothing.yaml")


def test_a_failing_step_ends_the_demo_and_the_same_command_goes_on_with_it(tmp_path, monkeypatch):
    out = tmp_path / "a demo"
    monkeypatch.setattr(tour, "STEPS", (MAKE, FAIL, SHOW))
    with pytest.raises(UserError, match=r"step 2 of the demo \(recipe\) ended with exit code [12]"):
        tour.run_demo(out)
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.glb")}
    assert len(made) == 2

    monkeypatch.setattr(tour, "STEPS", (MAKE, SHOW, SHOW))
    tour.run_demo(out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.glb")} == made
    with pytest.raises(UserError, match="--force"):
        tour.run_demo(out)


def test_another_demo_is_not_mixed_in_but_may_be_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(tour, "STEPS", (MAKE, FAIL))
    with pytest.raises(UserError, match="step 2"):
        tour.run_demo(tmp_path / "demo")
    with pytest.raises(UserError, match="exists already"):
        tour.run_demo(tmp_path / "demo", seed=1)
    monkeypatch.setattr(tour, "STEPS", (MAKE,))
    tour.run_demo(tmp_path / "demo", seed=1, force=True)
    assert json.loads((tmp_path / "demo" / "demo.json").read_text()) == {"seed": 1, "train": 576, "done": 1}


@pytest.mark.slow
def test_the_whole_demo(tmp_path):
    out = tmp_path / "a b"
    command = [sys.executable, "-m", "ddclip_cli", "demo", "--out", str(out), "--train", "96"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    accuracies = dict(re.findall(r"^ +(1|3|6|12) +(\d+\.\d\d) ", done.stdout, re.M))
    assert set(accuracies) == {"1", "3", "6", "12"}
    assert float(accuracies["12"]) > 90
    assert len(re.findall(r"white-couch-\d+", done.stdout.split("a white couch")[-1])) == 5
    assert (out / "white-couch.png").stat().st_size > 10_000
    assert (out / "white-couch.html").read_text().count("data:image/jpeg") == 5
