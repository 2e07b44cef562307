"""A tiny network, view stores of a few pictures, and the command line run in this process."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from conftest import TINY_CONFIG

from ddclip_cli.model.checkpoints import load_backbone
from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.search.embed import Run, embed_library
from ddclip_cli.search.library import ViewSettings, find_objects

DATA = Path(__file__).parent / "data"
SIZE = TINY_CONFIG["vision_cfg"]["image_size"]


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def run(*arguments: object, stdin: str = "") -> Ended:
    """`ddclip ARGUMENTS...` as the executable runs it, in this process."""
    from unittest import mock

    from ddclip_cli.app import main

    out, err = io.StringIO(), io.StringIO()
    argv = ["ddclip", *map(str, arguments)]
    with (
        mock.patch("sys.argv", argv),
        mock.patch("sys.stdin", io.StringIO(stdin)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ending:
            return Ended(int(ending.code or 0), out.getvalue(), err.getvalue())
    raise AssertionError("main() always exits")


def tiny_model(folder: Path, *, seed: int = 0, cross_view_from: int | None = 1) -> MultiViewCLIP:
    """A model with random weights in float32 on the CPU; its config is written to `folder`."""
    config = folder / "tiny.json"
    config.write_text(json.dumps(TINY_CONFIG))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return load_backbone(str(config), None, cross_view_from=cross_view_from, device="cpu", precision="fp32")


def tiny_pictures(objects: int, *, num_views: int = 4, seed: int = 0) -> np.ndarray:
    """(N, F, 3, S, S) uint8: one colour an object, with noise that differs by view."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(30, 220, size=(objects, 1, 3, 1, 1))
    return (colours + rng.integers(-30, 30, size=(objects, num_views, 3, SIZE, SIZE))).clip(0, 255).astype(np.uint8)


def embed(model: MultiViewCLIP, store: Path, out: Path, *, num_views: int = 4, **options: Any) -> Run:
    """Embed all objects of a view store."""
    views = ViewSettings(num_views=num_views, size=SIZE)
    return embed_library(model, find_objects([store]), out, views=views, **options)


def tiny_store(path: Path, ids: list[str], *, num_views: int = 4, seed: int = 0) -> Path:
    with h5py.File(path, "w") as file:
        file["imgs"] = tiny_pictures(len(ids), num_views=num_views, seed=seed)
        file.create_dataset("ids", data=ids, dtype=h5py.string_dtype())
    return path
