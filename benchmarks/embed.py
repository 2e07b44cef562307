"""Objects a second of `embed`, from a view store to the finished file, beside the plain way at ViT-B/32.

The plain way reads rows with h5py, runs stock blocks on every token and normalises. Same random weights, views, crop,
precision, threads and batch; the embeddings are compared before the times are, and the two take turns.

    python benchmarks/embed.py                # 8 objects of 12 views
    python benchmarks/embed.py --objects 96
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from encode_views import stock_blocks

from ddclip_cli.model.checkpoints import load_backbone
from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.search.embed import BATCH_SIZE, embed_library
from ddclip_cli.search.embeddings import ShapeEmbeddings
from ddclip_cli.search.library import ViewSettings, find_objects

VIEWS, SIZE, ROUNDS = 12, 224, 3


@torch.inference_mode()
def plain(model: MultiViewCLIP, store: Path) -> np.ndarray:
    """(N, E): whole stock blocks and one reshape, batch by batch."""
    parts = []
    with h5py.File(store) as file:
        for start in range(0, len(file["imgs"]), BATCH_SIZE):
            views = torch.from_numpy(file["imgs"][start : start + BATCH_SIZE])  # (B, F, 3, H, W)
            features = stock_blocks(model, model.to_pixels(views, "center"))
            parts.append(torch.nn.functional.normalize(features, dim=1).numpy())
    return np.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=8)
    objects = parser.parse_args().objects
    torch.manual_seed(0)
    model = load_backbone("ViT-B-32", None, cross_view_from=6, device="cpu", precision="fp32")
    with tempfile.TemporaryDirectory() as name:
        store, out = Path(name) / "store.h5", Path(name) / "embeddings.h5"
        with h5py.File(store, "w") as file:
            shape = (objects, VIEWS, 3, SIZE, SIZE)
            file["imgs"] = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
            file.create_dataset("ids", data=[f"object-{row}" for row in range(objects)], dtype=h5py.string_dtype())
        times = []
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            embed_library(model, find_objects([store]), out, views=ViewSettings(num_views=VIEWS, size=SIZE), force=True)
            middle = time.perf_counter()
            expected = plain(model, store)
            times.append((middle - begin, time.perf_counter() - middle))
        assert np.abs(ShapeEmbeddings(out).vectors.read() - expected).max() < 1e-5
    ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(b / a for a, b in times)
    print(f"{objects} objects of {VIEWS} views, {os.cpu_count()} cores, {torch.get_num_threads()} threads, fp32")
    print(f"embed  {objects / ours:6.2f} objects/s, from store to file with thumbnails and digests")
    print(f"plain  {objects / theirs:6.2f} objects/s, vectors alone")
    print(f"ratio  {ratio:6.2f} (median of {ROUNDS} turns)")


if __name__ == "__main__":
    main()
