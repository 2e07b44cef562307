"""Several processes on one global batch: the loss, gradients and weights of one process alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from several_processes import distance, in_processes, train_sample, wait_for, weights
from tiny_training import PLAN, Store, accuracy, lines, objects, tiny_model

from ddclip_cli.data.dataset import TrainingData
from ddclip_cli.errors import UsageError, UserError
from ddclip_cli.model.loss import contrastive_loss, contrastive_loss_of_rows
from ddclip_cli.training.launch import launched, refuse_mismatch
from ddclip_cli.training.loop import ExtraSet, train
from ddclip_cli.training.processes import Processes
from ddclip_cli.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
FLOAT64, FLOAT32 = replace(PLAN, batch_size=8, precision="fp64"), replace(PLAN, batch_size=8)


def five_steps(folder: Path, out: str, plan, options: dict) -> None:
    """Losses and gradients of the first step, and the weights after five, of the main process."""
    processes = Processes.join(torch.device("cpu"))
    trainer = Trainer(tiny_model(folder), plan, processes=processes, **options)
    share = (processes.rank, processes.number)
    data = TrainingData(
        objects(), batch_size=8, num_views=(1, 3), seed=3, share_views=plan.view_choice == "step", share=share
    )
    losses, gradients = [], []
    for step in range(5):
        batch = data[0] if step < 2 else data[step % 3]
        losses.append(trainer.step([batch], learning_rate=1e-3).loss)
        gradients = gradients or [parameter.grad.clone() for parameter in trainer.parameters]
    if processes.is_main:
        weights = [parameter.detach() for parameter in trainer.parameters]
        torch.save({"losses": losses, "gradients": gradients, "weights": weights}, folder / out)
    processes.leave()


def assert_same_steps(folder: Path, plan, number: int, tolerance: float, **options) -> None:
    five_steps(folder, "alone.pt", plan, {})
    assert in_processes(number, five_steps, folder, "shared.pt", plan, options) == [0] * number
    alone, shared = torch.load(folder / "alone.pt"), torch.load(folder / "shared.pt")
    assert shared["losses"][0] == pytest.approx(alone["losses"][0], rel=tolerance)
    assert distance(shared["gradients"], alone["gradients"]) < tolerance
    if plan.precision == "fp64":
        assert shared["losses"] == pytest.approx(alone["losses"], rel=tolerance)
        assert distance(shared["weights"], alone["weights"]) < tolerance


@pytest.mark.parametrize(("plan", "tolerance"), [(FLOAT64, 1e-9), (FLOAT32, 1e-5)])
@pytest.mark.parametrize("number", [2, 4])
def test_the_number_of_processes_changes_nothing(tmp_path, number, plan, tolerance):
    assert_same_steps(tmp_path, plan, number, tolerance)


def test_nor_does_it_where_everything_learns_in_pieces_and_each_object_has_its_own_views(tmp_path):
    plan = replace(FLOAT64, trainable="all", view_choice="object")
    assert_same_steps(tmp_path, plan, 2, 1e-9, micro_batch=3, recompute=True)


def test_parts_of_the_loss_have_the_mean_and_the_gradient_of_the_whole():
    torch.manual_seed(0)
    a, b, scale = torch.randn(6, 5).double(), torch.randn(6, 5).double(), torch.tensor(1.3).double()
    inputs = [tensor.requires_grad_() for tensor in (a, b, scale)]
    logits = scale.exp() * torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T
    diagonal = logits.diagonal()
    plain = ((logits.logsumexp(0) - diagonal).mean() + (logits.logsumexp(1) - diagonal).mean()) / 2
    parts = sum(contrastive_loss_of_rows(slice(i, i + 2), a, b, scale) for i in (0, 2, 4)) / 3
    for loss in (parts, contrastive_loss(a, b, scale)):
        assert loss.item() == pytest.approx(plain.item(), rel=1e-12)
        for ours, expected in zip(
            torch.autograd.grad(loss, inputs), torch.autograd.grad(plain, inputs, retain_graph=True), strict=True
        ):
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("share_views", [True, False])
def test_shares_together_are_the_batch(share_views):
    def data(share):
        return TrainingData(objects(), batch_size=8, num_views=(1, 3), seed=0, share_views=share_views, share=share)

    for step in range(3):
        whole, parts = data((0, 1))[step], [data((number, 4))[step] for number in range(4)]
        assert whole.object_ids == [object_id for part in parts for object_id in part.object_ids]
        assert all(part.views.shape[1] == whole.views.shape[1] for part in parts)
        for name in ("views", "image_targets", "text_targets"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
        if not share_views:
            assert whole.view_numbers == [views for part in parts for views in part.view_numbers]
            assert len({tuple(views) for views in whole.view_numbers}) > 1
    with pytest.raises(UsageError, match="a global batch of 8 objects has no 3 equal parts"):
        data((0, 3))


# Whole runs


def whole_run(folder: Path, out: str, options: dict, data: dict) -> None:
    extra = ExtraSet(objects(), 4)
    plan = replace(FLOAT64, batch_size=4, epochs=2)
    evaluate = accuracy if os.environ.get("RANK", "0") == "0" else None  # the main process alone evaluates
    train(tiny_model(folder), objects(**data), plan, folder / out, extra=extra, evaluate=evaluate, **options)


def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    whole_run(tmp_path, "whole", {}, {})
    assert in_processes(2, whole_run, tmp_path, "parts", {"max_steps": 1}, {}) == [0, 0]
    assert in_processes(4, whole_run, tmp_path, "parts", {"max_steps": 3, "resume": True}, {}) == [0] * 4
    whole_run(tmp_path, "parts", {"resume": True}, {})
    found, expected = (lines(tmp_path / out / "metrics.jsonl") for out in ("parts", "whole"))
    assert len(found) == len(expected)
    for ours, whole in zip(found, expected, strict=True):
        assert (ours.pop("kind"), ours) == (whole.pop("kind"), pytest.approx(whole, rel=1e-6))  # accuracy() magnifies
    states = [torch.load(tmp_path / out / "checkpoints" / "last" / "optimizer.pt") for out in ("parts", "whole")]
    assert distance(states[0]["parameters"], states[1]["parameters"]) < 1e-9


class BrokenInOne(Store):
    """A store that only one of the processes cannot read."""

    def read(self, rows, views):
        if os.environ.get("RANK") == "1":
            raise UserError("train.h5 is damaged")
        return super().read(rows, views)


def failing_run(folder: Path, which: str) -> None:
    broken = BrokenInOne()
    if which == "start":
        with pytest.raises(UserError) as caught:
            whole_run(folder, "run", {}, {"store": broken})
        (folder / f"said-{os.environ['RANK']}").write_text(str(caught.value))
        return
    broken.read = Store().read
    processes = Processes.join(torch.device("cpu"))
    try:
        with processes.together():
            pass
        if processes.rank == 1:
            os._exit(9)
        processes.any(True)
    except UserError as error:
        (folder / "said").write_text(str(error))


def test_what_fails_in_one_process_ends_all_with_its_sentence(tmp_path):
    assert in_processes(2, failing_run, tmp_path, "start") == [0, 0]
    for rank in (0, 1):
        assert (tmp_path / f"said-{rank}").read_text() == "process 1: train.h5 is damaged"
    assert not (tmp_path / "run").exists()
    assert in_processes(2, failing_run, tmp_path, "death") == [0, 9]
    assert "another process of this run has ended" in (tmp_path / "said").read_text()


@pytest.mark.parametrize(
    ("environment", "processes", "sentence"),
    [
        ({"WORLD_SIZE": "4"}, 2, "--processes 2 inside one of 4 processes"),
        ({"WORLD_SIZE": "4"}, 1, "--processes 1 inside one of 4 processes"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, None, "would change the negatives"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, None, "DeepSpeed is not supported"),
    ],
)
def test_launchers_that_do_not_fit_are_refused(environment, processes, sentence):
    with pytest.raises(UsageError, match=sentence):
        refuse_mismatch(processes, environment)


def test_a_launcher_is_believed_if_it_says_everything(monkeypatch):
    refuse_mismatch(4, {"WORLD_SIZE": "4"})
    refuse_mismatch(2, {})
    assert launched() is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="RANK and LOCAL_RANK and MASTER_ADDR and MASTER_PORT does not fit"):
        launched()


# The command line


def test_the_sample_recipe_trains_to_the_same_weights_in_one_process_and_in_two(sample_data):
    runs = [train_sample(sample_data, out, "--processes", n, "--json") for out, n in (("one", 1), ("two", 2))]
    said = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert [json.loads(out)["steps"] for out, _ in said] == [6, 6]
    assert all("warn" not in err.lower() for _, err in said), said
    assert distance(weights(sample_data, "two"), weights(sample_data, "one")) < 1e-9
    evaluated = [
        [x for x in lines(sample_data / o / "metrics.jsonl") if x["kind"] == "evaluation"] for o in ("one", "two")
    ]
    assert evaluated[0] == evaluated[1]
    assert [line["epoch"] for line in evaluated[0]] == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ("torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    ],
)
def test_other_launchers_train_to_the_same_weights(sample_data, launcher):
    begun = (sys.executable, "-m", *launcher)
    runs = [train_sample(sample_data, "one"), train_sample(sample_data, "two", launcher=begun)]
    said = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert distance(weights(sample_data, "two"), weights(sample_data, "one")) < 1e-9


@pytest.mark.slow
def test_a_killed_process_ends_all_and_the_run_goes_on(sample_data):
    options = ("--processes", 2, "train.epochs=200", "--save-every", 1)
    run = train_sample(sample_data, "run", "--no-eval", *options)
    wait_for(sample_data / "run" / "checkpoints" / "last")
    children = psutil.Process(run.pid).children()
    assert len(children) == 2
    children[1].kill()
    out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: process 1 of 2 was ended by SIGKILL")
    assert err.count("error:") == 1

    run = train_sample(sample_data, "run", "--no-eval", *options, "--resume")
    steps = len(lines(sample_data / "run" / "metrics.jsonl"))
    while len(lines(sample_data / "run" / "metrics.jsonl")) <= steps + 1:
        time.sleep(0.1)
    children = psutil.Process(run.pid).children()
    run.kill()  # its processes end by themselves
    run.communicate(timeout=60)
    assert not psutil.wait_procs(children, timeout=10)[1]

    run = train_sample(sample_data, "run", "--no-eval", *options, "--resume")
    steps = len(lines(sample_data / "run" / "metrics.jsonl"))
    while len(lines(sample_data / "run" / "metrics.jsonl")) <= steps + 1:
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 143
    assert "saved, --resume goes on from there" in err
    assert err.count("\n") < 5, err


@pytest.mark.slow
def test_a_process_that_cannot_start_says_so_and_ends_the_others(sample_data):
    """As when a file is missing on the second machine: there is no main process that could say it."""
    begun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    broken = sample_data / "broken.sh"
    broken.write_text(f'#!/bin/sh\n[ "$RANK" = 1 ] && export DDCLIP_DATA=nowhere || export DDCLIP_DATA={sample_data}\n')
    with broken.open("a") as file:
        file.write(
            f'exec {sys.executable} -m ddclip_cli train --recipe sample --no-eval --out {sample_data}/run "$@"\n'
        )
    broken.chmod(0o755)
    ended = subprocess.run(
        [*begun, "--no-python", broken, "--device", "cpu"], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1
    said = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert len(said) == 1
    assert said[0].startswith("error: process 1: missing: nowhere/train.h5")
