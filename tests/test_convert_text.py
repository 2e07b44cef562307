"""The reference's pickle of text features: read as a stream, nothing run, and then in no memory at all."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from tiny import run

from ddclip_cli.data.convert_text import convert_text
from ddclip_cli.data.text_pickle import text_entries
from ddclip_cli.data.text_targets import TextTargets
from ddclip_cli.errors import UserError

FEATURES = Path(__file__).parent / "data/reference_formats/dataset/data/ViT-B-32_laion2b_s34b_b79k"
ROOT = Path(__file__).parent.parent
WIDTH = 8


def features(count: int, seed: int = 0, dtype: str = "f2") -> list[np.ndarray]:
    return list(np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(dtype))


def document(objects: int = 2500) -> dict:
    """More objects than pickle puts into one batch; any key but the last may be missing."""
    result = {}
    for number in range(objects):
        one, two, three, *rest = features(3 + number % 3, seed=number)
        entry: dict = {"retrieval_text_feat": [one, *rest]}
        if number % 2:
            entry["text_feat"] = [two]
        if number % 5:
            entry["blip_caption_feat"] = three
        result[f"object-{number:05d}-{'é' * (number % 2)}"] = entry
    return result


def save(path: Path, content: object, protocol: int = 4) -> Path:
    """As `np.save` of some version writes it."""
    array = np.empty((), dtype=object)
    array[()] = content
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        pickle.dump(array, file, protocol=protocol)
    return path


def draws(path: Path, ids: list[str]) -> np.ndarray:
    return TextTargets(path).draw(ids, np.random.default_rng(5))


def says(action, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_the_reference_file_draws_the_same_before_and_after(tmp_path):
    source = FEATURES / "text_embeddings.npy"
    assert convert_text(source, tmp_path / "t.h5")[0] == 5
    ids = [object_id for object_id, _ in text_entries(source)] * 50
    assert np.array_equal(draws(source, ids), draws(tmp_path / "t.h5", ids))
    assert len(np.unique(draws(tmp_path / "t.h5", ids), axis=0)) > 10


@pytest.mark.parametrize("protocol", [3, 4])
def test_every_feature_arrives_bit_for_bit(tmp_path, protocol):
    content = document()
    save(tmp_path / "t.npy", content, protocol)
    objects, texts = convert_text(tmp_path / "t.npy", tmp_path / "t.h5")
    assert objects == len(content)
    with h5py.File(tmp_path / "t.h5") as file:
        assert [name.decode() for name in file["ids"]] == list(content)
        assert len(file["features"]) == texts
        starts = file["offsets"][()]
        everything, kinds = file["features"][()], file["kind"][()]
    for number, entry in enumerate(content.values()):
        expected = [(0, f) for f in entry.get("text_feat", [])]
        expected += [(1, entry["blip_caption_feat"])] if "blip_caption_feat" in entry else []
        expected += [(3, f) for f in entry["retrieval_text_feat"]]
        own = slice(starts[number], starts[number + 1])
        assert kinds[own].tolist() == [kind for kind, _ in expected]
        assert np.array_equal(everything[own], np.stack([feature for _, feature in expected]))


@pytest.mark.parametrize("dtype", ["f4", "f8", ">f4"])
def test_other_floats(tmp_path, dtype):
    one, two = features(2, dtype=dtype)
    save(tmp_path / "t.npy", {"a": {"text_feat": [one]}, "b": {"text_feat": [two]}})
    convert_text(tmp_path / "t.npy", tmp_path / "t.h5")
    assert np.array_equal(draws(tmp_path / "t.h5", ["b", "a"]), np.stack([two, one]).astype(np.float32))


def test_what_objects_share_is_found_again(tmp_path, capfd):
    """A feature that stands at many objects is streamed; a list of features that does is read the other way."""
    shared, *own = features(2001)
    content = {f"object-{n:09d}": {"text_feat": [shared, own[n]]} for n in range(2000)}
    save(tmp_path / "t.npy", content)
    convert_text(tmp_path / "t.npy", tmp_path / "t.h5")
    assert "into memory" not in capfd.readouterr().err
    again = {f"object-{n:09d}": {"text_feat": content["object-000000007"]["text_feat"]} for n in range(2000)}
    save(tmp_path / "u.npy", again)
    convert_text(tmp_path / "u.npy", tmp_path / "u.h5")
    assert "into memory" in capfd.readouterr().err
    with h5py.File(tmp_path / "t.h5") as one, h5py.File(tmp_path / "u.h5") as other:
        assert all(np.array_equal(row, shared) for row in one["features"][::2])
        assert np.array_equal(other["features"][-2:], np.stack([shared, own[7]]))


# --- pickles of others -------------------------------------------------------------------------------------------


class Payload:
    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize(
    "make",
    [
        lambda mark: Payload(os.system, f"touch {mark}"),
        lambda mark: Payload(eval, f"open({str(mark)!r}, 'w')"),
        lambda mark: Payload(open, str(mark), "w"),
        lambda mark: Payload(np.save, str(mark), np.zeros(1)),
        lambda mark: Payload(subprocess.Popen, ["touch", str(mark)]),
        lambda mark: Payload(getattr, "text", "upper"),
    ],
)
def test_a_pickle_that_calls_something_is_refused_wherever_it_hides(tmp_path, make, late, protocol):
    mark = tmp_path / "ran.npy"
    content = document(1500) if late else {}
    save(tmp_path / "t.npy", content | {"evil": {"text_feat": [make(mark)]}}, protocol)
    says(lambda: convert_text(tmp_path / "t.npy", tmp_path / "t.h5"), "t.npy")
    assert not mark.exists()
    assert os.listdir(tmp_path) == ["t.npy"]


@pytest.mark.parametrize(
    "instructions",
    [
        b"\x80\x04cos\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x04Pname\n.",  # an object from outside
        b"\x80\x04\x82\x01.",  # an extension
        b"\x80\x04(ios\nsystem\n.",
        b"\x80\x04cnumpy\nndarray\n)\x81.",
        b"\x80\x04cnumpy\ndtype\n(X\x08\x00\x00\x00O8,f8,f8tR.",
        b"\x80\x04B\xff\xff\xff\xff.",  # four gigabytes that are not there
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"\x80\x04h\x63.",
        b"\x80\x04}h\x00s.",
        b"\x80\x04.",
        b"\x80\x04((((t.",
        b"\x80\x05\x97.",
    ],
)
def test_instructions_of_another_mind(tmp_path, instructions):
    array = np.empty((), dtype=object)
    with open(tmp_path / "t.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(instructions)
    says(lambda: convert_text(tmp_path / "t.npy", tmp_path / "t.h5"), "t.npy")
    assert os.listdir(tmp_path) == ["t.npy"]


def test_damaged_pickles_leave_nothing(tmp_path):
    """Cut anywhere, or one byte changed anywhere: one sentence, or the same file but for that feature."""
    whole = save(tmp_path / "t.npy", document(20)).read_bytes()
    numbers = random.Random(0)
    for _ in range(150):
        place = numbers.randrange(len(whole))
        cut = numbers.random() < 0.5
        changed = whole[:place] if cut else whole[:place] + bytes([numbers.randrange(256)]) + whole[place + 1 :]
        (tmp_path / "t.npy").write_bytes(changed)
        try:
            assert convert_text(tmp_path / "t.npy", tmp_path / "t.h5", force=True)[0] <= 20
            assert not cut
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017
        assert set(os.listdir(tmp_path)) <= {"t.npy", "t.h5"}


def test_an_object_that_is_there_twice(tmp_path):
    content = document(3)
    first, second, _ = content
    path = save(tmp_path / "t.npy", content)
    path.write_bytes(path.read_bytes().replace(second.encode(), first.encode() + "é".encode()))
    convert_text(path, tmp_path / "t.h5")
    path = save(tmp_path / "u.npy", {"object-1": content[first], "object-2": content[second]})
    path.write_bytes(path.read_bytes().replace(b"object-2", b"object-1"))
    says(lambda: convert_text(path, tmp_path / "u.h5"), "has the object 'object-1' twice")
    assert not (tmp_path / "u.h5").exists()


# --- read where it lies ------------------------------------------------------------------------------------------


def test_objects_are_found_and_missed_by_name(tmp_path):
    content = document(1200)
    save(tmp_path / "t.npy", content)
    convert_text(tmp_path / "t.npy", tmp_path / "t.h5")
    targets = TextTargets(tmp_path / "t.h5")
    ids = list(content)
    assert targets.lacking([*ids, "zebra", "", "object-", ids[3] + "x", "é"]) == [
        "zebra",
        "",
        "object-",
        ids[3] + "x",
        "é",
    ]
    says(lambda: targets.draw([ids[0], "zebra"], np.random.default_rng(0)), "lacks 1 of the 2", "zebra")
    shuffled = random.Random(0).sample(ids, 300)
    assert np.array_equal(draws(tmp_path / "t.h5", shuffled), draws(tmp_path / "t.npy", shuffled))


@pytest.mark.parametrize("name", ["ids_order", "ids"])
def test_an_index_that_lies(tmp_path, name):
    save(tmp_path / "t.npy", document(10))
    convert_text(tmp_path / "t.npy", tmp_path / "t.h5")
    with h5py.File(tmp_path / "t.h5", "r+") as file:
        del file[name]
        file[name] = np.full(10, 99, np.int64) if name == "ids_order" else np.array([b"a"] * 9)
    says(lambda: TextTargets(tmp_path / "t.h5").draw(["object-00001-é"], np.random.default_rng(0)), "t.h5")


def test_a_process_that_draws_takes_no_memory_for_the_objects(tmp_path):
    """The peak of a process over 300,000 objects, names and all: 59 MB of features, of which it reads what it draws."""
    objects, width = 300_000, 48
    with h5py.File(tmp_path / "t.h5", "w") as file:
        from ddclip_cli.data.text_targets import create_captions

        file["features"] = np.ones((2 * objects, width), np.float16)
        ids = [f"{number:032x}" for number in range(objects)]
        create_captions(file, ids, [2] * objects, bytes(2 * objects), tmp_path)
    code = f"""
import re, numpy as np
from ddclip_cli.data.text_targets import TextTargets
targets = TextTargets({str(tmp_path / "t.h5")!r})
rng = np.random.default_rng(0)
for step in range(20):
    targets.draw([f"{{number:032x}}" for number in rng.integers(0, {objects}, 1600)], rng)
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200_000  # kilobytes


def test_converting_takes_little_memory_too(tmp_path):
    content = {f"{n:032x}": {"text_feat": [np.full(4096, n, np.float16) for _ in range(4)]} for n in range(3000)}
    np.save(tmp_path / "t.npy", content)  # 98 MB
    del content
    code = f"""
import resource
from ddclip_cli.data.convert_text import convert_text
resource.setrlimit(resource.RLIMIT_DATA, (300 << 20, 300 << 20))
convert_text({str(tmp_path / "t.npy")!r}, {str(tmp_path / "t.h5")!r})
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert len(TextTargets(tmp_path / "t.h5").lacking([f"{n:032x}" for n in range(3001)])) == 1


def test_a_disk_that_fills_up_leaves_nothing(tmp_path):
    save(tmp_path / "t.npy", document(500))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 3000, 20_000, 40_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            says(lambda: convert_text(tmp_path / "t.npy", tmp_path / "t.h5"), "t.h5 could not be written", "make room")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert os.listdir(tmp_path) == ["t.npy"]


def test_from_the_command_line(tmp_path):
    save(tmp_path / "text_embeddings.npy", document(10))
    done = run("convert-text", tmp_path / "text_embeddings.npy", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["objects"] == 10
    assert TextTargets(tmp_path / "text_embeddings.h5").lacking(["object-00000-"]) == []
    again = run("convert-text", tmp_path / "text_embeddings.npy")
    assert again.code == 1
    assert "exists already" in again.err
