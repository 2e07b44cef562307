"""Weights & Biases: what is asked of its package, by one that stands for it. TensorBoard is in test_training.py."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from tiny_training import PLAN, Targets, accuracy, lines, objects, tiny_model

from ddclip_cli.errors import UsageError, UserError
from ddclip_cli.training.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")


class Wandb(ModuleType):
    """The part of wandb that is used, and what it was told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None, origin="wandb/__init__.py")
        self.errors = SimpleNamespace(Error=type("Error", (Exception,), {}))
        self.runs: list[dict] = []
        self.refuses_login = self.refuses_start = False

    def login(self) -> None:
        if self.refuses_login:
            raise self.errors.Error("No API key configured. Use `wandb login` to log in.")

    def init(self, **options):
        if self.refuses_start:
            raise self.errors.Error("context deadline exceeded\nwhile retrying")
        told = {"options": options, "metrics": [], "logged": [], "exit_code": None}
        self.runs.append(told)
        return SimpleNamespace(
            define_metric=lambda name, step_metric: told["metrics"].append((name, step_metric)),
            log=lambda values, step: told["logged"].append((values, step)),
            finish=lambda exit_code: told.update(exit_code=exit_code),
        )


@pytest.fixture
def wandb(monkeypatch) -> Wandb:
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return fake


def track(folder: Path, **options) -> None:
    train(tiny_model(folder), objects(), PLAN, folder / "run", tracker="wandb", resume=True, **options)


def test_it_gets_what_metrics_jsonl_gets_in_one_run_however_often_that_was_resumed(tmp_path, wandb):
    for max_steps in (3, None):
        track(tmp_path, evaluate=accuracy, max_steps=max_steps, recipe={"train": {"epochs": 3}})
    assert [told["options"]["id"] for told in wandb.runs] == [wandb.runs[0]["options"]["id"]] * 2
    for told in wandb.runs:
        known = {name: told["options"][name] for name in ("project", "name", "resume", "config")}
        recipe = {"train": {"epochs": 3}}
        assert known == {"project": "ddclip", "name": "run", "resume": "allow", "config": recipe}
        # Its own count of steps may not go backwards, as a resumed run does: ours is one of the numbers.
        assert told["metrics"] == [("*", "step")]
        assert all(step is None for _, step in told["logged"])
        assert told["exit_code"] == 0
    written = lines(tmp_path / "run" / "metrics.jsonl")
    logged = [values for told in wandb.runs for values, _ in told["logged"]]
    assert [values["step"] for values in logged] == [line["step"] for line in written]
    for values, line in zip(logged, written, strict=True):
        name, key = ("train", "loss") if line["kind"] == "step" else ("evaluation", "top1")
        assert values[f"{name}/{key}"] == line[key]


def test_a_run_that_fails_is_marked_as_failed(tmp_path, wandb):
    class Broken(Targets):
        def read(self, rows, views):
            return super().read(rows, views) * float("nan")

    with pytest.raises(UserError, match="loss is nan"):
        train(tiny_model(tmp_path), objects(image_targets=Broken()), PLAN, tmp_path / "run", tracker="wandb")
    assert [told["exit_code"] for told in wandb.runs] == [1]


def test_without_a_login_nothing_is_begun(tmp_path, wandb, monkeypatch):
    wandb.refuses_login = True
    with pytest.raises(UserError, match=r"wandb cannot start \(No API key configured.*WANDB_MODE=offline") as caught:
        track(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("WANDB_MODE", "offline")
    track(tmp_path)


def test_without_a_network_it_is_a_sentence(tmp_path, wandb):
    wandb.refuses_start = True
    with pytest.raises(UserError, match=r"wandb cannot start \(context deadline exceeded\): ") as caught:
        track(tmp_path)
    assert "\n" not in str(caught.value)
    wandb.refuses_start = False
    track(tmp_path)


def test_the_folder_that_wandb_leaves_behind_is_not_taken_for_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UsageError, match="the tracker wandb is not installed"):
        track(tmp_path)
