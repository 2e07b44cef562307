"""Indexes: what they find, what their files refuse, and embeddings for other programs."""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from pathlib import Path

import duckdb
import faiss
import numpy as np
import pyarrow.parquet
import pytest
from search_files import clustered, split, write_embeddings
from tiny import embed, run, tiny_model, tiny_store

from ddclip_cli.errors import UserError
from ddclip_cli.search.embeddings import ShapeEmbeddings
from ddclip_cli.search.index import NearIndex, build_index, choose_kind
from ddclip_cli.search.index_file import TAIL, read_index, read_record, write_index
from ddclip_cli.search.retrieve import retrieve

NEAR = ("fp16", "int8", "ivf", "hnsw")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Embeddings of 3000 objects and an index of every kind."""
    folder = tmp_path_factory.mktemp("place")
    embeddings = ShapeEmbeddings(write_embeddings(folder / "emb.h5", clustered(3000)))
    for kind in NEAR:
        build_index(embeddings, kind)
    return folder


@pytest.mark.parametrize("kind", NEAR)
def test_an_index_finds_what_exact_search_finds(place, kind):
    index = NearIndex(place / f"emb.{kind}.index")
    queries = clustered(100, seed=5)
    _, exact_rows = retrieve(queries, index.embeddings.vectors, 10)
    scores, rows = index.search(queries, 10)
    right = [len(np.intersect1d(a, b)) for a, b in zip(rows, exact_rows, strict=True)]
    assert np.mean(right) / 10 >= 0.95
    all_scores = queries @ index.embeddings.vectors.read().T
    np.testing.assert_allclose(scores, np.take_along_axis(all_scores, rows, axis=1), atol=1e-6)  # exact, whatever it is
    assert (np.diff(scores, axis=1) <= 0).all()
    if kind in ("fp16", "int8"):
        np.testing.assert_array_equal(rows, exact_rows)


@pytest.mark.parametrize("kind", NEAR)
def test_recall_and_latency_are_measured_and_stored(place, kind):
    record = read_record(place / f"emb.{kind}.index")
    assert (record.kind, record.embeddings, record.objects, record.width) == (kind, "emb.h5", 3000, 48)
    assert 0.95 <= record.recall_at_10 <= 1
    assert record.milliseconds > 0
    assert record.exact_milliseconds > 0


def test_faiss_alone_reads_our_file(place):
    """And what it believes of other files is left as it was."""
    limits = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
    NearIndex(place / "emb.ivf.index")
    assert (faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()) == limits
    index = faiss.read_index(str(place / "emb.hnsw.index"))
    assert index.ntotal == 3000


@pytest.mark.parametrize("kind", NEAR)
def test_more_answers_than_objects(tmp_path, kind):
    build_index(ShapeEmbeddings(write_embeddings(tmp_path / "emb.h5", clustered(3))), kind)
    scores, rows = NearIndex(tmp_path / f"emb.{kind}.index").search(clustered(2, seed=1), 10)
    assert rows.shape == scores.shape == (2, 3)
    assert sorted(rows[0].tolist()) == [0, 1, 2]


def test_auto_chooses_by_the_number():
    assert [choose_kind("auto", number) for number in (10, 50_000, 50_001, 10**7)] == ["exact", "exact", "ivf", "ivf"]
    assert choose_kind("hnsw", 10) == "hnsw"


def test_exact_needs_no_file(place):
    before = sorted(place.iterdir())
    record = build_index(ShapeEmbeddings(place / "emb.h5"), "exact")
    assert (record.recall_at_10, record.milliseconds) == (1.0, record.exact_milliseconds)
    assert sorted(place.iterdir()) == before


# ---- files that are not trusted


def refused(path: Path, word: str = "") -> None:
    with pytest.raises(UserError, match=word):
        NearIndex(path)


@pytest.mark.parametrize("kind", NEAR)
def test_garbage_and_truncation_are_one_sentence(place, tmp_path, kind):
    whole = (place / f"emb.{kind}.index").read_bytes()
    path = tmp_path / "emb.index"
    (tmp_path / "emb.h5").write_bytes((place / "emb.h5").read_bytes())
    path.write_bytes(whole)
    NearIndex(path)
    for data in (
        b"",
        b"x",
        b"garbage" * 1000,
        whole[:100],
        whole[: len(whole) // 2],
        whole[:-1],
        whole[10:],
        whole + b"x",
    ):
        path.write_bytes(data)
        refused(path, "build it again")
    rng = np.random.default_rng(0)
    for place_ in rng.integers(200, size=20):  # a bit that has turned over in the head
        data = bytearray(whole)
        data[place_] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        refused(path, "damaged")


def forged(path: Path, index, record) -> Path:
    """A file with a right checksum, whatever is in it."""
    write_index(path, index, record)
    return path


@pytest.mark.parametrize(("name", "value"), [("entry_point", 10**6), ("entry_point", -1), ("max_level", 50)])
def test_a_graph_that_begins_elsewhere_is_refused(place, tmp_path, name, value):
    (tmp_path / "emb.h5").write_bytes((place / "emb.h5").read_bytes())
    index = faiss.read_index(str(place / "emb.hnsw.index"))
    setattr(index.hnsw, name, value)
    refused(forged(tmp_path / "emb.hnsw.index", index, read_record(place / "emb.hnsw.index")), "damaged")


def test_a_graph_without_links_is_refused(place, tmp_path):
    (tmp_path / "emb.h5").write_bytes((place / "emb.h5").read_bytes())
    index = faiss.read_index(str(place / "emb.hnsw.index"))
    index.hnsw.neighbors.resize(0)
    refused(forged(tmp_path / "emb.hnsw.index", index, read_record(place / "emb.hnsw.index")), "damaged")


@pytest.mark.parametrize("wrong", [3000, -2])
def test_a_graph_that_leads_out_of_the_index_is_refused(place, tmp_path, wrong):
    (tmp_path / "emb.h5").write_bytes((place / "emb.h5").read_bytes())
    index = faiss.read_index(str(place / "emb.hnsw.index"))
    neighbours = faiss.vector_to_array(index.hnsw.neighbors)
    whole = (place / "emb.hnsw.index").read_bytes()
    at = whole.index(neighbours[:60].tobytes()) + 7 * 4
    payload, document = split(whole[:at] + struct.pack("<i", wrong) + whole[at + 4 :])
    text = json.dumps(document | {"checksum": zlib.crc32(payload)}).encode()
    (tmp_path / "emb.hnsw.index").write_bytes(payload + text + TAIL.pack(len(text), b"ddclipix"))
    refused(tmp_path / "emb.hnsw.index", "damaged")


def test_a_list_of_rows_that_are_not_there_is_refused(place, tmp_path):
    (tmp_path / "emb.h5").write_bytes((place / "emb.h5").read_bytes())
    index = faiss.read_index(str(place / "emb.ivf.index"))
    index.remove_ids(np.arange(5))
    index.add_with_ids(clustered(5), np.full(5, 10**9))
    forged(tmp_path / "emb.ivf.index", index, dataclasses.replace(read_record(place / "emb.ivf.index"), probes=512))
    with pytest.raises(UserError, match="damaged"):
        NearIndex(tmp_path / "emb.ivf.index").search(clustered(3000), 10)


def test_an_index_of_another_kind_than_it_says_is_refused(place, tmp_path):
    (tmp_path / "emb.h5").write_bytes((place / "emb.h5").read_bytes())
    flat = faiss.IndexFlatIP(48)
    flat.add(clustered(3000))
    refused(forged(tmp_path / "a.index", flat, read_record(place / "emb.fp16.index")), "damaged")
    fewer = dataclasses.replace(read_record(place / "emb.fp16.index"), objects=2999)
    refused(forged(tmp_path / "b.index", read_index(place / "emb.fp16.index")[0], fewer), "damaged")


@pytest.mark.parametrize(
    "record", [b"[]", b"{}", b"not json", b'{"format": "ddclip-index", "version": 9, "kind": "ivf"}']
)
def test_a_record_that_is_none_is_refused(tmp_path, record):
    path = tmp_path / "x.index"
    path.write_bytes(b"IxSQ" + record + TAIL.pack(len(record), b"ddclipix"))
    refused(path, "ddclip")


def test_embeddings_that_changed_or_are_gone(place, tmp_path):
    for name in ("emb.h5", "emb.ivf.index"):
        (tmp_path / name).write_bytes((place / name).read_bytes())
    write_embeddings(tmp_path / "emb.h5", clustered(3000, seed=1))
    refused(tmp_path / "emb.ivf.index", "other embeddings")
    (tmp_path / "emb.h5").unlink()
    refused(tmp_path / "emb.ivf.index", "not there")


# ---- the command


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    from ddclip_cli.model.checkpoints import save_checkpoint

    folder = tmp_path_factory.mktemp("library")
    model = tiny_model(folder)
    save_checkpoint(model, folder / "checkpoint")
    store = tiny_store(folder / "store.h5", [f"o{number}" for number in range(40)])
    embed(model, store, folder / "emb.h5", made_by={"checkpoint": "checkpoint", "checkpoint_from_here": "checkpoint"})
    return folder


def test_command_builds_and_retrieve_uses_it(library):
    built = run("index", library / "emb.h5", "--kind", "hnsw", "--json")
    assert built.code == 0, built.err
    document = json.loads(built.out)
    assert document["index"] == str(library / "emb.hnsw.index")
    assert document["recall_at_10"] >= 0.95
    again = run("index", library / "emb.h5", "--kind", "hnsw")
    assert (again.code, again.err.count("\n")) == (1, 1)
    assert "--force" in again.err
    by_index = run("retrieve", "a boat", "a mug", "--index", library / "emb.hnsw.index", "--json")
    by_all = run("retrieve", "a boat", "a mug", "--index", library / "emb.h5", "--json")
    assert by_index.code == 0, by_index.err
    for near, exact in zip(
        map(json.loads, by_index.out.splitlines()), map(json.loads, by_all.out.splitlines()), strict=True
    ):
        assert [hit["id"] for hit in near["hits"]] == [hit["id"] for hit in exact["hits"]]
        np.testing.assert_allclose([h["score"] for h in near["hits"]], [h["score"] for h in exact["hits"]], atol=1e-6)
    assert run("index", library / "emb.h5", "--kind", "ivf", "--out", library / "x.bin").code == 2
    assert run("index", library / "missing.h5").code == 1
    table = run("index", library / "emb.h5")
    assert "needs none" in table.out
    (library / "cut.index").write_bytes((library / "emb.hnsw.index").read_bytes()[:500])
    result = run("retrieve", "a boat", "--index", library / "cut.index")
    assert (result.code, result.err.count("\n")) == (1, 1)


def test_export_is_what_others_load(library, tmp_path):
    (tmp_path / "objects.csv").write_text(",id,name,price,size,code\n0,o1,A boat,3,1e-1,007\n1,o0,A mug,,-2,12\n")
    out = tmp_path / "emb.parquet"
    result = run("index", library / "emb.h5", "--export", out, "--metadata", tmp_path / "objects.csv")
    assert (result.code, result.out) == (0, ""), result.err
    table = pyarrow.parquet.read_table(out)
    assert table.column_names == ["id", "vector", "name", "price", "size", "code"]
    assert [str(table.schema.field(name).type) for name in table.column_names[2:]] == [
        "string", "int64", "double", "string",
    ]  # fmt: skip
    embeddings = ShapeEmbeddings(library / "emb.h5")
    assert table["id"].to_pylist() == embeddings.ids
    assert table["name"].to_pylist()[:3] == ["A mug", "A boat", None]
    assert table["price"].to_pylist()[:3] == [None, 3, None]
    assert table["size"].to_pylist()[:3] == [-2.0, 0.1, None]
    assert table["code"].to_pylist()[:3] == ["12", "007", None]
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.float32), embeddings.vectors.read())
    assert json.loads(table.schema.metadata[b"made_by"])["fingerprint"] == embeddings.made_by["fingerprint"]
    near = duckdb.execute(  # as a database that reads the file where it lies
        f"SELECT id FROM '{out}' ORDER BY array_inner_product(vector::FLOAT[12], $1::FLOAT[12]) DESC LIMIT 5",
        [embeddings.vectors.take([7])[0].tolist()],
    ).fetchall()
    rows = retrieve(embeddings.vectors.take([7]), embeddings.vectors, 5)[1][0]
    assert [object_id for (object_id,) in near] == embeddings.ids_of(rows)
    assert duckdb.sql(f"SELECT id FROM '{out}' WHERE price < 10").fetchall() == [("o1",)]
    assert "--force" in run("index", library / "emb.h5", "--export", out).err
    assert run("index", library / "emb.h5", "--export", tmp_path / "emb.csv").code == 2
    assert run("index", library / "emb.h5", "--metadata", tmp_path / "objects.csv").code == 2
    for data in (b"garbage", b""):
        (tmp_path / "bad.parquet").write_bytes(data)
        result = run(
            "index", library / "emb.h5", "--export", tmp_path / "b.parquet", "--metadata", tmp_path / "bad.parquet"
        )
        assert (result.code, result.err.count("\n")) == (1, 1)
