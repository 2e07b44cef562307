"""Texts without torch: the ids of open_clip's tokenizer, the vectors of the torch model, from every form of file."""

from __future__ import annotations

import io
import json
import math
import pickle
import random
import subprocess
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from tiny import DATA, tiny_model

from ddclip_cli import load_model
from ddclip_cli.model.checkpoints import load_backbone, save_checkpoint
from ddclip_cli.model.mapped_weights import NotMappedError, open_mapped
from ddclip_cli.model.text_tower import TextTower, _erf
from ddclip_cli.model.tokenizer import Tokenizer
from ddclip_cli.shipped import shipped_path

LIGHTNING = DATA / "reference_model" / "reference_lightning.ckpt"
LIGHTNING_CONFIG = str(DATA / "reference_model" / "open_clip_config.json")
TEXTS = [
    "a white couch",
    "a 3D model of a white couch",
    "Ein grüner Tisch, 50% größer!",
    "",
    "it's what they'll've said: don't",
    "日本語の椅子 🪑 \u202e abc",
    "&amp;lt;b&gt; ﬁne “quotes” \x00\x1b",
    "before <end_of_text> after <START_OF_TEXT>",
    "word " * 300,
    "x" * 400,
]


def some_text(rng: random.Random) -> str:
    kinds = [(32, 127), (160, 600), (0x400, 0x500), (0x3040, 0x30FF), (0x1F300, 0x1F600), (0, 40)]
    letters = []
    for _ in range(rng.randrange(60)):
        letters.append(chr(rng.randrange(*rng.choice(kinds))))
        if rng.random() < 0.2:
            letters.append(" ")
    return "".join(letters)


@pytest.mark.parametrize("context", [16, 77])
def test_ids_are_those_of_open_clip(context):
    ours, theirs = Tokenizer(context), SimpleTokenizer(context_length=context)
    rng = random.Random(0)
    texts = TEXTS + [some_text(rng) for _ in range(400)]
    rows, cut = ours(texts)
    padded = [row + [0] * (context - len(row)) for row in rows]
    assert padded == theirs(texts).tolist()
    assert cut == [text for text in texts if len(theirs.encode(text)) + 2 > context]


def test_the_error_function():
    x = np.linspace(-6, 6, 20_001).astype(np.float32)
    assert abs(_erf(x) - np.array([math.erf(float(value)) for value in x])).max() < 5e-7


@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_vectors_of_a_checkpoint_folder(tmp_path, tiny_config, dtype, quick_gelu):
    config = tiny_config | {"quick_gelu": quick_gelu}
    config["text_cfg"] |= {"layers": 3, "width": 16, "heads": 4, "mlp_ratio": 2.0}
    (tmp_path / "own.json").write_text(json.dumps(config))
    model = load_backbone(str(tmp_path / "own.json"), None, cross_view_from=1, device="cpu", precision="fp32")
    save_checkpoint(model, tmp_path / "checkpoint", dtype=dtype)
    model = load_model(tmp_path / "checkpoint", device="cpu")
    tower = TextTower.load(tmp_path / "checkpoint")
    assert tower is not None
    assert (tower.fingerprint, tower.embed_dim) == (model.fingerprint, model.embed_dim)
    np.testing.assert_allclose(tower.encode_text(TEXTS), model.encode_text(TEXTS).numpy(), atol=1e-5, rtol=0)


def test_vectors_of_the_shipped_model_which_lacks_the_rows_of_most_tokens():
    model, tower = load_model("sample:model", device="cpu"), TextTower.load(shipped_path("sample:model"))
    assert tower is not None
    assert tower.fingerprint == model.fingerprint
    np.testing.assert_allclose(tower.encode_text(TEXTS), model.encode_text(TEXTS).numpy(), atol=1e-5, rtol=0)


def test_vectors_of_a_checkpoint_of_the_reference():
    model = load_model(LIGHTNING, backbone=LIGHTNING_CONFIG, device="cpu")
    tower = TextTower.load(LIGHTNING, LIGHTNING_CONFIG)
    assert tower is not None
    assert tower.fingerprint == model.fingerprint
    np.testing.assert_allclose(tower.encode_text(TEXTS), model.encode_text(TEXTS).numpy(), atol=1e-5, rtol=0)


def test_a_text_alone_or_among_others_is_the_same():
    tower = TextTower.load(shipped_path("sample:model"))
    assert tower is not None
    together = tower.encode_text(TEXTS * 40)  # more than one pass
    alone = np.concatenate([tower.encode_text([text]) for text in TEXTS])
    np.testing.assert_allclose(together, np.tile(alone, (40, 1)), atol=1e-5)


def test_what_is_cut_is_said(capsys):
    tower = TextTower.load(shipped_path("sample:model"))
    assert tower is not None
    tower.encode_text(["a white couch"])
    assert capsys.readouterr().err == ""
    tower.encode_text(["word " * 300])
    assert capsys.readouterr().err.count("longer than the 16 tokens") == 1


@pytest.mark.parametrize(
    "change",
    [
        {"text_cfg": {"context_length": 16, "width": 8, "heads": 2, "layers": 1, "pool_type": "last"}},
        {"text_cfg": {"context_length": 16, "width": 8, "heads": 2, "layers": 1, "no_causal_mask": True}},
        {"init_logit_bias": -10.0},
    ],
)
def test_another_kind_of_tower_is_left_to_torch(tmp_path, tiny_config, change):
    (tmp_path / "own.json").write_text(json.dumps(tiny_config | change))
    model = load_backbone(str(tmp_path / "own.json"), None, device="cpu", precision="fp32")
    save_checkpoint(model, tmp_path / "checkpoint")
    assert TextTower.load(tmp_path / "checkpoint") is None


def test_a_damaged_folder_is_left_to_torch_to_explain(tmp_path):
    save_checkpoint(tiny_model(tmp_path), tmp_path / "checkpoint")
    weights = tmp_path / "checkpoint" / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (b"", whole[:5], whole[: len(whole) // 2], b"\xff" * 8 + whole[8:], whole[:8] + b"x" + whole[9:]):
        weights.write_bytes(damaged)
        assert TextTower.load(tmp_path / "checkpoint") is None
    save_checkpoint(tiny_model(tmp_path, seed=1), tmp_path / "other")
    weights.write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    assert TextTower.load(tmp_path / "checkpoint") is None  # weights and config of two models


class Payload:
    def __reduce__(self):
        return print, ("the pickle was run",)


def lightning(path, document, storages=()):
    with zipfile.ZipFile(path, "w") as archive:
        buffer = io.BytesIO()
        pickle.Pickler(buffer, protocol=2).dump(document)
        archive.writestr("it/data.pkl", buffer.getvalue())
        archive.writestr("it/byteorder", "little")
        for key, data in storages:
            archive.writestr(f"it/data/{key}", data)
    return path


@pytest.mark.parametrize(
    "document",
    [
        {"state_dict": Payload()},
        {"hyper_parameters": {"model": {"network": {"base_name": "../../x", "layers_threshold": 6}}}, "state_dict": {}},
        OrderedDict(),
        [1, 2],
    ],
)
def test_a_pickle_is_never_run(tmp_path, document, capsys):
    path = lightning(tmp_path / "it.ckpt", document)
    with pytest.raises(NotMappedError):
        open_mapped(path)
    assert capsys.readouterr().out == ""


def test_a_cut_checkpoint_is_left_to_torch_to_explain(tmp_path):
    whole = LIGHTNING.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 30):
        (tmp_path / "cut.ckpt").write_bytes(whole[:size])
        assert TextTower.load(tmp_path / "cut.ckpt", LIGHTNING_CONFIG) is None


def test_a_query_imports_no_torch():
    code = (
        "import sys; from ddclip_cli.app import main\n"
        "sys.argv = ['ddclip', 'retrieve', '--recipe', 'sample', 'a white couch', '--json', '--no-cache']\n"
        "try: main()\nexcept SystemExit as ending: assert not ending.code\n"
        "print(sorted({'torch', 'torchvision', 'timm', 'open_clip', 'faiss', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "white-couch-" in done.stdout
