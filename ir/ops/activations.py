"""Elementwise activations and the elementwise parts of losses, with PyTorch's conventions.

Where a derivative jumps, PyTorch's choice of side is kept (relu6'(6) = 0, clamp'(max) = 1), and
so is its treatment of NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...errors import DTypeError
from ..types import TensorType
from .checks import broadcast, require_float, require_number, require_same_dtype
from .elementwise import SPECIAL, unary
from .numerics import numeric, points
from .record import Op, Sample, register
from .special import erf, sigmoid

Rule = Callable[..., Any]


def _activation(
    name: str,
    numpy: Rule,
    grad: Rule,
    lower: Rule,
    settings: Sequence[dict[str, Any]],
    kinks: Sequence[float] = (),
) -> None:
    """Registers ``name(x){attributes}`` of floats, sampled with every attribute setting."""

    def infer(x: TensorType, **attrs: Any) -> TensorType:
        require_float(name, x)
        return x

    def samples(rng: np.random.Generator) -> list[Sample]:
        found = []
        for attrs in settings:
            found.append(Sample((points(rng, (5, 7), kinks=kinks),), attrs))
            found.append(Sample((SPECIAL,), attrs, False))
        return found

    register(Op(name, "elementwise", infer, numeric(numpy), grad, lower, samples))


# -- piecewise linear -------------------------------------------------------------------------


def _relu6_grad(b: Any, ctx: Any, g: Any) -> tuple[Any]:
    y = ctx.outputs[0]
    return (b.where(b.logical_or(b.le(y, 0.0), b.ge(y, 6.0)), 0.0, g),)


def _clip(e: Any, x: Any, low: float, high: float) -> Any:
    return e.minimum(e.maximum(x, e.const(low, like=x)), e.const(high, like=x))


unary(
    "relu",
    lambda x: np.maximum(x, 0),
    # y <= 0 is false for NaN: its gradient passes, as in PyTorch.
    lambda b, ctx, g: (b.where(b.le(ctx.outputs[0], 0.0), 0.0, g),),
    lambda e, x: e.maximum(x, e.const(0.0, like=x)),
    kinks=(0.0,),
    integers=True,
)
unary(
    "relu6",
    lambda x: np.minimum(np.maximum(x, 0), 6),
    _relu6_grad,
    lambda e, x: _clip(e, x, 0.0, 6.0),
    low=-3.0,
    high=9.0,
    kinks=(0.0, 6.0),
)


def _leaky_relu_grad(b: Any, ctx: Any, g: Any) -> tuple[Any]:
    return (b.where(b.gt(ctx.inputs[0], 0.0), g, b.mul(g, ctx.attrs["slope"])),)


_activation(
    "leaky_relu",
    lambda x, *, slope: np.where(x > 0, x, x * slope),
    _leaky_relu_grad,
    lambda e, x, *, slope: e.select(
        e.gt(x, e.const(0.0, like=x)), x, e.mul(x, e.const(slope, like=x))
    ),
    [{"slope": 0.01}, {"slope": -0.5}],
    kinks=(0.0,),
)


def _hardsigmoid_grad(b: Any, ctx: Any, g: Any) -> tuple[Any]:
    x = ctx.inputs[0]
    inside = b.logical_and(b.gt(x, -3.0), b.lt(x, 3.0))
    return (b.where(inside, b.mul(g, 1.0 / 6.0), 0.0),)


def _lower_hardsigmoid(e: Any, x: Any) -> Any:
    clipped = _clip(e, e.add(x, e.const(3.0, like=x)), 0.0, 6.0)
    return e.mul(clipped, e.const(1.0 / 6.0, like=x))


def _hardswish_grad(b: Any, ctx: Any, g: Any) -> tuple[Any]:
    x = ctx.inputs[0]
    middle = b.mul(g, b.add(b.mul(x, 1.0 / 3.0), 0.5))
    return (b.where(b.le(x, -3.0), 0.0, b.where(b.lt(x, 3.0), middle, g)),)


def _lower_hardswish(e: Any, x: Any) -> Any:
    clipped = _clip(e, e.add(x, e.const(3.0, like=x)), 0.0, 6.0)
    return e.mul(e.mul(x, clipped), e.const(1.0 / 6.0, like=x))


unary(
    "hardsigmoid",
    lambda x: np.minimum(np.maximum(x + 3, 0), 6) * (1.0 / 6.0),
    _hardsigmoid_grad,
    _lower_hardsigmoid,
    low=-5.0,
    high=5.0,
    kinks=(-3.0, 3.0),
)
unary(
    "hardswish",
    lambda x: x * np.minimum(np.maximum(x + 3, 0), 6) * (1.0 / 6.0),
    _hardswish_grad,
    _lower_hardswish,
    low=-5.0,
    high=5.0,
    kinks=(-3.0, 3.0),
)


def _infer_clamp(x: TensorType, *, min: float | None = None, max: float | None = None) -> Any:
    require_number("clamp", x)
    for bound in (min, max):
        if bound is not None and x.dtype.is_int and not float(bound).is_integer():
            raise DTypeError(f"clamp: bound {bound} of {x} is not an integer; cast x to float32")
    return x


def _clamp(x: np.ndarray, *, min: float | None = None, max: float | None = None) -> np.ndarray:
    if min is not None:
        x = np.maximum(x, np.asarray(min, x.dtype))
    return x if max is None else np.minimum(x, np.asarray(max, x.dtype))


def _clamp_grad(b: Any, ctx: Any, g: Any) -> tuple[Any]:
    # The gradient passes at the bounds themselves, and stops at NaN.
    x = ctx.inputs[0]
    for bound, holds in (("min", "ge"), ("max", "le")):
        if ctx.attrs.get(bound) is not None:
            g = b.where(b.op(holds, x, ctx.attrs[bound]), g, 0.0)
    return (g,)


def _lower_clamp(e: Any, x: Any, *, min: float | None = None, max: float | None = None) -> Any:
    if min is not None:
        x = e.maximum(x, e.const(min, like=x))
    return x if max is None else e.minimum(x, e.const(max, like=x))


def _clamp_samples(rng: np.random.Generator) -> list[Sample]:
    x = points(rng, (5, 7), kinks=(-1.0, 1.5))
    return [
        Sample((x,), {"min": -1.0, "max": 1.5}),
        Sample((x,), {"min": -1.0, "max": None}),
        Sample((x,), {"min": None, "max": 1.5}),
        Sample((SPECIAL,), {"min": -1.0, "max": 1.0}, False),
        Sample((SPECIAL,), {"min": 1.0, "max": -1.0}, False),
        Sample((rng.integers(-9, 9, (4, 3)),), {"min": -2.0, "max": 3.0}),
    ]


register(
    Op(
        "clamp",
        "elementwise",
        _infer_clamp,
        numeric(_clamp),
        _clamp_grad,
        _lower_clamp,
        _clamp_samples,
    )
)

# -- smooth -----------------------------------------------------------------------------------


def _elu_grad(b: Any, ctx: Any, g: Any) -> tuple[Any]:
    # exp of the clipped argument: a product with exp(x) = inf would be NaN where g is 0.
    x = ctx.inputs[0]
    slope = b.mul(b.exp(b.minimum(x, 0.0)), ctx.attrs["alpha"])
    return (b.where(b.le(x, 0.0), b.mul(g, slope), g),)


def _lower_elu(e: Any, x: Any, *, alpha: float) -> Any:
    negative = e.mul(e.expm1(x), e.const(alpha, like=x))
    return e.select(e.gt(x, e.const(0.0, like=x)), x, negative)


_activation(
    "elu",
    lambda x, *, alpha: np.where(x > 0, x, alpha * np.expm1(x)),
    _elu_grad,
    _lower_elu,
    [{"alpha": 1.0}, {"alpha": -0.7}],
    kinks=(0.0,),
)


def _silu_grad(b: Any, ctx: Any, g: Any) -> tuple[Any]:
    x = ctx.inputs[0]
    s = b.sigmoid(x)
    return (b.mul(g, b.mul(s, b.add(b.mul(x, b.sub(1.0, s)), 1.0))),)


unary("silu", lambda x: x * sigmoid(x), _silu_grad, lambda e, x: e.mul(x, e.sigmoid(x)))

# GELU: D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units" (2016), x * Phi(x), and its
# approximation 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
_SQRT_HALF = math.sqrt(0.5)
_SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)
_CUBIC = 0.044715


def _infer_gelu(x: TensorType, *, approximate: str = "none") -> TensorType:
    require_float("gelu", x)
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate is {approximate!r}, expected 'none' or 'tanh'")
    return x


def _gelu(x: np.ndarray, *, approximate: str = "none") -> np.ndarray:
    if approximate == "tanh":
        return 0.5 * x * (1 + np.tanh(_SQRT_2_OVER_PI * (x + _CUBIC * (x * x * x))))
    return 0.5 * x * (1 + erf(x * x.dtype.type(_SQRT_HALF)))


def _gelu_grad(b: Any, ctx: Any, g: Any) -> tuple[Any]:
    x = ctx.inputs[0]
    square = b.square(x)
    if ctx.attrs.get("approximate", "none") == "tanh":
        inner = b.mul(x, b.add(b.mul(square, _CUBIC * _SQRT_2_OVER_PI), _SQRT_2_OVER_PI))
        t = b.tanh(inner)
        inner_slope = b.add(b.mul(square, 3.0 * _CUBIC * _SQRT_2_OVER_PI), _SQRT_2_OVER_PI)
        bend = b.mul(b.mul(x, b.sub(1.0, b.square(t))), inner_slope)
        return (b.mul(g, b.mul(b.add(b.add(t, 1.0), bend), 0.5)),)
    cdf = b.mul(b.add(b.erf(b.mul(x, _SQRT_HALF)), 1.0), 0.5)
    pdf = b.mul(b.exp(b.mul(square, -0.5)), 1.0 / math.sqrt(2.0 * math.pi))
    return (b.mul(g, b.add(cdf, b.mul(x, pdf))),)


def _lower_gelu(e: Any, x: Any, *, approximate: str = "none") -> Any:
    one, half_x = e.const(1.0, like=x), e.mul(x, e.const(0.5, like=x))
    if approximate == "tanh":
        slope = e.const(_SQRT_2_OVER_PI, like=x)
        cubic = e.const(_CUBIC * _SQRT_2_OVER_PI, like=x)
        return e.mul(half_x, e.add(one, e.tanh(e.mul(x, e.fma(e.mul(x, x), cubic, slope)))))
    return e.mul(half_x, e.add(one, e.erf(e.mul(x, e.const(_SQRT_HALF, like=x)))))


register(
    Op(
        "gelu",
        "elementwise",
        _infer_gelu,
        numeric(_gelu),
        _gelu_grad,
        _lower_gelu,
        lambda rng: [
            Sample((points(rng, (5, 7)),), {"approximate": "none"}),
            Sample((points(rng, (5, 7)),), {"approximate": "tanh"}),
            Sample((SPECIAL,), {"approximate": "none"}, False),
            Sample((SPECIAL,), {"approximate": "tanh"}, False),
        ],
    )
)


def _softplus_grad(b: Any, ctx: Any, g: Any) -> tuple[Any]:
    z = b.mul(ctx.inputs[0], ctx.attrs["beta"])
    return (b.where(b.gt(z, ctx.attrs["threshold"]), g, b.mul(g, b.sigmoid(z))),)


def _lower_softplus(e: Any, x: Any, *, beta: float, threshold: float) -> Any:
    z = e.mul(x, e.const(beta, like=x))
    soft = e.mul(e.log1p(e.exp(z)), e.const(1.0 / beta, like=x))
    return e.select(e.gt(z, e.const(threshold, like=x)), x, soft)


_activation(
    "softplus",
    lambda x, *, beta, threshold: np.where(
        x * beta > threshold, x, np.log1p(np.exp(x * beta)) / beta
    ),
    _softplus_grad,
    _lower_softplus,
    [{"beta": 1.0, "threshold": 20.0}, {"beta": 2.5, "threshold": 4.0}],
    kinks=(1.6,),
)

# -- elementwise losses -----------------------------------------------------------------------


def _infer_loss(name: str) -> Rule:
    def infer(x: TensorType, target: TensorType, **attrs: Any) -> TensorType:
        require_same_dtype(name, x, target)
        require_float(name, x)
        return TensorType(x.dtype, broadcast(name, x, target))

    return infer


def _bce(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    # PyTorch clips the logarithms at -100 so that the loss stays finite.
    return (t - 1) * np.maximum(np.log1p(-x), -100) - t * np.maximum(np.log(x), -100)


def _bce_grad(b: Any, ctx: Any, g: Any) -> tuple[Any, Any]:
    x, t = ctx.inputs
    dx = dt = None
    if ctx.needs(0):
        variance = b.maximum(b.mul(x, b.sub(1.0, x)), 1e-12)
        dx = b.div(b.mul(g, b.sub(x, t)), variance)
    if ctx.needs(1):
        dt = b.mul(g, b.sub(b.log1p(b.neg(x)), b.log(x)))
    return dx, dt


def _lower_bce(e: Any, x: Any, t: Any) -> Any:
    floor = e.const(-100.0, like=x)
    negative = e.mul(e.sub(t, e.const(1.0, like=x)), e.maximum(e.log1p(e.neg(x)), floor))
    return e.sub(negative, e.mul(t, e.maximum(e.log(x), floor)))


def _bce_samples(rng: np.random.Generator) -> list[Sample]:
    grid = tuple(np.meshgrid([0.0, 0.5, 1.0], [0.0, 0.25, 1.0], indexing="ij"))
    soft = Sample((points(rng, (5, 3), 0.05, 0.95), points(rng, (5, 3), 0.0, 1.0)))
    return [soft, Sample(grid, {}, False)]


register(
    Op(
        "binary_cross_entropy",
        "elementwise",
        _infer_loss("binary_cross_entropy"),
        numeric(_bce),
        _bce_grad,
        _lower_bce,
        _bce_samples,
    )
)


def _smooth_l1(x: np.ndarray, t: np.ndarray, *, beta: float) -> np.ndarray:
    distance = np.abs(x - t)
    scale = 0.5 / beta if beta else 0.0
    return np.where(distance < beta, distance * distance * scale, distance - 0.5 * beta)


def _smooth_l1_grad(b: Any, ctx: Any, g: Any) -> tuple[Any, Any]:
    beta = ctx.attrs["beta"]
    d = b.sub(*ctx.inputs)
    slope = b.sign(d)
    if beta:
        slope = b.where(b.ge(b.abs(d), beta), slope, b.mul(d, 1.0 / beta))
    dx = b.mul(g, slope)
    return dx, b.neg(dx) if ctx.needs(1) else None


def _lower_smooth_l1(e: Any, x: Any, t: Any, *, beta: float) -> Any:
    distance = e.abs(e.sub(x, t))
    if not beta:
        return distance
    near = e.mul(e.mul(distance, distance), e.const(0.5 / beta, like=x))
    far = e.sub(distance, e.const(0.5 * beta, like=x))
    return e.select(e.lt(distance, e.const(beta, like=x)), near, far)


def _smooth_l1_samples(rng: np.random.Generator) -> list[Sample]:
    found = []
    for beta in (1.0, 0.3, 0.0):
        t = points(rng, (5, 7))
        found.append(Sample((t + points(rng, (5, 7), kinks=(-beta, beta)), t), {"beta": beta}))
    return [*found, Sample((SPECIAL, np.zeros_like(SPECIAL)), {"beta": 1.0}, False)]


register(
    Op(
        "smooth_l1",
        "elementwise",
        _infer_loss("smooth_l1"),
        numeric(_smooth_l1),
        _smooth_l1_grad,
        _lower_smooth_l1,
        _smooth_l1_samples,
    )
)
