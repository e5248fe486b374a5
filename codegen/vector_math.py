"""Elementary functions as polynomials over an emitter: no libm calls, no branches, no look-ups.

Coefficients are our own minimax fits (``benchmarks/fit_vector_math.py``); argument reductions are
the classic ones (W. Cody and W. Waite, "Software Manual for the Elementary Functions", 1980).
Largest error seen over dense samples, in units of the last place (tests hold these bounds):

    ==========  =======  =======
    function    float32  float64
    ==========  =======  =======
    exp         1        1
    expm1       2        2.5
    log         1.5      1.5
    log1p       2        2
    tanh        3        3
    sigmoid     2.5      2.5
    erf         6        2
    sin, cos    2        2         for abs(x) <= 1e5
    pow         1        see pow
    ==========  =======  =======

NaN gives NaN and infinities give the limits. Subnormal results of exp become 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from ..errors import UnsupportedError
from ..ir.types import float32, float64
from .vector_tables import ERF_LIMIT, ERF_P, ERF_Q, ERF_SMALL, ERFCX, FORMATS, Format

if TYPE_CHECKING:
    from .emitter import Lane, VectorEmitter

_INFINITY = float("inf")
_NAN = float("nan")


def polynomial(e: VectorEmitter, x: Lane, coefficients: Sequence[float]) -> Lane:
    """Horner's rule with fused multiply-adds; ``coefficients`` are lowest order first.

    Many coefficients would take too many registers: they are read from memory.
    """
    with e.constants_in_memory(x.dtype) if len(coefficients) > 6 else nullcontext(e) as reader:
        value = reader.const(coefficients[-1], x)
        for c in reversed(coefficients[:-1]):
            value = reader.fma(value, x, reader.const(c, x))
    return value


def exp(e: VectorEmitter, x: Lane) -> Lane:
    """2**n (1 + p); the scale is applied as 2 * 2**(n - 1), so that n = 128 does not overflow."""
    f = _format("exp", x)
    x, half_scale, r = _reduce_exp(e, f, x)
    p = e.fma(e.fma(polynomial(e, r, f.exp), r, e.const(1, x)), r, e.const(1, x))
    return e.mul(e.add(p, p), half_scale)


def expm1(e: VectorEmitter, x: Lane) -> Lane:
    """2**n p + (2**n - 1), accurate relative to the result near 0 too."""
    f = _format("expm1", x)
    x, half_scale, r = _reduce_exp(e, f, x)
    p = e.fma(e.mul(r, r), polynomial(e, r, f.exp), r)
    half = e.fma(half_scale, p, e.sub(half_scale, e.const(0.5, x)))
    return e.add(half, half)


def _reduce_exp(e: VectorEmitter, f: Format, x: Lane) -> tuple[Lane, Lane, Lane]:
    """(clamped x, 2**(n - 1), r) with x = n ln 2 + r. 2**(n - 1) is 0 at the lower end."""
    x = e.minimum(e.maximum(x, e.const(f.exp_low, x)), e.const(f.exp_high, x))
    magic = e.const(f.magic, x)
    shifted = e.fma(x, e.const(1.4426950408889634, x), magic)
    n = e.sub(shifted, magic)
    r = e.fma(n, e.const(-f.ln2[0], x), x)
    r = e.fma(n, e.const(-f.ln2[1], x), r)
    return x, _power_of_two(e, f, e.bits(shifted), f.bias - 1), r


def _power_of_two(e: VectorEmitter, f: Format, n: Lane, bias: int) -> Lane:
    """The float with exponent field ``n + bias``; bits of ``n`` above the field drop out."""
    exponent = e.shift("shl", n, f.mantissa_bits)
    return e.unbits(e.add(exponent, e.const(bias << f.mantissa_bits, n)))


def log(e: VectorEmitter, x: Lane) -> Lane:
    """z + z**2 q(z) + k ln 2 with x = 2**k (1 + z); negative numbers give NaN, 0 gives -inf."""
    f = _format("log", x)
    subnormal = e.lt(x, e.const(f.smallest_normal, x))
    scale = 2.0**f.mantissa_bits
    normal = e.select(subnormal, e.mul(x, e.const(scale, x)), x)
    k, z = _split_log(e, f, normal)
    k = e.sub(k, e.select(subnormal, e.const(f.mantissa_bits, x), e.const(0, x)))
    return _log_limits(e, x, _log_of(e, f, k, z))


def log1p(e: VectorEmitter, x: Lane) -> Lane:
    """log(1 + x): what rounding 1 + x lost is added to z, so tiny x are exact."""
    f = _format("log1p", x)
    u = e.add(x, e.const(1, x))
    exponent, z = _split_log_exponent(e, f, u)
    lost = e.sub(x, e.sub(u, e.const(1, x)))
    # 2**-k; for x so large that nothing was lost the exponent may not be representable.
    one = e.const(f.bias << f.mantissa_bits, exponent)
    inverse = e.unbits(e.sub(one, e.shift("shl", exponent, f.mantissa_bits)))
    large = e.gt(x, e.const(2.0**60, x))
    z = e.select(large, z, e.fma(lost, inverse, z))
    return _log_limits(e, u, _log_of(e, f, _exponent_to_float(e, f, exponent), z))


def _split_log(e: VectorEmitter, f: Format, x: Lane) -> tuple[Lane, Lane]:
    """(k, z) as floats with x = 2**k (1 + z), sqrt(0.5) <= 1 + z < sqrt(2), for normal x > 0."""
    exponent, z = _split_log_exponent(e, f, x)
    return _exponent_to_float(e, f, exponent), z


def _split_log_exponent(e: VectorEmitter, f: Format, x: Lane) -> tuple[Lane, Lane]:
    bits = e.bits(x)
    offset = 0x3F3504F3 if f.mantissa_bits == 23 else 0x3FE6A09E667F3BCD
    exponent = e.shift("ashr", e.sub(bits, e.const(offset, bits)), f.mantissa_bits)
    mantissa = e.sub(bits, e.shift("shl", exponent, f.mantissa_bits))
    return exponent, e.sub(e.unbits(mantissa), e.const(1, x))


def _exponent_to_float(e: VectorEmitter, f: Format, exponent: Lane) -> Lane:
    """A small integer as a float, without a conversion (AVX2 has none for 64-bit integers)."""
    if f.mantissa_bits == 23:
        return e.cast(exponent, float32)
    magic = e.constant(f.magic, float64)
    shifted = e.add(exponent, e.const(_magic_bits(f), exponent))
    return e.sub(e.unbits(shifted), magic)


def _magic_bits(f: Format) -> int:
    return (f.bias + f.mantissa_bits << f.mantissa_bits) | 1 << f.mantissa_bits - 1


def _log_of(e: VectorEmitter, f: Format, k: Lane, z: Lane) -> Lane:
    tail = e.mul(e.mul(z, z), polynomial(e, z, f.log))
    tail = e.fma(k, e.const(f.ln2[1], z), tail)
    return e.fma(k, e.const(f.ln2[0], z), e.add(z, tail))


def _log_limits(e: VectorEmitter, x: Lane, value: Lane) -> Lane:
    zero = e.const(0, x)
    value = e.select(e.lt(x, e.const(_INFINITY, x)), value, x)
    outside = e.select(e.eq(x, zero), e.const(-_INFINITY, x), e.const(_NAN, x))
    return e.select(e.le(x, zero), outside, value)


def tanh(e: VectorEmitter, x: Lane) -> Lane:
    """m / (m + 2) with m = exp(2 |x|) - 1, and the sign of x."""
    f = _format("tanh", x)
    size = e.minimum(e.abs(x), e.const(f.tanh_limit, x))
    m = expm1(e, e.add(size, size))
    return e.copysign(e.div(m, e.add(m, e.const(2, x))), x)


def sigmoid(e: VectorEmitter, x: Lane) -> Lane:
    """1 / (1 + exp(-x)); an exp that overflows gives 0."""
    _format("sigmoid", x)
    one = e.const(1, x)
    return e.div(one, e.add(one, exp(e, e.neg(x))))


def erf(e: VectorEmitter, x: Lane) -> Lane:
    f = _format("erf", x)
    if f.mantissa_bits == 23:
        limit, one = e.const(ERF_LIMIT, x), e.const(1, x)
        size = e.minimum(e.abs(x), limit)
        z = e.mul(size, size)
        quotient = e.div(e.mul(size, polynomial(e, z, ERF_P)), polynomial(e, z, ERF_Q))
        return e.copysign(e.minimum(quotient, one), x)
    size = e.minimum(e.abs(x), e.const(6, x))
    small = e.fma(size, polynomial(e, e.mul(size, size), ERF_SMALL), size)
    shift = e.const(2.5, x)
    t = e.div(e.sub(size, shift), e.add(size, shift))
    tail = e.mul(exp(e, e.neg(e.mul(size, size))), polynomial(e, t, ERFCX))
    large = e.sub(e.const(1, x), tail)
    return e.copysign(e.select(e.gt(size, e.const(1, x)), large, small), x)


def sin(e: VectorEmitter, x: Lane) -> Lane:
    """sin for |x| <= 1e5; accuracy falls off beyond, and infinities give NaN."""
    return _sin_of_quadrant(e, x, "sin", 0)


def cos(e: VectorEmitter, x: Lane) -> Lane:
    """cos for |x| <= 1e5; accuracy falls off beyond, and infinities give NaN."""
    return _sin_of_quadrant(e, x, "cos", 1)


def _sin_of_quadrant(e: VectorEmitter, x: Lane, name: str, quadrant: int) -> Lane:
    """sin(x + quadrant pi/2) with x = n pi/2 + r: +-sin(r) or +-cos(r), chosen by n mod 4."""
    f = _format(name, x)
    magic = e.const(f.magic, x)
    shifted = e.fma(x, e.const(0.6366197723675814, x), magic)
    n = e.sub(shifted, magic)
    r = x
    for part in f.half_pi:
        r = e.fma(n, e.const(-part, x), r)
    turn = e.bits(shifted)
    if quadrant:
        turn = e.add(turn, e.const(quadrant, turn))
    z = e.mul(r, r)
    sine = e.fma(e.mul(r, z), polynomial(e, z, f.sin), r)
    one_less = e.fma(z, e.const(-0.5, x), e.const(1, x))
    cosine = e.fma(e.mul(z, z), polynomial(e, z, f.cos), one_less)
    odd = e.ne(e.op("and", turn, e.const(1, turn)), e.const(0, turn))
    value = e.select(odd, cosine, sine)
    width = f.mantissa_bits + (9 if f.mantissa_bits == 23 else 12)
    sign = e.shift("shl", e.op("and", turn, e.const(2, turn)), width - 2)
    return e.unbits(e.op("xor", e.bits(value), sign))


def pow(e: VectorEmitter, x: Lane, y: Lane) -> Lane:
    """x ** y with numpy's special cases: pow(x, 0) = pow(1, y) = 1, a negative x needs a whole y.

    float32 is computed in float64. In float64 the relative error is about
    |y log x| * 2**-52: a few units in the last place for results of moderate size.
    """
    _format("pow", x)
    if x.dtype is float32:
        # In halves, so that a value in float64 is one register.
        return e.by_halves(_pow_in_float64, x, y)
    size, zero = e.abs(x), e.const(0, x)
    value = exp(e, e.mul(y, log(e, size)))
    one = e.const(1, x)
    trivial = e.logical_or(e.eq(y, zero), e.eq(x, one))
    # (-1) ** +-inf is 1 as well: there log is 0 and the product is NaN.
    flat = e.logical_and(e.eq(size, one), e.eq(e.abs(y), e.const(_INFINITY, x)))
    value = e.select(e.logical_or(trivial, flat), one, value)
    whole = e.eq(e.trunc(y), y)
    halved = e.mul(y, e.const(0.5, x))
    odd = e.logical_and(whole, e.ne(e.trunc(halved), halved))
    signed = e.select(odd, e.copysign(value, x), value)
    finite_negative = e.logical_and(e.lt(x, zero), e.gt(x, e.const(-_INFINITY, x)))
    undefined = e.logical_and(finite_negative, e.logical_not(whole))
    return e.select(undefined, e.const(_NAN, x), signed)


def _pow_in_float64(e: VectorEmitter, x: Lane, y: Lane) -> Lane:
    return e.cast(e.pow(e.cast(x, float64), e.cast(y, float64)), float32)


def _format(name: str, x: Lane) -> Format:
    found = FORMATS.get(x.dtype)
    if found is None:
        raise UnsupportedError(
            f"{name} of {x.dtype.name} has no native kernel; cast to float32 or float64 first"
        )
    return found
