"""Pickles of numpy arrays, read without unpickling: `load_arrays(data)`.

EventGPT and EventBench store recordings as object arrays, that is, as pickles, and a pickle is a program. This file
interprets the few opcodes that numpy's own arrays need, on plain Python values; a global is a name compared with a
list, nothing is ever imported, called or instantiated, and array bytes are slices of the input. Everything else
raises ValueError. Opcodes: CPython's Lib/pickletools.py.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAX_OPCODES = 2_000_000
_MAX_LINE_BYTES = 4096
_ALLOWED = {
    **{(f"numpy.{core}.multiarray", name): name for core in ("core", "_core") for name in ("_reconstruct", "scalar")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): "_frombuffer" for core in ("core", "_core")},
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
}
_SIMPLE_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|\?|O8?)$")


@dataclass
class _Global:
    name: str


@dataclass
class _Dtype:
    code: str
    state: tuple[object, ...] = ()


@dataclass
class _Array:
    """shape, dtype and contents as the pickle states them; nothing is checked until `_to_numpy`."""

    state: tuple[object, ...] = field(default=())


class _Mark:
    pass


def load_arrays(data: bytes | memoryview) -> object:
    """The pickled value, made of dict, list, tuple, str, int, float and numpy arrays (numeric or structured).

    Object arrays become lists. Raises ValueError (also for truncation and for anything not whitelisted).
    """
    try:
        return _plain(_Machine(memoryview(data)).run(), 0)
    except (struct.error, IndexError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"malformed pickle: {error}") from error


class _Machine:
    """The pickle stack machine over plain values; see `_STEPS` for what each opcode does."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}

    def run(self) -> object:
        for _ in range(_MAX_OPCODES):
            code = self.take(1)[0]
            if code == ord("."):
                return self.stack.pop()
            step = _STEPS.get(code)
            if step is None:
                raise ValueError(f"refused pickle opcode {bytes([code])!r} at offset {self.at - 1}")
            step(self)
        raise ValueError(f"more than {_MAX_OPCODES} pickle opcodes")

    def take(self, count: int) -> memoryview:
        if count < 0 or self.at + count > len(self.data):
            raise ValueError(f"pickle truncated at offset {self.at}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, kind: str) -> int:
        return struct.unpack("<" + kind, self.take(struct.calcsize("<" + kind)))[0]

    def counted(self, kind: str) -> memoryview:
        return self.take(self.number(kind))

    def text(self, kind: str) -> str:
        return str(self.counted(kind), "utf-8", "surrogatepass")

    def line(self) -> str:
        end = bytes(self.data[self.at : self.at + _MAX_LINE_BYTES]).find(b"\n")
        if end < 0:
            raise ValueError(f"unterminated pickle line at offset {self.at}")
        return str(self.take(end + 1)[:-1], "ascii")

    def to_mark(self) -> list[object]:
        for position in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[position], _Mark):
                values = self.stack[position + 1 :]
                del self.stack[position:]
                return values
        raise ValueError("pickle mark missing")

    def push_global(self, module: object, name: object) -> None:
        if (module, name) not in _ALLOWED:
            raise ValueError(f"refused pickled global {module}.{name}")
        self.stack.append(_Global(_ALLOWED[module, name]))  # type: ignore[index]

    def remember(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def set_items(self, pairs: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(pairs) % 2:
            raise ValueError("pickled dict items without a dict")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    def extend(self, values: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ValueError("pickled list items without a list")
        target.extend(values)

    def last(self, count: int) -> list[object]:
        if len(self.stack) < count:
            raise ValueError("pickle stack too short")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def reduce(self) -> None:
        function, arguments = self.last(2)
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise ValueError("refused pickled call")
        match function.name, arguments:
            case "_reconstruct", _:
                result: object = _Array()
            case "dtype", (str(code), *_):
                result = _Dtype(code)
            case "encode", (str(text), "latin1" | "latin-1"):
                result = text.encode("latin-1")
            case "scalar", (_Dtype() as dtype, raw):
                result = _Array((1, (), dtype, False, raw))
            case "_frombuffer", (raw, _Dtype() as dtype, tuple(shape), order):
                result = _Array((1, shape, dtype, order == "F", raw))
            case _:
                raise ValueError(f"refused pickled call of {function.name}")
        self.stack.append(result)

    def build(self) -> None:
        target, state = self.last(2)
        if not isinstance(target, _Array | _Dtype) or not isinstance(state, tuple):
            raise ValueError("refused pickled state")
        target.state = state
        self.stack.append(target)


_STEPS = {
    0x80: lambda m: m.take(1),  # PROTO
    0x95: lambda m: m.take(8),  # FRAME
    ord("("): lambda m: m.stack.append(_Mark()),
    ord("0"): lambda m: m.stack.pop(),
    ord("N"): lambda m: m.stack.append(None),
    0x88: lambda m: m.stack.append(True),
    0x89: lambda m: m.stack.append(False),
    ord("K"): lambda m: m.stack.append(m.number("B")),
    ord("M"): lambda m: m.stack.append(m.number("H")),
    ord("J"): lambda m: m.stack.append(m.number("i")),
    0x8A: lambda m: m.stack.append(int.from_bytes(m.counted("B"), "little", signed=True)),
    ord("G"): lambda m: m.stack.append(struct.unpack(">d", m.take(8))[0]),
    0x8C: lambda m: m.stack.append(m.text("B")),
    ord("X"): lambda m: m.stack.append(m.text("I")),
    ord("U"): lambda m: m.stack.append(str(m.counted("B"), "latin-1")),
    ord("C"): lambda m: m.stack.append(m.counted("B")),
    ord("B"): lambda m: m.stack.append(m.counted("I")),
    0x8E: lambda m: m.stack.append(m.counted("Q")),
    0x96: lambda m: m.stack.append(m.counted("Q")),
    ord("]"): lambda m: m.stack.append([]),
    ord("}"): lambda m: m.stack.append({}),
    ord(")"): lambda m: m.stack.append(()),
    ord("t"): lambda m: m.stack.append(tuple(m.to_mark())),
    0x85: lambda m: m.stack.append(tuple(m.last(1))),
    0x86: lambda m: m.stack.append(tuple(m.last(2))),
    0x87: lambda m: m.stack.append(tuple(m.last(3))),
    ord("a"): lambda m: m.extend(m.last(1)),
    ord("e"): lambda m: m.extend(m.to_mark()),
    ord("s"): lambda m: m.set_items(m.last(2)),
    ord("u"): lambda m: m.set_items(m.to_mark()),
    0x94: lambda m: m.remember(len(m.memo)),
    ord("q"): lambda m: m.remember(m.number("B")),
    ord("r"): lambda m: m.remember(m.number("I")),
    ord("h"): lambda m: m.stack.append(m.memo[m.number("B")]),
    ord("j"): lambda m: m.stack.append(m.memo[m.number("I")]),
    ord("c"): lambda m: m.push_global(m.line(), m.line()),
    0x93: lambda m: m.push_global(*m.last(2)),
    ord("R"): lambda m: m.reduce(),
    ord("b"): lambda m: m.build(),
}


def _plain(value: object, depth: int) -> object:
    if depth > 6:
        raise ValueError("pickled values nested too deeply")
    if isinstance(value, _Array):
        return _to_numpy(value, depth)
    if isinstance(value, dict):
        return {str(key): _plain(item, depth + 1) for key, item in list(value.items())[:64]}
    if isinstance(value, list | tuple):
        if depth > 2 and len(value) > 64:
            raise ValueError("pickled values nested too deeply")
        return type(value)(_plain(item, depth + 1) for item in value)
    if value is None or isinstance(value, int | float | str):
        return value
    raise ValueError(f"refused pickled {type(value).__name__}")


def _to_numpy(array: _Array, depth: int) -> object:
    _, shape, pickled_dtype, fortran, raw = array.state
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape) or len(shape) > 4:
        raise ValueError(f"pickled array of shape {shape!r}")
    dtype = _to_dtype(pickled_dtype)
    count = 1
    for side in shape:
        count *= side  # Python integers: no overflow
    if dtype.hasobject:
        if not isinstance(raw, list) or len(raw) != count:
            raise ValueError("pickled object array of the wrong length")
        items = [_plain(item, depth + 1) for item in raw]
        return items[0] if shape == () else items
    if not isinstance(raw, bytes | memoryview) or len(raw) != count * dtype.itemsize:
        raise ValueError(f"pickled array of shape {shape} and dtype {dtype} with the wrong number of bytes")
    flat: NDArray[Any] = np.frombuffer(raw, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def _to_dtype(pickled: object) -> np.dtype[np.generic]:
    if not isinstance(pickled, _Dtype):
        raise ValueError("pickled array without a dtype")
    byteorder, names, fields, itemsize = "|", None, None, 0
    if pickled.state:
        _, byteorder, subdtype, names, fields, itemsize = pickled.state[:6]
        if subdtype is not None:
            raise ValueError("refused pickled sub-array dtype")
    if names is None:
        code = pickled.code.lstrip("<>|=")
        if not _SIMPLE_DTYPE.match(code) or byteorder not in ("<", ">", "|", "="):
            raise ValueError(f"refused pickled dtype {pickled.code!r}")
        return np.dtype(code if byteorder == "|" else f"{byteorder}{code}")
    if not isinstance(names, tuple) or not isinstance(fields, dict) or not 1 <= len(names) <= 16:
        raise ValueError("refused pickled structured dtype")
    if not isinstance(itemsize, int) or not 1 <= itemsize <= 256:
        raise ValueError(f"refused pickled dtype of {itemsize} bytes")
    formats = [_to_dtype(fields[name][0]) for name in names]
    if any(inner.hasobject or inner.names for inner in formats):
        raise ValueError("refused objects inside a pickled structured dtype")
    offsets = [fields[name][1] for name in names]
    return np.dtype({"names": list(names), "formats": formats, "offsets": offsets, "itemsize": itemsize})
