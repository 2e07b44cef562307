"""One query, end to end in a new process, beside a plain script that loads everything.

The plain script imports torch, open_clip, h5py and faiss, builds the whole ViT-B/32, reads the embeddings into memory,
brings them to unit length, fills an `IndexFlatIP` and asks once. Ours is `ddclip retrieve --no-cache`. Same random
weights, same random embeddings; both find the same objects. The page cache is warm for both.

    python benchmarks/cold_query.py                     # 100,000 objects
    python benchmarks/cold_query.py --objects 876867    # as many as the training set has; needs 6 GB of memory and disk
    python benchmarks/cold_query.py --objects 876867 --format reference

In the reference's format vectors are float16 of any length and ids stand in a JSON beside them. The first query keeps
the ids in a form that is mapped, which counts apart and is printed; ours is then timed without that first query.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

WIDTH, TOP_K, QUERY = 512, 5, "a white couch"

PLAIN = """
import json, sys
import faiss, h5py, numpy as np, open_clip, torch
from safetensors.torch import load_file
checkpoint, embeddings, query, top_k = sys.argv[1:]
model = open_clip.create_model("ViT-B-32", pretrained=None)
model.load_state_dict(load_file(checkpoint + "/model.safetensors"))
model.eval()
tokenizer = open_clip.get_tokenizer("ViT-B-32")
with h5py.File(embeddings) as file:
    vectors = file["shape_feat"][:].astype(np.float32)
    if "ids" in file:
        ids = [i.decode() for i in file["ids"][:]]
    else:
        rows = json.load(open(embeddings.replace(".h5", "_model_to_idx.json")))
        ids = sorted(rows, key=rows.get)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
index = faiss.IndexFlatIP(vectors.shape[1])
index.add(vectors)
with torch.no_grad():
    text = model.encode_text(tokenizer([query]), normalize=True).numpy()
scores, rows = index.search(text, int(top_k))
print(json.dumps([ids[row] for row in rows[0]]))
"""


def prepare(checkpoint: Path, embeddings: Path, objects: int, form: str) -> None:
    """A checkpoint folder of a ViT-B/32 with random weights, and embeddings that say that it made them."""
    from ddclip_cli.data.hdf5_output import create_contiguous, create_ids
    from ddclip_cli.data.object_ids import rows_file, write_rows
    from ddclip_cli.model.checkpoints import load_backbone, save_checkpoint

    model = load_backbone("ViT-B-32", None, cross_view_from=6, device="cpu", precision="fp32")
    save_checkpoint(model, checkpoint)
    made_by = {"checkpoint": str(checkpoint), "fingerprint": model.fingerprint}
    rng = np.random.default_rng(0)
    with h5py.File(embeddings, "w") as file:
        ids = [f"{rng.integers(2**63):032x}" for _ in range(objects)]
        if form == "ours":
            file.attrs["made_by"] = json.dumps(made_by)
            create_ids(file, ids)
        else:
            write_rows(rows_file(embeddings), ids)
        vectors = create_contiguous(file, "shape_feat", (objects, WIDTH), "<f4" if form == "ours" else "<f2")
        for start in range(0, objects, 50_000):
            block = rng.standard_normal((min(50_000, objects - start), WIDTH), dtype=np.float32)
            vectors[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)


def measured(command: list[str]) -> tuple[str, float, float]:
    """Standard output, seconds and peak resident memory in GB of a command."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    return out, time.perf_counter() - begin, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--format", choices=["ours", "reference"], default="ours")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint, embeddings = folder / "checkpoint", folder / "embeddings.h5"
        # In a process of its own: one that starts others hands them its own peak of memory.
        worker = multiprocessing.get_context("spawn").Process(
            target=prepare, args=(checkpoint, embeddings, arguments.objects, arguments.format)
        )
        worker.start()
        worker.join()
        assert worker.exitcode == 0
        os.environ["DDCLIP_CACHE"] = str(folder / "cache")
        ours = [sys.executable, "-m", "ddclip_cli", "retrieve", QUERY, "--index", str(embeddings)]
        ours += ["--checkpoint", str(checkpoint), "--top-k", str(TOP_K), "--no-cache", "--json"]
        first = measured(ours)[1]
        plain = [sys.executable, "-c", PLAIN, str(checkpoint), str(embeddings), QUERY, str(TOP_K)]
        best: dict[str, tuple[float, float]] = {}
        for _ in range(arguments.rounds):  # they take turns, so that a busy machine slows both
            theirs, *plain_cost = measured(plain)
            found, *our_cost = measured(ours)
            assert [hit["id"] for hit in json.loads(found)["hits"]] == json.loads(theirs)
            for who, cost in (("plain", plain_cost), ("ours", our_cost)):
                best[who] = min(best.get(who, (np.inf, np.inf)), (cost[0], cost[1]))
    print(f"one query over {arguments.objects:,} x {WIDTH}, {os.cpu_count()} cores, best of {arguments.rounds} turns")
    for who, (seconds, memory) in best.items():
        print(f"{who:6} {seconds:6.2f} s  peak {memory:5.2f} GB")
    print(f"the first query, which may find the page cache cold and keeps the ids: {first:.2f} s")
    print(f"ratio  {best['plain'][0] / best['ours'][0]:6.1f}")


if __name__ == "__main__":
    main()
