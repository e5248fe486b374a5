"""Convolution and pooling against PyTorch in both layouts, and the texts of their errors."""

import itertools

import numpy as np
import pytest

from netwright.errors import DTypeError, ShapeError
from netwright.ir.ops import convolution
from netwright.ir.ops.record import get, infer_types
from netwright.ir.ops.spatial import from_nchw, pool_extent, to_nchw
from netwright.ir.types import Dim, TensorType, float32, float64, int64

N = Dim(1)
TOLERANCE = {np.float32: 3e-5, np.float64: 1e-11}
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
both_layouts = pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
NO_PADDING = ((0, 0), (0, 0))


def close(actual, expected, dtype):
    assert actual.dtype == dtype
    expected = expected.detach().numpy() if hasattr(expected, "detach") else expected
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def torch_padding(padding):
    """Padding in the order of torch.nn.functional.pad."""
    (top, bottom), (left, right) = padding
    return (left, right, top, bottom)


# -- convolution ----------------------------------------------------------------------------------

CONVOLUTIONS = {
    # (n, c, h, w), (o, kh, kw), stride, padding, dilation, groups
    "lenet": ((2, 1, 28, 28), (6, 5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1), 1),
    "resnet_stem": ((1, 3, 17, 19), (8, 7, 7), (2, 2), ((3, 3), (3, 3)), (1, 1), 1),
    "pointwise": ((3, 5, 7, 9), (4, 1, 1), (1, 1), NO_PADDING, (1, 1), 1),
    "pointwise_grouped": ((2, 6, 5, 5), (4, 1, 1), (1, 1), NO_PADDING, (1, 1), 2),
    "pointwise_strided": ((2, 5, 7, 9), (4, 1, 1), (2, 3), NO_PADDING, (1, 1), 1),
    "pointwise_padded": ((2, 5, 3, 3), (4, 1, 1), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    "depthwise": ((2, 5, 9, 8), (5, 3, 3), (2, 1), ((1, 1), (1, 1)), (1, 1), 5),
    "depth_multiplier": ((2, 3, 6, 7), (6, 3, 2), (1, 1), ((0, 1), (1, 0)), (1, 1), 3),
    "grouped_dilated": ((2, 6, 11, 10), (9, 3, 3), (1, 2), ((2, 2), (3, 3)), (2, 3), 3),
    "asymmetric": ((2, 3, 6, 5), (4, 2, 4), (3, 2), ((0, 2), (3, 1)), (1, 1), 1),
    "whole_image": ((4, 3, 5, 6), (7, 5, 6), (1, 1), NO_PADDING, (1, 1), 1),
    "stride_skips_the_end": ((1, 2, 8, 8), (3, 2, 2), (3, 3), NO_PADDING, (1, 1), 1),
    "one_element": ((1, 1, 1, 1), (1, 1, 1), (1, 1), NO_PADDING, (1, 1), 1),
    "mostly_padding": ((1, 2, 1, 1), (3, 3, 3), (1, 1), ((2, 2), (2, 2)), (1, 1), 1),
    "empty_batch": ((0, 2, 5, 5), (3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
}


def conv_arrays(case, dtype, seed=0):
    shape, (o, *kernel), stride, padding, dilation, groups = CONVOLUTIONS[case]
    rng = np.random.default_rng(seed)
    arrays = (
        rng.normal(size=shape),
        rng.normal(size=(o, shape[1] // groups, *kernel)) / np.sqrt(np.prod(kernel) * shape[1]),
        rng.normal(size=o),
    )
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return tuple(a.astype(dtype) for a in arrays), attrs


def torch_conv2d(torch, x, w, b, *, stride, padding, dilation, groups):
    padded = torch.nn.functional.pad(x, torch_padding(padding))
    return torch.nn.functional.conv2d(padded, w, b, stride, 0, dilation, groups)


@both_layouts
@both_dtypes
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_conv2d_equals_torch(differentiate, case, dtype, layout):
    torch = pytest.importorskip("torch")
    (x, w, b), attrs = conv_arrays(case, dtype)
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, w, b)]
    y = torch_conv2d(torch, *leaves, **attrs)
    g = np.random.default_rng(1).normal(size=y.shape).astype(dtype)
    y.backward(torch.tensor(g))

    arrays = [from_nchw(x, layout), w, b]
    outputs, (dx, dw, db) = differentiate(
        "conv2d", arrays, from_nchw(g, layout), layout=layout, **attrs
    )
    close(to_nchw(outputs[0], layout), y, dtype)
    close(to_nchw(dx, layout), leaves[0].grad, dtype)
    close(dw, leaves[1].grad, dtype)
    close(db, leaves[2].grad, dtype)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_conv2d_has_second_derivatives(differentiate, case):
    # <g, conv(x, w)> is linear in g, x and w: the gradient operators are each other's.
    (x, w, _), attrs = conv_arrays(case, np.float64)
    attrs["layout"] = "NCHW"
    rng = np.random.default_rng(2)
    y = get("conv2d").numpy(x, w, **attrs)
    g, u, v = rng.normal(size=y.shape), rng.normal(size=x.shape), rng.normal(size=w.shape)
    _, (dg, dw) = differentiate("conv2d_grad_input", [g, w], u, size=x.shape[2:], **attrs)
    np.testing.assert_allclose(dg, get("conv2d").numpy(u, w, **attrs), rtol=1e-10)
    expected = get("conv2d_grad_weight").numpy(g, u, kernel_size=w.shape[2:], **attrs)
    np.testing.assert_allclose(dw, expected, rtol=1e-10)
    _, (dg, dx) = differentiate("conv2d_grad_weight", [g, x], v, kernel_size=w.shape[2:], **attrs)
    np.testing.assert_allclose(dg, get("conv2d").numpy(x, v, **attrs), rtol=1e-10)
    expected = get("conv2d_grad_input").numpy(g, v, size=x.shape[2:], **attrs)
    np.testing.assert_allclose(dx, expected, rtol=1e-10)


@pytest.mark.parametrize("case", ["lenet", "grouped_dilated", "depthwise", "pointwise_strided"])
def test_splitting_the_batch_changes_nothing_but_rounding(monkeypatch, differentiate, case):
    (x, w, b), attrs = conv_arrays(case, np.float64)
    x = np.concatenate([x, x[::-1] * 2, x + 1])
    whole = differentiate("conv2d", [x, w, b], layout="NCHW", **attrs)
    monkeypatch.setattr(convolution, "_UNFOLDED_ELEMENTS", 1)
    split = differentiate("conv2d", [x, w, b], layout="NCHW", **attrs)
    np.testing.assert_allclose(split.outputs[0], whole.outputs[0], rtol=1e-12, atol=1e-12)
    for a, e in zip(split.grads, whole.grads, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-10)


def test_nan_and_infinity_stay_in_the_windows_that_see_them():
    x = np.zeros((1, 1, 6, 6), np.float32)
    x[0, 0, 0, 0], x[0, 0, 5, 5] = np.nan, np.inf
    w = np.ones((1, 1, 3, 3), np.float32)
    attrs = {"stride": (1, 1), "padding": NO_PADDING, "dilation": (1, 1), "groups": 1}
    y = get("conv2d").numpy(x, w, layout="NCHW", **attrs)[0, 0]
    assert np.isnan(y[0, 0]) and y[3, 3] == np.inf
    assert np.isfinite(y).sum() == y.size - 2


# -- pooling --------------------------------------------------------------------------------------

POOLS = {
    # (n, c, h, w), kernel, stride, padding, ceil_mode
    "halve": ((2, 3, 8, 6), (2, 2), (2, 2), (0, 0), False),
    "resnet_stem": ((2, 3, 15, 14), (3, 3), (2, 2), (1, 1), False),
    "overlap": ((1, 2, 7, 9), (3, 4), (1, 2), (1, 2), False),
    "ceil": ((2, 2, 6, 7), (3, 3), (2, 2), (0, 0), True),
    "ceil_padded": ((2, 1, 5, 8), (3, 2), (2, 3), (1, 1), True),
    "ceil_window_in_right_padding": ((1, 1, 4, 4), (2, 2), (3, 3), (1, 1), True),
    "gaps": ((1, 2, 9, 9), (2, 2), (4, 3), (0, 0), False),
    "global": ((3, 4, 7, 7), (7, 7), (7, 7), (0, 0), False),
    "one_element": ((1, 1, 1, 1), (1, 1), (1, 1), (0, 0), False),
    "empty_batch": ((0, 2, 4, 4), (2, 2), (2, 2), (0, 0), False),
}


def pool_case(case, dtype):
    shape, kernel_size, stride, pads, ceil_mode = POOLS[case]
    x = np.random.default_rng(0).permutation(int(np.prod(shape))).reshape(shape)
    attrs = {"kernel_size": kernel_size, "stride": stride, "ceil_mode": ceil_mode}
    return (x * 0.25 - 5).astype(dtype), pads, attrs


def check_pool(op, torch_pool, differentiate, x, layout, attrs, torch):
    leaf = torch.tensor(x, requires_grad=True)
    y = torch_pool(leaf)
    g = np.random.default_rng(1).normal(size=y.shape).astype(x.dtype)
    y.backward(torch.tensor(g))
    outputs, (dx,) = differentiate(
        op, [from_nchw(x, layout)], from_nchw(g, layout), layout=layout, **attrs
    )
    close(to_nchw(outputs[0], layout), y, x.dtype.type)
    close(to_nchw(dx, layout), leaf.grad, x.dtype.type)


def both_sides(pads):
    return tuple((p, p) for p in pads)


@both_layouts
@both_dtypes
@pytest.mark.parametrize("case", POOLS)
def test_max_pool2d_equals_torch(differentiate, case, dtype, layout):
    torch = pytest.importorskip("torch")
    x, pads, attrs = pool_case(case, dtype)
    check_pool(
        "max_pool2d",
        lambda t: torch.nn.functional.max_pool2d(t, padding=pads, **attrs),
        differentiate,
        x,
        layout,
        {**attrs, "padding": both_sides(pads), "dilation": (1, 1)},
        torch,
    )


@pytest.mark.parametrize("ceil_mode", [True, False])
def test_dilated_max_pool2d_equals_torch(differentiate, ceil_mode):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, 3, 10, 11))
    attrs = {"kernel_size": (4, 2), "stride": (2, 3), "dilation": (2, 3), "ceil_mode": ceil_mode}
    check_pool(
        "max_pool2d",
        lambda t: torch.nn.functional.max_pool2d(t, padding=(2, 1), **attrs),
        differentiate,
        x,
        "NCHW",
        {**attrs, "padding": ((2, 2), (1, 1))},
        torch,
    )


@both_layouts
@both_dtypes
@pytest.mark.parametrize(
    ("count_include_pad", "divisor_override"), [(True, None), (False, None), (True, 3)]
)
@pytest.mark.parametrize("case", POOLS)
def test_avg_pool2d_equals_torch(
    differentiate, case, count_include_pad, divisor_override, dtype, layout
):
    torch = pytest.importorskip("torch")
    x, pads, attrs = pool_case(case, dtype)
    attrs |= {"count_include_pad": count_include_pad, "divisor_override": divisor_override}
    check_pool(
        "avg_pool2d",
        lambda t: torch.nn.functional.avg_pool2d(t, padding=pads, **attrs),
        differentiate,
        x / 50,
        layout,
        {**attrs, "padding": both_sides(pads)},
        torch,
    )


@both_layouts
@both_dtypes
@pytest.mark.parametrize(
    ("shape", "output_size"),
    [
        ((2, 3, 6, 8), (1, 1)),
        ((2, 3, 6, 8), (3, 4)),
        ((1, 2, 7, 10), (3, 4)),
        ((2, 1, 3, 2), (5, 7)),
        ((0, 2, 5, 5), (2, 2)),
        ((1, 1, 1, 1), (1, 1)),
    ],
)
def test_adaptive_avg_pool2d_equals_torch(differentiate, shape, output_size, dtype, layout):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    check_pool(
        "adaptive_avg_pool2d",
        lambda t: torch.nn.functional.adaptive_avg_pool2d(t, output_size),
        differentiate,
        x,
        layout,
        {"output_size": output_size},
        torch,
    )


MAX_POOL = {
    "kernel_size": (2, 2),
    "stride": (2, 2),
    "padding": NO_PADDING,
    "dilation": (1, 1),
    "ceil_mode": False,
    "layout": "NCHW",
}


def test_max_pool2d_gradient_goes_to_the_first_of_equal_maxima(differentiate):
    _, (dx,) = differentiate("max_pool2d", [np.zeros((1, 1, 4, 4))], **MAX_POOL)
    assert np.array_equal(np.argwhere(dx[0, 0]), [[0, 0], [0, 2], [2, 0], [2, 2]])


def test_nan_is_a_maximum_and_gets_the_gradient(differentiate):
    x = np.array([[[[1.0, np.nan], [5.0, 2.0]]]], np.float32)
    outputs, (dx,) = differentiate("max_pool2d", [x], **MAX_POOL)
    assert np.isnan(outputs[0]).all()
    assert np.array_equal(dx[0, 0], [[0, 1], [0, 0]])


def test_padding_never_wins_against_minus_infinity(differentiate):
    attrs = {**MAX_POOL, "padding": ((1, 1), (1, 1))}
    outputs, (dx,) = differentiate("max_pool2d", [np.full((1, 1, 3, 3), -np.inf)], **attrs)
    assert np.array_equal(outputs[0], np.full((1, 1, 2, 2), -np.inf))
    assert np.array_equal(dx[0, 0], [[1, 1, 0], [1, 1, 0], [0, 0, 0]])  # as PyTorch


def test_max_pool2d_takes_integers():
    x = np.arange(-16, 0).reshape(1, 1, 4, 4)
    y = get("max_pool2d").numpy(x, **MAX_POOL)
    assert y.dtype == np.int64 and np.array_equal(y[0, 0], [[-11, -9], [-3, -1]])


def test_asymmetric_average_padding_counts_each_side():
    x = np.ones((1, 1, 4, 4))
    y = get("avg_pool2d").numpy(
        x,
        kernel_size=(2, 2),
        stride=(2, 2),
        padding=((1, 1), (0, 0)),
        ceil_mode=False,
        count_include_pad=True,
        divisor_override=None,
        layout="NCHW",
    )
    assert np.array_equal(y[0, 0], [[0.5, 0.5], [1, 1], [0.5, 0.5]])


def test_the_last_window_starts_inside_the_input_or_its_left_padding():
    # Size 4, kernel 2, stride 3: windows start at -1 and 2; a third would start at 5.
    assert pool_extent(4, 2, 3, (1, 1), 1, True) == 2
    cases = itertools.product(range(1, 9), range(1, 5), range(1, 5), (0, 1))
    for size, kernel, stride, pad in cases:
        if 2 * pad <= kernel <= size + 2 * pad:
            count = pool_extent(size, kernel, stride, (pad, pad), 1, True)
            assert (count - 1) * stride < size + pad


# -- shape rules ----------------------------------------------------------------------------------

CONV = {
    "stride": (2, 2),
    "padding": ((1, 1), (1, 1)),
    "dilation": (1, 1),
    "groups": 1,
    "layout": "NCHW",
}
AVG_POOL = {
    "kernel_size": (2, 2),
    "stride": (2, 2),
    "padding": NO_PADDING,
    "ceil_mode": False,
    "count_include_pad": True,
    "divisor_override": None,
    "layout": "NCHW",
}


def types(*shapes):
    return [TensorType(float32, s) for s in shapes]


def test_the_symbolic_batch_passes_through():
    x, w, y = types((N, 3, 32, 32), (16, 3, 3, 3), (N, 16, 16, 16))
    assert infer_types("conv2d", [x, w], CONV) == (y,)
    assert infer_types("conv2d_grad_input", [y, w], {**CONV, "size": (32, 32)}) == (x,)
    assert infer_types("conv2d_grad_weight", [y, x], {**CONV, "kernel_size": (3, 3)}) == (w,)
    pooled = types((N, 3, 16, 16))
    assert infer_types("max_pool2d", [x], MAX_POOL) == tuple(pooled)
    assert infer_types("max_pool2d_grad", [*pooled, x], MAX_POOL) == (x,)
    assert infer_types("avg_pool2d", [x], AVG_POOL) == tuple(pooled)
    assert infer_types("avg_pool2d_grad", pooled, {**AVG_POOL, "size": (32, 32)}) == (x,)
    adaptive = {"output_size": (16, 16), "layout": "NCHW"}
    assert infer_types("adaptive_avg_pool2d", [x], adaptive) == tuple(pooled)
    adaptive["size"] = (32, 32)
    assert infer_types("adaptive_avg_pool2d_grad", pooled, adaptive) == (x,)


def test_channels_last_has_the_weight_in_the_same_order():
    x, w = types((N, 32, 32, 3), (16, 3, 3, 3))
    y = infer_types("conv2d", [x, w], {**CONV, "layout": "NHWC"})
    assert y == tuple(types((N, 16, 16, 16)))


@pytest.mark.parametrize(
    ("op", "shapes", "attrs", "text"),
    [
        (
            "conv2d",
            [(N, 1, 28, 28), (16, 3, 5, 5)],
            CONV,
            r"groups=1, weight of size \[16,3,5,5\], expected the input to have 3 channels, "
            "but got 1 channels instead",
        ),
        (
            "conv2d",
            [(N, 3, 2, 2), (16, 3, 5, 5)],
            CONV,
            r"padded input size per channel: \(4 x 4\). Kernel size: \(5 x 5\)",
        ),
        (
            "conv2d",
            [(N, 4, 8, 8), (3, 2, 3, 3)],
            {**CONV, "groups": 2},
            "expected weight to be divisible by 2 at dimension 0",
        ),
        ("conv2d", [(3, 28, 28), (16, 3, 5, 5)], CONV, "4-dimensional NCHW.*unsqueeze"),
        ("conv2d", [(2, 3, N, 28), (16, 3, 5, 5)], CONV, "the height is N.*first dimension"),
        ("conv2d", [(2, 3, 8, 8), (4, 3, 3, 3), (3,)], CONV, r"bias has shape \[3\], exp.* \[4\]"),
        ("conv2d", [(2, 3, 8, 8), (4, 3, 3)], CONV, "expected 4 dimensions"),
        ("conv2d", [(2, 3, 8, 8), (4, 3, 3, 3)], {**CONV, "stride": (0, 1)}, "stride should be"),
        (
            "conv2d",
            [(2, 3, 8, 8), (4, 3, 3, 3)],
            {**CONV, "padding": ((-1, 0), (0, 0))},
            "negative padding",
        ),
        ("conv2d", [(2, 3, 8, 8), (4, 3, 3, 3)], {**CONV, "layout": "CHWN"}, "unknown layout"),
        (
            "conv2d_grad_input",
            [(2, 4, 9, 9), (4, 3, 3, 3)],
            {**CONV, "size": (8, 8)},
            r"the gradient has shape \[2,4,9,9\], expected \[2,4,4,4\]",
        ),
        (
            "max_pool2d",
            [(2, 3, 8, 8)],
            {**MAX_POOL, "padding": ((2, 2), (0, 0))},
            "pad should be at most half of effective kernel size, but got pad=2, kernel_size=2",
        ),
        (
            "max_pool2d",
            [(2, 3, 1, 8)],
            MAX_POOL,
            r"input size: \(3x1x8\). Calculated output size: \(3x0x4\). Output size is too small",
        ),
        ("avg_pool2d", [(2, 3, 8, 8)], {**AVG_POOL, "divisor_override": 0}, "must not be zero"),
        (
            "adaptive_avg_pool2d",
            [(2, 3, 8, 8)],
            {"output_size": (0, 1), "layout": "NCHW"},
            "must have positive heights and widths",
        ),
    ],
)
def test_wrong_shapes_are_named(op, shapes, attrs, text):
    with pytest.raises(ShapeError, match=text):
        infer_types(op, types(*shapes), attrs)


def test_wrong_dtypes_are_named():
    x = TensorType(float64, (2, 3, 8, 8))
    with pytest.raises(DTypeError, match="input is float64, weight is float32"):
        infer_types("conv2d", [x, *types((4, 3, 3, 3))], CONV)
    with pytest.raises(DTypeError, match="expected float32 or float64"):
        infer_types("avg_pool2d", [TensorType(int64, (2, 3, 8, 8))], AVG_POOL)
