"""Reading weights from files that came from outside: nothing is executed, nothing is believed before it is checked."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ddclip_cli.errors import UserError

ROWS_SUFFIX = "token_embedding.rows"
"""Of an embedding saved without its zero rows: the numbers of the rows that are there (int32)."""


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file: copy or save it again") from error


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote, as far as it is tensors and plain values; code in it is refused, not run."""
    try:
        # Memory-mapped, so that optimizer states are not read; only the zip format of torch >= 1.6 allows it.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "Unsupported class" in str(error):
            raise UserError(f"{path} is refused: its pickle wants to run code or holds more than weights") from error
        raise UserError(f"{path} is not a checkpoint, or a damaged one: copy or download it again") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"{path} is not a checkpoint, or a damaged one: copy or download it again") from error


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a weights file of open_clip: `.safetensors`, or a pickle, alone or under `state_dict`."""
    document = read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    if isinstance(document, dict) and isinstance(document.get("state_dict"), dict):
        document = document["state_dict"]
    return {key.removeprefix("module."): tensor for key, tensor in tensors_of(document, path).items()}


def tensors_of(document: Any, path: Path) -> dict[str, Tensor]:
    """`document` itself, if it is a state dict."""
    if (
        not isinstance(document, dict)
        or not document
        or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in document.items())
    ):
        raise UserError(f"{path} holds no weights: it is not a checkpoint")
    return document


def fitted(
    state: dict[str, Tensor], empty: nn.Module, *, source: Path, holds: str | None, backbone: str
) -> dict[str, Tensor]:
    """`state` in float32, checked name by name against `empty`, a model (on the meta device) of `backbone`.

    holds: the backbone that the file says it has, if it says so. Raises UserError naming both when they differ.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    state = restore_rows(state, expected, source)
    if "logit_bias" in expected and "logit_bias" not in state:
        state["logit_bias"] = torch.zeros(expected["logit_bias"])
    for name in ("logit_scale", "logit_bias"):  # () in some files, (1,) in others
        if name in state and name in expected and state[name].numel() == 1:
            state[name] = state[name].reshape(expected[name])
    difference = _first_difference({name: tuple(tensor.shape) for name, tensor in state.items()}, expected)
    if difference:
        other = f"backbone {holds}" if holds and holds != backbone else "another backbone"
        raise UserError(f"{source} holds weights of {other}, not of {backbone} ({difference}): name its own")
    # A copy: the tensors of a memory-mapped file would change, or vanish, with the file.
    state = {name: state[name].to(torch.float32, copy=True) for name in expected}
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"{source} is of no use: {name} has numbers that are not finite; take an earlier checkpoint"
            )
    return state


def _first_difference(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> str | None:
    for name in expected:
        if name not in found:
            return f"{name} is missing"
        if found[name] != expected[name]:
            return f"{name} has the shape {found[name]} instead of {expected[name]}"
    extra = sorted(found.keys() - expected.keys())
    return f"{extra[0]} has no place" if extra else None


def drop_zero_rows(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the zero rows of the token embedding (tokens that training never met), if that saves space."""
    result = dict(state)
    for name in [name for name in state if name.endswith("token_embedding.weight")]:
        weight = state[name]
        rows = (weight != 0).any(dim=1).nonzero().flatten()
        dropped = (len(weight) - len(rows)) * weight.shape[1] * weight.element_size()
        if dropped > 4 * len(rows):
            result[name] = weight[rows].contiguous()
            result[name.removesuffix("token_embedding.weight") + ROWS_SUFFIX] = rows.to(torch.int32)
    return result


def restore_rows(state: dict[str, Tensor], expected: dict[str, tuple[int, ...]], source: Path) -> dict[str, Tensor]:
    """Undo `drop_zero_rows`, with the size that `expected` gives."""
    result = dict(state)
    for key in [key for key in state if key.endswith(ROWS_SUFFIX)]:
        name = key.removesuffix(ROWS_SUFFIX) + "token_embedding.weight"
        rows, weight, shape = result.pop(key).long().flatten(), result.get(name), expected.get(name)
        if weight is None or shape is None or weight.ndim != 2 or weight.shape[1] != shape[1]:
            continue  # another backbone: told by the comparison that follows
        if len(rows) != len(weight) or (len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= shape[0])):
            raise UserError(f"{source} is damaged: {key} does not fit {name}")
        result[name] = torch.zeros(shape, dtype=weight.dtype).index_copy(0, rows, weight)
    return result
