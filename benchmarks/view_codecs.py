"""What each codec of a view store costs and keeps: bytes a view, PSNR, milliseconds to encode and to decode.

The views are renders of sample objects, or those of `--renders`, packed at 224 pixels as training sees them. Beside
ours stand codecs that were considered: this is how they were chosen.

    python benchmarks/view_codecs.py [--renders FOLDER]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from pack_views import render

from ddclip_cli.data.codecs import ENCODED, Codec
from ddclip_cli.data.pictures import read_render

SIZE = 224
CODECS = {
    **ENCODED,
    "jpeg 90": Codec("JPEG", {"quality": 90, "subsampling": 0}),
    "jpeg 95, 4:2:0": Codec("JPEG", {"quality": 95, "subsampling": 2}),
    "webp 90": Codec("WEBP", {"quality": 90}),
    "lossless, faster": Codec("WEBP", {"lossless": True, "method": 0, "quality": 0}),
    "png": Codec("PNG", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--renders", type=Path)
    renders = parser.parse_args().renders
    with tempfile.TemporaryDirectory() as folder:
        paths = sorted((renders or render(Path(folder))).glob("*/*.png"))
        views = [read_render(path, SIZE) for path in paths]
    raw = 3 * SIZE**2
    print(f"{len(views)} views of {SIZE} pixels, {raw} bytes each as pixels")
    print(f"{'codec':18s} {'bytes':>7s} {'share':>7s} {'PSNR':>6s} {'worst':>6s} {'encode':>7s} {'decode':>7s}")
    for name, codec in CODECS.items():
        begin = time.perf_counter()
        encoded = [codec.encode(view) for view in views]
        between = time.perf_counter()
        decoded = np.empty((len(views), 3, SIZE, SIZE), np.uint8)
        for view, data in zip(decoded, encoded, strict=True):
            codec.decode_into(view, data)
        end = time.perf_counter()
        error = np.array([((a.astype(float) - b) ** 2).mean() for a, b in zip(views, decoded, strict=True)])
        quality = 10 * np.log10(255**2 / np.maximum(error, 1e-9))
        size = sum(map(len, encoded)) / len(views)
        psnr = f"{quality.mean():6.1f} {quality.min():6.1f}" if error.any() else f"{'exact':>6s} {'exact':>6s}"
        times = [f"{1000 * seconds / len(views):5.2f} ms" for seconds in (between - begin, end - between)]
        print(f"{name:18s} {size:7.0f}  1/{raw / size:4.1f} {psnr} {times[0]} {times[1]}")


if __name__ == "__main__":
    main()
