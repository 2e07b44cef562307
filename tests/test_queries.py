"""What can be asked: texts, pictures, meshes, objects and mixtures; filters and metadata; and how answers are shown."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from mesh_files import textured_glb
from PIL import Image
from tiny import SIZE, run, tiny_model

from ddclip_cli.errors import UsageError, UserError
from ddclip_cli.model.checkpoints import save_checkpoint
from ddclip_cli.search import terminal_pictures
from ddclip_cli.search.answer import Hit
from ddclip_cli.search.embed import embed_library
from ddclip_cli.search.embeddings import ShapeEmbeddings
from ddclip_cli.search.encoders import Encoders
from ddclip_cli.search.feature_cache import FeatureCache
from ddclip_cli.search.library import ViewSettings, find_objects
from ddclip_cli.search.metadata import Metadata, allowed_rows
from ddclip_cli.search.query import Query, queries_of
from ddclip_cli.search.retrieve import retrieve
from ddclip_cli.search.searcher import Searcher

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 30), "blue": (30, 30, 200), "grey": (120, 120, 120)}
UID = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def place(tmp_path_factory, model):
    """Photos of four objects and a mesh, embedded, with the checkpoint beside."""
    folder = tmp_path_factory.mktemp("place")
    save_checkpoint(model, folder / "checkpoint")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / "library" / name).mkdir(parents=True)
        for view in range(3):
            noise = rng.integers(-20, 20, (SIZE, SIZE, 3))
            picture = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(folder / "library" / name / f"{view}.png")
    (folder / "library" / "quad.glb").write_bytes(textured_glb())
    embed_library(
        model,
        find_objects([folder / "library" / name for name in COLOURS] + [folder / "library" / "quad.glb"]),
        folder / "emb.h5",
        views=ViewSettings(num_views=3, size=SIZE, render_size=64),
        crop="none",
        made_by={
            "checkpoint": "somewhere",
            "checkpoint_from_here": "checkpoint",
            "recipe": {"render": {"num_views": 3, "image_size": 64, "camera": "zero123", "seed": 0}},
        },
    )
    return folder


@pytest.fixture
def searcher(place):
    return Searcher(ShapeEmbeddings(place / "emb.h5"), Encoders(place / "checkpoint", device="cpu"), crop="none")


def ids(answer) -> list[str]:
    return [hit.object_id for hit in answer.hits]


def documents(result) -> list[dict]:
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


# ---- what a query is


def test_the_pictures_of_an_object_find_it(place, searcher):
    for name in COLOURS:
        pictures = tuple(sorted((place / "library" / name).iterdir()))
        (answer,) = searcher.search([Query(images=pictures)], top_k=2)
        assert answer.hits[0].object_id == name
        assert answer.hits[0].score == pytest.approx(1, abs=1e-5)  # encoded together, as when they were embedded


def test_a_mesh_finds_itself(place):
    (document,) = documents(
        run("retrieve", "--index", place / "emb.h5", "--mesh", place / "library/quad.glb", "--json")
    )
    assert document["hits"][0]["id"] == "quad"
    assert document["hits"][0]["score"] == pytest.approx(1, abs=1e-5)


def test_more_like_an_object_leaves_it_out(searcher):
    (answer,) = searcher.search([Query(object_id="red")], top_k=10)
    assert sorted(ids(answer)) == ["blue", "green", "grey", "quad"]
    vectors = dict(zip(searcher.embeddings.ids, searcher.embeddings.vectors.read(), strict=True))
    assert answer.hits[0].score == pytest.approx(float(vectors["red"] @ vectors[answer.hits[0].object_id]), abs=1e-6)


def test_a_mixture_is_the_weighted_sum(searcher, model):
    text, other = model.encode_text(["a boat", "a mug"]).numpy()
    red = searcher.embeddings.vectors.take([searcher.embeddings.row("red")])[0]
    query = Query(text="a boat", object_id="red", unlike=("a mug",), text_weight=2.0, unlike_weight=0.25)
    vector = 2 * text + red - 0.25 * other
    vector /= np.linalg.norm(vector)
    (answer,) = searcher.search([query], top_k=4)
    for hit in answer.hits:
        expected = searcher.embeddings.vectors.take([hit.row])[0] @ vector
        assert hit.score == pytest.approx(float(expected), abs=1e-5)


def test_every_text_is_a_query_that_the_other_parts_join():
    queries = queries_of(["one", "two"], object_id="x", unlike=("no",))
    assert [query.label for query in queries] == ["one + like x - no", "two + like x - no"]
    assert len(queries_of([], object_id="x")) == 1


def test_parts_that_cancel_out_are_told(searcher):
    with pytest.raises(UserError, match="cancels itself out"):
        searcher.search([Query(text="a boat", unlike=("a boat",), unlike_weight=1.0)], top_k=1)


def test_another_precision_is_torch_s(place, searcher):
    by_torch = Encoders(place / "checkpoint", device="cpu", precision="bf16").texts(["a boat"])
    assert abs(by_torch - searcher.encoders.texts(["a boat"])).max() < 0.05
    assert Encoders(place / "checkpoint", device="cpu", precision="bf16").fingerprint == searcher.encoders.fingerprint


def test_a_tower_that_only_torch_can_build(tmp_path, tiny_config):
    from ddclip_cli.model.checkpoints import load_backbone

    tiny_config["text_cfg"]["pool_type"] = "last"
    (tmp_path / "own.json").write_text(json.dumps(tiny_config))
    model = load_backbone(str(tmp_path / "own.json"), None, device="cpu", precision="fp32")
    save_checkpoint(model, tmp_path / "checkpoint")
    found = Encoders(tmp_path / "checkpoint", device="cpu").texts(["a boat", "a mug"])
    np.testing.assert_allclose(found, model.encode_text(["a boat", "a mug"]).numpy(), atol=1e-6)


# ---- which objects may answer


def test_min_score(searcher):
    (all_,) = searcher.search([Query(object_id="red")], top_k=10)
    limit = all_.hits[1].score
    (some,) = searcher.search([Query(object_id="red")], top_k=10, min_score=limit)
    assert ids(some) == ids(all_)[:2]
    (none,) = searcher.search([Query(object_id="red")], top_k=10, min_score=1.5)
    assert none.hits == []


@pytest.mark.parametrize("block_rows", [3, 1000])
def test_a_filtered_search_is_the_search_of_those_rows(block_rows):
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(50, 8)).astype(np.float32), rng.normal(size=(4, 8)).astype(np.float32)
    allowed = rng.random(50) < 0.3
    scores, rows = retrieve(queries, vectors, 7, allowed=allowed, block_rows=block_rows)
    sub_scores, sub_rows = retrieve(queries, vectors[allowed], 7)
    np.testing.assert_array_equal(rows, np.flatnonzero(allowed)[sub_rows])
    np.testing.assert_allclose(scores, sub_scores, atol=1e-6)
    assert retrieve(queries, vectors, 7, allowed=np.zeros(50, bool))[1].shape == (4, 0)


@pytest.fixture(params=["csv", "parquet"])
def table(request, tmp_path):
    rows = {
        "id": ["red", "green", "blue", UID],
        "name": ["Red, a colour", "Green", "Blue\nsky", "Other"],
        "price": ["3", "20.5", "", "100"],
        "link": ["https://example.org/red", "javascript:alert(1)", "", ""],
    }
    path = tmp_path / f"objects.{request.param}"
    if request.param == "parquet":
        table = pyarrow.table(rows).append_column("vector", [[[1.0, 2.0]] * 4])
        pyarrow.parquet.write_table(table, path)
    else:
        import csv

        with path.open("w", newline="") as file:
            csv.writer(file).writerows([list(rows), *zip(*rows.values(), strict=True)])
    return path


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ("name=green", {"green"}),
        ("name != green", {"red", "blue", UID}),
        ("name~E", {"red", "green", "blue", UID}),
        ("name~blue\nsky", {"blue"}),
        ("price<20.5", {"red"}),
        ("price >= 20.5", {"green", UID}),
        ("price=", {"blue"}),
    ],
)
def test_conditions(table, condition, found):
    assert Metadata(table).matching(condition) == found


@pytest.mark.parametrize("condition", ["colour=red", "name", "price<cheap", "=x"])
def test_conditions_that_cannot_be_read(table, condition):
    with pytest.raises(UsageError, match="--filter"):
        Metadata(table).matching(condition)


def test_filters_of_the_command(place, table, tmp_path):
    (tmp_path / "ids.txt").write_text("red\ngreen\n")
    words = ["retrieve", "a boat", "--index", place / "emb.h5", "--json", "-k", 10]
    (document,) = documents(run(*words, "--filter", tmp_path / "ids.txt"))
    assert sorted(hit["id"] for hit in document["hits"]) == ["green", "red"]
    (document,) = documents(run(*words, "--metadata", table, "--filter", "price>=3", "--filter", tmp_path / "ids.txt"))
    found = {hit["id"]: hit for hit in document["hits"]}
    assert found["red"]["name"] == "Red, a colour"
    assert found["red"]["link"] == "https://example.org/red"
    assert "link" not in found["green"]  # a click would have run it
    shown = run("retrieve", "a boat", "--index", place / "emb.h5", "--metadata", table)
    assert "https://example.org/red" in shown.out
    assert "Blue sky" in shown.out


def test_an_index_that_is_not_there_is_all_that_is_missing(tmp_path, monkeypatch):
    """Which checkpoint it needs it would have said."""
    monkeypatch.chdir(tmp_path)
    result = run("retrieve", "a boat", "--index", "nothing.h5")
    assert (result.code, result.err) == (1, "error: missing: nothing.h5 (check the path)\n")


@pytest.mark.parametrize(
    ("words", "code", "word"),
    [
        (["--filter", "price>3"], 2, "--metadata"),
        (["--filter", "nothing.txt"], 2, "nothing.txt"),
        (["--filter", "unknown.txt"], 1, "not in the index: nowhere"),
        (["--metadata", "table.csv", "--filter", "name=nobody"], 1, "no object passes"),
        (["--metadata", "nothing.csv"], 1, "nothing.csv does not exist"),
        (["--metadata", "bad.parquet"], 1, "not a Parquet file"),
        (["--metadata", "uneven.csv"], 1, "2 cells where the header has 3"),
        (["--metadata", "noid.csv"], 1, "no column of ids"),
        (["--metadata", "twice.csv"], 1, "'a' twice"),
        (["--metadata", "latin.csv"], 1, "UTF-8"),
    ],
)
def test_bad_filters_and_tables_are_one_sentence(place, tmp_path, monkeypatch, words, code, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unknown.txt").write_text("nowhere\n")
    (tmp_path / "table.csv").write_text("id,name\nred,Red\n")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 garbage")
    (tmp_path / "uneven.csv").write_text("id,name,x\nred,Red\n")
    (tmp_path / "noid.csv").write_text("what,name\nred,Red\n")
    (tmp_path / "twice.csv").write_text("id\na\na\n")
    (tmp_path / "latin.csv").write_bytes("id,name\nred,grün\n".encode("latin-1"))
    result = run("retrieve", "a boat", "--index", place / "emb.h5", *words)
    assert (result.code, result.out, result.err.count("\n")) == (code, "", 1)
    assert word in result.err


def test_allowed_rows_without_filters_are_all():
    assert allowed_rows(["a", "b"], [], None).all()


# ---- bad input


@pytest.mark.parametrize(
    ("words", "code", "word"),
    [
        (["--object", "rad"], 1, "no object 'rad' (did you mean 'red'?)"),
        (["--object", "UA"], 1, "no object 'UA' (did you mean 'quad'?)"),
        (["--object", "../../etc"], 1, "no object"),
        (["--image", "nothing.png"], 1, "nothing.png: no such picture"),
        (["--image", "text.png"], 1, "text.png is not a picture"),
        (["--image", "cut.png"], 1, "cut.png is not a picture"),
        (["--mesh", "nothing.glb"], 1, "nothing.glb"),
        (["--mesh", "text.png"], 1, "not a mesh format"),
        (["a boat", "--html", "page.txt"], 2, "--html"),
        (["a boat", "--json", "--paths"], 2, "choose one"),
        (["a boat", "--top-k", "0"], 2, "'--top-k'"),
        (["--not", "a boat"], 2, "QUERY"),
    ],
)
def test_bad_queries_are_one_sentence(place, tmp_path, monkeypatch, words, code, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (50, 50), "red").save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:80])
    result = run("retrieve", "--index", place / "emb.h5", "--device", "cpu", *words)
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert (result.code, result.out, len(errors)) == (code, "", 1), result.err
    assert word in errors[0]


def test_a_long_query_says_that_it_was_cut(place):
    result = run("retrieve", "word " * 100, "--index", place / "emb.h5", "--no-cache")
    assert result.code == 0
    assert "longer than the 16 tokens" in result.err


def test_a_vector_that_is_not_finite_is_named_even_where_the_record_is_trusted(place, tmp_path):
    for name in ("emb.h5", "checkpoint"):
        (tmp_path / name).symlink_to(place / name)
    (tmp_path / "emb.h5").unlink()
    (tmp_path / "emb.h5").write_bytes((place / "emb.h5").read_bytes())
    for bad in (np.nan, np.inf):
        with h5py.File(tmp_path / "emb.h5", "a") as file:
            file["shape_feat"][2] = bad
        result = run("retrieve", "a boat", "--index", tmp_path / "emb.h5")
        assert (result.code, result.err.count("\n")) == (1, 1)
        assert "embedding of blue (row 2) is NaN or infinite" in result.err


def test_more_answers_than_objects(place):
    (document,) = documents(run("retrieve", "a boat", "--index", place / "emb.h5", "--json", "-k", 1000))
    assert len(document["hits"]) == 5


# ---- how answers are shown


def test_paths_for_pipes(place, tmp_path):
    result = run("retrieve", "a boat", "--index", place / "emb.h5", "--paths", "-k", 5)
    assert sorted(result.out.splitlines()) == sorted(
        [str(place / "library" / name) for name in COLOURS] + [str(place / "library" / "quad.glb")]
    )
    shipped = run("retrieve", "--recipe", "sample", "a white couch", "--paths")
    assert (shipped.code, shipped.err.count("\n")) == (1, 1)
    assert "does not say from which file" in shipped.err


def test_an_objaverse_id_has_its_page(searcher):
    searcher.embeddings.__dict__["ids"] = [UID, *searcher.embeddings.ids[1:]]
    (answer,) = searcher.search([Query(text="a boat")], top_k=5)
    links = {hit.object_id: hit.link for hit in answer.hits}
    assert links[UID] == f"https://sketchfab.com/3d-models/{UID}"
    assert set(links.values()) == {links[UID], None}


def test_gallery_of_the_command(place, tmp_path):
    page = tmp_path / "page.html"
    assert run("retrieve", "<b>a boat</b>", "--index", place / "emb.h5", "--html", page).code == 0
    assert "&lt;b&gt;a boat&lt;/b&gt;" in page.read_text()
    assert page.read_text().count("data:image/jpeg;base64,") == 5
    again = run("retrieve", "a boat", "--index", place / "emb.h5", "--html", page)
    assert "choose another --html" in again.err


@pytest.mark.parametrize(
    ("environment", "how"),
    [
        ({}, None),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"KONSOLE_VERSION": "221203"}, "iterm2"),
        ({"KONSOLE_VERSION": "210800"}, None),
        ({"TERM_PROGRAM": "WezTerm", "TMUX": "1"}, None),
    ],
)
def test_which_terminals_show_pictures(environment, how):
    assert terminal_pictures.protocol(environment) == how


def test_pictures_in_the_terminal():
    """Three of five fit beside each other: two strips, each as large as the cells it is said to fill."""
    import base64
    import io
    import re

    buffer = io.BytesIO()
    Image.effect_noise((112, 112), 80).convert("RGB").save(buffer, "JPEG", quality=95)
    hits = [Hit(rank, 1 / rank, "a", rank) for rank in range(1, 6)]
    screen = terminal_pictures.Screen(columns=44, width=9, height=20)
    for how, pattern, cells in (
        ("kitty", r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", "c={},r=6,"),
        ("iterm2", r"\x1b\]1337;([^:]*):([^\x07]*)\x07", "width={};height=6;"),
    ):
        text = terminal_pictures.strips(hits, lambda row: buffer.getvalue() if row != 2 else None, how, screen)
        strips = text.splitlines()
        assert len(strips) == 2
        for strip, pictures in zip(strips, (3, 2), strict=True):
            chunks = re.findall(pattern, strip)
            picture = Image.open(io.BytesIO(base64.b64decode("".join(data for _, data in chunks))))
            assert picture.size == (pictures * 14 * 9, 6 * 20)
            assert cells.format(pictures * 14) in chunks[0][0]
            assert re.sub(pattern, "", strip) == ""
            shown = np.asarray(picture)[..., 3].any(axis=0)
            assert shown[:110].all()
            assert not shown[110:126].any()
            assert shown[126:236].any() == (pictures == 2)  # of the second object there is none
    assert terminal_pictures.strips(hits, lambda row: None, "kitty", screen) == ""
    narrow = terminal_pictures.strips(hits, lambda row: buffer.getvalue(), "kitty", screen._replace(columns=5))
    assert len(narrow.splitlines()) == 5


@pytest.mark.parametrize(
    ("rows", "columns", "width", "height", "found"),
    [
        (24, 80, 720, 480, (80, 9, 20)),
        (24, 80, 0, 0, (80, 8, 16)),  # most terminals
        (24, 80, 65535, 65535, (80, 8, 16)),
    ],
)
def test_the_cells_of_the_terminal(monkeypatch, rows, columns, width, height, found):
    import fcntl
    import os
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, width, height))
    monkeypatch.delenv("COLUMNS", raising=False)
    with os.fdopen(theirs, "w") as terminal, os.fdopen(ours):
        monkeypatch.setattr("sys.__stdout__", terminal)
        monkeypatch.setattr("sys.stdout", terminal)
        assert terminal_pictures.screen() == found
    assert terminal_pictures.screen()[1:] == (8, 16)  # a closed one


def test_without_a_query_a_terminal_is_asked(place, tmp_path):
    """A real terminal: two queries, one of them empty in between, and the history of both."""
    command = [sys.executable, "-m", "ddclip_cli", "retrieve", "--index", str(place / "emb.h5"), "-k", "2"]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "DDCLIP_CACHE": str(tmp_path), "TERM": "dumb"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = ""

    def until(word: str) -> None:
        nonlocal seen
        deadline = time.monotonic() + 60
        while word not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([ours], [], [], 1)[0]:
                seen += os.read(ours, 4096).decode()

    until("find>")
    for text in ("a boat\n", "\n", "a mug\n"):
        os.write(ours, text.encode())
        seen = ""
        until("find>")
        if text.strip():
            assert text.strip() in seen
            assert "rank" in seen
    os.write(ours, b"\x04")
    assert process.wait(timeout=30) == 0
    os.close(ours)
    assert (tmp_path / "history").read_text().splitlines() == ["a boat", "a mug"]


# ---- the cache of text features


def test_the_same_text_needs_no_model_again(place, tmp_path, monkeypatch):
    cache = FeatureCache(tmp_path / "cache.sqlite")
    first = Encoders(place / "checkpoint", cache=cache).texts(["a boat", "a mug"])

    def never(*_):
        raise AssertionError("encoded again")

    monkeypatch.setattr("ddclip_cli.model.text_tower.TextTower.encode_text", never)
    again = Encoders(place / "checkpoint", cache=cache).texts(["a mug", "a boat"])
    np.testing.assert_array_equal(again, first[::-1])
    with pytest.raises(AssertionError, match="encoded again"):
        Encoders(place / "checkpoint", cache=None).texts(["a boat"])
    with pytest.raises(AssertionError, match="encoded again"):
        Encoders(place / "checkpoint", cache=cache).texts(["something new"])
    assert b"a boat" not in (tmp_path / "cache.sqlite").read_bytes()


def test_a_feature_of_another_model_is_not_taken(tmp_path):
    cache = FeatureCache(tmp_path / "cache.sqlite")
    cache.put("one", {"text": np.ones(3, np.float32)})
    assert list(cache.get("one", ["text"], 3)) == ["text"]
    assert cache.get("two", ["text"], 3) == {}
    assert cache.get("one", ["text"], 4) == {}


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 2000])
def test_a_damaged_cache_is_an_empty_one(tmp_path, content):
    path = tmp_path / "cache.sqlite"
    path.write_bytes(content)
    cache = FeatureCache(path)
    assert cache.get("one", ["text"], 3) == {}
    cache.put("one", {"text": np.ones(3, np.float32)})
    cache.put("one", {"text": np.ones(3, np.float32)})
    assert list(cache.get("one", ["text"], 3)) == ["text"]


def test_a_cache_that_cannot_be_written_is_no_hindrance(tmp_path):
    (tmp_path / "file").write_text("")
    cache = FeatureCache(tmp_path / "file" / "cache.sqlite")
    cache.put("one", {"text": np.ones(3, np.float32)})
    assert cache.get("one", ["text"], 3) == {}


def test_the_cache_does_not_grow_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("ddclip_cli.search.feature_cache.MAX_ENTRIES", 10)
    cache = FeatureCache(tmp_path / "cache.sqlite")
    for number in range(30):
        cache.put("one", {f"text {number}": np.ones(3, np.float32)})
    texts = [f"text {number}" for number in range(30)]
    assert list(cache.get("one", texts, 3)) == texts[-10:]


# ---- ids that stand beside the vectors


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """Embeddings in the reference's format, few, which are held worth a cache."""
    monkeypatch.setattr("ddclip_cli.search.id_cache.WORTH_IT", 1)
    monkeypatch.setenv("DDCLIP_CACHE", str(tmp_path / "cache"))
    with h5py.File(tmp_path / "emb.h5", "w") as file:
        file["shape_feat"] = np.random.default_rng(0).normal(size=(3, 12)).astype(np.float16)
    (tmp_path / "emb_model_to_idx.json").write_text(json.dumps({"a": 0, "ü, b": 1, "c" * 40: 2}))
    return tmp_path / "emb.h5"


def test_ids_beside_are_read_once(beside, monkeypatch):
    first = ShapeEmbeddings(beside)
    assert first.ids_of(np.array([2, 0])) == ["c" * 40, "a"]

    def never(*_, **__):
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr("ddclip_cli.search.id_cache.read_ids", never)
        again = ShapeEmbeddings(beside)
        assert again.ids_of(np.array([1, 2])) == ["ü, b", "c" * 40]
        assert again.ids == first.ids == ["a", "ü, b", "c" * 40]
        assert again.row("ü, b") == 1
    (beside.parent / "emb_model_to_idx.json").write_text(json.dumps({"x": 0, "y": 1, "z": 2}))
    assert ShapeEmbeddings(beside).ids == ["x", "y", "z"]


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x93NUMPY\x01\x00garbage"])
def test_a_damaged_cache_of_ids_is_none(beside, content):
    ShapeEmbeddings(beside)
    (cached,) = (beside.parent / "cache" / "ids").iterdir()
    cached.write_bytes(content)
    assert ShapeEmbeddings(beside).ids_of(np.array([0])) == ["a"]
