"""The functions that are also methods of Tensor, bound by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..ir.types import dtype_of
from . import comparison, creation, elementwise, inplace, linalg, rearranging, reductions, shaping
from .dispatch import cast

if TYPE_CHECKING:
    from .tensor import Tensor


def _to(short: str) -> Callable[[Any], Tensor]:
    dtype = dtype_of(short)

    def method(self: Any) -> Tensor:
        return cast(self, dtype)

    method.__doc__ = f"The tensor as {dtype.name}."
    return method


class Methods:
    """``x.exp()`` is ``nw.exp(x)``."""

    exp = elementwise.exp
    expm1 = elementwise.expm1
    log = elementwise.log
    log1p = elementwise.log1p
    sqrt = elementwise.sqrt
    rsqrt = elementwise.rsqrt
    reciprocal = elementwise.reciprocal
    sin = elementwise.sin
    cos = elementwise.cos
    erf = elementwise.erf
    sigmoid = elementwise.sigmoid
    tanh = elementwise.tanh
    relu = elementwise.relu
    add = elementwise.add
    sub = elementwise.sub
    mul = elementwise.mul
    div = elementwise.div
    floor_divide = elementwise.floor_divide
    remainder = elementwise.remainder
    fmod = elementwise.fmod
    pow = elementwise.pow
    neg = elementwise.neg
    square = elementwise.square
    abs = elementwise.abs
    sign = elementwise.sign
    floor = elementwise.floor
    ceil = elementwise.ceil
    trunc = elementwise.trunc
    round = elementwise.round
    clamp = elementwise.clamp
    clamp_min = elementwise.clamp_min
    clamp_max = elementwise.clamp_max
    maximum = elementwise.maximum
    minimum = elementwise.minimum
    masked_fill = elementwise.masked_fill
    nonzero = elementwise.nonzero
    eq = comparison.eq
    ne = comparison.ne
    lt = comparison.lt
    le = comparison.le
    gt = comparison.gt
    ge = comparison.ge
    logical_and = comparison.logical_and
    logical_or = comparison.logical_or
    logical_xor = comparison.logical_xor
    logical_not = comparison.logical_not
    bitwise_and = comparison.bitwise_and
    bitwise_or = comparison.bitwise_or
    bitwise_xor = comparison.bitwise_xor
    bitwise_not = comparison.bitwise_not
    isnan = comparison.isnan
    isinf = comparison.isinf
    isfinite = comparison.isfinite
    isclose = comparison.isclose
    allclose = comparison.allclose
    equal = comparison.equal
    lerp = elementwise.lerp
    addcmul = elementwise.addcmul
    addcdiv = elementwise.addcdiv
    tril = elementwise.tril
    triu = elementwise.triu
    nan_to_num = elementwise.nan_to_num
    subtract = elementwise.subtract
    multiply = elementwise.multiply
    divide = elementwise.divide
    true_divide = elementwise.true_divide
    negative = elementwise.negative
    absolute = elementwise.absolute
    clip = elementwise.clip
    greater = comparison.greater
    greater_equal = comparison.greater_equal
    less = comparison.less
    less_equal = comparison.less_equal
    not_equal = comparison.not_equal

    reshape = shaping.reshape
    view = shaping.view
    view_as = shaping.view_as
    reshape_as = shaping.reshape_as
    flatten = shaping.flatten
    ravel = shaping.ravel
    unflatten = shaping.unflatten
    squeeze = shaping.squeeze
    unsqueeze = shaping.unsqueeze
    permute = shaping.permute
    transpose = shaping.transpose
    t = shaping.t
    movedim = shaping.movedim
    broadcast_to = shaping.broadcast_to
    expand = shaping.expand
    expand_as = shaping.expand_as
    repeat = shaping.repeat
    narrow = shaping.narrow
    select = shaping.select
    split = shaping.split
    chunk = shaping.chunk
    unbind = shaping.unbind
    swapaxes = shaping.swapaxes
    swapdims = shaping.swapdims
    moveaxis = shaping.moveaxis

    index_select = rearranging.index_select
    flip = rearranging.flip
    roll = rearranging.roll
    tile = rearranging.tile
    repeat_interleave = rearranging.repeat_interleave
    diagonal = rearranging.diagonal
    scatter = rearranging.scatter
    scatter_add = rearranging.scatter_add

    matmul = linalg.matmul
    mm = linalg.mm
    bmm = linalg.bmm
    mv = linalg.mv
    dot = linalg.dot
    outer = linalg.outer
    addmm = linalg.addmm

    sum = reductions.sum
    mean = reductions.mean
    var = reductions.var
    std = reductions.std
    amax = reductions.amax
    amin = reductions.amin
    max = reductions.max
    min = reductions.min
    argmax = reductions.argmax
    argmin = reductions.argmin
    all = reductions.all
    any = reductions.any
    prod = reductions.prod
    norm = reductions.norm
    logsumexp = reductions.logsumexp
    softmax = reductions.softmax
    log_softmax = reductions.log_softmax
    gather = reductions.gather
    sort = reductions.sort
    argsort = reductions.argsort
    topk = reductions.topk
    cumsum = reductions.cumsum
    count_nonzero = reductions.count_nonzero

    add_ = inplace.add_
    sub_ = inplace.sub_
    mul_ = inplace.mul_
    div_ = inplace.div_
    pow_ = inplace.pow_
    floor_divide_ = inplace.floor_divide_
    remainder_ = inplace.remainder_
    clamp_ = inplace.clamp_
    clamp_min_ = inplace.clamp_min_
    clamp_max_ = inplace.clamp_max_
    neg_ = inplace.neg_
    abs_ = inplace.abs_
    exp_ = inplace.exp_
    log_ = inplace.log_
    sqrt_ = inplace.sqrt_
    rsqrt_ = inplace.rsqrt_
    square_ = inplace.square_
    reciprocal_ = inplace.reciprocal_
    sigmoid_ = inplace.sigmoid_
    tanh_ = inplace.tanh_
    relu_ = inplace.relu_
    floor_ = inplace.floor_
    ceil_ = inplace.ceil_
    round_ = inplace.round_
    lerp_ = inplace.lerp_
    addcmul_ = inplace.addcmul_
    addcdiv_ = inplace.addcdiv_
    masked_fill_ = inplace.masked_fill_
    tril_ = inplace.tril_
    triu_ = inplace.triu_
    logical_not_ = inplace.logical_not_
    fill_ = inplace.fill_
    zero_ = inplace.zero_
    copy_ = inplace.copy_
    normal_ = inplace.normal_
    uniform_ = inplace.uniform_
    bernoulli_ = inplace.bernoulli_

    float = _to("f32")
    double = _to("f64")
    long = _to("i64")
    int = _to("i32")
    short = _to("i16")
    char = _to("i8")
    byte = _to("u8")
    bool = _to("bool")

    def new_tensor(self: Any, data: Any, **options: Any) -> Tensor:
        """``nw.tensor(data)`` with this tensor's dtype unless one is given."""
        return creation.tensor(data, **{"dtype": self.dtype, **options})

    def new_zeros(self: Any, *size: Any, **options: Any) -> Tensor:
        """``nw.zeros`` with this tensor's dtype unless one is given."""
        return creation.zeros(*size, **{"dtype": self.dtype, **options})

    def new_ones(self: Any, *size: Any, **options: Any) -> Tensor:
        """``nw.ones`` with this tensor's dtype unless one is given."""
        return creation.ones(*size, **{"dtype": self.dtype, **options})

    def new_full(self: Any, size: Any, fill_value: Any, **options: Any) -> Tensor:
        """``nw.full`` with this tensor's dtype unless one is given."""
        return creation.full(size, fill_value, **{"dtype": self.dtype, **options})

    def where(self, condition: Any, other: Any) -> Tensor:
        """``self`` where the condition holds, else ``other``."""
        found: Tensor = elementwise.where(condition, self, other)
        return found
