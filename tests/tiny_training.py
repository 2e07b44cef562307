"""Something to train on in milliseconds: a tiny network, objects made of noise, an evaluation that is a function."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch

from ddclip_cli import files
from ddclip_cli.data.dataset import ObjectSet
from ddclip_cli.model.checkpoints import load_backbone
from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.training.plan import TrainingPlan

OBJECTS, VIEWS, WIDTH = 10, 4, 8
# Two steps an epoch.
PLAN = TrainingPlan(batch_size=4, num_views=(1, 3), epochs=3, learning_rate=1e-3, precision="fp32", seed=11)


class Store:
    ids = tuple(f"object-{i}" for i in range(OBJECTS))
    num_views = VIEWS
    pictures = np.random.default_rng(0).integers(0, 256, (OBJECTS, VIEWS, 3, 32, 32), dtype=np.uint8)

    def rows(self, object_ids):
        return np.array([self.ids.index(i) for i in object_ids])

    def read(self, rows, views):
        return self.pictures[rows[:, None], views]


class Targets:
    """Image targets of every view, and two text targets to draw from."""

    ids, num_views = Store.ids, VIEWS
    features = np.random.default_rng(1).standard_normal((OBJECTS, VIEWS, WIDTH)).astype(np.float32)

    def rows(self, object_ids):
        return Store().rows(object_ids)

    def read(self, rows, views):
        return self.features[rows[:, None], views].mean(axis=1)

    def lacking(self, object_ids):
        return []

    def draw(self, object_ids, rng):
        rows = self.rows(object_ids)
        return self.features[rows, (2 * rng.random((len(rows), 4))[:, 0]).astype(int)]


def tiny_model(folder: Path) -> MultiViewCLIP:
    config = {
        "embed_dim": WIDTH,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    file = folder / "tiny.json"
    with files.writing(file, durable=False) as partial:  # several processes may do this at once
        partial.write_text(json.dumps(config))
    torch.manual_seed(0)
    model = load_backbone(str(file), None, cross_view_from=1, device="cpu", precision="fp32")
    with torch.no_grad():
        model.clip.token_embedding.weight.zero_()  # zero rows are not saved: small checkpoints
    return model


def objects(**changes) -> ObjectSet:
    return ObjectSet(**({"store": Store(), "image_targets": Targets(), "text_targets": Targets()} | changes))


def accuracy(model) -> dict:
    """Stands for the evaluation: any pure function of the weights, which leaves the model in another mode."""
    model.train()
    weight = model.clip.visual.transformer.resblocks[-1].attn.in_proj_weight
    return {"top1": 50 + 10 * math.sin(1e4 * weight.sum().item())}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
