"""Exact search, its contact sheet, and the command."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from tiny import DATA, embed, run, tiny_model, tiny_store

from ddclip_cli.errors import UserError
from ddclip_cli.search.answer import Answer, Hit
from ddclip_cli.search.plain import one_line
from ddclip_cli.search.retrieve import retrieve
from ddclip_cli.search.sheet import CARDS_A_LINE, MAX_CARDS, draw_sheet, write_sheet

IDS = ["white-couch-000001", "red, chair", "[red]x[/red]", "\x1b[31mterminal\n", "e", "f"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def place(tmp_path_factory, model):
    """A folder with a checkpoint and the embeddings it made."""
    from ddclip_cli.model.checkpoints import save_checkpoint

    folder = tmp_path_factory.mktemp("place")
    save_checkpoint(model, folder / "checkpoint")
    store = tiny_store(folder / "store.h5", IDS)
    embed(model, store, folder / "emb.h5", num_views=4, made_by={"checkpoint": "tiny"})
    return folder


# ---- exact search


def sorted_by_hand(queries, vectors, top_k):
    """Every score, sorted by (score falling, row rising)."""
    rows = []
    for query in queries:
        scores = [float(sum(a * b for a, b in zip(query, vector, strict=True))) for vector in vectors.tolist()]
        rows.append(sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:top_k])
    return rows


@pytest.mark.parametrize("block_rows", [1, 7, 50, 1000])
@pytest.mark.parametrize("top_k", [1, 5, 60, 500])
def test_search_equals_sorting_by_hand_with_ties(block_rows, top_k):
    rng = np.random.default_rng(3)
    # Small whole numbers: sums are exact and many are equal.
    vectors = rng.integers(-2, 3, size=(120, 3)).astype(np.float32)
    queries = rng.integers(-2, 3, size=(6, 3)).astype(np.float32)
    scores, rows = retrieve(queries, vectors, top_k, block_rows=block_rows)
    assert rows.tolist() == sorted_by_hand(queries.tolist(), vectors, top_k)
    np.testing.assert_array_equal(scores, np.take_along_axis(queries @ vectors.T, rows, axis=1))


def test_search_of_unit_vectors_over_several_blocks():
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(5000, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores, rows = retrieve(vectors[[7, 4321]], vectors, 10, block_rows=999)
    assert rows[:, 0].tolist() == [7, 4321]
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-6)
    assert (np.diff(scores, axis=1) <= 0).all()
    exact = vectors[[7, 4321]].astype(np.float64) @ vectors.T.astype(np.float64)
    assert rows.tolist() == np.argsort(-exact, axis=1)[:, :10].tolist()


def test_more_answers_than_objects_gives_all():
    scores, rows = retrieve(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), 9)
    assert rows.tolist() == [[0, 1], [1, 0]]
    assert scores.tolist() == [[1, 0], [1, 0]]


# ---- the sheet


def a_jpeg(colour, size=(112, 112)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG")
    return buffer.getvalue()


def hits(count, object_id="id"):
    return [Hit(rank, 1 / rank, object_id, rank - 1) for rank in range(1, count + 1)]


def count_pixels(picture, colour, tolerance=12):
    difference = abs(np.asarray(picture).astype(int) - np.array(colour))
    return int((difference.max(axis=-1) <= tolerance).sum())


def test_sheet_shows_every_thumbnail(tmp_path):
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    rows = [Answer("colours", hits(3)), Answer("again", hits(2))]
    write_sheet(tmp_path / "sheet.png", rows, lambda row: a_jpeg(colours[row]))
    picture = Image.open(tmp_path / "sheet.png")
    assert picture.format == "PNG"
    picture = picture.convert("RGB")
    assert [count_pixels(picture, colour) // (150 * 150) for colour in colours] == [2, 2, 1]


def test_sheet_grows_by_lines_not_without_end():
    one = draw_sheet([Answer("q", hits(CARDS_A_LINE))], lambda row: None)
    two = draw_sheet([Answer("q", hits(CARDS_A_LINE + 1))], lambda row: None)
    assert two.width == one.width
    assert two.height > one.height


@pytest.mark.parametrize("jpeg", [None, b"", b"no picture", a_jpeg("red")[:300], a_jpeg("red", (3000, 10))])
def test_placeholder_where_there_is_no_picture(jpeg):
    picture = draw_sheet([Answer("q", hits(1))], lambda row: jpeg)
    assert count_pixels(picture, (236, 238, 241), tolerance=0) > 100 * 100


@pytest.mark.parametrize("text", ["x" * 5000, "a\nb\x1b[31m", "", "\u4f60\u597d \u202e", "<b>&amp;</b>"])
def test_sheet_takes_any_text(text):
    draw_sheet([Answer(text, hits(2, object_id=text)), Answer("nothing found", [])], lambda row: None)


def test_sheet_of_too_many_pictures_is_refused(tmp_path):
    with pytest.raises(UserError, match=str(MAX_CARDS)):
        write_sheet(tmp_path / "sheet.png", [Answer("q", hits(MAX_CARDS + 1))], lambda row: None)
    assert list(tmp_path.iterdir()) == []


def test_one_line():
    assert one_line(" a\r\n\tb\x1b[31m\x00c ") == "a b [31m c"


# ---- the command


def options(place):
    return ["--index", place / "emb.h5", "--checkpoint", place / "checkpoint", "--device", "cpu"]


def test_command_prints_a_table_for_each_query(place):
    result = run("retrieve", "a white couch", "a boat", *options(place), "--top-k", 6)
    assert result.code == 0, result.err
    assert result.out.count("a white couch") == result.out.count("a boat") == 1
    for text in ("white-couch-000001", "[red]x[/red]", "red, chair"):
        assert result.out.count(text) == 2
    assert "\x1b[31mterminal" not in result.out
    assert result.out.count("[31mterminal") == 2


def test_command_prints_a_document_for_each_query(place, model):
    result = run("retrieve", "a boat", "a mug", *options(place), "--json", "--top-k", "100")
    documents = [json.loads(line) for line in result.out.splitlines()]
    assert [document["query"] for document in documents] == ["a boat", "a mug"]
    for document in documents:
        assert [hit["rank"] for hit in document["hits"]] == [1, 2, 3, 4, 5, 6]
        assert {hit["id"] for hit in document["hits"]} == set(IDS)
        scores = [hit["score"] for hit in document["hits"]]
        assert scores == sorted(scores, reverse=True)


def test_command_reads_stdin(place):
    result = run("retrieve", "a cup", "-", *options(place), "--json", stdin="a boat\n\n  a mug \n")
    assert [json.loads(line)["query"] for line in result.out.splitlines()] == ["a cup", "a boat", "a mug"]
    nothing = run("retrieve", "-", *options(place), stdin="\n")
    assert nothing.code == 2
    assert "stdin" in nothing.err


def test_command_draws_a_sheet_and_keeps_an_old_one(place, tmp_path):
    sheet = tmp_path / "out.png"
    assert run("retrieve", "a boat", *options(place), "--sheet", sheet).code == 0
    first = sheet.read_bytes()
    assert Image.open(sheet).width > 1000
    again = run("retrieve", "a mug", *options(place), "--sheet", sheet)
    assert again.code == 1
    assert "choose another --sheet, or replace it with --force" in again.err
    assert sheet.read_bytes() == first
    assert run("retrieve", "a mug", *options(place), "--sheet", sheet, "--force").code == 0
    assert sheet.read_bytes() != first
    assert run("retrieve", "a mug", *options(place), "--sheet", tmp_path / "out.jpg").code == 2


@pytest.mark.parametrize("query", ["", "  \n"])
def test_empty_query(place, query):
    result = run("retrieve", query, *options(place))
    assert result.code == 2
    assert "empty" in result.err


def test_no_query():
    assert run("retrieve").code == 2


def test_default_index_and_model_missing_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.chdir(tmp_path)
    result = run("retrieve", "a white couch")
    assert result.code == 1
    assert result.err.count("\n") == 1
    for word in (
        "`ddclip download checkpoint` brings it, about 600 MB",
        "`ddclip download embeddings` brings it, about 800 MB",
        'ddclip retrieve --recipe sample "a white couch"',
    ):
        assert word in result.err


def test_index_of_another_model(place, tmp_path):
    from ddclip_cli.model.checkpoints import save_checkpoint

    save_checkpoint(tiny_model(tmp_path, seed=1), tmp_path / "other")
    result = run("retrieve", "a boat", *options(place), "--checkpoint", tmp_path / "other")
    assert result.code == 1
    assert "was made by tiny" in result.err
    assert result.out == ""


def test_index_of_another_width(place):
    official = DATA / "reference_embeddings" / "Four_1to6F_bs1600_LT6" / "shape_emb_objaverse.h5"
    result = run("retrieve", "a boat", "--index", official, "--checkpoint", place / "checkpoint", "--device", "cpu")
    assert result.code == 1
    assert "width 32" in result.err


def test_index_missing_or_unreadable(place, tmp_path):
    for index, word in ((tmp_path / "no.h5", "no.h5 (check the path)"), (place / "checkpoint", "folder")):
        result = run("retrieve", "a boat", "--index", index, "--checkpoint", place / "checkpoint")
        assert result.code == 1
        assert word in result.err
    (tmp_path / "bad.h5").write_text("garbage")
    result = run("retrieve", "a boat", "--index", tmp_path / "bad.h5", "--checkpoint", place / "checkpoint")
    assert (result.code, result.err.count("\n")) == (1, 1)
