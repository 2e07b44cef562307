"""Seconds an object on one core: 12 views of 224 pixels (2x2 samples) of meshes of several sizes, read from .glb bytes.

The meshes are bumpy balls with textures of 1024 x 1024, six of them where it says six. Loading, drawing and memory are
those of a process of its own for each. Beside them stands a plain z-buffer, one triangle after the other in numpy,
depths only, on the views of the smallest mesh.

    python benchmarks/render.py [--triangles 10000 300000 1500000 5000000] [--device cuda]
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch
from PIL import Image

VIEWS, SIZE = 12, 224
DEFAULTS = ((10_000, 1), (300_000, 6), (1_500_000, 1))


def ball(triangles: int, textures: int) -> bytes:
    """A .glb of a bumpy ball, cut into as many slices as there are textures."""
    import trimesh

    rows = round((triangles / 4) ** 0.5)
    columns = -(-2 * rows // textures)
    scene, rng = trimesh.Scene(), np.random.default_rng(0)
    for number in range(textures):
        v, u = np.meshgrid(np.linspace(0, 1, rows + 1), np.linspace(0, 1, columns + 1), indexing="ij")
        theta, phi = np.pi * v, 2 * np.pi * (u + number) / textures
        outward = np.stack([np.sin(theta) * np.cos(phi), np.cos(theta), np.sin(theta) * np.sin(phi)], axis=-1)
        points = outward * (1 + 0.1 * np.sin(9 * theta) * np.sin(8 * phi))[..., None]
        first = (np.arange(rows)[:, None] * (columns + 1) + np.arange(columns)).ravel()
        corners = np.stack([first, first + 1, first + columns + 2, first + columns + 1], axis=1)
        noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        mesh = trimesh.Trimesh(
            points.reshape(-1, 3),
            np.concatenate([corners[:, [0, 1, 2]], corners[:, [0, 2, 3]]]),
            vertex_normals=outward.reshape(-1, 3),
            process=False,
            visual=trimesh.visual.TextureVisuals(
                uv=np.stack([u, v], axis=-1).reshape(-1, 2),
                material=trimesh.visual.material.PBRMaterial(baseColorTexture=noise.resize((1024, 1024))),
            ),
        )
        scene.add_geometry(mesh)
    file = io.BytesIO()
    scene.export(file, file_type="glb")
    return file.getvalue()


def measure(triangles: int, textures: int, device: str) -> dict[str, float]:
    """Seconds to load and to draw, the least of three, and the peak memory of this process in bytes."""
    from ddclip_cli.render.load import scene_from_bytes
    from ddclip_cli.render.renderer import poses_of, render_scene

    torch.set_num_threads(1)
    small = scene_from_bytes(ball(1000, 1), ".glb", name="ball")
    render_scene(small, poses_of("ball", num_views=1, seed=0), image_size=32, device=device)  # imports, first calls
    data = ball(triangles, textures)
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        scene = scene_from_bytes(data, ".glb", name="ball")
        loaded = time.perf_counter()
        render_scene(scene, poses_of("ball", num_views=VIEWS, seed=0), image_size=SIZE, device=device)
        times.append((time.perf_counter() - begin, loaded - begin))
    total, load = min(times)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"triangles": len(scene.faces), "total": total, "load": load, "peak": peak * 1024}


def plain_views_a_second(triangles: int) -> tuple[float, float]:
    """Views a second of depth by a loop over triangles, and of this renderer with everything."""
    from ddclip_cli.render.camera import FOCAL
    from ddclip_cli.render.load import scene_from_bytes
    from ddclip_cli.render.raster import project
    from ddclip_cli.render.renderer import SAMPLES, poses_of, render_scene

    torch.set_num_threads(1)
    scene, poses = scene_from_bytes(ball(triangles, 1), ".glb", name="ball"), poses_of("ball", num_views=VIEWS, seed=0)
    size = SIZE * SAMPLES
    begin = time.perf_counter()
    camera = torch.from_numpy(poses[:1]).float()
    points = project(torch.from_numpy(scene.vertices).T, camera, FOCAL, size)[0].numpy().T.astype(np.float64)
    nearest = np.zeros((size, size))
    for corners in points[scene.faces]:
        x, y, w = corners.T
        left, right, top, low = (int(np.clip(np.ceil(a - 0.5), 0, size)) for a in (x.min(), x.max(), y.min(), y.max()))
        area = (x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])
        if left >= right or top >= low or area == 0:
            continue
        px, py = np.arange(left, right) + 0.5, np.arange(top, low)[:, None] + 0.5
        b = ((px - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (py - y[0])) / area
        c = ((x[1] - x[0]) * (py - y[0]) - (px - x[0]) * (y[1] - y[0])) / area
        depth = np.where((b >= 0) & (c >= 0) & (b + c <= 1), w[0] + b * (w[1] - w[0]) + c * (w[2] - w[0]), 0)
        box = nearest[top:low, left:right]
        np.maximum(box, depth, out=box)
    plain = time.perf_counter() - begin
    begin = time.perf_counter()
    render_scene(scene, poses, image_size=SIZE)
    return 1 / plain, VIEWS / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triangles", type=int, nargs="+")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one, arguments.device)))
        return
    meshes = [(n, 1) for n in arguments.triangles] if arguments.triangles else DEFAULTS
    print(f"{VIEWS} views of {SIZE} pixels on one core, device {arguments.device}, torch {torch.__version__}")
    print(f"{'triangles':>10} {'textures':>9} {'load s':>7} {'draw s':>7} {'total s':>8} {'peak GB':>8}")
    for triangles, textures in meshes:
        command = [sys.executable, __file__, "--one", str(triangles), str(textures), "--device", arguments.device]
        m = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        seconds = f"{m['load']:7.2f} {m['total'] - m['load']:7.2f} {m['total']:8.2f}"
        print(f"{m['triangles']:10,} {textures:9} {seconds} {m['peak'] / 1e9:8.2f}")
    plain, ours = plain_views_a_second(meshes[0][0])
    print(f"views/s: {ours:.1f}; a plain z-buffer in numpy, depths only: {plain:.2f} ({ours / plain:.0f} times)")


if __name__ == "__main__":
    main()
