"""What a pickle may ask for again: all that an entry made while it is read, and of earlier entries what is shared.

Names, dtypes, keys and arrays are remembered, in 16 bytes an array; for whatever else, CannotStreamError.
"""

from __future__ import annotations

import pickle
from array import array
from bisect import bisect_left
from typing import Any, NamedTuple

from ddclip_cli.data.safe_pickle import CannotStreamError, Dtype


class Span(NamedTuple):
    """Bytes that lie in the file."""

    start: int
    size: int


class LocatedArray:
    """A numpy array whose bytes lie in the file."""

    __slots__ = ("data", "dtype", "shape")

    shape: tuple[int, ...]
    dtype: Dtype
    data: Span | list[Any]

    def build(self, state: Any) -> None:
        _, self.shape, self.dtype, is_fortran, self.data = state
        sizes = isinstance(self.shape, tuple) and all(type(size) is int and size >= 0 for size in self.shape)
        if not sizes or not isinstance(self.dtype, Dtype) or (is_fortran and len(self.shape) > 1):
            raise pickle.UnpicklingError("an array of an unknown form")
        if self.dtype.name == "O":
            if not isinstance(self.data, list):
                raise pickle.UnpicklingError("an array of objects of the wrong length")
        elif not isinstance(self.data, Span) or self.data.size != self._claimed():
            raise pickle.UnpicklingError("an array of the wrong length")

    def _claimed(self) -> int:
        size = self.dtype.numpy.itemsize
        for length in self.shape:
            size *= length
        return size


class Name(NamedTuple):
    """One of numpy's, which the pickle may call."""

    module: str
    name: str

    @property
    def makes_arrays(self) -> bool:
        return self.name == "_reconstruct"


class PickleMemory:
    """Objects by the numbers under which a pickle remembers them. Raises CannotStreamError for one that was let go."""

    def __init__(self) -> None:
        self.count = 0
        """Objects that were ever remembered, which is the number of the next one where the pickle gives none."""
        self._fresh: dict[int, Any] = {}
        """Remembered since the last entry that was handed out."""
        self._kept: dict[int, Any] = {}
        self._keys: set[str] = set()
        self._array_numbers, self._array_starts = array("Q"), array("Q")
        self._usual: tuple[tuple[int, ...], Dtype, int] | None = None
        """Shape, dtype and size of the arrays that are remembered."""

    def remember(self, number: int, value: Any) -> None:
        self.count += 1
        self._fresh[number] = value

    def note_keys(self, keys: list[Any]) -> None:
        """Of an entry's own dict, which later entries have as well."""
        self._keys.update(key for key in keys if isinstance(key, str) and len(self._keys) < 1000)

    def recall(self, number: int) -> Any:
        for memory in (self._fresh, self._kept):
            if number in memory:
                return memory[number]
        place = bisect_left(self._array_numbers, number)
        if place == len(self._array_numbers) or self._array_numbers[place] != number or self._usual is None:
            raise CannotStreamError
        again = LocatedArray()
        again.shape, again.dtype, size = self._usual
        again.data = Span(self._array_starts[place], size)
        return again

    def forget(self) -> None:
        """Keep what an entry may share with later ones, and let go of the rest."""
        for number, value in self._fresh.items():
            is_shared_text = isinstance(value, str) and (len(value) <= 8 or value in self._keys)
            is_letter = isinstance(value, Span) and value.size == 1  # every array is made with the same b"b"
            if isinstance(value, (Name, Dtype)) or is_shared_text or is_letter:
                self._kept[number] = value
            elif isinstance(value, LocatedArray) and isinstance(getattr(value, "data", None), Span):
                self._keep_array(number, value)
        self._fresh = {}

    def _keep_array(self, number: int, value: LocatedArray) -> None:
        assert isinstance(value.data, Span)
        if self._usual is None:
            self._usual = (value.shape, value.dtype, value.data.size)
        is_next = not self._array_numbers or number > self._array_numbers[-1]
        if self._usual[:2] == (value.shape, value.dtype) and is_next:
            self._array_numbers.append(number)
            self._array_starts.append(value.data.start)
