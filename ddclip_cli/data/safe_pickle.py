"""Read the reference's pickled `.npy` without letting it run anything.

numpy stores an array of objects as a pickle, and a pickle may call any function by name. Here the three names that
numpy's arrays need stand for harmless look-alikes; every other name is refused. Even numpy's own code sees nothing but
bytes whose length has been checked.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from ddclip_cli.errors import UserError


class Array:
    """What a pickled numpy array becomes; `value` is the array itself, whose items may be further `Array`s."""

    value: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        sizes = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
        if not sizes or not isinstance(dtype, Dtype):
            raise pickle.UnpicklingError("an array of an unknown form")
        order: Literal["F", "C"] = "F" if is_fortran else "C"
        if dtype.name == "O":
            if type(data) is not list or len(data) != math.prod(shape):
                raise pickle.UnpicklingError("an array of objects of the wrong length")
            flat = np.empty(len(data), dtype=object)
            flat[:] = data
        else:
            if type(data) is not bytes or len(data) != math.prod(shape) * dtype.numpy.itemsize:
                raise pickle.UnpicklingError("an array of the wrong length")
            flat = np.frombuffer(data, dtype.numpy)
        self.value = flat.reshape(shape, order=order)


class Dtype:
    """A pickled numpy dtype: plain numbers or objects, nothing structured."""

    def __init__(self, name: str, align: Any = False, copy: Any = True) -> None:
        if name not in ("O8", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"):
            raise pickle.UnpicklingError(f"the dtype {str(name)[:20]!r}")
        self.name = name.removesuffix("8") if name == "O8" else name
        self.byte_order = "="

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("a dtype of an unknown form")
        self.byte_order = state[1]

    @property
    def numpy(self) -> np.dtype:
        return np.dtype(self.byte_order + self.name)


class _Reconstruct:
    """Stands for numpy's `_reconstruct`, which makes an empty array to be filled by `__setstate__`."""

    __slots__ = ()

    def __call__(self, kind: Any, shape: Any, code: Any) -> Array:
        if kind is not Array:
            raise pickle.UnpicklingError("an array of an unknown class")
        return Array()


class CannotStreamError(Exception):
    """A pickle refers to something that its reader forgot: only reading it whole will do."""


class RefusedError(pickle.UnpicklingError):
    """A pickle asks for what might run something."""


def allowed(module: Any, name: Any) -> tuple[str, str]:
    """The name that a pickle asks for, if it is one of the three that numpy's arrays need; RefusedError for others."""
    is_numpy = (module, name) in (("numpy", "ndarray"), ("numpy", "dtype"))
    if not is_numpy and (module not in ("numpy.core.multiarray", "numpy._core.multiarray") or name != "_reconstruct"):
        raise RefusedError(f"{module}.{name}")
    return module, name


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        allowed(module, name)
        return {"ndarray": Array, "dtype": Dtype, "_reconstruct": _Reconstruct()}[name]

    def persistent_load(self, pid: Any) -> Any:
        raise RefusedError("an object from outside the file")


def read_pickled_dict(path: str | Path) -> dict[Any, Any]:
    """The dict that `np.save` put into an array of shape (); arrays in it are `Array`s.

    Raises:
        UserError: the file is missing, damaged, not of that form, or asks for anything but numpy arrays.
    """
    with reading_pickle(path) as file:
        document = _Unpickler(file).load().value.item()
    if not isinstance(document, dict):
        raise UserError(f"{path} holds a pickled {type(document).__name__}: it must be a dict of features")
    return document


@contextmanager
def reading_pickle(path: str | Path) -> Iterator[BinaryIO]:
    """Yield the file `path`, of `np.save`, at the start of its pickle; every error of the block is one sentence."""
    try:
        with open(path, "rb") as file:
            major, _ = np.lib.format.read_magic(file)
            read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
            shape, _, dtype = read_header(file)
            if shape != () or dtype != np.dtype(object):
                raise UserError(f"{path} is a plain array {shape} {dtype}: give a pickled dict of features")
            yield file
    except (UserError, FileNotFoundError, PermissionError, IsADirectoryError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be opened ({error.strerror}): check the path") from None
    except CannotStreamError:
        raise
    except RefusedError as error:
        raise UserError(
            f"{path} wants to load {str(error)[:80]}, which could run a program: refused, take the file from elsewhere"
        ) from None
    except Exception as error:  # a damaged pickle makes the unpickler raise anything
        raise UserError(
            f"{path} is no pickled dict of numpy arrays, or a damaged one ({type(error).__name__}: {str(error)[:60]}): "
            "fetch or make it again"
        ) from None
