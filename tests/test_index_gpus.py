"""An ivf made on GPUs, as far as a machine without one can tell: when they are asked, and what becomes of a failure.

In place of GPUs stand copies of an index on the CPU, which faiss joins in the same way.
"""

from __future__ import annotations

import ctypes
import os

import faiss
import pytest
from search_files import clustered, split, write_embeddings
from tiny import run

from ddclip_cli.errors import UsageError
from ddclip_cli.search import gpus
from ddclip_cli.search import index as building
from ddclip_cli.search.embeddings import ShapeEmbeddings
from ddclip_cli.search.index import NearIndex, build_index


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    return ShapeEmbeddings(write_embeddings(tmp_path_factory.mktemp("vectors") / "emb.h5", clustered(3000)))


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(building, "usable_gpus", lambda device: [0, 1])
    monkeypatch.setattr(faiss, "index_cpu_to_gpus_list", on_two)


def on_two(index, gpus):
    both = faiss.IndexReplicas()
    for _ in gpus:
        both.addIndex(faiss.clone_index(index))
    return both


def built(embeddings, path, **options):
    """What faiss wrote."""
    build_index(embeddings, "ivf", path, **options)
    return split(path.read_bytes())[0]


def test_the_file_is_that_of_the_cpu(embeddings, two_gpus, tmp_path, capsys):
    by_cpu = built(embeddings, tmp_path / "cpu.index")
    assert "GPUs" not in capsys.readouterr().err  # of so few objects they are not asked
    assert built(embeddings, tmp_path / "gpus.index", device="cuda") == by_cpu
    assert "GPUs: 2" in capsys.readouterr().err


@pytest.mark.parametrize("when", ["copying", "training", "adding"])
def test_gpus_that_fail_leave_it_to_the_cpu(embeddings, two_gpus, tmp_path, monkeypatch, capsys, when):
    def fail(*_, **__):
        raise RuntimeError("Error in virtual void* faiss::gpu::allocMemory:\nout of memory")

    if when == "copying":
        monkeypatch.setattr(faiss, "index_cpu_to_gpus_list", fail)
    elif when == "training":
        monkeypatch.setattr(faiss, "index_cpu_to_gpus_list", lambda index, gpus: faiss.IndexFlatIP(index.d + 1))
    else:
        monkeypatch.setattr(building, "add_preassigned", fail)
    by_cpu = built(embeddings, tmp_path / "cpu.index")
    assert built(embeddings, tmp_path / "gpus.index", device="cuda") == by_cpu
    err = capsys.readouterr().err
    assert err.count("warning") == err.count("the CPU does it all") == 1
    assert ("out of memory" in err) == (when != "training")
    NearIndex(tmp_path / "gpus.index")


@pytest.mark.parametrize(
    ("kind", "device", "from_objects", "asked"),
    [
        ("ivf", "auto", 3001, []),
        ("ivf", "auto", 3000, ["auto"]),
        ("ivf", "cpu", 3001, ["cpu"]),
        ("ivf", "cuda:1", 3001, ["cuda:1"]),
        ("hnsw", "auto", 0, []),
        ("exact", "auto", 0, []),
    ],
)
def test_when_gpus_are_asked(embeddings, tmp_path, monkeypatch, kind, device, from_objects, asked):
    seen = []
    monkeypatch.setattr(building, "GPUS_FROM", from_objects)
    monkeypatch.setattr(building, "usable_gpus", lambda device: seen.append(device) or [])
    build_index(embeddings, kind, tmp_path / "emb.index", device=device)
    assert seen == asked


# ---- the trial


@pytest.fixture
def driver(monkeypatch):
    """This machine has a driver; how many GPUs there are a faiss of the test says to the process that tries."""
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)


def a_faiss(folder, monkeypatch, *, count="return 2", search="return None, numpy.arange(len(queries))[:, None]"):
    """The faiss that another process finds, with one statement for the body of a function."""
    (folder / "faiss.py").write_text(
        "import os, numpy\n"
        f"def get_num_gpus():\n    {count}\n"
        "class IndexFlatIP:\n"
        "    def __init__(self, width):\n        pass\n"
        "    def add(self, vectors):\n        pass\n"
        f"    def search(self, queries, k):\n        {search}\n"
        "def index_cpu_to_gpus_list(index, gpus):\n"
        "    return index\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))


def test_gpus_by_name(tmp_path, driver, monkeypatch, capsys):
    a_faiss(tmp_path, monkeypatch)
    assert gpus.usable_gpus("cpu") == []
    assert gpus.usable_gpus("auto") == gpus.usable_gpus("cuda") == [0, 1]
    assert gpus.usable_gpus("cuda:1") == [1]
    for device in ("cuda:2", "tpu", "cuda:x"):
        with pytest.raises(UsageError, match=device):
            gpus.usable_gpus(device)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"count": "os.write(2, b'CUDA error 803 system has unsupported driver'); os.abort()"}, "CUDA error 803"),
        ({"search": "os.abort()"}, "exit -6"),
        ({"search": "raise RuntimeError('out of memory')"}, "out of memory"),
        ({"search": "return None, numpy.zeros((len(queries), 1))"}, "finds what is not nearest"),
    ],
)
def test_gpus_out_of_order_are_not_used(tmp_path, driver, monkeypatch, capsys, broken, reason):
    a_faiss(tmp_path, monkeypatch, **broken)
    assert gpus.usable_gpus("auto") == []
    err = capsys.readouterr().err
    assert err.count("\n") == err.count("warning") == 1
    assert reason in err


def test_gpus_that_do_not_answer_are_not_waited_for(tmp_path, driver, monkeypatch, capsys):
    a_faiss(tmp_path, monkeypatch, count="import time; time.sleep(60)")
    monkeypatch.setattr(gpus, "PATIENCE", 2)
    assert gpus.usable_gpus("auto") == []
    assert "no answer in 2 s" in capsys.readouterr().err


def test_no_driver_and_no_gpu(driver, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.usable_gpus("auto") == []  # by the real faiss

    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert gpus.usable_gpus("auto") == []
    with pytest.raises(UsageError, match="no cuda here that faiss can use"):
        gpus.usable_gpus("cuda")
    assert capsys.readouterr().err == ""


def test_devices_that_cannot_be(embeddings):
    for arguments in (("--kind", "hnsw", "--device", "cuda"), ("--kind", "fp16", "--device", "tpu")):
        result = run("index", embeddings.path, *arguments)
        assert (result.code, result.err.count("\n"), result.out) == (2, 1, "")
