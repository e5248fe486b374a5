"""Values of one loop step in LLVM IR: their types, constants, loads and stores.

What is computed with them is in ``emitter.py``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ..errors import CompileError
from ..ir.types import DType, bool_, float32
from .text import Function

_SCALARS = {
    "bool": "i1",
    "u8": "i8",
    "i8": "i8",
    "i16": "i16",
    "i32": "i32",
    "i64": "i64",
    "f32": "float",
    "f64": "double",
}


@dataclass(frozen=True)
class Lane:
    """A value of one loop step: an SSA name (or constant) holding ``lanes`` elements of a dtype.

    Bools are ``i1`` masks in registers and bytes in memory. ``number`` is set for constants.
    """

    text: str
    dtype: DType
    number: float | None = None


def scalar_type(dtype: DType) -> str:
    """The LLVM type of one element in a register (``i1`` for bool)."""
    return _SCALARS[dtype.short]


def memory_type(dtype: DType) -> str:
    """The LLVM type of one element in memory (``i8`` for bool)."""
    return "i8" if dtype is bool_ else _SCALARS[dtype.short]


def literal(x: float, dtype: DType) -> str:
    """A number as an LLVM scalar constant; floats are written exactly, as hexadecimal."""
    if dtype is bool_:
        return "true" if x else "false"
    if dtype.is_float:
        with np.errstate(over="ignore"):
            rounded = float(dtype.np.type(x))
        return f"0x{struct.unpack('>Q', struct.pack('>d', rounded))[0]:016X}"
    return str(int(x))


@dataclass(frozen=True)
class _Table:
    """Constants of one size of element in memory: see ``Function.table``."""

    itemsize: int
    address: str
    items: list[tuple[str, str]]

    def holds(self, dtype: DType) -> bool:
        return dtype.itemsize == self.itemsize


_Values = TypeVar("_Values", bound="VectorValues")


class VectorValues:
    """Makes values of ``lanes`` elements in ``fn``; see ``VectorEmitter`` for the parameters."""

    def __init__(
        self,
        fn: Function,
        lanes: int,
        dtype: DType = float32,
        index: str | None = None,
        registers: int = 32,
    ) -> None:
        self.fn = fn
        self.lanes = lanes
        self.default = dtype
        self.index = index
        self.registers = registers
        self._table: _Table | None = None

    # ---- types and constants

    def type(self, dtype: DType) -> str:
        """LLVM type of a value of ``dtype`` in registers (``<8 x float>``, or ``float``)."""
        return self._shaped(scalar_type(dtype))

    def _shaped(self, scalar: str) -> str:
        return scalar if self.lanes == 1 else f"<{self.lanes} x {scalar}>"

    def intrinsic(self, name: str, dtype: DType) -> str:
        """``llvm.NAME.v8f32``."""
        kind = ("f" if dtype.is_float else "i") + str(8 * dtype.itemsize)
        if dtype is bool_:
            kind = "i1"
        return f"llvm.{name}.{kind}" if self.lanes == 1 else f"llvm.{name}.v{self.lanes}{kind}"

    def dtype(self, v: Lane) -> DType:
        return v.dtype

    def const(self, x: float, like: Lane | None = None) -> Lane:
        return self.constant(x, like.dtype if like is not None else self.default)

    def constant(self, x: float, dtype: DType) -> Lane:
        """``x`` in every lane as ``dtype``."""
        text = literal(x, dtype)
        if self.lanes > 1:
            text = f"splat ({scalar_type(dtype)} {text})"
        # 0 is made without a load.
        return Lane(self.loaded(text, dtype) if x != 0 else text, dtype, x)

    def iota(self, dtype: DType) -> Lane:
        """0, 1, 2, .. in the lanes, as integers of ``dtype``."""
        if self.lanes == 1:
            return self.constant(0, dtype)
        items = ", ".join(f"{scalar_type(dtype)} {k}" for k in range(self.lanes))
        return Lane(self.loaded(f"<{items}>", dtype), dtype)

    def loaded(self, text: str, dtype: DType) -> str:
        """The constant ``text``; a load of it if this emitter has ``constants_in_memory``."""
        if self._table is None or not self._table.holds(dtype):
            return text
        kind = self.type(dtype)
        self._table.items.append((kind, text))
        address = self.fn.element(self._table.address, kind, len(self._table.items) - 1)
        return self.fn.load(kind, address, self.lanes * dtype.itemsize)

    @contextmanager
    def constants_in_memory(self: _Values, dtype: DType) -> Iterator[_Values]:
        """An emitter whose constants of the size of ``dtype`` are loaded where they are used.

        LLVM moves constants out of loops without asking whether registers are left for them.
        """
        if self._table is not None and self._table.holds(dtype):
            yield self
            return
        with self.fn.table() as table:
            reader = copy(self)
            reader._table = _Table(dtype.itemsize, *table)
            yield reader

    def splat(self, scalar: str, dtype: DType) -> Lane:
        """The scalar SSA name ``scalar`` (of ``scalar_type(dtype)``) in every lane."""
        if self.lanes == 1:
            return Lane(scalar, dtype)
        return Lane(self.fn.splat(self.type(dtype), scalar), dtype)

    # ---- memory

    def load(self, address: str, dtype: DType, align: int | None = None) -> Lane:
        """``lanes`` consecutive elements at ``address``; ``align`` defaults to one element."""
        kind = self._shaped(memory_type(dtype))
        raw = self.fn.load(kind, address, align or dtype.itemsize)
        return self._from_memory(raw, kind, dtype)

    def load_splat(self, address: str, dtype: DType) -> Lane:
        """The one element at ``address`` in every lane."""
        raw = self.fn.load(memory_type(dtype), address, dtype.itemsize)
        if dtype is bool_:
            raw = self.fn.emit(f"icmp ne i8 {raw}, 0")
        return self.splat(raw, dtype)

    def load_strided(self, address: str, dtype: DType, stride: str | int) -> Lane:
        """``lanes`` elements at ``address``, ``stride`` elements apart, loaded one by one."""
        kind = memory_type(dtype)
        if self.lanes == 1:
            return self.load(address, dtype)
        vector = self._shaped(kind)
        gathered = "poison"
        for k in range(self.lanes):
            at = self.fn.emit(f"mul nsw i64 {stride}, {k}") if k else "0"
            raw = self.fn.load(kind, self.fn.element(address, kind, at), dtype.itemsize)
            gathered = self.fn.emit(f"insertelement {vector} {gathered}, {kind} {raw}, i64 {k}")
        return self._from_memory(gathered, vector, dtype)

    def store(self, v: Lane, address: str, align: int | None = None) -> None:
        """Stores ``lanes`` consecutive elements; a mask is stored as bytes 0 and 1."""
        kind = self._shaped(memory_type(v.dtype))
        text = v.text
        if v.dtype is bool_:
            text = self.fn.emit(f"zext {self.type(bool_)} {text} to {kind}")
        self.fn.store(kind, text, address, align or v.dtype.itemsize)

    def load_masked(self, address: str, dtype: DType, active: str, align: int = 0) -> Lane:
        """The lanes selected by the i1 vector ``active``; the others are 0 and are not read."""
        kind = self._shaped(memory_type(dtype))
        aligned = f"ptr align {align or dtype.itemsize}"
        name = self._masked("load", dtype)
        mask = self._shaped("i1")
        self.fn.declare(f"declare {kind} @{name}(ptr, {mask}, {kind})")
        raw = self.fn.emit(
            f"call {kind} @{name}({aligned} {address}, {mask} {active}, {kind} zeroinitializer)"
        )
        return self._from_memory(raw, kind, dtype)

    def store_masked(self, v: Lane, address: str, active: str, align: int = 0) -> None:
        """Stores the lanes selected by ``active`` and touches no other byte."""
        kind = self._shaped(memory_type(v.dtype))
        text = v.text
        if v.dtype is bool_:
            text = self.fn.emit(f"zext {self.type(bool_)} {text} to {kind}")
        name = self._masked("store", v.dtype)
        mask = self._shaped("i1")
        self.fn.declare(f"declare void @{name}({kind}, ptr, {mask})")
        aligned = f"ptr align {align or v.dtype.itemsize}"
        self.fn.do(f"call void @{name}({kind} {text}, {aligned} {address}, {mask} {active})")

    def _masked(self, what: str, dtype: DType) -> str:
        if self.lanes == 1:
            raise CompileError(f"a masked {what} needs vectors; this emitter has one lane")
        kind = ("f" if dtype.is_float else "i") + str(8 * dtype.itemsize)
        return f"llvm.masked.{what}.v{self.lanes}{kind}.p0"

    def _from_memory(self, raw: str, kind: str, dtype: DType) -> Lane:
        if dtype is not bool_:
            return Lane(raw, dtype)
        zero = "zeroinitializer" if self.lanes > 1 else "0"
        return Lane(self.fn.emit(f"icmp ne {kind} {raw}, {zero}"), bool_)
