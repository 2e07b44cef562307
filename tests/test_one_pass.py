"""One pass for all numbers of views and runs: nothing is done twice, and however the work is cut the numbers stay."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_store

from ddclip_cli.data.labels import Labels
from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.errors import UserError
from ddclip_cli.evaluation.one_pass import Entrant, OnePass, Protocol
from ddclip_cli.evaluation.parts import computed
from ddclip_cli.evaluation.view_choice import crop_seed, view_order
from ddclip_cli.evaluation.zero_shot import evaluate
from ddclip_cli.model.multiview import MultiViewCLIP
from ddclip_cli.ordered_pool import in_order

IDS = [f"object-{i:02d}" for i in range(11)]
VIEWS = (1, 2, 4, 5)


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


@pytest.fixture
def counted(monkeypatch):
    """How many views were read, how many went through the per-view blocks, and how many were joined."""
    counts = {"read": 0, "alone": 0, "joined": 0}

    def counting(owner, name, key, size):
        plain = getattr(owner, name)

        def wrapper(self, *arguments):
            result = plain(self, *arguments)
            counts[key] += size(arguments, result)
            return result

        monkeypatch.setattr(owner, name, wrapper)

    counting(ViewStore, "read", "read", lambda _, pictures: len(pictures) * pictures.shape[1])
    counting(MultiViewCLIP, "view_tokens", "alone", lambda arguments, _: len(arguments[0]))
    counting(MultiViewCLIP, "join_views", "joined", lambda arguments, _: arguments[0].shape[0] * arguments[0].shape[1])
    return counts


def plain_embedding(model, store, object_id, num_views, *, seed, run, crop):
    chosen = np.sort(view_order(store.num_views, seed=seed, run=run, object_id=object_id)[:num_views])
    views = torch.from_numpy(store.read(store.rows([object_id]), chosen))[0]
    generator = torch.Generator().manual_seed(crop_seed(seed=seed, run=run, object_id=object_id))
    with torch.no_grad():
        return model(model.to_pixels(views, crop, generator)[None])[0]


@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("cross_view_from", [0, 1, 2, 3])
def test_embeddings_are_those_of_one_object_one_pass_at_a_time(model, store, crop, cross_view_from):
    network = MultiViewCLIP(model.clip, cross_view_from=cross_view_from, backbone=model.backbone)
    one_pass = OnePass(store, IDS, Protocol(VIEWS, 2, 7, crop), [Entrant(network, crop)])
    (found,) = one_pass.embeddings(range(3, 6))
    assert found.shape == (len(VIEWS), 2, 3, model.embed_dim)
    for column, num_views in enumerate(VIEWS):
        for run in range(2):
            for place, object_id in enumerate(IDS[3:6]):
                expected = plain_embedding(network, store, object_id, num_views, seed=7, run=run, crop=crop)
                torch.testing.assert_close(found[column, run, place], expected, rtol=1e-4, atol=1e-5)


def test_views_are_read_and_encoded_once_and_equal_sets_joined_once(model, store, labels, classes, counted):
    evaluate(model, store, labels, classes, views=VIEWS, runs=3, seed=7)
    sets = {
        (object_id, tuple(sorted(view_order(5, seed=7, run=run, object_id=object_id)[:num_views])))
        for object_id in IDS
        for run in range(3)
        for num_views in VIEWS
    }
    assert counted == {"read": 11 * 5, "alone": 11 * 5, "joined": sum(len(views) for _, views in sets)}
    assert counted["joined"] < 3 * 11 * sum(VIEWS)


def test_a_random_crop_encodes_views_once_a_run(model, store, labels, classes, counted):
    evaluate(model, store, labels, classes, views=VIEWS, runs=3, crop="random")
    assert counted == {"read": 11 * 5, "alone": 3 * 11 * 5, "joined": 3 * 11 * sum(VIEWS)}


def test_one_run_reads_only_the_views_it_needs(model, store, labels, classes, counted):
    evaluate(model, store, labels, classes, views=[1, 2])
    assert counted["read"] == counted["alone"] == 11 * 2


def test_processes_share_the_work_with_identical_results(model, store, labels, classes, tmp_path):
    stock = tiny_model(tmp_path, cross_view_from=None)
    options = {"views": VIEWS, "runs": 2, "crop": "random", "batch_size": 2, "baseline": stock}
    alone = evaluate(model, store, labels, classes, **options)
    assert evaluate(model, store, labels, classes, processes=2, **options) == alone


def test_an_interruption_does_not_wait_for_the_tasks_of_other_processes():
    results = in_order(time.sleep, [0, 300, 300, 300], jobs=2, abandon=True)
    next(results)
    begin = time.monotonic()
    results.close()  # as what is raised in a loop over them does
    assert time.monotonic() - begin < 60


def test_an_interrupted_evaluation_goes_on_after_its_last_part(model, store, labels, classes, tmp_path, counted):
    options = {"views": VIEWS, "runs": 2, "batch_size": 2}
    whole = evaluate(model, store, labels, classes, **options)
    counted["read"] = 0
    kept, reads = tmp_path / "out" / "kept", ViewStore.read

    def interrupted(self, *arguments):
        if counted["read"] == 3 * 2 * 5:
            raise KeyboardInterrupt
        return reads(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ViewStore, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, store, labels, classes, unfinished=kept, **options)
    with kept.open("ab") as file:  # killed while it wrote the next part
        file.write(b"half")
    counted["read"] = 0
    assert evaluate(model, store, labels, classes, unfinished=kept, **options) == whole
    assert counted["read"] == (11 - 6) * 5
    assert evaluate(model, store, labels, classes, unfinished=kept, **options) == whole
    assert counted["read"] == (11 - 6) * 5  # all was there


@pytest.mark.parametrize("change", [{"seed": 8}, {"views": [1]}, {"crop": "none"}, {"runs": 2}, {"limit": 3}])
def test_what_was_left_of_another_evaluation_is_refused(model, store, labels, classes, tmp_path, change):
    evaluate(model, store, labels, classes, views=[1, 2], unfinished=tmp_path / "kept")
    before = (tmp_path / "kept").read_bytes()
    with pytest.raises(UserError, match="unfinished evaluation of something else"):
        evaluate(model, store, labels, classes, unfinished=tmp_path / "kept", **{"views": [1, 2]} | change)
    with pytest.raises(UserError, match="unfinished evaluation of something else"):
        evaluate(model, store, labels, classes + 1, views=[1, 2], unfinished=tmp_path / "kept")
    assert (tmp_path / "kept").read_bytes() == before


def test_an_evaluation_that_came_to_nothing_stands_in_no_ones_way(model, store, labels, classes, tmp_path):
    broken = tiny_model(tmp_path, seed=1)
    broken.clip.visual.proj.data.fill_(float("nan"))
    with pytest.raises(UserError, match="NaN"):
        evaluate(broken, store, labels, classes, views=[1], unfinished=tmp_path / "kept")
    again = evaluate(model, store, labels, classes, views=[1], unfinished=tmp_path / "kept")
    assert again == evaluate(model, store, labels, classes, views=[1])


def test_two_evaluations_do_not_write_into_one_folder(model, store, labels, classes, tmp_path):
    with open(tmp_path / "kept", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another evaluation is writing to"):
            evaluate(model, store, labels, classes, views=[1], unfinished=tmp_path / "kept")


def test_a_file_of_something_else_is_not_written_to(model, store, labels, classes, tmp_path):
    (tmp_path / "kept").write_bytes(b"my notes")
    with pytest.raises(UserError, match="something else"):
        evaluate(model, store, labels, classes, views=[1], unfinished=tmp_path / "kept")
    assert (tmp_path / "kept").read_bytes() == b"my notes"


def test_a_file_cut_in_its_first_line_starts_anew(tmp_path):
    def squares(part):
        return np.array(part) ** 2

    options = {"part_size": 2, "shape": (), "dtype": np.int64, "unfinished": tmp_path / "kept", "made_from": {"a": 1}}
    assert computed(squares, 5, **options).tolist() == [0, 1, 4, 9, 16]
    whole = (tmp_path / "kept").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "kept").write_bytes(whole[:length])
        assert computed(squares, 5, **options).tolist() == [0, 1, 4, 9, 16]
        assert (tmp_path / "kept").read_bytes() == whole


def test_memory_hardly_grows_with_the_number_of_objects(model, tmp_path, classes):
    def peak(objects):
        ids = [f"{i}" for i in range(objects)]
        store = ViewStore(tiny_store(tmp_path / f"{objects}.h5", ids, num_views=4))
        labels = Labels(ids, np.arange(objects) % 6, [f"class_{i}" for i in range(6)])
        tracemalloc.start()
        evaluate(model, store, labels, classes, views=[1, 4], batch_size=16)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(32)  # whatever the first call loads
    an_object = 4 * 3 * 32 * 32
    assert (peak(352) - peak(32)) / 320 < an_object / 10


@pytest.mark.slow
def test_a_killed_command_ends_with_the_same_report(model, tmp_path):
    from ddclip_cli.model.checkpoints import save_checkpoint

    ids = [f"{i}" for i in range(400)]
    tiny_store(tmp_path / "store.h5", ids, num_views=5)
    (tmp_path / "labels.csv").write_text("".join(f"{i % 6},class_{i % 6},{i}\n" for i in range(400)))
    save_checkpoint(model, tmp_path / "checkpoint")
    (tmp_path / "tiny.yaml").write_text(
        "model: {checkpoint: checkpoint}\n"
        "eval: {store: store.h5, labels: labels.csv, class_features: null, views: [1, 2, 3, 4, 5], runs: 3}\n"
    )

    def command(out: Path) -> list[str]:
        words = ["eval-lvis", "--recipe", "tiny.yaml", "--data-dir", ".", "--device", "cpu", "--out", str(out)]
        return [sys.executable, "-m", "ddclip_cli", *words]

    options = {"cwd": tmp_path, "capture_output": True, "text": True}
    subprocess.run(command(tmp_path / "whole"), check=True, **options)
    process = subprocess.Popen(command(tmp_path / "killed"), cwd=tmp_path, stderr=subprocess.DEVNULL)
    kept, deadline = tmp_path / "killed" / "unfinished", time.monotonic() + 60
    while not kept.exists() or kept.stat().st_size < 10_000:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "report.json").exists()
    done = subprocess.run(command(tmp_path / "killed"), check=True, **options)
    assert "going on after" in done.stderr
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes(), path.name
