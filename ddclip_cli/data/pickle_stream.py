"""A pickled dict of numpy arrays read entry by entry, in the memory of a few, and without running anything.

An unpickler of the few instructions that such a file consists of. An array's bytes are not read but located; an entry
of the outermost dict is handed out as soon as it is whole, and forgotten, though pickle lets any later instruction ask
for any earlier object again: see `pickle_memory`.
"""

from __future__ import annotations

import mmap
import pickle
import struct
from collections.abc import Iterator
from typing import Any

from ddclip_cli.data.pickle_memory import LocatedArray, Name, PickleMemory, Span
from ddclip_cli.data.safe_pickle import Dtype, allowed

FORGET_AFTER = 256 << 20
"""Bytes of the mapped file that may stay in memory behind the reader."""


_MARK = object()


class PickleStream:
    """Iterates over (key, value) of the outermost dict of a pickle in the mapped file `buffer`, from `place` on.

    Raises UnpicklingError for whatever is no such pickle, `RefusedError` for names that are not numpy's,
    CannotStreamError.
    """

    def __init__(self, buffer: mmap.mmap, place: int) -> None:
        self._buffer, self._place = buffer, place
        self._stack: list[Any] = []
        self._root: dict[Any, Any] | None = None
        self._ready: list[tuple[Any, Any]] = []
        self._memory = PickleMemory()
        self._steps = {ord(code): getattr(self, f"_{name}") for code, name in _INSTRUCTIONS.items()}

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        buffer, steps, forgotten = self._buffer, self._steps, self._place
        stop = ord(pickle.STOP)
        while (code := self._byte()) != stop:
            step = steps.get(code)
            if step is None:
                raise pickle.UnpicklingError(f"the instruction {chr(code)!r}")
            step()
            if self._ready:
                yield from self._ready
                self._ready = []
                self._memory.forget()
                if self._place - forgotten > FORGET_AFTER and hasattr(buffer, "madvise"):
                    buffer.madvise(mmap.MADV_DONTNEED, 0, self._place - self._place % mmap.PAGESIZE)
                    forgotten = self._place
        outer = self._pop()
        if not isinstance(outer, LocatedArray) or outer.data != [self._root] or self._root is None or outer.shape != ():
            raise pickle.UnpicklingError("no dict")

    # --- bytes

    def _byte(self) -> int:
        place = self._place
        self._place = place + 1
        if place >= len(self._buffer):
            raise EOFError("it ends too early")
        return self._buffer[place]

    def _number(self, form: str) -> int:
        size = struct.calcsize(form)
        return struct.unpack(form, self._taken(size))[0]

    def _taken(self, size: int) -> bytes:
        span = self._span(size)
        return self._buffer[span.start : span.start + size]

    def _span(self, size: int) -> Span:
        start = self._place
        if size < 0 or start + size > len(self._buffer):
            raise EOFError("it ends too early")
        self._place = start + size
        return Span(start, size)

    def _line(self) -> str:
        end = self._buffer.find(b"\n", self._place, self._place + 200)
        if end < 0:
            raise pickle.UnpicklingError("a name without an end")
        return self._taken(end + 1 - self._place)[:-1].decode()

    # --- the stack

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise pickle.UnpicklingError("an empty stack")
        return self._stack.pop()

    def _popped_to_mark(self) -> list[Any]:
        stack = self._stack
        for place in range(len(stack) - 1, -1, -1):
            if stack[place] is _MARK:
                items = stack[place + 1 :]
                del stack[place:]
                return items
        raise pickle.UnpicklingError("no mark")

    def _top(self, kind: type) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise pickle.UnpicklingError("something else on the stack")
        return self._stack[-1]

    # --- what the instructions do

    def _proto(self) -> None:
        self._byte()

    def _frame(self) -> None:
        self._taken(8)

    def _mark(self) -> None:
        self._push(_MARK)

    def _none(self) -> None:
        self._push(None)

    def _true(self) -> None:
        self._push(True)

    def _false(self) -> None:
        self._push(False)

    def _int1(self) -> None:
        self._push(self._byte())

    def _int2(self) -> None:
        self._push(self._number("<H"))

    def _int4(self) -> None:
        self._push(self._number("<i"))

    def _long1(self) -> None:
        self._push(int.from_bytes(self._taken(self._byte()), "little", signed=True))

    def _text1(self) -> None:
        self._push(self._taken(self._byte()).decode())

    def _text4(self) -> None:
        self._push(self._taken(self._number("<I")).decode())

    def _bytes1(self) -> None:
        self._push(self._span(self._byte()))

    def _bytes4(self) -> None:
        self._push(self._span(self._number("<I")))

    def _bytes8(self) -> None:
        self._push(self._span(self._number("<Q")))

    def _empty_tuple(self) -> None:
        self._push(())

    def _tuple(self) -> None:
        self._push(tuple(self._popped_to_mark()))

    def _tuple1(self) -> None:
        self._push((self._pop(),))

    def _tuple2(self) -> None:
        last = self._pop()
        self._push((self._pop(), last))

    def _tuple3(self) -> None:
        last, middle = self._pop(), self._pop()
        self._push((self._pop(), middle, last))

    def _empty_list(self) -> None:
        self._push([])

    def _append(self) -> None:
        value = self._pop()
        self._top(list).append(value)

    def _appends(self) -> None:
        values = self._popped_to_mark()
        self._top(list).extend(values)

    def _empty_dict(self) -> None:
        new: dict[Any, Any] = {}
        if self._root is None:
            self._root = new
        self._push(new)

    def _set_item(self) -> None:
        value = self._pop()
        self._set([self._pop(), value])

    def _set_items(self) -> None:
        self._set(self._popped_to_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._top(dict)
        pairs = list(zip(items[::2], items[1::2], strict=True))
        if target is self._root:
            self._ready = pairs
        else:
            target.update(pairs)
            self._memory.note_keys(items[::2])

    def _global(self) -> None:
        module = self._line()
        self._push(Name(*allowed(module, self._line())))

    def _stack_global(self) -> None:
        name = self._pop()
        self._push(Name(*allowed(self._pop(), name)))

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("a call of something else")
        if function.makes_arrays:
            self._push(LocatedArray())
        elif function.name == "dtype":
            self._push(Dtype(*arguments))
        else:
            raise pickle.UnpicklingError(f"a call of {function.name}")

    def _build(self) -> None:
        state, target = self._pop(), self._stack[-1] if self._stack else None
        if isinstance(target, LocatedArray):
            target.build(state)
        elif isinstance(target, Dtype):
            target.__setstate__(state)
        else:
            raise pickle.UnpicklingError("a state for something else")

    # --- what is remembered

    def _memoize(self) -> None:
        self._remember(self._memory.count)

    def _put1(self) -> None:
        self._remember(self._byte())

    def _put4(self) -> None:
        self._remember(self._number("<I"))

    def _remember(self, number: int) -> None:
        self._memory.remember(number, self._top(object))

    def _get1(self) -> None:
        self._push(self._memory.recall(self._byte()))

    def _get4(self) -> None:
        self._push(self._memory.recall(self._number("<I")))


_INSTRUCTIONS: dict[bytes, str] = {
    pickle.PROTO: "proto", pickle.FRAME: "frame", pickle.MARK: "mark",
    pickle.NONE: "none", pickle.NEWTRUE: "true", pickle.NEWFALSE: "false",
    pickle.BININT1: "int1", pickle.BININT2: "int2", pickle.BININT: "int4", pickle.LONG1: "long1",
    pickle.SHORT_BINUNICODE: "text1", pickle.BINUNICODE: "text4",
    pickle.SHORT_BINBYTES: "bytes1", pickle.BINBYTES: "bytes4", pickle.BINBYTES8: "bytes8",
    pickle.EMPTY_TUPLE: "empty_tuple", pickle.TUPLE: "tuple",
    pickle.TUPLE1: "tuple1", pickle.TUPLE2: "tuple2", pickle.TUPLE3: "tuple3",
    pickle.EMPTY_LIST: "empty_list", pickle.APPEND: "append", pickle.APPENDS: "appends",
    pickle.EMPTY_DICT: "empty_dict", pickle.SETITEM: "set_item", pickle.SETITEMS: "set_items",
    pickle.GLOBAL: "global", pickle.STACK_GLOBAL: "stack_global", pickle.REDUCE: "reduce", pickle.BUILD: "build",
    pickle.MEMOIZE: "memoize", pickle.BINPUT: "put1", pickle.LONG_BINPUT: "put4",
    pickle.BINGET: "get1", pickle.LONG_BINGET: "get4",
}  # fmt: skip
