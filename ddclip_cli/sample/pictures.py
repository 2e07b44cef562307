"""Pictures of sample objects for pretraining and its measurement: rendered once, kept in one memory-mapped file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from ddclip_cli import console
from ddclip_cli.ordered_pool import in_order
from ddclip_cli.render.load import scene_from_bytes
from ddclip_cli.render.renderer import poses_of, render_scene
from ddclip_cli.sample.objects import PAIRS, make_object


def object_pictures(seed: int, pair: int, number: int, num_views: int, image_size: int) -> np.ndarray:
    """(F, 3, S, S) uint8 views on white of object `number` of a (category, colour) pair."""
    category, colour = PAIRS[pair]
    thing = make_object(seed, category, colour, number)
    scene = scene_from_bytes(thing.glb(), ".glb", name=thing.object_id)
    rgba = render_scene(scene, poses_of(thing.object_id, num_views=num_views, seed=seed), image_size=image_size)
    alpha = rgba[..., 3:] / 255
    on_white = rgba[..., :3] * alpha + 255 * (1 - alpha)
    return on_white.astype(np.uint8).transpose(0, 3, 1, 2)


def render_pairs(
    path: Path, *, seed: int, objects_per_pair: int, num_views: int, image_size: int, jobs: int
) -> np.ndarray:
    """Views (objects_per_pair, pairs, F, 3, S, S) uint8, mapped from `path`, where a stopped run goes on."""
    shape = (objects_per_pair, len(PAIRS), num_views, 3, image_size, image_size)
    plan = {"seed": seed, "num_views": num_views, "image_size": image_size}
    note = path.with_suffix(".json")
    kept = json.loads(note.read_text()) if note.exists() and path.exists() else {}
    done = kept.pop("done", 0)
    if kept != plan:
        done = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:  # a later run may ask for more objects of the same seed
        file.truncate(int(np.prod(shape)))
    views = np.memmap(path, dtype=np.uint8, mode="r+", shape=shape)
    tasks = [
        (seed, i % len(PAIRS), i // len(PAIRS), num_views, image_size) for i in range(objects_per_pair * len(PAIRS))
    ]
    with console.progress_bar(total=len(tasks), label="pictures") as bar:
        bar.update(done)
        for index, pictures in enumerate(in_order(_pictures, tasks[done:], jobs=jobs), start=done):
            views[index // len(PAIRS), index % len(PAIRS)] = pictures
            bar.update()
            if (index + 1) % len(PAIRS) == 0:
                views.flush()
                note.write_text(json.dumps({**plan, "done": index + 1}))
    return views


def _pictures(task: tuple[int, int, int, int, int]) -> np.ndarray:
    torch.set_num_threads(1)  # the other cores have objects of their own
    return object_pictures(*task)
