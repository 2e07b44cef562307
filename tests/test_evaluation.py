"""Metrics, class features, view choice and zero-shot classification."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny import DATA, run, tiny_model, tiny_store

from ddclip_cli.data.labels import Labels
from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.errors import UserError
from ddclip_cli.evaluation.class_features import make_class_features, read_class_features
from ddclip_cli.evaluation.metrics import top_k_hits, true_class_ranks
from ddclip_cli.evaluation.view_choice import crop_seed, view_order
from ddclip_cli.evaluation.zero_shot import evaluate

IDS = [f"object-{i:02d}" for i in range(11)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return ViewStore(tiny_store(tmp_path_factory.mktemp("store") / "store.h5", IDS, num_views=5))


@pytest.fixture(scope="module")
def labels():
    return Labels(IDS, np.arange(len(IDS)) % 6, [f"class_{i}" for i in range(6)])


@pytest.fixture(scope="module")
def classes(model):
    return torch.randn(6, model.embed_dim, generator=torch.Generator().manual_seed(1))


# ---- metrics


def brute_force_hits(scores, labels, k):
    """Sort the classes of each object by (score falling, index rising) and look for the label among the first k."""
    hits = 0
    for of_object, label in zip(scores.tolist(), labels.tolist(), strict=True):
        order = sorted(range(len(of_object)), key=lambda c: (-of_object[c], c))
        hits += label in order[:k]
    return hits


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_top_k_equals_sorting_by_hand_on_scores_with_ties(levels):
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (200, 9), generator=generator).float()
    labels = torch.randint(9, (200,), generator=generator)
    expected = [brute_force_hits(scores, labels, k) for k in (1, 3, 5)]
    assert top_k_hits(true_class_ranks(scores, labels)) == expected


def test_equal_scores_put_the_lower_class_first():
    ranks = true_class_ranks(torch.zeros(4, 4), torch.arange(4))
    assert ranks.tolist() == [0, 1, 2, 3]


def test_nan_scores_have_no_rank():
    with pytest.raises(ValueError, match="NaN"):
        true_class_ranks(torch.tensor([[0.0, float("nan")]]), torch.tensor([0]))


# ---- class features


def test_class_features_of_the_reference():
    features = read_class_features(DATA / "reference_embeddings" / "lvis_class_label_embeddings.npy")
    assert features.shape == (4, 32)
    assert features.dtype == torch.float32


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4, 2), np.float16), "classes, width"),
        (np.ones((3, 4), np.int64), "classes, width"),
        (np.zeros((0, 4), np.float16), "classes, width"),
        (np.array([[1.0, 2.0], [np.nan, 1.0]]), "class 1"),
        (np.array([[1.0, 2.0], [0.0, 0.0]]), "class 1"),
    ],
)
def test_class_features_that_are_none(tmp_path, array, message):
    np.save(tmp_path / "classes.npy", array)
    with pytest.raises(UserError, match=message):
        read_class_features(tmp_path / "classes.npy")


def test_class_features_are_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    np.save(tmp_path / "classes.npy", np.array({"x": Trap()}, dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"not a plain \.npy"):
        read_class_features(tmp_path / "classes.npy")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_class_features_from_garbage(tmp_path, content):
    (tmp_path / "classes.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"not a plain \.npy"):
        read_class_features(tmp_path / "classes.npy")


def test_class_features_that_promise_more_than_they_hold(tmp_path):
    np.save(tmp_path / "whole.npy", np.ones((1000, 8), np.float16))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:500])
    with pytest.raises(UserError, match=r"not a plain \.npy"):
        read_class_features(tmp_path / "cut.npy")


def test_class_features_from_names_are_the_mean_over_templates(model):
    made = make_class_features(model, ["bat_(animal)", "mug"], ["a {}", "a 3D model of a {}"])
    expected = model.encode_text(["a bat (animal)", "a 3D model of a bat (animal)"]).mean(dim=0)
    assert made.shape == (2, model.embed_dim)
    torch.testing.assert_close(made[0], expected)


@pytest.mark.parametrize("templates", [[], ["a thing"], ["{} {}"]])
def test_templates_without_one_place_for_the_name(model, templates):
    with pytest.raises(UserError, match="template"):
        make_class_features(model, ["mug"], templates)


def test_a_class_without_a_name_has_no_feature(model):
    with pytest.raises(UserError, match="class 1 has no name"):
        make_class_features(model, ["mug", ""], ["a {}"])


# ---- which views


def test_view_order_is_pinned_and_depends_on_each_of_its_arguments():
    order = view_order(12, seed=678, run=0, object_id="a")
    assert sorted(order.tolist()) == list(range(12))
    assert order.tolist() == [0, 9, 6, 3, 10, 11, 5, 4, 1, 8, 7, 2]  # on every machine, in every version
    for other in ({"seed": 679}, {"run": 1}, {"object_id": "b"}):
        changed = view_order(12, **{"seed": 678, "run": 0, "object_id": "a"} | other)
        assert changed.tolist() != order.tolist()


def test_every_view_is_chosen_equally_often():
    first = [int(view_order(12, seed=1, run=0, object_id=str(i))[0]) for i in range(6000)]
    counts = np.bincount(first, minlength=12)
    assert abs(counts - 500).max() < 100  # 4.7 standard deviations


def test_crop_seeds_differ_and_fit_a_generator():
    seeds = {crop_seed(seed=1, run=run, object_id=o) for run in range(3) for o in IDS}
    assert len(seeds) == 33
    torch.Generator().manual_seed(max(seeds))


# ---- zero-shot classification


def plain_evaluation(model, store, labels, classes, *, num_views, seed, run=0, crop="center"):
    """One object, one forward at a time; no batches, no sharing."""
    hits = np.zeros(3)
    for object_id, label in zip(labels.object_ids, labels.class_index, strict=True):
        chosen = np.sort(view_order(store.num_views, seed=seed, run=run, object_id=object_id)[:num_views])
        views = torch.from_numpy(store.read(store.rows([object_id]), chosen))[0]
        generator = torch.Generator().manual_seed(crop_seed(seed=seed, run=run, object_id=object_id))
        with torch.no_grad():
            embedding = model(model.to_pixels(views, crop, generator)[None])
        scores = torch.nn.functional.cosine_similarity(embedding, classes)
        rank = int((scores > scores[label]).sum())
        hits += [rank < k for k in (1, 3, 5)]
    return dict(zip(["top1", "top3", "top5"], (100 * hits / len(labels.object_ids)).tolist(), strict=True))


@pytest.mark.parametrize("crop", ["center", "random", "none"])
def test_evaluation_equals_one_object_at_a_time(model, store, labels, classes, crop):
    report = evaluate(model, store, labels, classes, views=[1, 3, 5], runs=2, seed=7, crop=crop, batch_size=4)
    for num_views in (1, 3, 5):
        each = [
            plain_evaluation(model, store, labels, classes, num_views=num_views, seed=7, run=run, crop=crop)
            for run in range(2)
        ]
        for name in ("top1", "top3", "top5"):
            assert report["views"][num_views][name] == pytest.approx(np.mean([e[name] for e in each]))
            assert report["views"][num_views]["std"][name] == pytest.approx(np.std([e[name] for e in each], ddof=1))
    assert (report["objects"], report["classes"], report["missing"]) == (11, 6, [])


def test_one_run_reads_and_counts_the_same_as_the_first_of_several(model, store, labels, classes):
    report = evaluate(model, store, labels, classes, views=[2, 4], seed=7)
    for num_views in (2, 4):
        assert report["views"][num_views] == pytest.approx(
            plain_evaluation(model, store, labels, classes, num_views=num_views, seed=7)
        )


@pytest.mark.parametrize("crop", ["center", "random"])
def test_neither_batch_size_nor_the_other_numbers_of_views_change_a_number(model, store, labels, classes, crop):
    options = {"runs": 2, "seed": 3, "crop": crop}
    whole = evaluate(model, store, labels, classes, views=[1, 2, 5], batch_size=64, **options)
    single = evaluate(model, store, labels, classes, views=[2], batch_size=1, **options)
    assert single["views"][2] == whole["views"][2]
    assert evaluate(model, store, labels, classes, views=[5, 2, 1], batch_size=64, **options) == whole


def test_baseline_is_the_mean_of_per_view_features_without_crop(model, store, labels, classes, tmp_path):
    stock = tiny_model(tmp_path, cross_view_from=None)
    report = evaluate(model, store, labels, classes, views=[1, 4], seed=5, crop="center", baseline=stock)
    for num_views in (1, 4):
        expected = plain_evaluation(stock, store, labels, classes, num_views=num_views, seed=5, crop="none")
        assert report["baseline"][num_views] == pytest.approx(expected)
    alone = evaluate(model, store, labels, classes, views=[1, 4], seed=5, crop="center")
    assert alone["views"] == report["views"]
    assert "baseline" not in alone


def test_missing_objects_are_named_counted_and_not_evaluated(model, store, labels, classes, capsys):
    more = Labels(["gone-1", *IDS, "gone-2"], np.array([0, *labels.class_index, 1]), labels.class_names)
    report = evaluate(model, store, more, classes, views=[2], seed=7)
    assert report["missing"] == ["gone-1", "gone-2"]
    assert report["objects"] == 11
    assert report["views"] == evaluate(model, store, labels, classes, views=[2], seed=7)["views"]
    warning = "2 of the 13 labelled objects are not in the store, and not counted: gone-1, gone-2"
    assert warning in capsys.readouterr().err


def test_no_object_found_is_an_error(model, store, labels, classes):
    strangers = Labels(["x", "y"], np.array([0, 1]), labels.class_names)
    with pytest.raises(UserError, match="none of the 2 labelled objects"):
        evaluate(model, store, strangers, classes, views=[1])


def test_limit_spreads_over_the_list(model, store, labels, classes):
    report = evaluate(model, store, labels, classes, views=[1], limit=3, seed=1)
    spread = Labels([IDS[0], IDS[3], IDS[7]], labels.class_index[[0, 3, 7]], labels.class_names)
    assert report == evaluate(model, store, spread, classes, views=[1], seed=1)


def test_training_goes_on_as_it_was(model, store, labels, classes):
    model.train()
    try:
        evaluate(model, store, labels, classes, views=[1], limit=2)
        assert model.training
    finally:
        model.eval()


def test_what_cannot_be_evaluated(model, store, labels, classes):
    with pytest.raises(UserError, match="the store has 5"):
        evaluate(model, store, labels, classes, views=[1, 6])
    with pytest.raises(UserError, match="8 wide"):
        evaluate(model, store, labels, classes[:, :8], views=[1])
    with pytest.raises(UserError, match="class 5"):
        evaluate(model, store, labels, classes[:4], views=[1])
    with pytest.raises(UserError, match="at least 1"):
        evaluate(model, store, labels, classes, views=[1], limit=0)


def test_a_model_that_gives_nan_is_an_error(store, labels, classes, tmp_path):
    broken = tiny_model(tmp_path)
    broken.clip.visual.proj.data.fill_(float("nan"))
    with pytest.raises(UserError, match="NaN"):
        evaluate(broken, store, labels, classes, views=[1])


# ---- the command


@pytest.fixture
def workplace(tmp_path, model):
    """A data directory with all that the recipe below asks for, and the recipe."""
    from ddclip_cli.model.checkpoints import save_checkpoint

    data = tmp_path / "data"
    data.mkdir()
    tiny_store(data / "lvis_images.h5", IDS, num_views=5)
    (data / "lvis.csv").write_text("".join(f"{i % 6},class_{i % 6},{object_id}\n" for i, object_id in enumerate(IDS)))
    save_checkpoint(model, data / "checkpoint")
    save_checkpoint(tiny_model(tmp_path, cross_view_from=None), data / "backbone")
    (tmp_path / "tiny.yaml").write_text(
        f"model: {{checkpoint: checkpoint, backbone: {tmp_path}/tiny.json, pretrained: backbone}}\n"
        "eval: {class_features: null, views: [1, 5]}\n"
    )
    return tmp_path


def options(workplace):
    return ["--recipe", str(workplace / "tiny.yaml"), "--data-dir", str(workplace / "data"), "--device", "cpu"]


def test_command_prints_a_table(workplace):
    result = run("eval-lvis", *options(workplace), "--views", "1,3", "--baseline", "zero-shot", "--runs", "2")
    assert result.code == 0, result.err
    header, *rows = [line for line in result.out.splitlines() if line.strip() and "─" not in line]
    assert "top-1" in header
    assert "zero-shot top-1" in header
    assert [row.split()[0] for row in rows] == ["1", "3"]


def test_command_prints_json_with_recipe_and_fingerprint(workplace, model):
    arguments = [*options(workplace), "--json", "--seed", "9", "--limit", "4", "eval.crop=none"]
    result = run("eval-lvis", *arguments)
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["fingerprint"] == model.fingerprint
    assert report["recipe"]["eval"]["seed"] == 9
    assert report["recipe"]["eval"]["crop"] == "none"
    assert list(report["views"]) == ["1", "5"]
    assert (report["objects"], report["limit"]) == (4, 4)
    assert run("eval-lvis", *arguments).out == result.out  # same seed, same numbers


def test_command_with_a_store_and_checkpoint_of_ones_own(workplace, tmp_path):
    own = tiny_store(tmp_path / "own.h5", IDS[:3], num_views=2)
    checkpoint = workplace / "data" / "backbone"
    result = run(
        "eval-lvis", *options(workplace), "--views", "2", "--store", str(own), "--checkpoint", str(checkpoint), "--json"
    )
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["objects"] == 3
    assert report["limit"] is None
    assert len(report["missing"]) == 8
    assert report["recipe"]["eval"]["store"] == str(own)
    assert report["recipe"]["model"]["checkpoint"] == str(checkpoint)


def test_command_prints_rows_for_a_paper(workplace):
    result = run("eval-lvis", *options(workplace), "--views", "1,3", "--format", "latex")
    assert result.code == 0, result.err
    assert [line.split(" & ")[0] for line in result.out.splitlines()] == ["views", "1", "3"]


def test_the_papers_protocol_is_recorded_as_keys_of_the_recipe(workplace):
    recipe = json.loads(run("eval-lvis", *options(workplace), "--protocol", "paper", "--json").out)["recipe"]
    assert (recipe["eval"]["crop"], recipe["eval"]["runs"]) == ("random", 3)
    given = ["--protocol", "paper", "--runs", "2", "--json"]
    assert json.loads(run("eval-lvis", *options(workplace), *given).out)["recipe"]["eval"]["runs"] == 2
    given = ["--protocol", "deterministic", "--json", "eval.crop=random"]
    assert json.loads(run("eval-lvis", *options(workplace), *given).out)["recipe"]["eval"]["crop"] == "center"


def test_command_writes_a_folder_and_replaces_it_only_with_force(workplace):
    out = workplace / "out"
    printed = run("eval-lvis", *options(workplace), "--out", out, "--json")
    assert printed.code == 0, printed.err
    assert sorted(path.name for path in out.iterdir()) == ["plot.png", "report.json", "table.md", "table.tex"]
    report = json.loads((out / "report.json").read_text())
    assert report == json.loads(printed.out)
    assert [of_class["name"] for of_class in report["per_class"]] == [f"class_{i}" for i in range(6)]
    assert set(report["confused"]) == {"1", "5"}
    assert np.array(report["outcomes"]["ranks"]["5"]).shape == (11, 1)
    before = (out / "report.json").read_bytes()
    refused = run("eval-lvis", *options(workplace), "--out", out, "--views", "1")
    assert refused.code == 1
    assert refused.err == f"error: {out}/report.json exists already: choose another --out, or replace it with --force\n"
    assert (out / "report.json").read_bytes() == before
    assert run("eval-lvis", *options(workplace), "--out", out, "--views", "1", "--force").code == 0
    assert list(json.loads((out / "report.json").read_text())["views"]) == ["1"]


def test_what_is_unfinished_of_another_evaluation_is_kept_unless_forced(workplace):
    out = workplace / "out"
    out.mkdir()
    (out / "unfinished").write_bytes(b'["something else"]\n1234')
    refused = run("eval-lvis", *options(workplace), "--out", out)
    assert refused.code == 1
    assert "holds an unfinished evaluation of something else" in refused.err
    assert (out / "unfinished").read_bytes() == b'["something else"]\n1234'
    assert run("eval-lvis", *options(workplace), "--out", out, "--force").code == 0
    assert not (out / "unfinished").exists()


def test_published_figures_stand_beside_ours_where_they_are_of_the_same(workplace):
    header = run("eval-lvis", *options(workplace)).out.splitlines()[1]
    assert "published" in header
    mine = workplace / "data" / "mine.csv"
    mine.write_text((workplace / "data" / "lvis.csv").read_text())
    assert "published" not in run("eval-lvis", *options(workplace), "eval.labels=mine.csv").out


def test_command_with_the_rows_of_a_store_in_a_file(workplace):
    store = workplace / "data" / "lvis_images.h5"
    (workplace / "rows.json").write_text(json.dumps({f"x{i}": i for i in range(11)}))
    result = run("eval-lvis", *options(workplace), "--ids", workplace / "rows.json")
    assert (result.code, store.exists()) == (1, True)
    assert "none of the 11 labelled objects is in the store" in result.err


@pytest.mark.parametrize("name", ["mvpnet", "scanobjectnn"])
def test_other_benchmarks_are_the_same_command_on_another_section(workplace, name):
    keys = 'store: lvis_images.h5, labels: lvis.csv, templates: ["a {}", "a 3D model of a {}"], '
    recipe = (workplace / "tiny.yaml").read_text().replace("eval: {", f"{name}: {{{keys}")
    (workplace / "other.yaml").write_text(recipe)
    given = ["--data-dir", workplace / "data", "--device", "cpu", "--json"]
    lvis = json.loads(run("eval-lvis", "--recipe", workplace / "tiny.yaml", *given).out)
    other = json.loads(run(f"eval-{name}", "--recipe", workplace / "other.yaml", *given).out)
    for key in ("views", "per_class", "confused", "outcomes"):
        assert other[key] == lvis[key]


def test_a_labelled_store_of_ones_own(workplace, model):
    data = workplace / "data"
    given = [*options(workplace), "--views", "1,5", "--json"]
    lvis = json.loads(run("eval-lvis", *given).out)
    (data / "names.txt").write_text("".join(f"class_{i}\n" for i in range(6)))
    np.save(
        data / "features.npy",
        make_class_features(model, [f"class_{i}" for i in range(6)], ["a {}", "a 3D model of a {}"]),
    )
    for classes in ([], ["--classes", data / "names.txt"], ["--classes", data / "features.npy"]):
        result = run("eval-classify", data / "lvis_images.h5", "--labels", data / "lvis.csv", *classes, *given)
        assert result.code == 0, result.err
        report = json.loads(result.out)
        assert report["views"] == lvis["views"]
        assert report["recipe"]["eval"]["labels"] == str(data / "lvis.csv")
        assert report["recipe"]["eval"]["class_features"] == (str(classes[1]) if classes else None)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.ones((6, 8), np.float32), "class features are 8 wide, the model's embeddings 12"),
        (np.full((6, 12), np.nan, np.float32), "has no usable feature for class 0 (6 such rows)"),
        (np.ones((4, 12), np.float32), "the labels have class 5, but there are features of 4 classes only"),
    ],
)
def test_command_refuses_class_features_that_do_not_fit(workplace, features, message):
    np.save(workplace / "data" / "bad.npy", features)
    result = run("eval-lvis", *options(workplace), "--out", workplace / "out", "eval.class_features=bad.npy")
    assert (result.code, result.out) == (1, "")
    assert message in result.err.splitlines()[-1]
    assert not (workplace / "out").exists()


def test_command_refuses_more_views_than_the_store_has(workplace):
    result = run("eval-lvis", *options(workplace), "--views", "1,6")
    assert result.code == 1
    assert result.err.splitlines()[-1] == (
        "error: 6 views were asked for, but the store has 5 of each object: lower --views"
    )


def test_a_class_without_objects_is_no_mistake_and_one_without_a_name_is(workplace):
    data = workplace / "data"
    (data / "names.txt").write_text("".join(f"class_{i}\n" for i in range(8)))
    report = json.loads(run("eval-lvis", *options(workplace), "--json", "eval.class_features=names.txt").out)
    assert report["per_class"][7] == {"class": 7, "name": "class_7", "objects": 0, "top1": {"1": None, "5": None}}
    (data / "lvis.csv").write_text("0,a,object-00\n2,c,object-01\n")
    result = run("eval-lvis", *options(workplace))
    assert result.code == 1
    assert "class 1 has no name in the labels" in result.err


def test_command_names_all_that_is_missing_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.chdir(tmp_path)
    result = run("eval-lvis")
    assert result.code == 1
    assert result.err.count("\n") == 1
    for word in (
        "data/lvis_images.h5",
        "data/lvis.csv",
        "data/lvis_class_label_embeddings.npy",
        "`ddclip download lvis` brings them, about 80 GB",
        "Four_1to6F_bs1600_LT6",
        "`ddclip download checkpoint` brings it, about 600 MB",
    ):
        assert word in result.err
    elsewhere = run("eval-lvis", "--data-dir", "other", "--checkpoint", "nowhere/at-all")
    assert "`ddclip download lvis --data-dir other`" in elsewhere.err
    assert "nowhere/at-all (check the path)" in elsewhere.err


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("eval-mvpnet", "ddclip pack-h5 MVPNET --out data/ViT-B-32_laion2b_s34b_b79k/mvpnet/mvpnet_mv_images.h5"),
        ("eval-scanobjectnn", "ddclip pack-h5 RENDERS --out data/scanobjectnn_images.h5"),
        ("eval-text2shape", "ddclip pack-h5 RENDERS --out data/text2shape_images.h5"),
    ],
)
def test_commands_say_how_the_stores_come_about_that_nobody_offers(tmp_path, monkeypatch, name, packed):
    monkeypatch.chdir(tmp_path)
    result = run(name)
    assert result.code == 1
    assert f"(`{packed}` brings it, from your " in result.err
    assert result.err.count("\n") == 1


def test_command_names_the_demo_for_the_sample(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.setattr("ddclip_cli.shipped.ASSETS", tmp_path)
    monkeypatch.chdir(tmp_path)
    result = run("eval-lvis", "--recipe", "sample")
    assert result.code == 1
    assert result.err.endswith("; `ddclip demo` makes the sample's files: then add --data-dir demo\n")


@pytest.mark.parametrize("arguments", [["--views", "zero"], ["--views", "0"], ["--runs", "0"], ["eval.vews=1"]])
def test_command_refuses_a_value_that_is_none(workplace, arguments):
    result = run("eval-lvis", *options(workplace), *arguments)
    assert result.code == 2
    assert result.out == ""
