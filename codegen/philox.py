"""Counter-based random numbers: Philox4x32-10.

J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
A number depends on its counter and key alone, so it is the same for every thread count, vector
width and fusion.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import CompileError
from ..ir.types import float32, int32, int64

if TYPE_CHECKING:
    from .emitter import Lane, VectorEmitter

ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(
    e: VectorEmitter, counter: tuple[Lane, Lane, Lane, Lane], key: tuple[Lane, Lane]
) -> tuple[Lane, Lane, Lane, Lane]:
    """Four 32-bit words per lane; ``counter`` and ``key`` are i32 values."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    # Constants in registers would make the keys of all rounds invariants of the loop around: LLVM
    # would compute them before it, more than there are registers.
    with e.constants_in_memory(int32) as reader:
        for step in range(ROUNDS):
            if step:
                k0 = e.add(k0, reader.constant(_WEYL[0], int32))
                k1 = e.add(k1, reader.constant(_WEYL[1], int32))
            high0, low0 = _multiply(e, c0, _MULTIPLIERS[0])
            high1, low1 = _multiply(e, c2, _MULTIPLIERS[1])
            c0, c1, c2, c3 = (
                e.op("xor", e.op("xor", high1, c1), k0),
                low1,
                e.op("xor", e.op("xor", high0, c3), k1),
                low0,
            )
    return c0, c1, c2, c3


def uniform(e: VectorEmitter, seed: Lane, offset: Lane, stream: int) -> Lane:
    """f32 in [0, 1): word 0 of Philox, its upper 24 bits times 2**-24.

    counter = (index low, index high, offset low + stream, 0), key = (seed low, seed high).
    ``seed`` and ``offset`` are i64 values.
    """
    if e.index is None:
        raise CompileError("uniform needs the linear index of its element: pass index=")
    with e.constants_in_memory(int64) as reader:
        low, high = _halves(e, e.add(e.splat(e.index, int64), reader.iota(int64)))
        # Known constants would make the first products invariants, which take registers, too.
        known = e.constant(stream, int64)
        where, _ = _halves(e, e.add(offset, replace(known, text=reader.loaded(known.text, int64))))
    word = philox(e, (low, high, where, e.constant(0, int32)), _halves(e, seed))[0]
    # After the shift the word is below 2**24: exact as a float, and positive as a signed int.
    upper = e.shift("lshr", word, 8)
    return e.mul(e.convert("sitofp", upper, float32), e.constant(2.0**-24, float32))


def _halves(e: VectorEmitter, v: Lane) -> tuple[Lane, Lane]:
    low = e.convert("trunc", v, int32)
    return low, e.convert("trunc", e.shift("lshr", v, 32), int32)


def _multiply(e: VectorEmitter, v: Lane, by: int) -> tuple[Lane, Lane]:
    """High and low 32 bits of the unsigned 64-bit product."""
    if e.lanes > 1:
        return _multiply_pairs(e, v, by)
    product = e.op("mul", e.convert("zext", v, int64), e.constant(by, int64))
    high = e.shift("lshr", product, 32)
    return e.convert("trunc", high, int32), e.convert("trunc", product, int32)


def _multiply_pairs(e: VectorEmitter, v: Lane, by: int) -> tuple[Lane, Lane]:
    """As ``_multiply``; even and odd lanes are multiplied as 64-bit lanes, where they lie.

    That is what machines multiply (``vpmuludq``, ``umull``), and no value is wider than ``v``.
    """
    fn, lanes = e.fn, e.lanes
    words, pairs = e.type(int32), f"<{lanes // 2} x i64>"
    both = fn.emit(f"bitcast {words} {v.text} to {pairs}")
    odd = fn.emit(f"lshr {pairs} {both}, splat (i64 32)")
    even = fn.emit(f"and {pairs} {both}, splat (i64 {0xFFFFFFFF})")
    products = []
    for part in (even, odd):
        product = fn.emit(f"mul {pairs} {part}, splat (i64 {by})")
        products.append(fn.emit(f"bitcast {pairs} {product} to {words}"))

    def picked(first: int) -> Lane:
        order = ", ".join(f"i32 {k // 2 * 2 + first + k % 2 * lanes}" for k in range(lanes))
        operands = ", ".join(f"{words} {product}" for product in products)
        return replace(v, text=fn.emit(f"shufflevector {operands}, <{lanes} x i32> <{order}>"))

    return picked(1), picked(0)
