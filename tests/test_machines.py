"""A run shared by several machines: each has its own launcher, files and working directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from several_processes import SETTINGS, distance, free_port, in_processes, train_sample, wait_for, weights
from tiny import run
from tiny_training import PLAN, Targets, lines, objects, tiny_model

from ddclip_cli.data.dataset import TrainingData
from ddclip_cli.errors import UserError
from ddclip_cli.training.loop import train
from ddclip_cli.training.processes import LostProcessError, Processes
from ddclip_cli.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def start_two_machines(data: Path, out: str, *options: object, second: tuple = ()) -> list[subprocess.Popen]:
    """`ddclip train` under a torchrun on each of two "machines", which have working directories of their own."""
    meet, runs = ("--nnodes", 2, "--nproc_per_node", 1, "--master_addr", "127.0.0.1", "--master_port", free_port()), []
    for number in (0, 1):
        home = data / f"machine-{number}"
        home.mkdir(exist_ok=True)
        launcher = (sys.executable, "-m", "torch.distributed.run", *meet, "--node_rank", number)
        runs.append(train_sample(data, out, *options, *(second if number else ()), launcher=launcher, cwd=home))
    return runs


def errors(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("error:")]


@pytest.mark.slow
def test_two_machines_train_to_the_weights_of_one_process_and_one_goes_on_alone(sample_data):
    copy = sample_data / "copy"  # without what the main process alone evaluates on
    shutil.copytree(sample_data / "targets", copy / "targets")
    shutil.copy(sample_data / "train.h5", copy / "train.h5")
    runs = start_two_machines(sample_data, "two", "--max-steps", 4, second=("--data-dir", copy))
    said = [started.communicate(timeout=300) for started in runs]
    assert [started.returncode for started in runs] == [0, 0], said
    assert said[0][0].count("steps") == 1
    assert said[1][0] == ""
    assert "start:" in said[0][1]
    assert "start:" not in said[1][1]
    places = ("--recipe", "sample", "--data-dir", sample_data, "--device", "cpu", *SETTINGS)
    assert run("train", *places, "--out", sample_data / "two", "--resume").code == 0
    assert run("train", *places, "--out", sample_data / "one").code == 0
    assert distance(weights(sample_data, "two"), weights(sample_data, "one")) < 1e-9
    steps = [[line["step"] for line in lines(sample_data / out / "metrics.jsonl")] for out in ("two", "one")]
    assert steps[0] == steps[1]


@pytest.mark.slow
def test_a_machine_that_dies_ends_the_other_and_one_that_is_told_to_end_saves(sample_data):
    options = ("--no-eval", "train.epochs=200", "--save-every", 1, "--resume")
    runs = start_two_machines(sample_data, "run", *options)
    wait_for(sample_data / "run" / "checkpoints" / "last")
    for process in [*psutil.Process(runs[0].pid).children(recursive=True), runs[0]]:
        process.kill()
    said = [started.communicate(timeout=60)[1] for started in runs]
    assert runs[1].returncode == 1
    assert errors(said[0]) == []
    (sentence,) = errors(said[1])
    assert sentence.startswith("error: process 1: another process of this run has ended, here or on another machine (")

    before = os.readlink(sample_data / "run" / "checkpoints" / "last")
    runs = start_two_machines(sample_data, "run", *options)
    while os.readlink(sample_data / "run" / "checkpoints" / "last") == before:
        time.sleep(0.1)
    runs[1].terminate()
    said = [started.communicate(timeout=60)[1] for started in runs]
    assert all(started.returncode for started in runs)
    assert "saved, --resume goes on from there" in said[0]
    assert [errors(words) for words in said] == [[], []]


# Where the second machine has something else


class OtherTargets(Targets):
    features = Targets.features + np.float32(1)


def otherwise(folder: Path, changes: dict, data: dict, options: dict) -> None:
    """Of process 1: another plan, data or options; each process has its own run folder, as on disks of its own."""
    rank = int(os.environ["RANK"])
    plan = replace(PLAN, **changes) if rank else PLAN
    sets = objects(**({name: kind() for name, kind in data.items()} if rank else {}))
    try:
        train(tiny_model(folder), sets, plan, folder / f"disk-{rank}" / "run", **(options if rank else {}))
    except UserError as error:
        (folder / f"said-{rank}").write_text(str(error))


@pytest.mark.parametrize(
    ("changes", "data", "options", "sentence"),
    [
        ({"learning_rate": 1e-4}, {}, {}, "train.learning_rate is 0.0001, there 0.001"),
        ({"seed": 5, "epochs": 1}, {}, {}, "seed is 5, there 11; train.epochs is 1, there 3"),
        ({}, {}, {"max_steps": 2}, "--max-steps is 2, there None"),
        ({}, {"text_targets": OtherTargets}, {}, "data is 10 objects, 4 a batch, ids and targets "),
        ({"precision": "bf16"}, {}, {}, "its arithmetic is bf16 on a cpu, there fp32 on a cpu"),
    ],
)
def test_machines_that_would_take_other_steps_are_refused(tmp_path, changes, data, options, sentence):
    assert in_processes(2, otherwise, tmp_path, changes, data, options) == [0, 0]
    for rank in (0, 1):
        said = (tmp_path / f"said-{rank}").read_text()
        assert said.startswith("process 1: this would be another run than in the main process (")
        assert sentence in said
        assert not (tmp_path / f"disk-{rank}").exists()


def test_only_the_main_process_touches_the_run_folder(tmp_path):
    assert in_processes(2, otherwise, tmp_path, {}, {}, {}) == [0, 0]
    assert not (tmp_path / "said-0").exists()
    assert len(lines(tmp_path / "disk-0" / "run" / "metrics.jsonl")) == 6
    assert not (tmp_path / "disk-1").exists()


def resumed(folder: Path) -> None:
    rank = os.environ["RANK"]
    with pytest.raises(UserError) as caught:
        train(tiny_model(folder), objects(), PLAN, folder / f"disk-{rank}" / "run", resume=True)
    (folder / f"said-{rank}").write_text(str(caught.value))


def test_a_run_that_only_the_second_machine_has_is_not_started_anew(tmp_path):
    train(tiny_model(tmp_path), objects(), PLAN, tmp_path / "disk-1" / "run", max_steps=1)
    assert in_processes(2, resumed, tmp_path) == [0, 0]
    assert "has a checkpoint on this machine and none on that of the main process" in (tmp_path / "said-0").read_text()
    assert not (tmp_path / "disk-0").exists()


@pytest.mark.parametrize(("local_rank", "is_silent"), [("0", False), ("1", True)])
def test_the_first_process_of_every_machine_says_that_another_is_lost(monkeypatch, local_rank, is_silent):
    """For the main one may be lost."""
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert LostProcessError("gone").is_shared is is_silent


def test_machines_that_do_not_reach_each_other_are_told_what_settles_it(monkeypatch):
    def fail(*_arguments, **_named):
        raise RuntimeError(
            "Gloo connectFullMesh failed with [/src/pair.cc:152] timed out connecting, remote=[127.0.1.1]:1"
        )

    monkeypatch.setattr(torch.distributed, "init_process_group", fail)
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "a", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match=r"\(Gloo connectFullMesh failed with timed out.*set GLOO_SOCKET_IFNAME"):
        Processes.join(torch.device("cpu"))


def test_all_shares_of_the_same_objects_and_targets_have_one_digest():
    def digest(share=(0, 1), **changes):
        return TrainingData(objects(**changes), batch_size=4, num_views=(1, 2), seed=0, share=share).digest()

    assert digest() == digest((0, 2)) == digest((1, 2))
    others = [
        digest(image_targets=OtherTargets()),
        digest(object_ids=Targets.ids[:9]),
        digest(object_ids=Targets.ids[::-1]),
    ]
    assert len({digest(), *others}) == 4


def test_the_optimizers_state_travels_as_bytes_and_arrives_on_the_cpu(tmp_path):
    """Pickled tensors of a GPU would arrive on the GPU of the same number: that of the main process."""

    class Alone(Processes):
        sent = ()

        def copy_from_main(self, tensors):
            pass

        def from_main(self, value, *, patiently=False):
            self.sent = (*self.sent, type(value))
            return value

    trainer = Trainer(tiny_model(tmp_path), PLAN)
    trainer.step([TrainingData(objects(), batch_size=4, num_views=(1, 1), seed=0)[0]], learning_rate=1e-3)
    trainer.processes = Alone(0, 2)
    before = trainer.state_dict()["optimizer"]["state"]
    trainer.copy_from_main()
    assert trainer.processes.sent == (bytes,)
    after = trainer.state_dict()["optimizer"]["state"]
    assert all(torch.equal(after[number][name], state[name]) for number, state in before.items() for name in state)
