"""The settings of training: mixtures, targets of every view, what learns and how, averaged weights, other backbones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import open_clip
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file
from tiny_training import OBJECTS, PLAN, VIEWS, WIDTH, Store, Targets, accuracy, lines, objects, tiny_model

from ddclip_cli.data.dataset import Mixture, ObjectSet, TrainingData
from ddclip_cli.data.targets import PerViewTextTargets, open_text_targets
from ddclip_cli.data.text_targets import TextTargets
from ddclip_cli.data.view_sampler import seed_of_set
from ddclip_cli.errors import UserError
from ddclip_cli.model.backbone import read_backbone
from ddclip_cli.model.checkpoints import load_backbone, load_model
from ddclip_cli.model.loss import contrastive_loss
from ddclip_cli.recipe import load_recipe
from ddclip_cli.recipe.loader import flatten
from ddclip_cli.training.loop import ExtraSet, train
from ddclip_cli.training.plan import TrainingPlan
from ddclip_cli.training.trainer import NotFinite, Trainer

EXACT = replace(PLAN, precision="fp64", crop="none")
pytestmark = pytest.mark.usefixtures("one_thread")


class PerView:
    """Text targets of every view."""

    ids, num_views = Store.ids, VIEWS
    features = np.random.default_rng(2).standard_normal((OBJECTS, VIEWS, WIDTH)).astype(np.float32)

    def rows(self, object_ids):
        return Store().rows(object_ids)

    def read(self, rows, views):
        return self.features[rows[:, None], views].mean(axis=1)


def mixture(seed: int = 4) -> Mixture:
    first = TrainingData(objects(), batch_size=4, num_views=(1, 3), seed=seed)
    few = ObjectSet(Store(), Targets(), PerView(), object_ids=Store.ids[:3])
    return Mixture([first, TrainingData(few, batch_size=2, num_views=(1, 3), seed=seed_of_set(seed, 1))])


def gradients_of(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter.grad for parameter in trainer.parameters if parameter.grad is not None]


# Mixtures


def test_two_sets_keep_their_own_views_and_share_the_loss(tmp_path):
    data = mixture()
    step = next(s for s in range(9) if data[s][0].views.shape[1] != data[s][1].views.shape[1])
    trainer = Trainer(tiny_model(tmp_path), EXACT)
    losses = trainer.step(data[step], learning_rate=0.0)

    plain = Trainer(tiny_model(tmp_path), EXACT)
    shape = torch.cat([plain.model(plain.model.to_pixels(batch.views, "none").double()) for batch in data[step]])
    images, texts = (
        torch.cat([getattr(batch, name) for batch in data[step]]).double() for name in ("image_targets", "text_targets")
    )
    assert len(shape) == 6
    parts = [contrastive_loss(shape, target, plain.model.logit_scale) for target in (images, texts)]
    sum(parts).backward()
    assert [losses.loss_image, losses.loss_text] == pytest.approx([part.item() for part in parts], rel=1e-10)
    for ours, expected in zip(gradients_of(trainer), gradients_of(plain), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-13)


def test_the_shorter_set_starts_again_and_no_choice_is_shared():
    data = mixture()
    assert (data.batch_size, data.steps_per_epoch) == (6, 2)
    steps = [data[step] for step in range(40)]
    assert {object_id for batches in steps for object_id in batches[1].object_ids} == set(Store.ids[:3])
    assert all(len(set(batches[0].object_ids)) == 4 for batches in steps)
    assert data.object_ids_of(7) == [*steps[7][0].object_ids, *steps[7][1].object_ids]
    counts = {(batches[0].views.shape[1], batches[1].views.shape[1]) for batches in steps}
    assert len(counts) == 9


def test_text_targets_of_every_view_are_averaged_over_the_views_of_the_step():
    batch = mixture()[3][1]
    rows = Store().rows(batch.object_ids)
    expected = np.mean([PerView.features[rows, view] for view in batch.view_numbers], axis=0)
    np.testing.assert_allclose(batch.text_targets.numpy(), expected, rtol=1e-6)
    wrong = type("Wrong", (PerView,), {"num_views": 12})()
    with pytest.raises(UserError, match="the text targets have 12 views an object and the store 4"):
        TrainingData(objects(text_targets=wrong), batch_size=4, num_views=(1, 2), seed=0)


def test_the_form_of_text_targets_is_seen_in_the_file(tmp_path):
    with h5py.File(tmp_path / "per_view.h5", "w") as file:
        file["text_feat"] = PerView.features.astype(np.float16)
        file.create_dataset("ids", data=list(Store.ids), dtype=h5py.string_dtype())
    assert isinstance(open_text_targets(tmp_path / "per_view.h5"), PerViewTextTargets)
    pickled = Path(__file__).parent / "data" / "reference_formats"
    found = sorted(pickled.rglob("text_embeddings.npy"))
    assert isinstance(open_text_targets(found[0]), TextTargets)


def test_a_mixture_is_trained_and_resumed_exactly(tmp_path):
    extra = ExtraSet(objects(text_targets=PerView()), 2)
    for out, steps in (("whole", (None,)), ("parts", (1, 3, None))):
        for max_steps in steps:
            train(tiny_model(tmp_path), objects(), PLAN, tmp_path / out, extra=extra, resume=True, max_steps=max_steps)
    whole, parts = ((tmp_path / out / "metrics.jsonl").read_bytes() for out in ("whole", "parts"))
    assert whole == parts
    wide = ExtraSet(objects(text_targets=type("Wide", (PerView,), {"features": np.zeros((OBJECTS, VIEWS, 3))})()), 2)
    with pytest.raises(UserError, match=r"data.extra.text_targets are 3 wide but the model's embeddings 8"):
        train(tiny_model(tmp_path), objects(), PLAN, tmp_path / "wide", extra=wide)


# Less memory


class Kept:
    """Counts the bytes of the tensors that autograd holds."""

    now = most = 0

    def keep(self, tensor):
        box = Box(tensor, self)
        self.now += tensor.nbytes
        self.most = max(self.most, self.now)
        return box


class Box:
    def __init__(self, tensor, owner):
        self.tensor, self.owner = tensor, owner

    def __del__(self):
        self.owner.now -= self.tensor.nbytes


@pytest.mark.parametrize("trainable", ["attention", "all", "none"])
@pytest.mark.parametrize("options", [{"micro_batch": 1}, {"micro_batch": 3}, {"recompute": True}])
def test_pieces_and_recomputed_blocks_have_the_gradient_of_the_whole_batch(tmp_path, trainable, options):
    plan = replace(EXACT, trainable=trainable, crop="random")
    whole, pieces = Trainer(tiny_model(tmp_path), plan), Trainer(tiny_model(tmp_path), plan, **options)
    for step in range(2):
        losses = [trainer.step(mixture()[step], learning_rate=1e-3) for trainer in (whole, pieces)]
        assert losses[0].loss == pytest.approx(losses[1].loss, rel=1e-10)
        for ours, expected in zip(gradients_of(pieces), gradients_of(whole), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_pieces_hold_the_activations_of_one(tmp_path):
    """The most bytes that are kept for a backward pass at any time of a step."""
    data = TrainingData(objects(), batch_size=8, num_views=(2, 2), seed=0)
    peaks = {}
    for micro_batch in (None, 2):
        trainer = Trainer(tiny_model(tmp_path), replace(PLAN, trainable="all"), micro_batch=micro_batch)
        kept = Kept()
        with torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda box: box.tensor):
            trainer.step([data[0]], learning_rate=1e-3)
        peaks[micro_batch] = kept.most
    assert peaks[2] < 0.5 * peaks[None], peaks


# The scaled loss of fp16, whose scaler runs on a CPU too


def scaled_trainer(folder: Path, scale: float) -> Trainer:
    trainer = Trainer(tiny_model(folder), PLAN)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    trainer.accelerator.scaler = scaler
    trainer.optimizer = AcceleratedOptimizer(trainer.optimizer.optimizer, device_placement=False, scaler=scaler)
    return trainer


def test_the_scale_of_the_loss_changes_nothing_and_halves_where_it_is_too_large(tmp_path):
    plain, scaled = Trainer(tiny_model(tmp_path), PLAN), scaled_trainer(tmp_path, 1024.0)
    for step in range(3):
        losses = [trainer.step(mixture()[step], learning_rate=1e-3) for trainer in (plain, scaled)]
        assert losses[0].loss == pytest.approx(losses[1].loss, rel=1e-5)
    assert (plain.loss_scale, scaled.loss_scale) == (None, 1024.0)

    large = scaled_trainer(tmp_path, 2.0**127)
    before = [parameter.detach().clone() for parameter in large.parameters]
    large.step(mixture()[0], learning_rate=1e-3)
    assert large.loss_scale == 2.0**126
    assert all(torch.equal(a, b) for a, b in zip(large.parameters, before, strict=True))


def test_a_gradient_that_is_finite_at_no_scale_stops_the_run(tmp_path, monkeypatch):
    trainer = scaled_trainer(tmp_path, 4.0)
    monkeypatch.setattr(trainer, "_add_up_gradients", lambda: trainer.parameters[0].grad.fill_(float("inf")))
    before = [parameter.detach().clone() for parameter in trainer.parameters]
    for _ in range(2):
        trainer.step(mixture()[0], learning_rate=1e-3)
    with pytest.raises(NotFinite, match="not finite at any scale"):
        trainer.step(mixture()[0], learning_rate=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(trainer.parameters, before, strict=True))


# What learns, and how


def changed(folder: Path, **settings) -> set[str]:
    """The names of the weights that two steps changed."""
    model = tiny_model(folder)
    before = {name: tensor.clone() for name, tensor in model.clip.state_dict().items()}
    settings = {"epochs": 1, **settings}
    train(model, objects(), replace(PLAN, **settings), folder / "run", force=True)
    return {name for name, tensor in model.clip.state_dict().items() if not torch.equal(tensor, before[name])}


def test_which_parts_learn(tmp_path):
    assert changed(tmp_path, trainable="none") == {"logit_scale"}
    last = changed(tmp_path, trainable_from=2)
    assert len(last) == 5
    assert all(name == "logit_scale" or name.startswith("visual.transformer.resblocks.2.attn.") for name in last)
    assert "visual.conv1.weight" in changed(tmp_path, trainable="all")
    with pytest.raises(UserError, match="no attention to train from block 3 on, as the backbone has 3 blocks"):
        changed(tmp_path, trainable_from=3)


def test_the_learning_rate_warms_up_by_equal_amounts(tmp_path):
    plan = replace(PLAN, warmup_steps=4)
    train(tiny_model(tmp_path), objects(), plan, tmp_path / "run")
    used = [line["learning_rate"] for line in lines(tmp_path / "run" / "metrics.jsonl")]
    full = [PLAN.learning_rate_of_epoch(epoch) for epoch in (0, 0, 1, 1, 2, 2)]
    assert used == pytest.approx([rate * part for rate, part in zip(full, (0.25, 0.5, 0.75, 1, 1, 1), strict=True)])


def test_weight_decay_may_leave_out_biases_and_the_logit_scale(tmp_path):
    data = TrainingData(objects(), batch_size=4, num_views=(1, 1), seed=0)
    settings = {"weight_decay": 0.5, "image_loss_weight": 0.0, "text_loss_weight": 0.0, "init_logit_scale": 2.0}
    for decayed, scale in (("all", 1.0), ("matrices", 2.0)):
        trainer = Trainer(tiny_model(tmp_path), replace(EXACT, decayed=decayed, **settings))
        weight = trainer.parameters[0].detach().clone()
        trainer.step([data[0]], learning_rate=1.0)  # there is no gradient: the decay is all there is
        assert trainer.model.logit_scale.item() == pytest.approx(scale)
        torch.testing.assert_close(trainer.parameters[0], 0.5 * weight)


def test_the_logit_scale_has_a_limit_if_one_is_set(tmp_path):
    """Where images and texts are what the network says, the scale can only rise."""
    data = TrainingData(objects(), batch_size=4, num_views=(1, 1), seed=0)
    scales = {}
    for limit in (None, 2.0):
        plan = replace(EXACT, trainable="none", init_logit_scale=1.99, max_logit_scale=limit)
        trainer = Trainer(tiny_model(tmp_path), plan)
        with torch.no_grad():
            shape = trainer.model(trainer.model.to_pixels(data[0].views, "none"))
        batch = replace(data[0], image_targets=shape, text_targets=shape)
        for _ in range(3):
            trainer.step([batch], learning_rate=0.1)
        scales[limit] = trainer.model.logit_scale.item()
    assert scales[None] > 2.2
    assert scales[2.0] == 2.0


def test_averaged_weights_are_evaluated_and_saved_and_training_goes_on_from_its_own(tmp_path):
    plan = replace(PLAN, ema_decay=0.9)
    seen = []

    def evaluate(model):
        seen.append(model.clip.visual.transformer.resblocks[-1].attn.in_proj_weight.detach().clone())
        return accuracy(model)

    trainer = Trainer(tiny_model(tmp_path), plan)
    data = TrainingData(objects(), batch_size=4, num_views=PLAN.num_views, seed=PLAN.seed)
    weight = trainer.model.clip.visual.transformer.resblocks[-1].attn.in_proj_weight
    average = weight.detach().clone()
    for step in range(6):
        trainer.step([data[step]], learning_rate=plan.learning_rate_of_epoch(step // 2))
        average = 0.9 * average + 0.1 * weight.detach()

    train(tiny_model(tmp_path), objects(), plan, tmp_path / "whole", evaluate=evaluate)
    torch.testing.assert_close(seen[-1], average, rtol=1e-5, atol=1e-7)
    saved = load_file(tmp_path / "whole" / "checkpoints" / "last" / "model.safetensors")
    assert torch.equal(saved["visual.transformer.resblocks.2.attn.in_proj_weight"], seen[-1])
    for steps in (1, 3, None):
        train(
            tiny_model(tmp_path), objects(), plan, tmp_path / "parts", evaluate=accuracy, resume=True, max_steps=steps
        )
    states = [torch.load(tmp_path / out / "checkpoints" / "last" / "optimizer.pt") for out in ("whole", "parts")]
    for name in ("parameters", "average"):
        assert all(torch.equal(a, b) for a, b in zip(states[0][name], states[1][name], strict=True))
    assert torch.equal(states[0]["parameters"][8], weight) or any(
        torch.equal(t, weight) for t in states[0]["parameters"]
    )


# Recipes and backbones


THE_PAPER = {
    "seed": 123,
    "model.backbone": "ViT-B-32",
    "model.pretrained": "laion2b_s34b_b79k",
    "model.cross_view_from": 6,
    "train.batch_size": 1600,
    "train.num_views": [1, 6],
    "train.view_choice": "step",
    "train.epochs": 80,
    "train.init_from": None,
    "train.trainable": "attention",
    "train.trainable_from": None,
    "train.learning_rate": 5e-5,
    "train.min_learning_rate": 1e-7,
    "train.warmup_steps": 0,
    "train.betas": [0.9, 0.999],
    "train.weight_decay": 0.01,
    "train.decayed": "all",
    "train.ema_decay": None,
    "train.init_logit_scale": 2.658859956911438,
    "train.max_logit_scale": None,
    "train.image_loss_weight": 1.0,
    "train.text_loss_weight": 1.0,
    "train.crop": "random",
    "train.precision": "fp16",
    "data.objects": "four_model_ids.txt",
    "data.extra": None,
}
ITS_OTHER_SETTINGS = {
    "four": {},
    "four-no-lvis": {"data.objects": "four_no_lvis_model_ids.txt"},
    "four-all-blocks": {"model.cross_view_from": 0},
    "four-averaging": {"model.cross_view_from": 12, "train.trainable_from": 6},
    "four-mvimgnet": {"data.extra.objects": "mvimgnet_model_ids.txt", "data.extra.batch_size": 4 * (400 // 4)},
    "four-mvpnet": {"data.extra.objects": "mvpnet_train_model_ids.txt", "data.extra.batch_size": 4 * (400 // 12)},
}


@pytest.mark.parametrize("name", ITS_OTHER_SETTINGS)
def test_the_recipes_are_the_papers_settings_in_every_key(name):
    found = flatten(load_recipe(name))
    expected = THE_PAPER | ITS_OTHER_SETTINGS[name]
    decisive = {key for key in found if key.startswith("train.")} | expected.keys()
    if any(key.startswith("data.extra.") for key in expected):
        decisive.discard("data.extra")
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}
    assert {key: plain[key] for key in decisive} == {key: expected[key] for key in decisive}


def test_the_plan_and_the_recipe_have_the_same_keys_and_defaults():
    section = load_recipe("base").train.model_dump()
    section.pop("precision")  # of a recipe fp16, as in the paper; a plan's is what the device has
    plan = TrainingPlan(precision="auto")
    assert section == {name: getattr(plan, name) for name in section}
    assert set(section) | {"precision", "seed"} == set(plan.__dataclass_fields__)


@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-L-14", "ViT-B-32-quickgelu", "ViT-H-14", "ViT-bigG-14"])
def test_other_vits_of_open_clip_are_backbones(name):
    from ddclip_cli.model import towers

    known = read_backbone(name)
    clip = towers.build_clip(known["config"], known["name"], meta=True)
    assert len(towers.blocks(towers.image_tower(clip))) in (12, 24, 32, 48)


@pytest.mark.parametrize(
    ("name", "has"),
    [
        ("ViT-B-16-SigLIP", "a timm image tower"),
        ("RN50", "a ResNet image tower"),
        ("coca_ViT-B-32", "attentional pooling"),
        ("convnext_base", "a timm image tower"),
        ("roberta-ViT-B-32", "a Hugging Face text tower"),
    ],
)
def test_backbones_that_cannot_see_several_views_are_refused_by_name(name, has):
    assert name in open_clip.list_models()
    with pytest.raises(UserError, match=f"backbone {name} has {has}.*: choose an open_clip ViT with a CLS token"):
        load_backbone(name, None, device="cpu")


@pytest.mark.parametrize("patch", [8, 16])
def test_a_backbone_of_other_size_trains(tmp_path, patch):
    import json

    config = json.loads((tiny_model(tmp_path) and tmp_path / "tiny.json").read_text())
    config["vision_cfg"] |= {"patch_size": patch, "layers": 4}
    (tmp_path / "other.json").write_text(json.dumps(config))
    model = load_backbone(str(tmp_path / "other.json"), None, cross_view_from=2, device="cpu", precision="fp32")
    summary = train(model, objects(), replace(PLAN, epochs=1), tmp_path / "run")
    assert load_model(summary["checkpoint"], device="cpu").num_blocks == 4
