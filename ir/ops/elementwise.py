"""Elementwise operators: arithmetic, mathematical functions, comparison, logic, where, cast.

Values and gradients at special points (ties, zero, infinity, NaN) follow PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...errors import DTypeError
from ..types import TensorType, bool_, dtype_of
from .checks import broadcast, require_bool, require_float, require_number, require_same_dtype
from .numerics import numeric, points, quiet
from .record import Op, Sample, register
from .special import erf, sigmoid

SPECIAL = np.array([-np.inf, -30.0, -1.0, -0.0, 0.0, 1.0, 30.0, np.inf, np.nan])
_POWERS = np.array([-np.inf, -2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 3.0, np.inf, np.nan])

Rule = Callable[..., Any]


def unary(
    name: str,
    numpy: Rule,
    grad: Rule | None,
    lower: Rule,
    *,
    low: float = -3.0,
    high: float = 3.0,
    kinks: Sequence[float] = (),
    flat: bool = False,
    integers: bool = False,
) -> None:
    """Registers ``name(x)``: of floats, or of all numbers with ``integers``.

    ``low``, ``high`` and ``kinks`` place the samples; ``flat`` says that the derivative is 0.
    """

    def infer(x: TensorType) -> TensorType:
        (require_number if integers else require_float)(name, x)
        return x

    def samples(rng: np.random.Generator) -> list[Sample]:
        shapes: list[tuple[int, ...]] = [(5, 7), (), (3, 0)]
        found = [Sample((points(rng, s, low, high, kinks),), {}, not flat) for s in shapes]
        return [*found, Sample((SPECIAL,), {}, False)]

    register(Op(name, "elementwise", infer, numeric(numpy), grad, lower, samples))


def _binary(
    name: str,
    numpy: Rule,
    grad: Rule,
    lower: Rule,
    *,
    integers: bool = True,
    low: float = -3.0,
    special: np.ndarray = SPECIAL,
) -> None:
    def infer(x: TensorType, y: TensorType) -> TensorType:
        require_same_dtype(name, x, y)
        (require_number if integers else require_float)(name, x)
        return TensorType(x.dtype, broadcast(name, x, y))

    def samples(rng: np.random.Generator) -> list[Sample]:
        shapes: list[tuple[tuple[int, ...], tuple[int, ...]]]
        shapes = [((4, 5), (4, 5)), ((4, 5), (5,)), ((3, 1, 2), (4, 1)), ((), (3,)), ((2, 0), ())]
        found = [Sample((points(rng, s, low), points(rng, t, 0.4))) for s, t in shapes]
        grid = tuple(np.meshgrid(special, special, indexing="ij"))
        return [*found, Sample(grid, {}, False)]

    register(Op(name, "elementwise", infer, numeric(numpy), grad, lower, samples))


def flat_grad(b: Any, ctx: Any, g: Any) -> tuple[None]:
    """The gradient of a piecewise constant function: zero, which None stands for."""
    return (None,)


# -- arithmetic -------------------------------------------------------------------------------


def _mul_grad(b: Any, ctx: Any, g: Any) -> tuple[Any, Any]:
    x, y = ctx.inputs
    return b.mul(g, y) if ctx.needs(0) else None, b.mul(g, x) if ctx.needs(1) else None


def _div_grad(b: Any, ctx: Any, g: Any) -> tuple[Any, Any]:
    over = b.div(g, ctx.inputs[1])
    return over, b.neg(b.mul(over, ctx.outputs[0])) if ctx.needs(1) else None


def _pow_grad(b: Any, ctx: Any, g: Any) -> tuple[Any, Any]:
    x, y = ctx.inputs
    dx = dy = None
    if ctx.needs(0):
        slope = b.mul(b.mul(g, y), b.pow(x, b.sub(y, 1.0)))
        dx = b.where(b.eq(y, 0.0), 0.0, slope)
    if ctx.needs(1):
        # The limit of x**y log(x) for x -> 0 is 0 where y >= 0, not 0 * -inf.
        vanishes = b.logical_and(b.eq(x, 0.0), b.ge(y, 0.0))
        dy = b.mul(g, b.where(vanishes, 0.0, b.mul(ctx.outputs[0], b.log(x))))
    return dx, dy


def _extremum_grad(loses: str) -> Rule:
    """An operand that loses the comparison gets nothing; equal operands get half each."""

    def grad(b: Any, ctx: Any, g: Any) -> tuple[Any, Any]:
        x, y = ctx.inputs
        shared = b.where(b.eq(x, y), b.mul(g, 0.5), g)
        dx = b.where(b.op(loses, x, y), 0.0, shared) if ctx.needs(0) else None
        dy = b.where(b.op(loses, y, x), 0.0, shared) if ctx.needs(1) else None
        return dx, dy

    return grad


_binary("add", np.add, lambda b, ctx, g: (g, g), lambda e, x, y: e.add(x, y))
_binary(
    "sub",
    np.subtract,
    lambda b, ctx, g: (g, b.neg(g) if ctx.needs(1) else None),
    lambda e, x, y: e.sub(x, y),
)
_binary("mul", np.multiply, _mul_grad, lambda e, x, y: e.mul(x, y))
_binary("div", np.divide, _div_grad, lambda e, x, y: e.div(x, y), integers=False)
_binary(
    "pow",
    np.power,
    _pow_grad,
    lambda e, x, y: e.pow(x, y),
    integers=False,
    low=0.3,
    special=_POWERS,
)
_binary("maximum", np.maximum, _extremum_grad("lt"), lambda e, x, y: e.maximum(x, y))
_binary("minimum", np.minimum, _extremum_grad("gt"), lambda e, x, y: e.minimum(x, y))


def _sign(x: np.ndarray) -> np.ndarray:
    # Unlike np.sign, the sign of NaN is 0.
    return np.greater(x, 0).astype(x.dtype) - np.less(x, 0).astype(x.dtype)


def _lower_sign(e: Any, x: Any) -> Any:
    zero, one = e.const(0, like=x), e.const(1, like=x)
    return e.sub(e.select(e.gt(x, zero), one, zero), e.select(e.lt(x, zero), one, zero))


unary("neg", np.negative, lambda b, ctx, g: (b.neg(g),), lambda e, x: e.neg(x), integers=True)
unary(
    "abs",
    np.abs,
    lambda b, ctx, g: (b.mul(g, b.sign(ctx.inputs[0])),),
    lambda e, x: e.abs(x),
    kinks=(0.0,),
    integers=True,
)
unary("sign", _sign, flat_grad, _lower_sign, flat=True, integers=True)
unary(
    "square",
    np.square,
    lambda b, ctx, g: (b.mul(g, b.mul(ctx.inputs[0], 2.0)),),
    lambda e, x: e.mul(x, x),
    integers=True,
)
unary(
    "reciprocal",
    lambda x: 1 / x,
    lambda b, ctx, g: (b.neg(b.mul(g, b.square(ctx.outputs[0]))),),
    lambda e, x: e.div(e.const(1.0, like=x), x),
    low=0.4,
)

# -- mathematical functions -------------------------------------------------------------------


def _rsqrt_grad(b: Any, ctx: Any, g: Any) -> tuple[Any]:
    y = ctx.outputs[0]
    return (b.mul(b.mul(g, -0.5), b.mul(y, b.square(y))),)


def _erf_grad(b: Any, ctx: Any, g: Any) -> tuple[Any]:
    density = b.exp(b.neg(b.square(ctx.inputs[0])))
    return (b.mul(g, b.mul(density, 2.0 / math.sqrt(math.pi))),)


def _sigmoid_grad(b: Any, ctx: Any, g: Any) -> tuple[Any]:
    y = ctx.outputs[0]
    return (b.mul(g, b.mul(y, b.sub(1.0, y))),)


unary("exp", np.exp, lambda b, ctx, g: (b.mul(g, ctx.outputs[0]),), lambda e, x: e.exp(x))
unary(
    "expm1",
    np.expm1,
    lambda b, ctx, g: (b.mul(g, b.add(ctx.outputs[0], 1.0)),),
    lambda e, x: e.expm1(x),
)
unary("log", np.log, lambda b, ctx, g: (b.div(g, ctx.inputs[0]),), lambda e, x: e.log(x), low=0.2)
unary(
    "log1p",
    np.log1p,
    lambda b, ctx, g: (b.div(g, b.add(ctx.inputs[0], 1.0)),),
    lambda e, x: e.log1p(x),
    low=-0.7,
)
unary(
    "sqrt",
    np.sqrt,
    lambda b, ctx, g: (b.div(g, b.mul(ctx.outputs[0], 2.0)),),
    lambda e, x: e.sqrt(x),
    low=0.2,
)
unary(
    "rsqrt",
    lambda x: 1 / np.sqrt(x),
    _rsqrt_grad,
    lambda e, x: e.div(e.const(1.0, like=x), e.sqrt(x)),
    low=0.2,
)
unary("sin", np.sin, lambda b, ctx, g: (b.mul(g, b.cos(ctx.inputs[0])),), lambda e, x: e.sin(x))
unary(
    "cos",
    np.cos,
    lambda b, ctx, g: (b.neg(b.mul(g, b.sin(ctx.inputs[0]))),),
    lambda e, x: e.cos(x),
)
unary("erf", erf, _erf_grad, lambda e, x: e.erf(x))
unary("sigmoid", sigmoid, _sigmoid_grad, lambda e, x: e.sigmoid(x))
unary(
    "tanh",
    np.tanh,
    lambda b, ctx, g: (b.mul(g, b.sub(1.0, b.square(ctx.outputs[0]))),),
    lambda e, x: e.tanh(x),
)
unary("floor", np.floor, flat_grad, lambda e, x: e.floor(x), flat=True)
unary("ceil", np.ceil, flat_grad, lambda e, x: e.ceil(x), flat=True)
unary("round", np.rint, flat_grad, lambda e, x: e.round(x), flat=True)
unary("trunc", np.trunc, flat_grad, lambda e, x: e.trunc(x), flat=True)

# -- comparison and logic ---------------------------------------------------------------------


def _comparison(name: str, numpy: Rule, lower: Rule, *, of_bool: bool = False) -> None:
    def infer(x: TensorType, y: TensorType) -> TensorType:
        require_same_dtype(name, x, y)
        if not of_bool:
            require_number(name, x)
        return TensorType(bool_, broadcast(name, x, y))

    def samples(rng: np.random.Generator) -> list[Sample]:
        x, y = (rng.integers(-1, 2, s).astype(np.float64) for s in ((4, 5), (5,)))
        grid = tuple(np.meshgrid(SPECIAL, SPECIAL, indexing="ij"))
        found = [Sample((x, y)), Sample((x.astype(np.int64), y.astype(np.int64))), Sample(grid)]
        return [*found, Sample((x > 0, y > 0))] if of_bool else found

    register(Op(name, "elementwise", infer, quiet(numpy), None, lower, samples))


def _lower_eq(e: Any, x: Any, y: Any) -> Any:
    return e.logical_not(e.logical_xor(x, y)) if e.dtype(x) is bool_ else e.eq(x, y)


def _lower_ne(e: Any, x: Any, y: Any) -> Any:
    return e.logical_xor(x, y) if e.dtype(x) is bool_ else e.ne(x, y)


_comparison("eq", np.equal, _lower_eq, of_bool=True)
_comparison("ne", np.not_equal, _lower_ne, of_bool=True)
_comparison("lt", np.less, lambda e, x, y: e.lt(x, y))
_comparison("le", np.less_equal, lambda e, x, y: e.le(x, y))
_comparison("gt", np.greater, lambda e, x, y: e.gt(x, y))
_comparison("ge", np.greater_equal, lambda e, x, y: e.ge(x, y))


def _logical(name: str, numpy: Rule, lower: Rule, operands: int = 2) -> None:
    def infer(*types: TensorType) -> TensorType:
        require_bool(name, *types)
        return TensorType(bool_, broadcast(name, *types))

    def samples(rng: np.random.Generator) -> list[Sample]:
        return [Sample(tuple(rng.random((4, 5)) < 0.5 for _ in range(operands)))]

    register(Op(name, "elementwise", infer, quiet(numpy), None, lower, samples))


_logical("logical_and", np.logical_and, lambda e, x, y: e.logical_and(x, y))
_logical("logical_or", np.logical_or, lambda e, x, y: e.logical_or(x, y))
_logical("logical_xor", np.logical_xor, lambda e, x, y: e.logical_xor(x, y))
_logical("logical_not", np.logical_not, lambda e, x: e.logical_not(x), operands=1)


def _infer_isnan(x: TensorType) -> TensorType:
    require_float("isnan", x)
    return TensorType(bool_, x.shape)


register(
    Op(
        "isnan",
        "elementwise",
        _infer_isnan,
        quiet(np.isnan),
        None,
        lambda e, x: e.isnan(x),
        lambda rng: [Sample((SPECIAL,)), Sample((np.stack([SPECIAL, SPECIAL]),))],
    )
)

# -- where and cast ---------------------------------------------------------------------------


def _infer_where(cond: TensorType, x: TensorType, y: TensorType) -> TensorType:
    if cond.dtype is not bool_:
        raise DTypeError(f"where: the condition is {cond}, expected bool; compare it with 0 first")
    require_same_dtype("where", x, y)
    return TensorType(x.dtype, broadcast("where", cond, x, y))


def _where_grad(b: Any, ctx: Any, g: Any) -> tuple[None, Any, Any]:
    # A selection, not a product with the mask: 0 * inf would be NaN.
    cond = ctx.inputs[0]
    dx = b.where(cond, g, 0.0) if ctx.needs(1) else None
    return None, dx, b.where(cond, 0.0, g) if ctx.needs(2) else None


def _where_samples(rng: np.random.Generator) -> list[Sample]:
    shapes: list[list[tuple[int, ...]]] = [[(4, 5)] * 3, [(4, 1), (5,), ()], [(), (2, 3), (3,)]]
    return [Sample((rng.random(c) < 0.5, points(rng, x), points(rng, y))) for c, x, y in shapes]


register(
    Op(
        "where",
        "elementwise",
        _infer_where,
        numeric(np.where),
        _where_grad,
        lambda e, cond, x, y: e.select(cond, x, y),
        _where_samples,
    )
)


def _infer_cast(x: TensorType, *, dtype: str) -> TensorType:
    return TensorType(dtype_of(dtype), x.shape)


def _cast_grad(b: Any, ctx: Any, g: Any) -> tuple[Any]:
    source, target = b.type(ctx.inputs[0]).dtype, dtype_of(ctx.attrs["dtype"])
    if not (source.is_float and target.is_float):
        return (None,)
    return (g if source is target else b.op("cast", g, dtype=source.short),)


def _cast_samples(rng: np.random.Generator) -> list[Sample]:
    x = points(rng, (4, 5))
    counts = rng.integers(0, 100, (4, 5))
    return [
        Sample((x,), {"dtype": "f64"}),
        # The rounding to float32 is invisible to finite differences in float64.
        Sample((x,), {"dtype": "f32"}, False),
        Sample((x,), {"dtype": "i32"}, False),
        Sample((np.array([[0.0, -0.0, 2.0, np.nan, np.inf]]),), {"dtype": "bool"}, False),
        Sample((counts,), {"dtype": "f32"}),
        Sample((counts,), {"dtype": "u8"}),
        Sample((x > 0,), {"dtype": "f64"}),
        Sample((x > 0,), {"dtype": "i64"}),
    ]


register(
    Op(
        "cast",
        "elementwise",
        _infer_cast,
        quiet(lambda x, *, dtype: x.astype(dtype_of(dtype).np)),
        _cast_grad,
        lambda e, x, *, dtype: e.cast(x, dtype_of(dtype)),
        _cast_samples,
    )
)

register(
    Op(
        "detach",
        "elementwise",
        lambda x: x,
        np.copy,
        flat_grad,
        lambda e, x: x,
        lambda rng: [Sample((points(rng, (3, 5)),), {}, False)],
    )
)
