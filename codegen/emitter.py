"""The elementwise emitter protocol (``ir/lower.py``) in LLVM IR: one register-wide step of a loop.

The same lowering gives vector code (``lanes`` > 1) and scalar code (``lanes`` = 1, for remainders).
Both do the same operations in the same order, so they give the same bits. No fast-math flags are
used: fused multiply-adds are asked for by name.

``vector_values.py`` has the half of the emitter that loads, stores and makes constants; generators
of kernels import both from here.
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import CompileError, UnsupportedError
from ..ir.types import DType, bool_, dtype_of, float32, float64, int32, int64
from . import philox, vector_math
from .vector_values import Lane, VectorValues, literal, memory_type, scalar_type

__all__ = ["Lane", "VectorEmitter", "literal", "memory_type", "scalar_type"]


class VectorEmitter(VectorValues):
    """Emits into ``fn`` for vectors of ``lanes`` elements.

    ``dtype`` is the dtype of a ``const`` that names no other. ``index`` is the SSA name of the
    i64 linear index of lane 0 (lane k is at index + k); only ``uniform`` needs it. ``lanes`` is
    the same for every dtype: a vector wider than a register becomes several instructions.
    ``registers`` is how many vector registers there are; with 16, elementary functions read their
    constants from memory, as operands of the arithmetic.
    """

    # ---- halves of vectors

    def by_halves(self, step: Callable[..., Lane], *args: Lane) -> Lane:
        """``step(emitter, *args)``, done for the lower half of the lanes and then for the upper."""
        if self.lanes == 1:
            return step(self, *args)
        half = VectorEmitter(self.fn, self.lanes // 2, self.default, registers=self.registers)
        parts = [step(half, *(self._half(v, k) for v in args)) for k in range(2)]
        kind, dtype = half.type(parts[0].dtype), parts[0].dtype
        if half.lanes == 1:
            pair = "poison"
            for k, part in enumerate(parts):
                one = f"{kind} {part.text}, i64 {k}"
                pair = self.fn.emit(f"insertelement {self.type(dtype)} {pair}, {one}")
            return Lane(pair, dtype)
        operands = ", ".join(f"{kind} {part.text}" for part in parts)
        order = ", ".join(f"i32 {k}" for k in range(self.lanes))
        text = self.fn.emit(f"shufflevector {operands}, <{self.lanes} x i32> <{order}>")
        return Lane(text, dtype)

    def _half(self, v: Lane, which: int) -> Lane:
        kind, lanes = self.type(v.dtype), self.lanes // 2
        if lanes == 1:
            return Lane(self.fn.emit(f"extractelement {kind} {v.text}, i64 {which}"), v.dtype)
        order = ", ".join(f"i32 {k + which * lanes}" for k in range(lanes))
        operands = f"{kind} {v.text}, {kind} poison"
        text = self.fn.emit(f"shufflevector {operands}, <{lanes} x i32> <{order}>")
        return Lane(text, v.dtype)

    # ---- building blocks

    def op(self, name: str, a: Lane, b: Lane) -> Lane:
        """The LLVM instruction ``name`` on two values of one dtype."""
        self._same(name, a, b)
        return Lane(self.fn.emit(f"{name} {self.type(a.dtype)} {a.text}, {b.text}"), a.dtype)

    def shift(self, name: str, v: Lane, count: int) -> Lane:
        """``v`` shifted by ``count`` bits: ``shl``, ``lshr`` or ``ashr``."""
        kind = self.type(v.dtype)
        by = f"splat ({scalar_type(v.dtype)} {count})" if self.lanes > 1 else str(count)
        return Lane(self.fn.emit(f"{name} {kind} {v.text}, {by}"), v.dtype)

    def copysign(self, size: Lane, sign: Lane) -> Lane:
        """The float ``size``, with the sign of ``sign``."""
        if self._table is None or self.registers > 16:
            return self.apply("copysign", size, sign)
        lowest = self.op("and", self.bits(sign), self._sign_bit(sign, -1))
        return self.unbits(self.op("or", self.bits(self.abs(size)), lowest))

    def _sign_bit(self, like: Lane, factor: int) -> Lane:
        """The sign bit of a float alone (-1), or all bits but it (1)."""
        bits = int32 if like.dtype is float32 else int64
        largest = (1 << 8 * like.dtype.itemsize - 1) - 1
        return self.constant(largest if factor > 0 else -largest - 1, bits)

    def apply(self, name: str, *args: Lane) -> Lane:
        """The LLVM intrinsic ``llvm.NAME`` whose operands and result share one type."""
        kind = self.type(args[0].dtype)
        result = self.fn.call(
            kind, self.intrinsic(name, args[0].dtype), *((kind, a.text) for a in args)
        )
        return Lane(result, args[0].dtype)

    def convert(self, instruction: str, v: Lane, dtype: DType) -> Lane:
        """A conversion instruction (``sitofp``, ``bitcast``, ...) to ``dtype``."""
        source, result = self.type(v.dtype), self.type(dtype)
        return Lane(self.fn.emit(f"{instruction} {source} {v.text} to {result}"), dtype)

    def bits(self, v: Lane) -> Lane:
        """The bits of a float as an integer of its size."""
        return self.convert("bitcast", v, int32 if v.dtype is float32 else int64)

    def unbits(self, v: Lane) -> Lane:
        """The float whose bits are the integer ``v``."""
        return self.convert("bitcast", v, float32 if v.dtype is int32 else float64)

    def _same(self, what: str, *values: Lane) -> DType:
        dtype = values[0].dtype
        for v in values[1:]:
            if v.dtype is not dtype:
                kinds = ", ".join(x.dtype.name for x in values)
                raise CompileError(f"{what} got values of dtypes {kinds}; cast them to one dtype")
        return dtype

    def _pick(self, what: str, v: Lane, floating: str, integer: str, mask: str) -> str:
        name = floating if v.dtype.is_float else mask if v.dtype is bool_ else integer
        if not name:
            raise UnsupportedError(f"{what} of {v.dtype.name} has no native kernel")
        return name

    # ---- arithmetic

    def add(self, a: Lane, b: Lane) -> Lane:
        return self.op(self._pick("add", a, "fadd", "add", "or"), a, b)

    def sub(self, a: Lane, b: Lane) -> Lane:
        return self.op(self._pick("sub", a, "fsub", "sub", ""), a, b)

    def mul(self, a: Lane, b: Lane) -> Lane:
        return self.op(self._pick("mul", a, "fmul", "mul", "and"), a, b)

    def div(self, a: Lane, b: Lane) -> Lane:
        # Integer division traps on zero; the frontend promotes true division to a float dtype.
        return self.op(self._pick("div", a, "fdiv", "", ""), a, b)

    def fma(self, a: Lane, b: Lane, c: Lane) -> Lane:
        """a * b + c, rounded once for floats."""
        if self._same("fma", a, b, c).is_float:
            return self.apply("fma", a, b, c)
        return self.add(self.mul(a, b), c)

    def neg(self, a: Lane) -> Lane:
        if a.dtype.is_float:
            return Lane(self.fn.emit(f"fneg {self.type(a.dtype)} {a.text}"), a.dtype)
        return self.sub(self.const(0, a), a)

    def abs(self, a: Lane) -> Lane:
        if a.dtype.is_float:
            if self._table is not None and self.registers <= 16:
                return self.unbits(self.op("and", self.bits(a), self._sign_bit(a, 1)))
            return self.apply("fabs", a)
        if a.dtype.np.kind in "ub":
            return a
        kind = self.type(a.dtype)
        name = self.intrinsic("abs", a.dtype)
        self.fn.declare(f"declare {kind} @{name}({kind}, i1)")
        return Lane(self.fn.emit(f"call {kind} @{name}({kind} {a.text}, i1 false)"), a.dtype)

    def minimum(self, a: Lane, b: Lane) -> Lane:
        return self._extremum("minimum", "lt", "smin", "umin", "and", a, b)

    def maximum(self, a: Lane, b: Lane) -> Lane:
        return self._extremum("maximum", "gt", "smax", "umax", "or", a, b)

    def _extremum(
        self, what: str, order: str, signed: str, unsigned: str, mask: str, a: Lane, b: Lane
    ) -> Lane:
        if self._same(what, a, b) is bool_:
            return self.op(mask, a, b)
        if a.dtype.is_int:
            return self.apply(unsigned if a.dtype.np.kind == "u" else signed, a, b)
        # ``x > y ? x : y`` is one instruction (vmaxps) and gives y when either is NaN. With a
        # constant as x that is all; otherwise a NaN in the first operand needs one more select.
        if b.number is not None and b.number == b.number:
            a, b = b, a
        chosen = self.select(self._compare(order, a, b), a, b)
        if a.number is not None and a.number == a.number:
            return chosen
        return self.select(self.isnan(a), a, chosen)

    def sqrt(self, a: Lane) -> Lane:
        return self.apply("sqrt", a)

    def floor(self, a: Lane) -> Lane:
        return self.apply("floor", a) if a.dtype.is_float else a

    def ceil(self, a: Lane) -> Lane:
        return self.apply("ceil", a) if a.dtype.is_float else a

    def round(self, a: Lane) -> Lane:
        """To nearest, ties to even."""
        return self.apply("roundeven", a) if a.dtype.is_float else a

    def trunc(self, a: Lane) -> Lane:
        return self.apply("trunc", a) if a.dtype.is_float else a

    # ---- masks

    def _compare(self, order: str, a: Lane, b: Lane) -> Lane:
        dtype = self._same(order, a, b)
        if dtype.is_float:
            name = "fcmp une" if order == "ne" else f"fcmp o{order}"
        elif order in ("eq", "ne"):
            name = f"icmp {order}"
        else:
            # A mask is unsigned: True is 1, not -1.
            name = f"icmp {'s' if dtype.np.kind == 'i' else 'u'}{order}"
        return Lane(self.fn.emit(f"{name} {self.type(dtype)} {a.text}, {b.text}"), bool_)

    def gt(self, a: Lane, b: Lane) -> Lane:
        return self._compare("gt", a, b)

    def ge(self, a: Lane, b: Lane) -> Lane:
        return self._compare("ge", a, b)

    def lt(self, a: Lane, b: Lane) -> Lane:
        return self._compare("lt", a, b)

    def le(self, a: Lane, b: Lane) -> Lane:
        return self._compare("le", a, b)

    def eq(self, a: Lane, b: Lane) -> Lane:
        return self._compare("eq", a, b)

    def ne(self, a: Lane, b: Lane) -> Lane:
        return self._compare("ne", a, b)

    def isnan(self, a: Lane) -> Lane:
        if not a.dtype.is_float:
            return self.constant(False, bool_)
        return Lane(self.fn.emit(f"fcmp uno {self.type(a.dtype)} {a.text}, {a.text}"), bool_)

    def truth(self, a: Lane) -> Lane:
        """The mask ``a != 0`` (NaN is true); a mask is itself."""
        return a if a.dtype is bool_ else self.ne(a, self.const(0, a))

    def logical_and(self, a: Lane, b: Lane) -> Lane:
        return self.op("and", self.truth(a), self.truth(b))

    def logical_or(self, a: Lane, b: Lane) -> Lane:
        return self.op("or", self.truth(a), self.truth(b))

    def logical_xor(self, a: Lane, b: Lane) -> Lane:
        return self.op("xor", self.truth(a), self.truth(b))

    def logical_not(self, a: Lane) -> Lane:
        return self.op("xor", self.truth(a), self.constant(True, bool_))

    def select(self, mask: Lane, a: Lane, b: Lane) -> Lane:
        mask = self.truth(mask)
        kind = self.type(self._same("select", a, b))
        m = self.type(bool_)
        text = self.fn.emit(f"select {m} {mask.text}, {kind} {a.text}, {kind} {b.text}")
        return Lane(text, a.dtype)

    def cast(self, v: Lane, dtype: DType) -> Lane:
        """Conversion with numpy's rules; out of range float to int is some integer, as in C."""
        dtype = dtype_of(dtype)
        source = v.dtype
        if source is dtype:
            return v
        if v.number is not None:
            return self.constant(float(v.number) if dtype.is_float else v.number, dtype)
        if dtype is bool_:
            return self.truth(v)
        if source is bool_:
            return self.select(v, self.constant(1, dtype), self.constant(0, dtype))
        if source.is_float and dtype.is_float:
            return self.convert("fpext" if dtype.itemsize == 8 else "fptrunc", v, dtype)
        if source.is_float:
            wide = dtype if dtype.itemsize >= 4 else int32
            whole = self.convert("fptosi", v, wide)
            # Out of range is poison in LLVM; freeze makes it merely unspecified.
            frozen = Lane(self.fn.emit(f"freeze {self.type(wide)} {whole.text}"), wide)
            return self.cast(frozen, dtype)
        signed = source.np.kind == "i"
        if dtype.is_float:
            return self.convert("sitofp" if signed else "uitofp", v, dtype)
        if dtype.itemsize < source.itemsize:
            return self.convert("trunc", v, dtype)
        if dtype.itemsize > source.itemsize:
            return self.convert("sext" if signed else "zext", v, dtype)
        return Lane(v.text, dtype)

    # ---- transcendental functions: see vector_math

    def _elementary(self, function: Callable[..., Lane], *args: Lane, few: bool) -> Lane:
        """``function`` of ``args``, its constants in registers if they are ``few`` and fit."""
        dtype = args[0].dtype
        if not dtype.is_float or (few and dtype is float32 and self.registers > 16):
            return function(self, *args)
        with self.constants_in_memory(dtype) as reader:
            result = function(reader, *args)
        self.fn.follow(self.type(result.dtype), result.text)
        return result

    def exp(self, a: Lane) -> Lane:
        return self._elementary(vector_math.exp, a, few=True)

    def expm1(self, a: Lane) -> Lane:
        return self._elementary(vector_math.expm1, a, few=True)

    def log(self, a: Lane) -> Lane:
        return self._elementary(vector_math.log, a, few=False)

    def log1p(self, a: Lane) -> Lane:
        return self._elementary(vector_math.log1p, a, few=False)

    def tanh(self, a: Lane) -> Lane:
        return self._elementary(vector_math.tanh, a, few=True)

    def sigmoid(self, a: Lane) -> Lane:
        return self._elementary(vector_math.sigmoid, a, few=True)

    def erf(self, a: Lane) -> Lane:
        return self._elementary(vector_math.erf, a, few=False)

    def sin(self, a: Lane) -> Lane:
        return self._elementary(vector_math.sin, a, few=True)

    def cos(self, a: Lane) -> Lane:
        return self._elementary(vector_math.cos, a, few=True)

    def pow(self, a: Lane, b: Lane) -> Lane:
        if b.number == 1:
            return a
        if b.number == 2:
            return self.mul(a, a)
        if b.number == 3:
            return self.mul(self.mul(a, a), a)
        if b.number == -1:
            return self.div(self.const(1, a), a)
        return self._elementary(vector_math.pow, a, b, few=False)

    def uniform(self, seed: Lane, offset: Lane, stream: int) -> Lane:
        """f32 in [0, 1) at the linear index of each lane; see ``philox``."""
        return philox.uniform(self, seed, offset, stream)
