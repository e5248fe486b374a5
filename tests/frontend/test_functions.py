"""Functions against torch: values, dtypes, shapes, gradients and errors, by table."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import netwright.frontend.functions as nf
from netwright.frontend import Tensor

torch = pytest.importorskip("torch")

INF, NAN = math.inf, math.nan
DTYPES = ("bool", "uint8", "int8", "int32", "int64", "float32", "float64")


def numpy_of(value):
    return value.detach().numpy() if hasattr(value, "detach") else np.asarray(value)


def assert_same(ours, theirs, rtol=1e-5, atol=1e-6):
    """Equal dtype, shape and (nearly) values; nests are compared element by element."""
    if isinstance(theirs, (tuple, list)) and not isinstance(theirs, torch.Size):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b, rtol, atol)
        return
    if not isinstance(theirs, torch.Tensor):
        assert ours == theirs
        return
    a, b = numpy_of(ours), numpy_of(theirs)
    assert a.dtype == b.dtype, f"{a.dtype} is not torch's {b.dtype}"
    assert a.shape == b.shape, f"{a.shape} is not torch's {b.shape}"
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def both(function, *arrays, backward=True):
    """Runs ``function(lib, *tensors)`` in both libraries; compares results and gradients."""
    ours = [nf.tensor(a) for a in arrays]
    theirs = [torch.tensor(a) for a in arrays]
    if backward:
        for t in (*ours, *theirs):
            if t.is_floating_point():
                t.requires_grad_()
    x, y = function(nf, *ours), function(torch, *theirs)
    assert_same(x, y)
    for a, b in zip(flat(x), flat(y), strict=True):
        if backward and b.requires_grad:
            weight = np.random.default_rng(0).normal(size=b.shape)
            (a * nf.tensor(weight.astype(numpy_of(b).dtype))).sum().backward()
            (b * torch.tensor(weight).to(b.dtype)).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        if b.grad is not None:
            assert_same(a.grad, b.grad)
        elif backward:
            assert a.grad is None


def flat(value):
    items = value if isinstance(value, (tuple, list)) else [value]
    return [v for v in items if hasattr(v, "requires_grad")]


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


X = normal(3, 4)
POSITIVE = np.abs(normal(3, 4)) + 0.2
SPECIAL = np.array([-INF, -2.5, -1.0, -0.5, -0.0, 0.0, 0.5, 1.5, 2.5, INF, NAN])

UNARY = {
    "exp": X,
    "expm1": X,
    "log": POSITIVE,
    "log1p": POSITIVE,
    "sqrt": POSITIVE,
    "rsqrt": POSITIVE,
    "reciprocal": POSITIVE,
    "sin": X,
    "cos": X,
    "erf": X,
    "sigmoid": X,
    "tanh": X,
    "relu": X,
    "neg": X,
    "square": X,
    "abs": X,
    "sign": X,
    "floor": X,
    "ceil": X,
    "trunc": X,
    "round": X,
    "isnan": X,
    "isinf": X,
    "isfinite": X,
    "logical_not": X,
    "nan_to_num": X,
}


@pytest.mark.parametrize("name", UNARY)
def test_unary_functions_match_torch_with_gradients(name):
    both(lambda lib, x: getattr(lib, name)(x), UNARY[name])
    both(lambda lib, x: getattr(x, name)(), UNARY[name].astype(np.float32))


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unary_functions_match_torch_on_special_values_and_empty_tensors(name, dtype):
    both(lambda lib, x: getattr(lib, name)(x), SPECIAL.astype(dtype), backward=False)
    both(lambda lib, x: getattr(lib, name)(x), np.zeros((2, 0), dtype))
    both(lambda lib, x: getattr(lib, name)(x), np.array(0.3, dtype))


@pytest.mark.parametrize("name", UNARY)
def test_unary_functions_give_torch_dtypes(name):
    for dtype in DTYPES:
        x = np.array([0, 1, 1, 3]).astype(dtype)
        try:
            expected = getattr(torch, name)(torch.tensor(x))
        except (RuntimeError, TypeError):
            with pytest.raises((RuntimeError, TypeError)):
                getattr(nf, name)(nf.tensor(x))
            continue
        assert_same(getattr(nf, name)(nf.tensor(x)), expected)


BINARY = [
    "add",
    "sub",
    "mul",
    "div",
    "maximum",
    "minimum",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "logical_and",
    "logical_or",
    "logical_xor",
    "pow",
    "floor_divide",
    "remainder",
    "fmod",
]


@pytest.mark.parametrize("name", BINARY)
def test_binary_functions_promote_like_torch(name):
    for left, right in itertools.product(DTYPES, DTYPES):
        a, b = np.array([1, 2, 3, 1]).astype(left), np.array([1, 1, 2, 3]).astype(right)
        check_promotion(name, [(a, b), (a, b[0]), (a[0], b), (a[0], b[0]), (a[:, None], b)])


def check_promotion(name, pairs):
    for pair in pairs:
        x, y = (np.asarray(v) for v in pair)
        try:
            expected = getattr(torch, name)(torch.tensor(x), torch.tensor(y))
        except (RuntimeError, TypeError):
            with pytest.raises((RuntimeError, TypeError)):
                getattr(nf, name)(nf.tensor(x), nf.tensor(y))
            continue
        assert_same(getattr(nf, name)(nf.tensor(x), nf.tensor(y)), expected)


OPERATORS = {
    "x + s": lambda x, s: x + s,
    "s + x": lambda x, s: s + x,
    "x - s": lambda x, s: x - s,
    "s - x": lambda x, s: s - x,
    "x * s": lambda x, s: x * s,
    "s * x": lambda x, s: s * x,
    "x / s": lambda x, s: x / s,
    "s / x": lambda x, s: s / x,
    "x // s": lambda x, s: x // s,
    "s // x": lambda x, s: s // x,
    "x % s": lambda x, s: x % s,
    "s % x": lambda x, s: s % x,
    "x ** s": lambda x, s: x**s,
    "s ** x": lambda x, s: s**x,
    "x == s": lambda x, s: x == s,
    "x != s": lambda x, s: x != s,
    "x < s": lambda x, s: x < s,
    "s <= x": lambda x, s: s <= x,
}


@pytest.mark.parametrize("expression", OPERATORS)
def test_operators_with_python_numbers_promote_like_torch(expression):
    operator = OPERATORS[expression]
    arrays = [np.array(v).astype(d) for v in ([1, 2, 3], 1) for d in DTYPES]
    for x, scalar in itertools.product(arrays, [True, 2, 1.5]):
        try:
            expected = operator(torch.tensor(x), scalar)
        except (RuntimeError, TypeError):
            with pytest.raises((RuntimeError, TypeError)):
                operator(nf.tensor(x), scalar)
            continue
        assert_same(operator(nf.tensor(x), scalar), expected)


BINARY_GRADIENTS = {
    "add": lambda lib, x, y: lib.add(x, y, alpha=2),
    "sub": lambda lib, x, y: x - y,
    "sub alpha": lambda lib, x, y: lib.sub(x, y, alpha=0.5),
    "mul": lambda lib, x, y: x * y,
    "div": lambda lib, x, y: x / y,
    "pow": lambda lib, x, y: abs(x) ** y,
    "maximum": lambda lib, x, y: lib.maximum(x, y),
    "minimum": lambda lib, x, y: lib.minimum(x, y),
    "square": lambda lib, x, y: x**2 + y**3,
    "powers": lambda lib, x, y: abs(x) ** -2 + y**-1,
    "halves": lambda lib, x, y: abs(x) ** 0.5 + abs(y) ** -0.5,
    "rpow": lambda lib, x, y: 2.0**x,
    "rsub": lambda lib, x, y: 1 - x,
    "rdiv": lambda lib, x, y: 1 / y,
    "remainder": lambda lib, x, y: x % y,
    "fmod": lambda lib, x, y: lib.fmod(x, y),
    "where": lambda lib, x, y: lib.where(x > 0, x, y),
    "where scalar": lambda lib, x, y: lib.where(x > 0, x, 0.0),
    "lerp": lambda lib, x, y: lib.lerp(x, y + 0 * x, 0.3),
    "addcmul": lambda lib, x, y: lib.addcmul(x, x, y, value=0.3),
    "addcdiv": lambda lib, x, y: lib.addcdiv(x, x, y, value=0.3),
    "clamp": lambda lib, x, y: lib.clamp(x, -0.5, 0.5),
    "clamp min": lambda lib, x, y: x.clamp(0.1),
    "clamp max": lambda lib, x, y: x.clamp(max=0.1),
    "clamp_min": lambda lib, x, y: lib.clamp_min(x, 0.1),
    "masked_fill": lambda lib, x, y: x.masked_fill(x > 0, 7.0),
    "trunc division": lambda lib, x, y: lib.div(x, y, rounding_mode="trunc"),
}


@pytest.mark.parametrize("name", BINARY_GRADIENTS)
def test_binary_functions_match_torch_with_gradients_under_broadcasting(name):
    y = normal(4, seed=1) + 3
    for dtype in (np.float64, np.float32):
        both(BINARY_GRADIENTS[name], X.astype(dtype), y.astype(dtype))
    both(BINARY_GRADIENTS[name], np.zeros((0, 4)), y)


def test_ties_share_the_gradient_as_in_torch():
    x, y = np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])
    both(lambda lib, x, y: lib.maximum(x, y), x, y)
    both(lambda lib, x, y: lib.minimum(x, y), x, y)
    both(lambda lib, x: lib.amax(x, 0), np.array([1.0, 3.0, 3.0]))
    both(lambda lib, x: lib.max(x), np.array([1.0, 3.0, 3.0]))
    both(lambda lib, x: tuple(lib.max(x, 0)), np.array([1.0, 3.0, 3.0]))
    both(lambda lib, x: lib.clamp(x, 1.0, 2.0), np.array([1.0, 2.0, 3.0]))


def test_zero_to_a_power_has_torch_gradients():
    both(lambda lib, x: x**2, np.zeros(2))
    both(lambda lib, x: x**0, np.zeros(2))
    both(lambda lib, x: x**2.5, np.zeros(2))
    both(lambda lib, x: x**1, np.zeros(2))


REDUCTIONS = {
    "sum": lambda lib, x, **k: lib.sum(x, **k),
    "mean": lambda lib, x, **k: lib.mean(x, **k),
    "var": lambda lib, x, **k: lib.var(x, **k),
    "std": lambda lib, x, **k: lib.std(x, **k),
    "var population": lambda lib, x, **k: lib.var(x, correction=0, **k),
    "amax": lambda lib, x, **k: lib.amax(x, **k),
    "amin": lambda lib, x, **k: lib.amin(x, **k),
    "norm": lambda lib, x, **k: x.norm(**k),
    "norm 1": lambda lib, x, **k: x.norm(p=1, **k),
    "norm 3": lambda lib, x, **k: x.norm(p=3, **k),
    "norm inf": lambda lib, x, **k: x.norm(INF, **k),
    "logsumexp": lambda lib, x, **k: lib.logsumexp(x, **{"dim": tuple(range(x.dim())), **k}),
}
DIMS = [
    {},
    {"dim": 0},
    {"dim": -1},
    {"dim": (0, 2)},
    {"dim": 1, "keepdim": True},
    {"dim": (-1, 0), "keepdim": True},
]


@pytest.mark.parametrize("options", DIMS, ids=str)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_match_torch_with_gradients(name, options):
    for dtype in (np.float64, np.float32):
        both(lambda lib, x: REDUCTIONS[name](lib, x, **options), normal(2, 3, 4).astype(dtype))


INDEX_REDUCTIONS = {
    "max": lambda lib, x, **k: tuple(lib.max(x, **k)),
    "min": lambda lib, x, **k: tuple(x.min(**k)),
    "argmax": lambda lib, x, **k: lib.argmax(x, **k),
    "argmin": lambda lib, x, **k: x.argmin(**k),
    "prod": lambda lib, x, **k: lib.prod(x, **k),
    "cumsum": lambda lib, x, **k: lib.cumsum(x, k["dim"]),
    "softmax": lambda lib, x, **k: lib.softmax(x, k["dim"]),
    "log_softmax": lambda lib, x, **k: x.log_softmax(k["dim"]),
    "sort": lambda lib, x, **k: tuple(lib.sort(x, k["dim"])),
    "sort descending": lambda lib, x, **k: tuple(x.sort(k["dim"], descending=True)),
    "argsort": lambda lib, x, **k: lib.argsort(x, k["dim"]),
    "topk": lambda lib, x, **k: tuple(lib.topk(x, 2, k["dim"])),
    "bottom": lambda lib, x, **k: tuple(x.topk(1, k["dim"], largest=False)),
}


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("name", INDEX_REDUCTIONS)
def test_reductions_along_one_dimension_match_torch(name, dim, keepdim):
    both(lambda lib, x: INDEX_REDUCTIONS[name](lib, x, dim=dim, keepdim=keepdim), normal(2, 3, 5))


WHOLE = {
    "sum": lambda lib, x: lib.sum(x),
    "max": lambda lib, x: lib.max(x),
    "min": lambda lib, x: x.min(),
    "argmax": lambda lib, x: lib.argmax(x),
    "argmin": lambda lib, x: x.argmin(),
    "all": lambda lib, x: lib.all(x),
    "any": lambda lib, x: x.any(),
    "prod": lambda lib, x: lib.prod(x),
    "all dim": lambda lib, x: lib.all(x, 0),
    "any dim": lambda lib, x: x.any(0, keepdim=True),
    "max dim": lambda lib, x: tuple(lib.max(x, 0)),
    "sum dim": lambda lib, x: x.sum(0),
    "argmax dim": lambda lib, x: lib.argmax(x, -1),
    "cumsum": lambda lib, x: x.cumsum(0),
    "count_nonzero": lambda lib, x: lib.count_nonzero(x),
    "amax": lambda lib, x: lib.amax(x, 0),
    "sort": lambda lib, x: lib.sort(x)[0],
    "nonzero": lambda lib, x: lib.nonzero(x),
    "nonzero tuple": lambda lib, x: x.nonzero(as_tuple=True),
    "mean": lambda lib, x: lib.mean(x),
}


@pytest.mark.parametrize("name", WHOLE)
def test_reductions_take_every_dtype_and_rank_as_torch(name):
    cases = [np.array([[0, 3, 2], [1, 0, 2]]), np.array(2), np.array([5]), np.zeros((0, 2))]
    for case, dtype in itertools.product(cases, DTYPES):
        x = case.astype(dtype)
        try:
            expected = WHOLE[name](torch, torch.tensor(x))
        except (RuntimeError, TypeError, IndexError):
            with pytest.raises((RuntimeError, TypeError, IndexError)):
                WHOLE[name](nf, nf.tensor(x))
            continue
        assert_same(WHOLE[name](nf, nf.tensor(x)), expected)


@pytest.mark.parametrize("name", ["max", "min", "amax", "argmax", "argmin", "sum", "mean", "var"])
def test_reductions_treat_nan_and_infinity_as_torch(name):
    for x in (np.array([1.0, NAN, 3.0]), np.array([INF, 1.0]), np.array([-INF, -INF])):
        both(lambda lib, x: getattr(lib, name)(x), x, backward=False)


def test_logsumexp_keeps_infinities():
    for x in ([-INF, -INF], [INF, 1.0], [1000.0, 1000.0], [-INF, 3.0]):
        both(lambda lib, x: lib.logsumexp(x, 0), np.array(x), backward=False)


def test_std_and_norm_have_zero_gradient_at_zero():
    for function in (lambda lib, x: x.std(0), lambda lib, x: x.norm()):
        both(function, np.zeros(3))


def test_variance_of_one_element_is_nan_as_in_torch():
    x = nf.tensor([1.0])
    assert math.isnan(x.var().item())
    assert x.var(correction=0).item() == 0.0
    assert math.isnan(nf.tensor(1.0).var().item())


PRODUCTS = [
    ((3,), (3,)),
    ((2, 3), (3,)),
    ((3,), (3, 4)),
    ((2, 3), (3, 4)),
    ((5, 2, 3), (3, 4)),
    ((5, 2, 3), (5, 3, 4)),
    ((5, 2, 3), (3,)),
    ((3,), (5, 3, 4)),
    ((1, 5, 2, 3), (4, 1, 3, 2)),
    ((0, 3), (3, 2)),
    ((2, 0), (0, 3)),
]


@pytest.mark.parametrize("left, right", PRODUCTS, ids=str)
def test_matmul_matches_torch_for_every_rank(left, right):
    both(lambda lib, x, y: x @ y, normal(*left), normal(*right, seed=1))


def test_products_match_torch():
    a, b = normal(2, 3), normal(3, 4, seed=1)
    both(lambda lib, x, y: lib.mm(x, y), a, b)
    both(lambda lib, x, y: lib.bmm(x, y), normal(5, 2, 3), normal(5, 3, 4, seed=1))
    both(lambda lib, x, y: lib.dot(x, y), a[0], a[1])
    both(lambda lib, x, y: lib.outer(x, y), a[0], b[0])
    both(lambda lib, x, y: lib.mv(x, y), a, b[:, 0])
    both(lambda lib, x, y: lib.addmm(x.sum(), x, y, alpha=2, beta=0.5), a, b)
    both(lambda lib, x, y: x @ y, np.arange(6).reshape(2, 3), np.arange(3))


SHAPES = {
    "reshape": lambda lib, x: lib.reshape(x, (4, -1)),
    "view": lambda lib, x: x.view(-1, 2),
    "view_as": lambda lib, x: x.view_as(x),
    "flatten": lambda lib, x: lib.flatten(x, 1),
    "flatten all": lambda lib, x: x.flatten(),
    "flatten middle": lambda lib, x: x.flatten(0, 1),
    "unflatten": lambda lib, x: x.unflatten(2, (2, -1)),
    "squeeze": lambda lib, x: x[:1].squeeze(),
    "squeeze dim": lambda lib, x: x[:, :1].squeeze(1),
    "squeeze kept": lambda lib, x: x.squeeze(0),
    "unsqueeze": lambda lib, x: lib.unsqueeze(x, -1),
    "unsqueeze 0": lambda lib, x: x.unsqueeze(0),
    "transpose": lambda lib, x: lib.transpose(x, 0, -1),
    "mT": lambda lib, x: x.mT,
    "T": lambda lib, x: x[0].T,
    "t": lambda lib, x: x[0].t(),
    "permute": lambda lib, x: x.permute(2, 0, 1),
    "permute tuple": lambda lib, x: x.permute((1, 0, -1)),
    "movedim": lambda lib, x: lib.movedim(x, 0, -1),
    "movedims": lambda lib, x: x.movedim((0, 1), (2, 0)),
    "expand": lambda lib, x: x[:, :1].expand(-1, 5, -1),
    "expand new": lambda lib, x: x.expand(2, *x.shape),
    "expand_as": lambda lib, x: x[:1].expand_as(x),
    "repeat": lambda lib, x: x.repeat(2, 1, 3, 1),
    "cat": lambda lib, x: lib.cat([x, x[:, :1], x], dim=1),
    "cat -1": lambda lib, x: lib.cat((x, x), -1),
    "stack": lambda lib, x: lib.stack([x, x * 2], 1),
    "stack -1": lambda lib, x: lib.stack((x, x), -1),
    "split": lambda lib, x: x.split(3, dim=2),
    "split list": lambda lib, x: lib.split(x, [1, 2, 1], 2),
    "chunk": lambda lib, x: lib.chunk(x, 3, dim=2),
    "unbind": lambda lib, x: x.unbind(1),
    "narrow": lambda lib, x: x.narrow(1, 1, 2),
    "select": lambda lib, x: x.select(2, -1),
    "tril": lambda lib, x: lib.tril(x),
    "triu": lambda lib, x: lib.triu(x, 1),
    "tril -1": lambda lib, x: x.tril(-1),
    "gather": lambda lib, x: x.gather(1, lib.tensor([[[0], [2]]])),
    "transposed view": lambda lib, x: x.transpose(0, 1).reshape(3, -1),
    "clone": lambda lib, x: x.clone(),
    "contiguous": lambda lib, x: x.mT.contiguous(),
    "cast": lambda lib, x: x.double().float(),
    "iter": lambda lib, x: [row for row in x],
}


@pytest.mark.parametrize("name", SHAPES)
def test_shape_functions_match_torch_with_gradients(name):
    both(SHAPES[name], normal(2, 3, 4))


def test_cat_promotes_and_skips_empty_vectors_as_torch():
    both(lambda lib, x, y: lib.cat([x, y]), np.array([1, 2]), np.array([1.5]))
    both(lambda lib, x, y: lib.cat([x, y]), normal(2, 3), np.zeros(0), backward=False)


ERRORS = {
    "dim": (lambda lib, x: x.sum(5), IndexError),
    "dim twice": (lambda lib, x: x.sum((0, 0)), RuntimeError),
    "view": (lambda lib, x: x.view(5, 5), RuntimeError),
    "view -1 twice": (lambda lib, x: x.view(-1, -1), RuntimeError),
    "view of transpose": (lambda lib, x: x.mT.view(-1), RuntimeError),
    "add": (lambda lib, x: x + lib.zeros(7), RuntimeError),
    "matmul": (lambda lib, x: x @ lib.zeros(7, 2), RuntimeError),
    "matmul dtype": (lambda lib, x: x @ lib.zeros(3, 2).double(), RuntimeError),
    "matmul 0d": (lambda lib, x: x @ lib.tensor(1.0), RuntimeError),
    "mm": (lambda lib, x: lib.mm(x, x[0]), RuntimeError),
    "mean of ints": (lambda lib, x: lib.arange(3).mean(), RuntimeError),
    "cat of nothing": (lambda lib, x: lib.cat([]), (RuntimeError, ValueError)),
    "cat sizes": (lambda lib, x: lib.cat([x, x[:, :1]]), RuntimeError),
    "stack": (lambda lib, x: lib.stack([x, x[:1]]), RuntimeError),
    "split": (lambda lib, x: x.split([1, 5]), RuntimeError),
    "expand": (lambda lib, x: x.expand(5, 5), RuntimeError),
    "permute": (lambda lib, x: x.permute(0, 0), RuntimeError),
    "transpose": (lambda lib, x: x.transpose(0, 3), IndexError),
    "unsqueeze": (lambda lib, x: x.unsqueeze(4), IndexError),
    "max of nothing": (lambda lib, x: lib.zeros(0).max(), RuntimeError),
    "amax of nothing": (lambda lib, x: lib.zeros(0, 2).amax(0), IndexError),
    "minus of bool": (lambda lib, x: (x > 0) - (x > 0), RuntimeError),
    "negative bool": (lambda lib, x: -(x > 0), RuntimeError),
    "int power": (lambda lib, x: lib.arange(3) ** -1, RuntimeError),
    "int division": (lambda lib, x: lib.arange(3) // 0, RuntimeError),
    "where": (lambda lib, x: lib.where(x, x, x), RuntimeError),
    "clamp": (lambda lib, x: x.clamp(), (RuntimeError, ValueError)),
    "topk": (lambda lib, x: x.topk(9), RuntimeError),
    "narrow": (lambda lib, x: x.narrow(0, 1, 9), RuntimeError),
    "rounding": (lambda lib, x: lib.div(x, x, rounding_mode="up"), RuntimeError),
    "softmax of ints": (lambda lib, x: lib.softmax(lib.arange(3), 0), RuntimeError),
    "gather index": (lambda lib, x: x.gather(0, lib.tensor([[9]])), (IndexError, RuntimeError)),
    "str": (lambda lib, x: x + "a", TypeError),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_have_torch_types(name):
    function, kind = ERRORS[name]
    with pytest.raises(kind):
        function(torch, torch.ones(2, 3))
    with pytest.raises(kind):
        function(nf, nf.ones(2, 3))


def test_errors_name_the_line_of_the_user():
    with pytest.raises(ValueError, match=r"cannot be broadcast.*test_functions\.py:\d+"):
        nf.ones(2, 3) + nf.ones(4)


def test_the_dim_error_has_torch_text():
    text = r"expected to be in range of \[-2, 1\], but got 5"
    with pytest.raises(IndexError, match=text):
        nf.ones(2, 3).sum(5)


def test_numpy_operands_take_part():
    x = nf.tensor([1.0, 2.0])
    assert isinstance(np.ones(2, np.float32) + x, Tensor)
    assert (x * np.float64(2.0)).dtype is x.dtype
    assert np.asarray(np.exp(x)).dtype == np.float32


def test_comparison_helpers_match_torch():
    a = nf.tensor([1.0, NAN])
    assert nf.equal(nf.ones(2), nf.ones(2)) and not nf.equal(nf.ones(2), nf.ones(3))
    assert not nf.allclose(a, a) and nf.allclose(a, a, equal_nan=True)
    assert nf.allclose(nf.ones(2), nf.ones(2) + 1e-6)


def test_bit_operations_match_torch():
    a, b = np.array([True, True, False]), np.array([True, False, False])
    for x, y in ((a, b), (np.array([5, 6, 7]), np.array([3, 3, 1]))):
        both(lambda lib, x, y: (x & y, x | y, x ^ y, ~x), x, y)
