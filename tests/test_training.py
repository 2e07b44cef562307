"""The training loop: the reference's step, exact resume, and what a run refuses."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_training import OBJECTS, PLAN, VIEWS, Targets, accuracy, lines, objects, tiny_model

from ddclip_cli.data.dataset import Batch, TrainingData
from ddclip_cli.errors import UsageError, UserError
from ddclip_cli.model import checkpoints
from ddclip_cli.model.checkpoints import load_model
from ddclip_cli.training import checkpointing, run_folder
from ddclip_cli.training.loop import train
from ddclip_cli.training.plan import TrainingPlan
from ddclip_cli.training.trainer import Trainer

REFERENCE = Path(__file__).parent / "data" / "reference_model"


pytestmark = pytest.mark.usefixtures("one_thread")


# The step


def reference_trainer() -> tuple[Trainer, Batch, dict]:
    model = load_model(
        REFERENCE / "reference_lightning.ckpt",
        backbone=str(REFERENCE / "open_clip_config.json"),
        device="cpu",
        precision="fp32",
    )
    expected = load_file(REFERENCE / "expected.safetensors")
    views = torch.from_numpy(np.load(REFERENCE / "views.npz")["views"][:, :4])
    trainer = Trainer(model, TrainingPlan(crop="none", precision="fp32"))
    batch = Batch(
        step=0,
        object_ids=["a", "b"],
        view_numbers=[0, 1, 2, 3],
        views=views,
        image_targets=expected["train_image_features"],
        text_targets=expected["train_text_features"],
    )
    return trainer, batch, expected


def test_three_steps_are_the_references():
    trainer, batch, expected = reference_trainer()
    steps = [trainer.step([batch], learning_rate=5e-5) for _ in range(3)]
    assert steps[0].loss_image == pytest.approx(expected["loss_image"].item(), abs=1e-5)
    assert steps[0].loss_text == pytest.approx(expected["loss_text"].item(), abs=1e-5)
    assert [step.loss for step in steps] == pytest.approx(expected["losses"].tolist(), abs=1e-5)
    after = {name.split(".", 1)[1]: t for name, t in expected.items() if name.startswith("after3.duoduoclip.")}
    ours = {f"duoduoclip.{name}": t for name, t in trainer.model.clip.named_parameters()}
    assert len(after) == 8
    for name, tensor in after.items():
        torch.testing.assert_close(ours[name], tensor, atol=2e-4, rtol=0)
    scale = expected["after3.contrastive_loss.logit_scale"].item()
    assert trainer.model.logit_scale.item() == pytest.approx(scale, abs=1e-6)


def test_only_what_is_trained_changes(tmp_path):
    model = tiny_model(tmp_path)
    before = {name: tensor.clone() for name, tensor in model.clip.state_dict().items()}
    train(model, objects(), PLAN, tmp_path / "run", max_steps=2)
    changed = {name for name, tensor in model.clip.state_dict().items() if not torch.equal(tensor, before[name])}
    attention = {n for n in before if ".resblocks.1.attn." in n or ".resblocks.2.attn." in n if n.startswith("visual.")}
    assert len(attention) == 8
    assert changed == attention | {"logit_scale"}


def test_the_loss_falls_when_it_may_overfit(tmp_path):
    plan = TrainingPlan(trainable="all", crop="none", precision="fp32")
    data = TrainingData(objects(), batch_size=10, num_views=(2, 2), seed=0)
    trainer = Trainer(tiny_model(tmp_path), plan)
    losses = [trainer.step([data[step]], learning_rate=3e-3).loss for step in range(60)]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.5, 2.0)])
def test_the_loss_is_the_weighted_sum_of_its_parts(tmp_path, weights):
    plan = TrainingPlan(batch_size=4, precision="fp32", image_loss_weight=weights[0], text_loss_weight=weights[1])
    data = TrainingData(objects(), batch_size=4, num_views=(2, 2), seed=0)
    losses = Trainer(tiny_model(tmp_path), plan).step([data[0]], learning_rate=1e-3)
    assert losses.loss == pytest.approx(weights[0] * losses.loss_image + weights[1] * losses.loss_text)


def test_the_learning_rate_is_half_a_cosine_that_moves_once_an_epoch(tmp_path):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=5e-5)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=80, eta_min=1e-7)
    plan = TrainingPlan()
    for epoch in range(80):
        assert plan.learning_rate_of_epoch(epoch) == pytest.approx(oracle.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        oracle.step()
    train(tiny_model(tmp_path), objects(), PLAN, tmp_path / "run")
    used = [line["learning_rate"] for line in lines(tmp_path / "run" / "metrics.jsonl")]
    assert used == [PLAN.learning_rate_of_epoch(epoch) for epoch in (0, 0, 1, 1, 2, 2)]


# The run


def test_a_run_leaves_its_recipe_metrics_and_checkpoints(tmp_path):
    run, recipe = tmp_path / "run", {"seed": 11, "train": {"epochs": 3, "num_views": (1, 3), "learning_rate": 1e-7}}
    model = tiny_model(tmp_path)
    summary = train(model, objects(), PLAN, run, evaluate=accuracy, recipe=recipe)
    assert {path.name for path in run.iterdir()} == {"checkpoints", "metrics.jsonl", "recipe.yaml", "timings.jsonl"}
    assert yaml.safe_load((run / "recipe.yaml").read_text())["train"] == {
        "epochs": 3, "num_views": [1, 3], "learning_rate": 1e-7,
    }  # fmt: skip
    written = lines(run / "metrics.jsonl")
    kinds = [(line["kind"], line["step"], line["epoch"]) for line in written]
    expected = [("evaluation", 0, 0)]
    for epoch in (1, 2, 3):
        expected += [("step", 2 * epoch - 1, epoch), ("step", 2 * epoch, epoch), ("evaluation", 2 * epoch, epoch)]
    assert kinds == expected
    step = written[1]
    assert step["loss"] == pytest.approx(step["loss_image"] + step["loss_text"])
    assert 1 <= step["num_views"] <= 3
    assert len(lines(run / "timings.jsonl")) == 6

    evaluations = {line["step"]: line["top1"] for line in written if line["kind"] == "evaluation" and line["step"]}
    best_step = max(evaluations, key=lambda step: evaluations[step])
    assert (summary["best_step"], summary["best_top1"]) == (best_step, evaluations[best_step])
    assert summary["finished"]
    assert Path(summary["checkpoint"]) == run / "checkpoints" / "best"
    assert accuracy(load_model(run / "checkpoints" / "best", device="cpu"))["top1"] == evaluations[best_step]
    last = load_model(run / "checkpoints" / "last", device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(last.clip.parameters(), model.clip.parameters(), strict=True))
    assert len(list((run / "checkpoints").glob("step-*"))) == len({best_step, 6})


def test_without_evaluation_the_last_checkpoint_is_the_result(tmp_path):
    summary = train(tiny_model(tmp_path), objects(), PLAN, tmp_path / "run", max_steps=1)
    assert summary["checkpoint"] == str(tmp_path / "run" / "checkpoints" / "last")
    assert not summary["finished"]
    assert not (tmp_path / "run" / "checkpoints" / "best").exists()


# Going on after a kill


def finished_run(folder: Path) -> tuple[bytes, dict, dict, dict]:
    """Everything of a run that must not depend on how often it was interrupted."""
    checkpoints = folder / "checkpoints"
    names = {link: os.readlink(checkpoints / link) for link in ("last", "best")}
    weights = {link: load_file(checkpoints / link / "model.safetensors") for link in names}
    optimizer = torch.load(checkpoints / "last" / "optimizer.pt", weights_only=True)["optimizer"]
    progress = json.loads((checkpoints / "last" / "progress.json").read_text())
    return (folder / "metrics.jsonl").read_bytes(), weights, optimizer, {"names": names, "progress": progress}


def assert_same_run(a: Path, b: Path) -> None:
    (metrics_a, weights_a, optimizer_a, rest_a), (metrics_b, weights_b, optimizer_b, rest_b) = map(finished_run, (a, b))
    assert metrics_a == metrics_b
    assert rest_a == rest_b
    for link in ("last", "best"):
        assert weights_a[link].keys() == weights_b[link].keys()
        assert all(torch.equal(tensor, weights_b[link][name]) for name, tensor in weights_a[link].items())
    assert optimizer_a["state"].keys() == optimizer_b["state"].keys()
    for index, state in optimizer_a["state"].items():
        assert all(torch.equal(value, optimizer_b["state"][index][name]) for name, value in state.items())
    assert not list((b / "checkpoints").glob(".*"))


def run_whole(folder: Path, out: str, *, evaluate=accuracy, **options) -> Path:
    """The run of the tests below, from the start or from wherever it was killed."""
    train(tiny_model(folder), objects(), PLAN, folder / out, evaluate=evaluate, save_every=1, resume=True, **options)
    return folder / out


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_and_die(folder: Path, moment: str) -> None:
    """In a process of its own: the run, until it kills itself at `moment`."""
    torch.set_num_threads(1)
    save, torch_save, point_best, prune = (
        checkpointing.save, torch.save, checkpointing._point_best, checkpointing._prune,
    )  # fmt: skip
    evaluations = 0

    def save_or_die(run, trainer, progress, recipe, *, keep):
        if moment == "before the first checkpoint":
            kill()
        save(run, trainer, progress, recipe, keep=keep)

    def torch_save_or_die(state, file):
        if moment == "in the middle of a checkpoint" and "step-00000003" in Path(file.name).parent.name:
            file.write(b"half")
            kill()
        torch_save(state, file)

    def point_best_or_die(run, progress):
        if moment == "between last and best" and progress.step == progress.best_step:
            kill()
        point_best(run, progress)

    def prune_or_die(run, keep):
        if moment == "before old checkpoints go" and len(list(run.checkpoints.glob("step-*"))) > 1:
            kill()
        prune(run, keep)

    def evaluate_or_die(model):
        nonlocal evaluations
        evaluations += 1
        if moment == "in an evaluation" and evaluations == 4:  # the start, its baseline, epochs 1 and 2
            kill()
        return accuracy(model)

    checkpointing.save, torch.save = save_or_die, torch_save_or_die
    checkpointing._point_best, checkpointing._prune = point_best_or_die, prune_or_die
    run_whole(folder, "killed", evaluate=evaluate_or_die)


def _forked(target, *arguments) -> multiprocessing.process.BaseProcess:
    context = multiprocessing.get_context("forkserver")  # forks a process with everything imported and no threads
    context.set_forkserver_preload(["ddclip_cli.training.loop"])
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


@pytest.mark.parametrize(
    "moment",
    [
        "before the first checkpoint",
        "in the middle of a checkpoint",
        "between last and best",
        "before old checkpoints go",
        "in an evaluation",
    ],
)
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, moment):
    process = _forked(run_and_die, tmp_path, moment)
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    assert_same_run(run_whole(tmp_path, "whole"), run_whole(tmp_path, "killed"))


@pytest.mark.slow
def test_a_run_killed_at_any_time_goes_on_bit_for_bit(tmp_path):
    whole = run_whole(tmp_path, "whole")
    timings = tmp_path / "killed" / "timings.jsonl"  # grows whenever a step is done, and is never cut back
    rng = np.random.default_rng(0)
    kills = 0
    for _ in range(20):
        before = timings.stat().st_size if timings.exists() else 0
        process = _forked(run_and_die, tmp_path, "from outside")
        while process.is_alive() and (timings.stat().st_size if timings.exists() else 0) == before:
            time.sleep(0.001)
        time.sleep(float(rng.uniform(0, 0.05)))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills > 2
    assert_same_run(whole, run_whole(tmp_path, "killed"))


def test_a_run_in_parts_and_read_ahead_is_the_same_run(tmp_path):
    whole = run_whole(tmp_path, "whole")
    for steps in (1, 2, 5):
        run_whole(tmp_path, "parts", max_steps=steps)
    assert_same_run(whole, run_whole(tmp_path, "parts", jobs=2))
    assert_same_run(whole, run_whole(tmp_path, "parts"))  # done already: nothing changes


def test_an_interrupt_keeps_the_last_checkpoint(tmp_path, capsys):
    class Interrupted(Targets):
        left = 4

        def draw(self, object_ids, rng):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
            return super().draw(object_ids, rng)

    with pytest.raises(KeyboardInterrupt):
        train(tiny_model(tmp_path), objects(text_targets=Interrupted()), PLAN, tmp_path / "run", save_every=1)
    assert "interrupted after step 2: --resume goes on after step 2" in capsys.readouterr().err
    train(tiny_model(tmp_path), objects(), PLAN, tmp_path / "run", resume=True)
    train(tiny_model(tmp_path), objects(), PLAN, tmp_path / "whole")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("full", ["model.safetensors", "optimizer.pt"])
def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, full, monkeypatch):
    run = run_whole(tmp_path, "run", max_steps=1)
    size = (run / "checkpoints" / "last" / full).stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(function):
        def call(*arguments):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1000, before[1]))
            try:
                return function(*arguments)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

        return call

    owner, name = (checkpoints, "write_safetensors") if full == "model.safetensors" else (torch, "save")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, limited(getattr(owner, name)))
        with pytest.raises(UserError, match=r"step-00000002 could not be written \(.*\): make room, or choose another"):
            run_whole(tmp_path, "run")
    assert os.readlink(run / "checkpoints" / "last") == "step-00000001"
    assert_same_run(run_whole(tmp_path, "whole"), run_whole(tmp_path, "run"))


# What a run says and refuses


@pytest.mark.parametrize(("start", "warned"), [(10.0, True), (24.9, True), (25.1, False), (60.0, False)])
def test_the_gate_warns_of_a_start_far_below_the_backbone(tmp_path, capsys, start, warned):
    def evaluate(model):
        return {"top1": 50.0 if model.cross_view_from == model.num_blocks else start}

    train(tiny_model(tmp_path), objects(), PLAN, tmp_path / "run", evaluate=evaluate, max_steps=1)
    said = capsys.readouterr().err
    assert ("warning: training starts at" in said) == warned
    assert "50.0 %" in said


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_objects(tmp_path):
    class Broken(Targets):
        def read(self, rows, views):
            features = super().read(rows, views)
            features[rows == 3] = np.nan
            return features

    with pytest.raises(UserError, match=r"loss is nan at step \d") as caught:
        train(tiny_model(tmp_path), objects(image_targets=Broken()), PLAN, tmp_path / "run", save_every=1)
    failed = json.loads((tmp_path / "run" / "failed_step.json").read_text())
    assert "object-3" in failed["object_ids"]
    assert failed["object_ids"][0] in str(caught.value)
    last = tmp_path / "run" / "checkpoints" / "last"
    if failed["step"] > 1:
        weights = load_file(last / "model.safetensors")
        assert all(tensor.isfinite().all() for tensor in weights.values())
        assert json.loads((last / "progress.json").read_text())["step"] == failed["step"] - 1


def test_a_run_that_exists_is_refused_resumed_or_replaced(tmp_path):
    run, recipe = tmp_path / "run", {"train": {"epochs": 3, "batch_size": 4}}
    start = lambda **options: train(tiny_model(tmp_path), objects(), PLAN, run, max_steps=1, **options)  # noqa: E731
    start(recipe=recipe)
    with pytest.raises(UserError, match=r"--resume.*--force"):
        start(recipe=recipe)
    with pytest.raises(UserError, match=r"train.batch_size was 4, now 8"):
        start(recipe={"train": {"epochs": 3, "batch_size": 8}}, resume=True)
    (run / "notes.txt").write_text("mine")
    start(recipe={"train": {"epochs": 1}}, force=True)
    assert yaml.safe_load((run / "recipe.yaml").read_text()) == {"train": {"epochs": 1}}
    assert len(lines(run / "metrics.jsonl")) == 1
    assert (run / "notes.txt").read_text() == "mine"


def test_a_damaged_checkpoint_is_refused_in_a_sentence(tmp_path):
    run = run_whole(tmp_path, "run", max_steps=2)
    (run / "checkpoints" / "last" / "optimizer.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read as a checkpoint of this run"):
        run_whole(tmp_path, "run")


def test_half_precision_on_a_cpu_and_foreign_targets_leave_nothing_behind(tmp_path):
    class Wide(Targets):
        features = np.zeros((OBJECTS, VIEWS, 16), dtype=np.float32)

    half = TrainingPlan(batch_size=4, num_views=(1, 2), precision="fp16")
    with pytest.raises(UsageError, match=r"fp16 needs a GPU: set train.precision=auto"):
        train(tiny_model(tmp_path), objects(), half, tmp_path / "a")
    with pytest.raises(UserError, match=r"data.image_targets are 16 wide but the model's embeddings 8"):
        train(tiny_model(tmp_path), objects(image_targets=Wide()), PLAN, tmp_path / "b")
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def test_bf16_trains_on_a_cpu(tmp_path):
    plan = TrainingPlan(batch_size=4, num_views=(1, 2), epochs=1, precision="bf16")
    model = tiny_model(tmp_path)
    train(model, objects(), plan, tmp_path / "run")
    assert all(math.isfinite(line["loss"]) for line in lines(tmp_path / "run" / "metrics.jsonl"))
    assert next(model.clip.visual.parameters()).dtype == torch.float32


# Being told to end, and living beside others


def terminated_run(folder: Path, out: str, when: str) -> None:
    """In a process of its own: the run, which gets SIGTERM in step 3, or in the evaluation after it."""

    class Told(Targets):
        calls = 0

        def draw(self, object_ids, rng):
            self.calls += 1
            if when == "in a step" and self.calls == 4:  # one more is read beforehand, for its width
                os.kill(os.getpid(), signal.SIGTERM)
            return super().draw(object_ids, rng)

    def evaluate(model):
        if when == "in an evaluation" and (folder / out / "checkpoints" / "step-00000004").exists():
            os.kill(os.getpid(), signal.SIGTERM)
        return accuracy(model)

    torch.set_num_threads(1)
    train(tiny_model(folder), objects(text_targets=Told()), PLAN, folder / out, evaluate=evaluate)


@pytest.mark.parametrize(("when", "step"), [("in a step", 3), ("in an evaluation", 4)])
def test_sigterm_saves_and_ends_with_143(tmp_path, when, step):
    process = _forked(terminated_run, tmp_path, "run", when)
    process.join(timeout=60)
    assert process.exitcode == 143
    assert os.readlink(tmp_path / "run" / "checkpoints" / "last") == f"step-{step:08d}"
    train(tiny_model(tmp_path), objects(), PLAN, tmp_path / "run", evaluate=accuracy, resume=True)
    train(tiny_model(tmp_path), objects(), PLAN, tmp_path / "whole", evaluate=accuracy)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_the_newest_checkpoints_are_kept_and_the_best(tmp_path):
    best_first = iter([0.0, 0.0, 9.0, 1.0, 2.0])
    run = tmp_path / "run"
    options = {"evaluate": lambda model: {"top1": next(best_first)}, "save_every": 1, "keep": 3}
    train(tiny_model(tmp_path), objects(), PLAN, run, **options)
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == [
        f"step-{step:08d}" for step in (2, 4, 5, 6)
    ]
    assert os.readlink(run / "checkpoints" / "best") == "step-00000002"


def test_a_folder_in_which_a_run_is_under_way_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "HANDOVER", 0.1)
    refused = []

    def evaluate(model):
        for option in ("resume", "force"):
            with pytest.raises(UserError, match="run is in use by another run: let it end") as caught:
                train(tiny_model(tmp_path), objects(), PLAN, tmp_path / "run", **{option: True})
            refused.append(str(caught.value))
        return accuracy(model)

    train(tiny_model(tmp_path), objects(), PLAN, tmp_path / "run", evaluate=evaluate, max_steps=1)
    assert len(refused) == 4  # before the first step the backbone is evaluated too
    train(tiny_model(tmp_path), objects(), PLAN, tmp_path / "run", resume=True)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_lost(tmp_path, monkeypatch):
    def add_up(trainer):
        if trainer.optimizer.state_dict()["state"]:  # the second step
            trainer.parameters[0].grad[0, 0] = float("nan")

    monkeypatch.setattr(Trainer, "_add_up_gradients", add_up)
    with pytest.raises(UserError, match="the gradient is not finite at step 2 with the objects object-"):
        train(tiny_model(tmp_path), objects(), PLAN, tmp_path / "run", save_every=1)
    state = load_file(tmp_path / "run" / "failed_state" / "model.safetensors")
    last = load_file(tmp_path / "run" / "checkpoints" / "last" / "model.safetensors")
    assert all(torch.equal(tensor, last[name]) for name, tensor in state.items())


def test_tensorboard_gets_what_metrics_jsonl_gets(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tiny_model(tmp_path), objects(), PLAN, tmp_path / "run", evaluate=accuracy, tracker="tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "logs"))
    events.Reload()
    written = [line for line in lines(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "step"]
    logged = events.Scalars("train/loss")
    assert [event.step for event in logged] == [line["step"] for line in written]
    assert [event.value for event in logged] == pytest.approx([line["loss"] for line in written])
    assert len(events.Scalars("evaluation/top1")) == 4
