"""Retrieval between captions and objects, both ways."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny import run, tiny_model, tiny_store

from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.errors import UserError
from ddclip_cli.evaluation.retrieval import evaluate_retrieval
from ddclip_cli.evaluation.view_choice import view_order

IDS = [f"object-{i:02d}" for i in range(11)]
CAPTIONS = {
    object_id: [f"a thing {i}", f"number {i}", "the same for all"][: i % 3 + 1] for i, object_id in enumerate(IDS)
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return ViewStore(tiny_store(tmp_path_factory.mktemp("store") / "store.h5", IDS, num_views=5))


def by_hand(model, store, captions, *, num_views, seed):
    """Metrics of both ways from sorted lists, one query at a time."""
    objects = list(captions)
    shapes = []
    for object_id in objects:
        chosen = np.sort(view_order(store.num_views, seed=seed, run=0, object_id=object_id)[:num_views])
        views = torch.from_numpy(store.read(store.rows([object_id]), chosen))
        with torch.no_grad():
            shapes.append(model(model.to_pixels(views, "center"))[0])
    texts = [(row, text) for row, object_id in enumerate(objects) for text in captions[object_id]]
    cosines = torch.nn.functional.cosine_similarity(
        model.text_features([text for _, text in texts])[:, None], torch.stack(shapes)[None], dim=-1
    ).tolist()
    text_ranks = []
    for (row, _), of_text in zip(texts, cosines, strict=True):
        order = sorted(range(len(objects)), key=lambda n, of_text=of_text: (-round(of_text[n], 6), n))
        text_ranks.append([order.index(row)])
    shape_ranks = []
    for row in range(len(objects)):
        order = sorted(range(len(texts)), key=lambda n, row=row: (-round(cosines[n][row], 6), n))
        shape_ranks.append([place for place, number in enumerate(order) if texts[number][0] == row])
    return {"text_to_shape": metrics(text_ranks), "shape_to_text": metrics(shape_ranks)}


def metrics(ranks):
    def ndcg(of_query):
        gain = sum(1 / np.log2(rank + 2) for rank in of_query if rank < 5)
        return gain / sum(1 / np.log2(rank + 2) for rank in range(min(5, len(of_query))))

    best = [min(of_query) for of_query in ranks]
    return {
        "recall1": 100 * np.mean([rank < 1 for rank in best]),
        "recall5": 100 * np.mean([rank < 5 for rank in best]),
        "ndcg5": 100 * np.mean([ndcg(of_query) for of_query in ranks]),
        "median_rank": 1 + np.median(best),
    }


def test_metrics_of_both_ways_are_those_of_sorted_lists(model, store):
    report = evaluate_retrieval(model, store, CAPTIONS, views=[1, 5], seed=3, batch_size=4)
    for num_views in (1, 5):
        expected = by_hand(model, store, CAPTIONS, num_views=num_views, seed=3)
        for way in ("text_to_shape", "shape_to_text"):
            assert report["views"][num_views][way] == pytest.approx(expected[way])
    assert (report["objects"], report["captions"]) == (11, sum(map(len, CAPTIONS.values())))
    assert report["outcomes"]["ids"][:4] == ["object-00#0", "object-01#0", "object-01#1", "object-02#0"]
    of_captions = np.array(report["outcomes"]["ranks"][5])
    assert 100 * np.mean(of_captions == 0) == pytest.approx(report["views"][5]["text_to_shape"]["recall1"])


def test_several_runs_have_a_mean_and_a_deviation(model, store):
    both = evaluate_retrieval(model, store, CAPTIONS, views=[2], runs=2, crop="random")["views"][2]["text_to_shape"]
    one = evaluate_retrieval(model, store, CAPTIONS, views=[2], runs=1, crop="random")["views"][2]["text_to_shape"]
    other = 2 * both["recall1"] - one["recall1"]
    assert both["std"]["recall1"] == pytest.approx(np.std([one["recall1"], other], ddof=1))


def test_an_id_with_a_suffix_stands_for_its_object(model, store):
    suffixed = {f"{object_id}_{number}": texts for number, (object_id, texts) in enumerate(CAPTIONS.items())}
    plain = evaluate_retrieval(model, store, CAPTIONS, views=[3])
    assert evaluate_retrieval(model, store, suffixed, views=[3]) == plain
    apart = {f"{object_id}_{n}": [text] for object_id, texts in CAPTIONS.items() for n, text in enumerate(texts)}
    assert evaluate_retrieval(model, store, apart, views=[3]) == plain


def test_objects_that_the_store_lacks_are_named_and_counted(model, store, capsys):
    report = evaluate_retrieval(model, store, {"gone": ["x"], **CAPTIONS, "empty": []}, views=[1])
    assert report["missing"] == ["gone", "empty"]
    assert report["objects"] == 11
    assert "2 of the 13 objects with captions are not in the store" in capsys.readouterr().err
    with pytest.raises(UserError, match="none of the 1 objects"):
        evaluate_retrieval(model, store, {"gone": ["x"]}, views=[1])


def test_limit_spreads_over_the_objects(model, store):
    some = {object_id: CAPTIONS[object_id] for object_id in (IDS[0], IDS[3], IDS[7])}
    assert evaluate_retrieval(model, store, CAPTIONS, views=[1], limit=3) == evaluate_retrieval(
        model, store, some, views=[1]
    )


def test_an_interrupted_retrieval_goes_on(model, store, tmp_path, monkeypatch):
    whole = evaluate_retrieval(model, store, CAPTIONS, views=[1, 2], batch_size=2)
    reads, number = ViewStore.read, iter(range(100))

    def interrupted(self, *arguments):
        if next(number) == 2:
            raise KeyboardInterrupt
        return reads(self, *arguments)

    options = {"views": [1, 2], "batch_size": 2, "unfinished": tmp_path / "kept"}
    with monkeypatch.context() as patch:
        patch.setattr(ViewStore, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate_retrieval(model, store, CAPTIONS, **options)
    assert evaluate_retrieval(model, store, CAPTIONS, **options) == whole
    with pytest.raises(UserError, match="something else"):
        evaluate_retrieval(model, store, {**CAPTIONS, IDS[0]: ["another"]}, **options)


# ---- the command


@pytest.fixture
def workplace(tmp_path, model):
    from ddclip_cli.model.checkpoints import save_checkpoint

    tiny_store(tmp_path / "store.h5", IDS, num_views=5)
    (tmp_path / "captions.json").write_text(json.dumps(CAPTIONS))
    save_checkpoint(model, tmp_path / "checkpoint")
    save_checkpoint(tiny_model(tmp_path, cross_view_from=None), tmp_path / "backbone")
    (tmp_path / "tiny.yaml").write_text(
        f"model: {{checkpoint: checkpoint, backbone: {tmp_path}/tiny.json, pretrained: backbone}}\n"
        "text2shape: {store: store.h5, captions: captions.json, views: [1, 5]}\n"
    )
    return tmp_path


def options(workplace):
    return ["--recipe", workplace / "tiny.yaml", "--data-dir", workplace, "--device", "cpu"]


def test_command_prints_a_row_for_each_way_and_writes_its_folder(workplace):
    out = workplace / "out"
    result = run(
        "eval-text2shape", *options(workplace), "--out", out, "--baseline", "zero-shot", "--format", "markdown"
    )
    assert result.code == 0, result.err
    header, _, *rows = result.out.splitlines()
    assert header.startswith("| views | retrieval | recall@1 | recall@5 | nDCG@5 | median rank | zero-shot recall@1")
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| 1", "text to shape"],
        ["| 1", "shape to text"],
        ["| 5", "text to shape"],
        ["| 5", "shape to text"],
    ]
    assert (out / "table.md").read_text() == result.out
    assert sorted(path.name for path in out.iterdir()) == ["plot.png", "report.json", "table.md", "table.tex"]
    report = json.loads((out / "report.json").read_text())
    assert report["recipe"]["text2shape"]["views"] == [1, 5]


def test_command_with_a_store_and_captions_of_ones_own(workplace, tmp_path):
    own = tiny_store(tmp_path / "own.h5", IDS[:3], num_views=2)
    (tmp_path / "mine.json").write_text(json.dumps({IDS[0]: "one", IDS[2]: ["two", "three"]}))
    given = ["--store", own, "--captions", tmp_path / "mine.json", "--views", "2", "--json"]
    result = run("eval-text2shape", *options(workplace), *given)
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert (report["objects"], report["captions"]) == (2, 3)
    assert report["recipe"]["text2shape"]["captions"] == str(tmp_path / "mine.json")


def test_command_says_what_is_missing(workplace):
    (workplace / "captions.json").unlink()
    result = run("eval-text2shape", *options(workplace))
    assert result.code == 1
    assert result.err.startswith("error: missing: ")
    assert "captions.json (check the path)" in result.err
