"""Encoded view stores: as small as promised, read like any other, and refused when they lie."""

from __future__ import annotations

import io
import json
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from tiny import run

from ddclip_cli.data import codecs
from ddclip_cli.data.convert import convert_store
from ddclip_cli.data.pack import pack_store
from ddclip_cli.data.view_store import ViewStore
from ddclip_cli.errors import UserError

FORMATS = Path(__file__).parent / "data" / "reference_formats"
SUPPLEMENT = FORMATS / "dataset" / "data" / "supplement_mv_images.h5"


@pytest.fixture(scope="module")
def couch() -> np.ndarray:
    """(12, 3, 224, 224): renders of a white couch."""
    picture = np.asarray(Image.open(Path(__file__).parent.parent / "docs" / "couch.jpg"))
    return np.ascontiguousarray(picture.reshape(12, 224, 224, 3).transpose(0, 3, 1, 2))


@pytest.fixture
def raw(tmp_path, couch) -> Path:
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file["imgs"] = np.stack([couch, couch[::-1], couch[:, :, ::-1]])
        file.create_dataset("ids", data=["a", "b", "c"], dtype=h5py.string_dtype())
    return tmp_path / "raw.h5"


def psnr(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of views (..., 3, S, S), in decibel."""
    error = ((one.astype(np.float64) - other) ** 2).mean(axis=(-1, -2, -3))
    return 10 * np.log10(255**2 / error)


def every_view(store: ViewStore) -> np.ndarray:
    return store.read(range(len(store)), range(store.num_views))


def test_jpeg_takes_a_tenth_and_stays_above_40_decibel(raw, tmp_path):
    store = convert_store(raw, tmp_path / "j.h5", codec="jpeg")
    assert (tmp_path / "j.h5").stat().st_size * 10 < raw.stat().st_size
    quality = psnr(every_view(store), every_view(ViewStore(raw)))
    assert quality.mean() > 40
    assert quality.min() > 34


def test_lossless_takes_a_third_and_changes_nothing(raw, tmp_path):
    store = convert_store(raw, tmp_path / "l.h5", codec="lossless")
    assert (tmp_path / "l.h5").stat().st_size * 3 < raw.stat().st_size
    assert np.array_equal(every_view(store), every_view(ViewStore(raw)))


def test_noise_is_kept_too():
    """The worst that a picture can be, for which encoders have too small a buffer now and then."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 224, 224)).astype(np.uint8)
    for name, codec in codecs.ENCODED.items():
        decoded = np.empty_like(noise)
        codec.decode_into(decoded, codec.encode(noise))
        assert psnr(decoded, noise) > 34 if name == "jpeg" else np.array_equal(decoded, noise)


@pytest.mark.parametrize("codec", codecs.CODECS)
def test_the_reader_hides_the_codec(raw, tmp_path, codec):
    convert_store(raw, tmp_path / "s.h5", codec=codec)
    store = ViewStore(tmp_path / "s.h5")
    assert (store.codec, len(store), store.num_views, store.image_size) == (codec, 3, 12, 224)
    assert store.ids == ["a", "b", "c"]
    everything = every_view(store)
    rows, views = np.array([2, 0, 2]), np.array([7, 1])
    assert np.array_equal(store.read(rows, views), everything[rows][:, views])
    own = np.array([[0, 11], [5, 3], [2, 2]])
    assert np.array_equal(store.read(rows, own), everything[rows[:, None], own])
    with pytest.raises(UserError, match="view 12"):
        store.read([0], [12])
    with pytest.raises(UserError, match="row 3"):
        store.read([3], [0])


@pytest.mark.parametrize("codec", codecs.CODECS)
def test_reading_in_threads_and_other_processes(raw, tmp_path, codec):
    store = convert_store(raw, tmp_path / "s.h5", codec=codec)
    everything = every_view(store)
    with ThreadPoolExecutor(4) as pool:
        for row, views in enumerate(pool.map(lambda row: store.read([row], range(12))[0], range(3))):
            assert np.array_equal(views, everything[row])
    assert np.array_equal(every_view(pickle.loads(pickle.dumps(store))), everything)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put(store.read([1], [2])))
    child.start()
    assert np.array_equal(queue.get(timeout=30)[0, 0], everything[1, 2])
    child.join()


@pytest.mark.parametrize("jobs", [1, 2])
def test_packing_encoded_is_packing_and_converting(tmp_path, jobs):
    options = {"supplement": SUPPLEMENT, "num_views": 2, "jobs": jobs}
    pack_store(FORMATS / "views_release", tmp_path / "raw.h5", **options)
    pack_store(FORMATS / "views_release", tmp_path / "j.h5", codec="jpeg", **options)
    convert_store(tmp_path / "raw.h5", tmp_path / "k.h5", codec="jpeg", jobs=jobs)
    assert np.array_equal(every_view(ViewStore(tmp_path / "j.h5")), every_view(ViewStore(tmp_path / "k.h5")))


def test_a_supplement_of_the_same_codec_is_copied_not_encoded_once_more(tmp_path):
    convert_store(SUPPLEMENT, tmp_path / "supplement.h5", codec="jpeg")
    options = {"supplement": tmp_path / "supplement.h5", "num_views": 2, "codec": "jpeg"}
    pack_store(FORMATS / "views_release", tmp_path / "s.h5", **options)
    store, supplement = ViewStore(tmp_path / "s.h5"), ViewStore(tmp_path / "supplement.h5")
    assert store.read_encoded(4, 2) == supplement.read_encoded(1, 2)


def test_conversion_there_and_back_gives_the_reference_format(tmp_path):
    convert_store(SUPPLEMENT, tmp_path / "l.h5", codec="lossless")
    convert_store(tmp_path / "l.h5", tmp_path / "raw.h5", codec="raw")
    with h5py.File(tmp_path / "raw.h5") as file, h5py.File(SUPPLEMENT) as reference:
        assert np.array_equal(file["imgs"], reference["imgs"])
        assert file["imgs"].id.get_offset() is not None
    with h5py.File(tmp_path / "chunked.h5", "w") as file, h5py.File(tmp_path / "raw.h5") as whole:
        file.create_dataset("imgs", data=whole["imgs"], chunks=True, compression="gzip")
        file["ids"] = whole["ids"][()]
    store = convert_store(tmp_path / "chunked.h5", tmp_path / "mapped.h5")
    assert not ViewStore(tmp_path / "chunked.h5").is_mapped
    assert store.is_mapped


# --- stores that lie ---------------------------------------------------------------------------------------------


@pytest.fixture
def encoded(raw, tmp_path) -> Path:
    convert_store(raw, tmp_path / "s.h5", codec="jpeg")
    return tmp_path / "s.h5"


def says(action, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [("offsets", -1), ("offsets", 10**12), ("sizes", 0), ("sizes", -5), ("sizes", 2**31 - 1)]
)
def test_a_view_that_lies_elsewhere(encoded, name, value):
    with h5py.File(encoded, "r+") as file:
        file[name][1, 4] = value
    store = ViewStore(encoded)
    says(lambda: store.read([1], [4]), "s.h5: a view lies outside of the file's views")
    assert store.read([1], [3]).shape == (1, 1, 3, 224, 224)


def picture(format: str, size: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size)).save(file, format)
    return file.getvalue()


@pytest.mark.parametrize("data", [b"rubbish", picture("PNG", 224), picture("JPEG", 64), picture("JPEG", 2000)])
def test_a_view_that_is_no_such_picture(encoded, data):
    """Also one of another format, or of a size that would take more memory than the store says."""
    with h5py.File(encoded, "r+") as file:
        start = file["offsets"][2, 0]
        file["encoded"][start : start + len(data)] = np.frombuffer(data, np.uint8)
        file["sizes"][2, 0] = len(data)
    says(lambda: ViewStore(encoded).read([2], [0]), "a view of row 2 is damaged", "make the file again")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda file: file.attrs.__setitem__("codec", "pickle"), "codec 'pickle'"),
        (lambda file: file.attrs.__setitem__("codec", 3), "codec '3'"),
        (lambda file: file.attrs.__delitem__("codec"), "codec 'None'"),
        (lambda file: file.attrs.__setitem__("image_size", 0), "do not fit"),
        (lambda file: file.attrs.__setitem__("image_size", "224"), "do not fit"),
        (lambda file: file.attrs.__setitem__("image_size", 100_000), "claims views of 100000 pixels"),
        (lambda file: file.__delitem__("sizes"), "no dataset 'sizes'"),
        (lambda file: file.__delitem__("ids"), "does not say which object"),
    ],
)
def test_encoded_stores_of_the_wrong_form(encoded, change, word):
    encoded.with_name("s_model_to_idx.json").unlink()
    with h5py.File(encoded, "r+") as file:
        change(file)
    says(lambda: ViewStore(encoded), "s.h5", word)


def test_a_truncated_encoded_store(encoded):
    whole = encoded.read_bytes()
    encoded.write_bytes(whole[: len(whole) // 2])
    says(lambda: ViewStore(encoded), "cut off")


# --- the command -------------------------------------------------------------------------------------------------


def test_info_and_convert_from_the_command_line(raw, tmp_path):
    done = run("store", "convert", raw, tmp_path / "j.h5", "--codec", "jpeg", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["codec"] == "jpeg"
    assert told["bytes"] * 10 < told["bytes_before"]
    info = json.loads(run("store", "info", tmp_path / "j.h5", "--check", "--json").out)
    assert (info["objects"], info["views"], info["size"], info["codec"]) == (3, 12, 224, "jpeg")
    assert (info["reading"], info["damaged"]) == ("decoded", {})
    assert "mapped" in run("store", "info", raw).out
    again = run("store", "convert", raw, tmp_path / "j.h5")
    assert again.code == 1
    assert "exists already" in again.err


def test_check_finds_what_was_never_written_and_what_is_damaged(raw, encoded):
    with h5py.File(raw, "r+") as file:
        file["imgs"][1, 3:5] = 0
    done = run("store", "info", raw, "--check")
    assert done.code == 1
    assert "b: 2 of 12 views are black" in done.err
    assert "error: 1 of 3 objects" in done.err
    with h5py.File(encoded, "r+") as file:
        file["sizes"][2, 1] = 7
    done = run("store", "info", encoded, "--check", "--jobs", 2, "--json")
    assert done.code == 1
    assert list(json.loads(done.out)["damaged"]) == ["c"]


def test_info_of_a_store_that_is_not_finished(tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("03000000000000000000000000000000\nnone\n")
    with pytest.raises(UserError, match="none"):
        pack_store(FORMATS / "views_release", tmp_path / "s.h5", ids=ids)
    (tmp_path / "r" / "empty").mkdir(parents=True)
    (tmp_path / "r" / "x").symlink_to(FORMATS / "views_release" / "03000000000000000000000000000000")
    with pytest.raises(UserError, match="empty"):
        pack_store(tmp_path / "r", tmp_path / "s.h5", layout="zero123")
    done = run("store", "info", tmp_path / "s.h5")
    assert done.code == 1
    assert "s.h5 is not finished: 1 objects are in it so far" in done.err
