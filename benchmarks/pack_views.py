"""Views a second of one core packing Zero123's renders, beside a plain implementation of the same steps.

Both read 512 x 512 RGBA pictures rendered here and give the same bytes; they take turns, picture after picture.

    python benchmarks/pack_views.py [--renders FOLDER]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ddclip_cli.data.pictures import read_render

SIZE, ROUNDS = 224, 5


def plain(path: Path, size: int) -> np.ndarray:
    """The steps as they are described: open, resize, /255, on white, *255, truncate, channels first."""
    with Image.open(path) as image:
        rgba = np.asarray(image.convert("RGBA").resize((size, size))) / 255
    colour, alpha = rgba[..., :3], rgba[..., 3:]
    return ((colour * alpha + (1 - alpha)) * 255).astype(np.uint8).transpose(2, 0, 1)


def render(folder: Path) -> Path:
    """Two sample objects at the size of Zero123's renders."""
    ddclip = [sys.executable, "-m", "ddclip_cli"]
    subprocess.run(
        [*ddclip, "sample", "--out", folder / "lib", "--train", "2", "--heldout", "0"], check=True, capture_output=True
    )
    subprocess.run(
        [*ddclip, "render", folder / "lib" / "meshes", "--out", folder / "renders"], check=True, capture_output=True
    )
    return folder / "renders"


def seconds(function: Callable[[Path, int], np.ndarray], path: Path) -> float:
    begin = time.perf_counter()
    function(path, SIZE)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--renders", type=Path)
    renders = parser.parse_args().renders
    with tempfile.TemporaryDirectory() as folder:
        paths = sorted((renders or render(Path(folder))).glob("*/*.png"))
        for path in paths:
            assert np.array_equal(read_render(path, SIZE), plain(path, SIZE)), path
        pairs = []
        for _ in range(ROUNDS):
            ours, theirs = 0.0, 0.0
            for path in paths:
                ours += seconds(read_render, path)
                theirs += seconds(plain, path)
            pairs.append((ours, theirs))
    fast, slow = (statistics.median(column) / len(paths) for column in zip(*pairs, strict=True))
    print(f"{len(paths)} pictures of {Image.open(paths[0]).size if renders else (512, 512)}, the same bytes")
    print(f"ours   {1 / fast:7.1f} views/s a core")
    print(f"plain  {1 / slow:7.1f} views/s a core")
    print(f"ratio  {statistics.median(theirs / ours for ours, theirs in pairs):7.2f} (median of {ROUNDS} rounds)")


if __name__ == "__main__":
    main()
