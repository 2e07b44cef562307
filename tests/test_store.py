"""View stores, the ids of their rows, and labels: what is read, and one sentence for everything that is wrong."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from ddclip_cli.data.labels import read_labels
from ddclip_cli.data.object_ids import read_id_list, read_ids
from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.errors import UserError

FORMATS = Path(__file__).parent / "data" / "reference_formats" / "dataset" / "data"
IDS = ["a", "b", "c", "d"]


def write_store(path: Path, imgs: np.ndarray | None = None, ids: list[str] | None = None, **options) -> np.ndarray:
    if imgs is None:
        imgs = np.random.default_rng(0).integers(0, 256, (4, 5, 3, 8, 8)).astype(np.uint8)
    with h5py.File(path, "w") as file:
        file.create_dataset("imgs", data=imgs, **options)
        if ids is not None:
            file.create_dataset("ids", data=ids, dtype=h5py.string_dtype())
    return imgs


def write_json(path: Path, document: object) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def says(action, *words: str) -> str:
    """The sentence of the UserError that `action` raises; it is one line and holds all of `words`."""
    with pytest.raises(UserError) as caught:
        action()
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence
    return sentence


@pytest.mark.parametrize("options", [{}, {"chunks": (1, 1, 3, 8, 8), "compression": "gzip"}])
def test_read_takes_any_rows_and_views(tmp_path, options):
    imgs = write_store(tmp_path / "s.h5", ids=IDS, **options)
    store = ViewStore(tmp_path / "s.h5")
    assert (len(store), store.num_views, store.image_size, store.ids) == (4, 5, 8, IDS)
    rows, views = np.array([3, 0, 3]), np.array([4, 1])
    assert np.array_equal(store.read(rows, views), imgs[[3, 0, 3]][:, [4, 1]])
    own = np.array([[0, 1], [2, 3], [4, 0]])  # other views of each object
    assert np.array_equal(store.read(rows, own), np.stack([imgs[r][v] for r, v in zip(rows, own, strict=True)]))
    assert store.read([], [0]).shape == (0, 1, 3, 8, 8)


def test_a_store_behind_a_userblock_is_mapped_at_the_right_place(tmp_path):
    imgs = np.arange(2 * 2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 2, 3, 4, 4)
    with h5py.File(tmp_path / "s.h5", "w", userblock_size=1024) as file:
        file["imgs"] = imgs
        file.create_dataset("ids", data=["x", "y"], dtype=h5py.string_dtype())
    assert np.array_equal(ViewStore(tmp_path / "s.h5").read([0, 1], [0, 1]), imgs)


def test_what_is_read_is_a_copy_that_may_be_written_to(tmp_path):
    imgs = write_store(tmp_path / "s.h5", ids=IDS)
    store = ViewStore(tmp_path / "s.h5")
    store.read([0], [0])[:] = 0
    assert np.array_equal(store.read([0], [0])[0, 0], imgs[0, 0])


def _read_in_child(store: ViewStore, queue) -> None:
    queue.put(store.read([1], [2]))


@pytest.mark.parametrize("options", [{}, {"chunks": True}])
def test_reading_goes_on_in_a_forked_process(tmp_path, options):
    imgs = write_store(tmp_path / "s.h5", ids=IDS, **options)
    store = ViewStore(tmp_path / "s.h5")
    store.read([0], [0])
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_read_in_child, args=(store, queue))
    child.start()
    assert np.array_equal(queue.get(timeout=20)[0, 0], imgs[1, 2])
    child.join()


def test_a_pickled_store_carries_no_pictures(tmp_path):
    imgs = write_store(tmp_path / "s.h5", np.zeros((2, 3, 3, 64, 64), np.uint8), ids=["a", "b"])
    store = ViewStore(tmp_path / "s.h5")
    store.read([0], [0])
    sent = pickle.dumps(store)
    assert len(sent) < 2000 < imgs.nbytes
    assert pickle.loads(sent).read([1], [2]).shape == (1, 1, 3, 64, 64)


def test_rows_names_the_objects_that_the_store_lacks(tmp_path):
    write_store(tmp_path / "s.h5", ids=IDS)
    store = ViewStore(tmp_path / "s.h5")
    assert store.rows(["c", "a"]).tolist() == [2, 0]
    says(lambda: store.rows(["c", "zebra"]), "zebra", "1 of the 2")


def test_numbers_that_are_not_there_are_refused_not_counted_from_the_end(tmp_path):
    write_store(tmp_path / "s.h5", ids=IDS)
    store = ViewStore(tmp_path / "s.h5")
    says(lambda: store.read([0], [5]), "view 5")
    says(lambda: store.read([-1], [0]), "row -1")


# --- ids: --ids, then the file's own, then <stem>_model_to_idx.json, then the reference's name -------------------


def test_ids_are_looked_for_in_order(tmp_path):
    store = tmp_path / "mv_images.h5"
    write_store(store)
    rows = {"d": 3, "a": 0, "c": 2, "b": 1}
    says(lambda: ViewStore(store), "--ids")
    write_json(tmp_path / "model_to_idx.json", rows)
    assert ViewStore(store).ids == IDS
    write_json(tmp_path / "mv_images_model_to_idx.json", {"s" + key: row for key, row in rows.items()})
    assert ViewStore(store).ids == ["sa", "sb", "sc", "sd"]
    write_store(store, ids=["i", "j", "k", "l"])
    assert ViewStore(store).ids == ["i", "j", "k", "l"]
    given = write_json(tmp_path / "given.json", {"g" + key: row for key, row in rows.items()})
    assert ViewStore(store, given).ids == ["ga", "gb", "gc", "gd"]


@pytest.mark.parametrize(
    ("store", "rows"),
    [
        ("lvis_images.h5", "lvis_model_to_idx.json"),
        ("supplement_mv_images.h5", "supplement_model_to_idx.json"),
        ("ViT/image_embeddings.h5", "model_to_idx.json"),
    ],
)
def test_the_reference_names_of_rows_are_found(tmp_path, store, rows):
    (tmp_path / "ViT").mkdir()
    write_store(tmp_path / store)
    write_json(tmp_path / rows, {"x": 0, "y": 1})
    assert read_ids(tmp_path / store) == ["x", "y"]


def test_the_reference_store_is_read():
    store = ViewStore(FORMATS / "supplement_mv_images.h5")
    assert store.ids == ["sup3_0", "sup3_1"]
    assert store.read([1], np.arange(12)).shape == (1, 12, 3, 224, 224)


@pytest.mark.parametrize(
    ("rows", "word"),
    [
        ({"a": 0, "b": 1, "c": 2, "d": 4}, "row 4"),
        ({"a": 0, "b": 1, "c": 2, "d": -1}, "row -1"),
        ({"a": 0, "b": 1, "c": 2, "d": 2}, "both have row 2"),
        ({"a": 0, "b": 1, "c": 2}, "3 objects"),
        ({"a": 0, "b": 1, "c": 2, "d": 3, "e": 10**15}, "row 1000000000000000"),
        ({"a": 0, "b": 1, "c": 2, "d": "3"}, "'3'"),
        ({"a": 0, "b": 1, "c": 2, "d": True}, "True"),
        (["a", "b", "c", "d"], "must be an object"),
        ("{'a': 0}", "rows.json:1"),
        ('{"a": 0,\n"b": 1,,', "rows.json:2"),
        ('{"a": 0, "a": 1, "c": 2, "d": 3}', "'a' stands there twice"),
        ("[" * 100_000, "rows.json"),
    ],
)
def test_bad_rows_are_one_sentence(tmp_path, rows, word):
    write_store(tmp_path / "s.h5")
    path = write_json(tmp_path / "rows.json", rows)
    says(lambda: ViewStore(tmp_path / "s.h5", path), "rows.json", word)


def test_missing_rows_file(tmp_path):
    write_store(tmp_path / "s.h5")
    says(lambda: ViewStore(tmp_path / "s.h5", tmp_path / "none.json"), "none.json does not exist")


@pytest.mark.parametrize(
    ("ids", "word"), [(["a", "b", "c"], "3 ids for 4 rows"), (["a", "b", "b", "d"], "'b' has two rows")]
)
def test_bad_ids_inside_a_store(tmp_path, ids, word):
    write_store(tmp_path / "s.h5", ids=ids)
    says(lambda: ViewStore(tmp_path / "s.h5"), word)


def test_ids_that_are_no_strings(tmp_path):
    write_store(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        file["ids"] = np.arange(4)
    says(lambda: ViewStore(tmp_path / "s.h5"), "list of strings")


# --- stores that are none ----------------------------------------------------------------------------------------


def test_a_file_that_is_missing_or_no_hdf5(tmp_path):
    says(lambda: ViewStore(tmp_path / "none.h5"), "none.h5 does not exist")
    (tmp_path / "text.h5").write_text("not HDF5")
    says(lambda: ViewStore(tmp_path / "text.h5"), "text.h5 is not an HDF5 file")
    says(lambda: ViewStore(tmp_path), "is a folder")


def test_a_truncated_store(tmp_path):
    write_store(tmp_path / "s.h5", ids=IDS)
    whole = (tmp_path / "s.h5").read_bytes()
    (tmp_path / "s.h5").write_bytes(whole[: len(whole) // 2])
    says(lambda: ViewStore(tmp_path / "s.h5"), "cut off")


@pytest.mark.parametrize(
    "imgs",
    [
        np.zeros((4, 5, 3, 8, 8), np.float32),
        np.zeros((4, 5, 8, 8, 3), np.uint8),
        np.zeros((4, 5, 3, 8, 9), np.uint8),
        np.zeros((4, 3, 8, 8), np.uint8),
        np.zeros((0, 5, 3, 8, 8), np.uint8),
    ],
)
def test_a_store_of_the_wrong_form(tmp_path, imgs):
    write_store(tmp_path / "s.h5", imgs, ids=IDS)
    says(lambda: ViewStore(tmp_path / "s.h5"), "'imgs'", str(imgs.shape))


@pytest.mark.parametrize("shape", [(10**16, 12, 3, 224, 224), (1, 1, 3, 2_000_000, 2_000_000)])  # 2**64 bytes and more
def test_a_store_that_claims_more_than_the_file_can_hold(tmp_path, shape):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.create_dataset("imgs", shape, np.uint8, chunks=(1, 1, 3, 8, 8))
        file["ids"] = ["a"]
    says(lambda: ViewStore(tmp_path / "s.h5"), "'imgs' claims", "make it again")


@pytest.mark.parametrize("options", [{"dtype": h5py.string_dtype(), "chunks": (1024,)}, {"dtype": "S100"}])
def test_ids_that_claim_more_than_the_file_can_hold(tmp_path, options):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.create_dataset("ids", (10**13,), **options)
    says(lambda: read_ids(tmp_path / "s.h5"), "'ids' claims (10000000000000,)")


def test_views_of_an_unlikely_size(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["padding"] = np.zeros(100_000, np.uint8)
        file.create_dataset("imgs", (1, 1, 3, 5000, 5000), np.uint8, chunks=(1, 1, 3, 8, 8))
        file["ids"] = ["a"]
    says(lambda: ViewStore(tmp_path / "s.h5"), "5000 pixels", "4096")


def test_a_store_without_the_dataset_says_what_it_holds(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["img_feat"] = np.zeros((2, 2))
    says(lambda: ViewStore(tmp_path / "s.h5"), "no dataset 'imgs'", "'img_feat'")


def test_data_in_other_files_is_refused(tmp_path):
    write_store(tmp_path / "real.h5", ids=IDS)
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["imgs"] = h5py.ExternalLink(str(tmp_path / "real.h5"), "/imgs")
    says(lambda: ViewStore(tmp_path / "link.h5"), "points to another file")
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(4 * 5 * 3 * 8 * 8))
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file.create_dataset("imgs", (4, 5, 3, 8, 8), np.uint8, external=[(str(secret), 0, 3840)])
    says(lambda: ViewStore(tmp_path / "raw.h5"), "points to another file")
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout((4, 5, 3, 8, 8), np.uint8)
        layout[:] = h5py.VirtualSource(tmp_path / "real.h5", "imgs", (4, 5, 3, 8, 8))
        file.create_virtual_dataset("imgs", layout)
    says(lambda: ViewStore(tmp_path / "virtual.h5"), "points to another file")
    with h5py.File(tmp_path / "ids.h5", "w") as file:
        file["imgs"] = np.zeros((4, 5, 3, 8, 8), np.uint8)
        file["ids"] = h5py.ExternalLink(str(tmp_path / "real.h5"), "/ids")
    says(lambda: ViewStore(tmp_path / "ids.h5"), "'ids' points to another file")


# --- lists of ids and labels -------------------------------------------------------------------------------------


def test_lists_of_ids(tmp_path):
    (tmp_path / "l.txt").write_text("b\n\n  a \r\nc\n")
    assert read_id_list(tmp_path / "l.txt") == ["b", "a", "c"]
    assert read_id_list(write_json(tmp_path / "l.json", ["b", "a"])) == ["b", "a"]
    assert read_id_list(write_json(tmp_path / "r.json", {"b": 1, "a": 0})) == ["a", "b"]


def test_bad_lists_of_ids(tmp_path):
    (tmp_path / "twice.txt").write_text("a\nb\na\n")
    says(lambda: read_id_list(tmp_path / "twice.txt"), "twice.txt:3", "'a'", "at 1")
    (tmp_path / "empty.txt").write_text("\n")
    says(lambda: read_id_list(tmp_path / "empty.txt"), "names no object")
    says(lambda: read_id_list(tmp_path / "none.txt"), "does not exist")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    says(lambda: read_id_list(tmp_path / "binary.txt"), "UTF-8")
    says(lambda: read_id_list(write_json(tmp_path / "l.json", [1, 2])), "JSON list of object ids")


def test_labels_of_the_reference():
    labels = read_labels(FORMATS / "lvis.csv")
    assert labels.class_names == ["Band_Aid", "bat_(animal)", "mug", "chair"]
    assert labels.class_index.tolist() == [0, 1, 2, 3, 0]
    assert labels.class_index.dtype == np.int64
    assert labels.object_ids[-1] == "03000000000000000000000000000001"


def test_class_names_may_hold_commas_and_indices_may_have_gaps(tmp_path):
    (tmp_path / "l.csv").write_text('0,"table, low",x\n2,lamp, tall,y\r\n\n2,"lamp, tall",z\n')
    labels = read_labels(tmp_path / "l.csv")
    assert labels.class_names == ["table, low", "", "lamp, tall"]
    assert labels.class_index.tolist() == [0, 2, 2]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("class_index,class_name,object_id\n", ":1: class index 'class_index'"),
        ("0,cup,x\n1,cup\n", ":2: 2 of the three fields"),
        ("0,cup,x\n1,mug,x\n", ":2: object 'x' is labelled twice"),
        ("0,cup,x\n0,mug,y\n", ":2: class 0 is 'mug' here"),
        ("-1,cup,x\n", ":1: class index '-1'"),
        ("1.5,cup,x\n", ":1: class index '1.5'"),
        ("99999999999,cup,x\n", ":1: class index"),
        ("0,,x\n", ":1: the class name is empty"),
        ("0,cup,\n", ":1: the object id is empty"),
        ("", "labels no object"),
    ],
)
def test_bad_labels_name_file_and_line(tmp_path, text, word):
    (tmp_path / "l.csv").write_text(text)
    says(lambda: read_labels(tmp_path / "l.csv"), "l.csv", word)


def test_labels_that_cannot_be_read(tmp_path):
    says(lambda: read_labels(tmp_path / "none.csv"), "does not exist")
    (tmp_path / "b.csv").write_bytes(b"0,\xff\xff,x\n")
    says(lambda: read_labels(tmp_path / "b.csv"), "UTF-8")
    (tmp_path / "big.csv").write_text("0," + "c" * 200_000 + ",x\n")
    says(lambda: read_labels(tmp_path / "big.csv"), "big.csv:1", "not CSV")
