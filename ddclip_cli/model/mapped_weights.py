"""The weights in a checkpoint as numpy arrays mapped from the file, for those who cannot wait for torch to be imported.

Read are the two forms that people have: a checkpoint folder of ours and a `.ckpt` of the reference's trainer.
"""

from __future__ import annotations

import json
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddclip_cli.errors import UserError
from ddclip_cli.model.checkpoint_config import WEIGHTS_NAME, read_config
from ddclip_cli.model.fingerprint import SAMPLED, fingerprint_of_heads
from ddclip_cli.model.tokenizer import open_clip_folder

MAX_HEADER = 100_000_000
"""Bytes of a header or a pickle that are read: a real one has some thousand."""

SAFETENSORS_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4"}
STORAGE_DTYPES = {"DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8"}

TOKEN_WEIGHT, TOKEN_ROWS = "token_embedding.weight", "token_embedding.rows"


class NotMappedError(Exception):
    """The file is not in the plain form that is read here. It may still be a good one, which torch has to decide."""


@dataclass(frozen=True)
class MappedCheckpoint:
    """A trained model as it lies in its file; nothing is read before it is asked for."""

    config: dict[str, Any]
    """Of open_clip: embed_dim, vision_cfg, text_cfg."""
    cross_view_from: int
    tensors: dict[str, np.ndarray]
    """State dict of the open_clip model. `token_embedding.weight` may lack its zero rows: see `token_rows`."""
    token_rows: np.ndarray | None
    """Which tokens the rows of `token_embedding.weight` are, rising; None: all, in order."""

    def fingerprint(self) -> str:
        """The name of these weights that the loaded model would have."""
        heads = {name: (array.shape, _head(array)) for name, array in self.tensors.items()}
        if self.token_rows is not None:
            width = self.tensors[TOKEN_WEIGHT].shape[1]
            wanted = np.arange(min(-(-SAMPLED // width), self.config["text_cfg"].get("vocab_size", 49408)))
            first = self.token_embeddings(wanted).reshape(-1)[:SAMPLED]
            heads[TOKEN_WEIGHT] = ((self.config["text_cfg"].get("vocab_size", 49408), width), first)
        return fingerprint_of_heads(heads, self.cross_view_from)

    def token_embeddings(self, tokens: np.ndarray) -> np.ndarray:
        """(T,) token ids -> (T, D) float32."""
        weight = self.tensors[TOKEN_WEIGHT]
        if self.token_rows is None:
            return weight[tokens].astype(np.float32)
        place = np.searchsorted(self.token_rows, tokens).clip(max=len(self.token_rows) - 1)
        known = self.token_rows[place] == tokens
        return np.where(known[:, None], weight[place], 0).astype(np.float32)


def open_mapped(path: Path, backbone: str | None = None) -> MappedCheckpoint:
    """Map a checkpoint folder or a `.ckpt` file.

    backbone: open_clip name or config JSON of a `.ckpt`, when its own name is unknown to open_clip.
    Raises NotMappedError where only torch can tell what the file is, UserError for a folder whose config is damaged.
    """
    try:
        return _open_folder(path) if path.is_dir() else _open_lightning(path, backbone)
    except (NotMappedError, UserError):
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        raise NotMappedError(f"{path}: {error}") from error


def _open_folder(folder: Path) -> MappedCheckpoint:
    saved = read_config(folder)
    tensors = _map_safetensors(folder / WEIGHTS_NAME)
    rows = tensors.pop(TOKEN_ROWS, None)
    if rows is not None and (len(rows) != len(tensors[TOKEN_WEIGHT]) or (np.diff(rows) <= 0).any() or len(rows) == 0):
        raise NotMappedError(f"{folder}: its rows of tokens are not in order")
    checkpoint = MappedCheckpoint(saved["backbone"]["config"], saved["cross_view_from"], tensors, rows)
    if checkpoint.fingerprint() != saved["fingerprint"]:
        raise NotMappedError(f"{folder}: its config is of another model")
    return checkpoint


def _map_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The format: length of the header in 8 bytes, the header (JSON), the tensors."""
    data = np.memmap(path, np.uint8, "r")
    (length,) = struct.unpack("<Q", data[:8].tobytes())
    if length > min(MAX_HEADER, len(data) - 8):
        raise NotMappedError(f"{path}: its header is longer than the file")
    header = json.loads(data[8 : 8 + length].tobytes())
    return {
        name: _view(data, SAFETENSORS_DTYPES[entry["dtype"]], 8 + length + entry["data_offsets"][0], entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _open_lightning(path: Path, backbone: str | None) -> MappedCheckpoint:
    """`torch.save` writes a zip of uncompressed files: one pickle, and the raw bytes of every tensor."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        entries = {entry.filename: entry for entry in archive.infolist()}
        (pickled,) = [name for name in entries if name.endswith("/data.pkl")]
        root = pickled.removesuffix("data.pkl")
        if entries[pickled].file_size > MAX_HEADER or archive.read(root + "byteorder") != b"little":
            raise NotMappedError(f"{path}: its pickle is too large, or of another byte order")
        document = _Unpickler(archive.open(pickled)).load()
        network = document["hyper_parameters"]["model"]["network"]
        config = _config_of(backbone or network["base_name"])
        state = document["state_dict"]
        wanted = {k.removeprefix("duoduoclip."): v for k, v in state.items() if k.startswith("duoduoclip.")}
        if "contrastive_loss.logit_scale" in state:  # the one that was trained
            wanted["logit_scale"] = state["contrastive_loss.logit_scale"]
        data = np.memmap(path, np.uint8, "r")
        tensors = {}
        for name, tensor in wanted.items():
            entry = entries[root + "data/" + tensor.storage.key]
            if entry.compress_type != zipfile.ZIP_STORED:
                raise NotMappedError(f"{path}: its tensors are compressed")
            begin = _start(file, entry) + tensor.offset * np.dtype(tensor.storage.dtype).itemsize
            tensors[name] = _view(data, tensor.storage.dtype, begin, tensor.shape)
    tensors["logit_scale"] = tensors["logit_scale"].reshape(())
    return MappedCheckpoint(config, int(network["layers_threshold"]), tensors, None)


def _start(file: Any, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored file begin: after a header of its own, whose length stands only there."""
    file.seek(entry.header_offset)
    name, extra = struct.unpack("<26x2H", file.read(30))
    return entry.header_offset + 30 + name + extra


def _config_of(backbone: str) -> dict[str, Any]:
    """The config of an open_clip model name, from open_clip's own files, or that in a JSON file."""
    path = Path(backbone).expanduser()
    if path.suffix != ".json":
        path = open_clip_folder() / "model_configs" / f"{Path(backbone).name}.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    return document.get("model_cfg", document)


def _view(data: np.ndarray, dtype: str, begin: int, shape: Any) -> np.ndarray:
    count = math.prod(shape) * np.dtype(dtype).itemsize
    if begin < 0 or any(side < 0 for side in shape) or begin + count > len(data):
        raise NotMappedError("a tensor lies outside its file")
    return data[begin : begin + count].view(dtype).reshape(shape)


def _head(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1)[:SAMPLED].astype(np.float32)


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]


def _rebuild(storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> _Tensor:
    expected = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    if stride != expected:
        raise NotMappedError("a tensor does not lie in one piece")
    return _Tensor(storage, offset, shape)


class _Unpickler(pickle.Unpickler):
    """Builds plain values and places of tensors, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        raise NotMappedError(f"its pickle names {module}.{name}")

    def persistent_load(self, identity: Any) -> _Storage:
        kind, dtype, key, *_ = identity
        if kind != "storage" or not isinstance(dtype, str):
            raise NotMappedError("its pickle names something outside")
        return _Storage(dtype, str(key))
