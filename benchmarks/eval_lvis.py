"""What one pass saves an evaluation, and what its bookkeeping costs at the size of Objaverse-LVIS.

Speed: 9 numbers of views x 3 runs over objects of 12 views at ViT-B/32 with random weights, beside 27 separate passes
with stock blocks on every token; both without gradients, at the same precision and threads, their embeddings compared,
and the two take turns object by object, so that a busy machine slows both; ratios are medians. Bytes: what both read of
a store that is not in the page cache. Bookkeeping: 46,205 objects of 1,156 classes with a model that costs nothing.

    python benchmarks/eval_lvis.py [--objects 4] [--precision bf16] [--bookkeeping 46205]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from encode_views import stock_blocks
from torch import Tensor

from ddclip_cli.data.labels import read_labels
from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.evaluation.one_pass import Entrant, OnePass, Protocol
from ddclip_cli.evaluation.report import UNFINISHED, accuracy_curves, accuracy_table, write_report
from ddclip_cli.evaluation.view_choice import crop_seed, view_order
from ddclip_cli.evaluation.zero_shot import evaluate
from ddclip_cli.model.checkpoints import load_backbone
from ddclip_cli.model.multiview import MultiViewCLIP

VIEWS = (1, 2, 3, 4, 5, 6, 8, 10, 12)
PROTOCOLS = {"paper": Protocol(VIEWS, 3, 678, "random"), "deterministic": Protocol(VIEWS, 3, 678, "center")}
CLASSES = 1156


@torch.no_grad()
def separate_passes(model: MultiViewCLIP, store: ViewStore, protocol: Protocol, part: range) -> Tensor:
    """(len(VIEWS), R, B, E): every pass reads and encodes the views that it needs, as if it were alone."""
    ids, found = [store.ids[number] for number in part], []
    for num_views in protocol.views:
        for run in range(protocol.runs):
            order = [view_order(12, seed=protocol.seed, run=run, object_id=object_id) for object_id in ids]
            chosen = np.sort(np.stack(order)[:, :num_views], axis=1)
            pictures = torch.from_numpy(store.read(store.rows(ids), chosen))
            seeds = [crop_seed(seed=protocol.seed, run=run, object_id=object_id) for object_id in ids]
            pixels = torch.stack(
                [
                    model.to_pixels(views, protocol.crop, torch.Generator().manual_seed(seed))
                    for views, seed in zip(pictures, seeds, strict=True)
                ]
            )
            found.append(stock_blocks(model, pixels))
    return torch.stack(found).unflatten(0, (len(protocol.views), protocol.runs))


def one_pass(model: MultiViewCLIP, store: ViewStore, protocol: Protocol, part: range) -> Tensor:
    return OnePass(store, store.ids, protocol, [Entrant(model, protocol.crop)]).embeddings(part)[0]


def write_store(path: Path, objects: int) -> None:
    with h5py.File(path, "w") as file:
        imgs = file.create_dataset("imgs", (objects, 12, 3, 224, 224), "u1")
        for row in range(objects):
            imgs[row] = np.random.default_rng(row).integers(0, 256, (12, 3, 224, 224), np.uint8)
        file.create_dataset("ids", data=[f"{row:032x}" for row in range(objects)], dtype=h5py.string_dtype())


def speed(folder: Path, objects: int, precision: str) -> None:
    torch.manual_seed(0)
    model = load_backbone("ViT-B-32", None, cross_view_from=6, device="cpu", precision=precision)
    write_store(folder / "speed.h5", objects)
    store = ViewStore(folder / "speed.h5")
    for function in (separate_passes, one_pass):  # what is done once for every shape
        function(model, store, Protocol(VIEWS), range(1))
    print(f"{objects} objects in turn, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {precision}")
    for name, protocol in PROTOCOLS.items():
        times, difference = [], 0.0
        for number in range(objects):
            found = []
            for function in (separate_passes, one_pass):
                begin = time.perf_counter()
                embeddings = function(model, store, protocol, range(number, number + 1))
                found.append((embeddings, time.perf_counter() - begin))
            (plain, slow), (ours, fast) = found
            times.append((slow, fast))
            difference = max(difference, float((plain - ours).norm() / plain.norm()))
        assert difference < (1e-5 if precision == "fp32" else 5e-2), difference
        slow, fast = (statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(slow / fast for slow, fast in times)
        print(
            f"{name:13}  27 passes {1 / slow:6.3f} objects/s   one pass {1 / fast:6.3f} objects/s   "
            f"{ratio:.2f} times   embeddings differ by {difference:.0e}"
        )


def bytes_read(folder: Path, objects: int = 64) -> None:
    """The kernel's count of bytes that came from the disk; a store in the page cache would give none."""
    write_store(folder / "bytes.h5", objects)
    store = ViewStore(folder / "bytes.h5")
    rows = np.arange(objects)

    def cold(read) -> int:
        with open(store.path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before = _from_disk()
        read()
        return _from_disk() - before

    def plain(num_views: int, run: int) -> None:
        order = [view_order(12, seed=678, run=run, object_id=object_id) for object_id in store.ids]
        ViewStore(store.path).read(rows, np.sort(np.stack(order)[:, :num_views], axis=1))

    each = sum(cold(lambda n=n, run=run: plain(n, run)) for n in VIEWS for run in range(3))
    once = cold(lambda: ViewStore(store.path).read(rows, np.arange(12)))
    if once:
        print(f"from a cold disk, {objects} objects: 27 passes {each / 1e6:.0f} MB, one pass {once / 1e6:.0f} MB")
        print(f"{each / once:.1f} times fewer bytes")
    else:
        print("bytes from a cold disk: this system does not tell")


def _from_disk() -> int:
    try:
        return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["read_bytes"])
    except OSError:
        return 0


class FreeModel:
    """Stands for a model: a view's token is a hash of its pixels, an embedding the mean of tokens."""

    device, embed_dim, precision, training, fingerprint = torch.device("cpu"), 512, "fp32", False, "free"

    def __init__(self) -> None:
        self.table = torch.randn(4096, self.embed_dim, generator=torch.Generator().manual_seed(0))

    def eval(self) -> None: ...

    def train(self, _mode: bool) -> None: ...

    def to_pixels(self, views: Tensor, _crop: str, _generator: object = None) -> Tensor:
        return views

    def view_tokens(self, pixels: Tensor) -> Tensor:
        number = pixels.flatten(1).long() @ torch.tensor([1, 16, 256])
        return self.table[number % len(self.table)][:, None]  # (N, 1, E)

    def join_views(self, tokens: Tensor) -> Tensor:
        return tokens[:, :, 0].mean(dim=1)


class FreeStore:
    """12 views of one pixel for every object."""

    num_views, path = 12, Path(__file__)

    def __init__(self, ids: list[str]) -> None:
        self.ids = ids
        self.pictures = np.random.default_rng(0).integers(0, 256, (len(ids), 12, 3, 1, 1), np.uint8)
        self._row = {object_id: row for row, object_id in enumerate(ids)}

    def rows(self, object_ids: list[str]) -> np.ndarray:
        return np.array([self._row[object_id] for object_id in object_ids])

    def read(self, rows: np.ndarray, views: np.ndarray) -> np.ndarray:
        return self.pictures[rows[:, None], views]


def bookkeeping(folder: Path, objects: int) -> None:
    """Time and memory of all but the model: labels, choices, crops' seeds, scores, ranks, report, tables, plot."""
    rng = np.random.default_rng(0)
    ids = [rng.bytes(16).hex() for _ in range(objects)]
    table = folder / "labels.csv"
    rows = sorted(zip(rng.integers(0, CLASSES, objects).tolist(), ids, strict=True))
    table.write_text("".join(f"{index},class_{index},{object_id}\n" for index, object_id in rows))
    store = FreeStore(ids)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    labels = read_labels(table)
    classes = torch.randn(CLASSES, 512, generator=torch.Generator().manual_seed(1))
    out = folder / "report"
    report = evaluate(
        FreeModel(), store, labels, classes, views=VIEWS, runs=3, crop="random", unfinished=out / UNFINISHED
    )
    write_report(out, report, accuracy_table(report), "bookkeeping", accuracy_curves(report))
    seconds = time.perf_counter() - begin
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6
    print(f"bookkeeping of {report['objects']} objects, 9 x 3: {seconds:.1f} s, {megabytes:.0f} MB more memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--objects", type=int, default=4)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--bookkeeping", type=int, default=46_205, metavar="OBJECTS")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # First, so that the peak of memory is its own.
        bookkeeping(Path(folder), options.bookkeeping)
        bytes_read(Path(folder))
        speed(Path(folder), options.objects, options.precision)


if __name__ == "__main__":
    sys.exit(main())
