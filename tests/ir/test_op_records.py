"""Tests generated from every operator record: no operator can be added without them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import netwright.ir.ops  # noqa: F401  (registers the records)
from netwright.errors import DTypeError, ShapeError
from netwright.ir.autodiff import input_gradients
from netwright.ir.builder import ArrayBuilder, GraphBuilder, substitute_batch
from netwright.ir.graph import Graph, Value
from netwright.ir.interpreter import evaluate
from netwright.ir.ops.record import GradContext, Op, Sample, all_ops, get, infer_types
from netwright.ir.types import Dim, Shape, TensorType, bool_, dtype_of

OPS = {name: op for name, op in sorted(all_ops().items()) if op.kind not in ("source", "region")}
SAMPLES = {name: list(op.samples(np.random.default_rng(7))) for name, op in OPS.items()}


def _cases(only: Any = lambda op, sample: True) -> list[Any]:
    return [
        pytest.param(name, index, id=f"{name}-{index}")
        for name, op in OPS.items()
        for index, sample in enumerate(SAMPLES[name])
        if only(op, sample)
    ]


def _has_gradient(op: Op, sample: Sample) -> bool:
    floats = any(a.dtype.kind == "f" and a.size for a in map(np.asarray, sample.arrays))
    return op.grad is not None and sample.differentiable and floats


every_sample = pytest.mark.parametrize(("name", "index"), _cases())
every_differentiable_sample = pytest.mark.parametrize(("name", "index"), _cases(_has_gradient))


def _arrays(sample: Sample, dtype: str = "float64") -> list[np.ndarray]:
    """The sample's arrays with floats rounded to float32 and held in ``dtype``.

    They are read-only, so that an operator that writes to its operands fails.
    """
    arrays = [np.array(a) for a in sample.arrays]
    arrays = [a.astype(np.float32).astype(dtype) if a.dtype.kind == "f" else a for a in arrays]
    for a in arrays:
        a.setflags(write=False)
    return arrays


def _run(op: Op, arrays: list[np.ndarray], attrs: dict[str, Any]) -> tuple[np.ndarray, ...]:
    result = op.numpy(*arrays, **attrs)
    return result if isinstance(result, tuple) else (result,)


def _types(arrays: list[np.ndarray]) -> list[TensorType]:
    return [TensorType(dtype_of(a.dtype), a.shape) for a in arrays]


@pytest.mark.parametrize("name", OPS)
def test_record_has_samples(name: str) -> None:
    assert SAMPLES[name], f"{name} has no samples, so nothing tests it"
    if OPS[name].kind == "elementwise":
        assert OPS[name].lower is not None


@pytest.mark.parametrize("name", [n for n, op in OPS.items() if op.grad is not None])
def test_gradient_rule_is_tested_unless_it_is_zero_everywhere(name: str) -> None:
    if not any(_has_gradient(OPS[name], s) for s in SAMPLES[name]):
        sample = SAMPLES[name][0]
        arrays = _arrays(sample)
        assert all(g is None for g in _gradients(OPS[name], arrays, sample.attrs, arrays[:1]))


@every_sample
def test_results_have_the_inferred_types_and_float32_is_close_to_float64(
    name: str, index: int
) -> None:
    op, sample = OPS[name], SAMPLES[name][index]
    results = []
    for dtype in ("float32", "float64"):
        arrays = _arrays(sample, dtype)
        results.append(_run(op, arrays, sample.attrs))
        assert all(isinstance(r, np.ndarray) for r in results[-1])
        assert tuple(_types(list(results[-1]))) == infer_types(name, _types(arrays), sample.attrs)
    for narrow, wide in zip(*results, strict=True):
        np.testing.assert_allclose(narrow, wide, rtol=op.rtol, atol=op.atol)


# -- gradients --------------------------------------------------------------------------------


def _gradients(
    op: Op, arrays: list[np.ndarray], attrs: dict[str, Any], output_grads: list[Any]
) -> list[Any]:
    outputs = _run(op, arrays, attrs)
    needs = tuple(a.dtype.kind == "f" for a in arrays)
    output_grads = output_grads + [None] * (len(outputs) - len(output_grads))
    ctx = GradContext(tuple(arrays), outputs, attrs, needs)
    return input_gradients(ArrayBuilder(), op, ctx, output_grads)


def _weights(shape: tuple[int, ...], dtype: Any = np.float64) -> np.ndarray:
    """The gradient of the first result; the others get none."""
    return np.random.default_rng(3).uniform(0.5, 1.5, shape).astype(dtype)


@every_differentiable_sample
def test_gradient_agrees_with_finite_differences(name: str, index: int) -> None:
    op, sample = OPS[name], SAMPLES[name][index]
    arrays = _arrays(sample)
    weights = _weights(_run(op, arrays, sample.attrs)[0].shape)
    grads = _gradients(op, arrays, sample.attrs, [weights])
    rng = np.random.default_rng(5)
    # An operand without gradient (a target, a statistic) stays fixed.
    direction = [
        np.zeros(()) if g is None else rng.standard_normal(a.shape)
        for g, a in zip(grads, arrays, strict=True)
    ]
    analytic = sum(
        float(np.sum(g * d)) for g, d in zip(grads, direction, strict=True) if g is not None
    )

    def loss(step: float) -> float:
        moved = [
            a if g is None else a + step * d
            for a, g, d in zip(arrays, grads, direction, strict=True)
        ]
        return float(np.sum(weights * _run(op, moved, sample.attrs)[0]))

    step = 1e-5
    numeric = (loss(step) - loss(-step)) / (2 * step)
    present = [g for g in grads if g is not None]
    assert present, f"{name} returned no gradient for a differentiable sample"
    if weights.size > 1:  # one element alone may lie on a flat part
        assert any(np.any(g != 0) for g in present), "every gradient is zero"
    assert analytic == pytest.approx(numeric, rel=2e-6, abs=2e-8)


@pytest.mark.parametrize("name", [n for n, op in OPS.items() if op.grad is not None])
def test_gradient_has_the_operands_type_in_float32(name: str) -> None:
    op = OPS[name]
    for index, sample in enumerate(SAMPLES[name]):
        if not _has_gradient(op, sample):
            continue
        arrays = _arrays(sample, "float32")
        output = _run(op, arrays, sample.attrs)[0]
        grads = _gradients(op, arrays, sample.attrs, [_weights(output.shape, output.dtype)])
        for g, a in zip(grads, arrays, strict=True):
            assert g is None or (g.dtype, g.shape) == (a.dtype, a.shape), f"sample {index}"


# -- the symbolic batch -----------------------------------------------------------------------


class _Symbolic:
    """A sample whose leading extent ``n`` was replaced by the symbolic batch N."""

    def __init__(self, n: int, types: list[TensorType], attrs: dict[str, Any]) -> None:
        self.n = n
        self.types = types
        self.attrs = attrs


def _leading(shape: Shape, n: int) -> Shape:
    if shape and isinstance(shape[0], int) and shape[0] and shape[0] % n == 0:
        return (Dim(shape[0] // n), *shape[1:])
    return shape


def _symbolic_attrs(attrs: dict[str, Any], n: int) -> dict[str, Any]:
    attrs = dict(attrs)
    if "shape" in attrs:
        attrs["shape"] = _leading(attrs["shape"], n)
    for key in ("stop", "size"):
        if attrs.get("dim") == 0 and attrs.get(key) == n:
            attrs[key] = Dim(1)
    return attrs


def _symbolic_forms(sample: Sample, arrays: list[np.ndarray]) -> Iterator[_Symbolic]:
    """Candidates: all operands with the leading extent, the first alone, attributes alone."""
    types = _types(arrays)
    leading = types[0].shape[:1] or sample.attrs.get("shape", ())[:1]
    if not leading or not isinstance(leading[0], int) or leading[0] < 2:
        return
    shape = sample.attrs.get("shape", ())
    extents = {leading[0], shape[0]} if shape and shape[0] > 1 else {leading[0]}
    for n in sorted(extents):
        attrs = _symbolic_attrs(sample.attrs, n)
        batched = [
            TensorType(t.dtype, _leading(t.shape, n)) if t.shape[:1] == (n,) else t for t in types
        ]
        candidates = [batched, [batched[0], *types[1:]]]
        if attrs != sample.attrs:
            candidates.append(types)
        yield from (_Symbolic(n, c, attrs) for c in candidates)


def _symbolic_form(name: str, sample: Sample, arrays: list[np.ndarray]) -> _Symbolic | None:
    """The first candidate that the shape rule accepts and that is symbolic at all."""
    for form in _symbolic_forms(sample, arrays):
        try:
            results = infer_types(name, form.types, form.attrs)
        except (ShapeError, DTypeError):
            continue
        if any(isinstance(d, Dim) for t in (*form.types, *results) for d in t.shape):
            return form
    return None


WITHOUT_BATCH = {"pack_conv", "pack_winograd", "pack_matrix"}  # they take weights only


@pytest.mark.parametrize("name", [name for name in OPS if name not in WITHOUT_BATCH])
def test_infer_accepts_a_symbolic_batch(name: str) -> None:
    """With N in place of the leading extent, the types at N = n are the concrete ones."""
    accepted = 0
    for sample in SAMPLES[name]:
        arrays = _arrays(sample)
        form = _symbolic_form(name, sample, arrays)
        if form is not None:
            accepted += 1
            symbolic = infer_types(name, form.types, form.attrs)
            concrete = infer_types(name, _types(arrays), sample.attrs)
            assert tuple(t.at(form.n) for t in symbolic) == concrete
    assert accepted, f"no sample of {name} can be inferred with a symbolic batch"


@every_differentiable_sample
def test_gradient_rule_builds_a_graph_with_a_symbolic_batch(name: str, index: int) -> None:
    """The rule on a graph's values gives the operands' types, and the same numbers."""
    op, sample = OPS[name], SAMPLES[name][index]
    arrays = _arrays(sample)
    form = _symbolic_form(name, sample, arrays)
    types, attrs, n = (
        (_types(arrays), sample.attrs, 1) if form is None else (form.types, form.attrs, form.n)
    )
    graph = Graph()
    operands = tuple(graph.add("input", path=f"x{i}", type=t) for i, t in enumerate(types))
    added = graph.add(name, *operands, **attrs)
    outputs = (added,) if isinstance(added, Value) else added
    seed = graph.add("input", path="g", type=graph.type(outputs[0]))
    needs = tuple(t.dtype.is_float for t in types)
    ctx = GradContext(operands, outputs, attrs, needs)
    seeds = [seed, *(None for _ in outputs[1:])]
    grads = input_gradients(GraphBuilder(graph), op, ctx, seeds)
    for i, (g, t) in enumerate(zip(grads, types, strict=True)):
        if g is not None:
            assert graph.type(g) == t
            graph.outputs[str(i)] = g

    weights = _weights(_run(op, arrays, sample.attrs)[0].shape)
    inputs = {f"x{i}": a for i, a in enumerate(arrays)}
    results = evaluate(graph, {**inputs, "g": weights}, n)
    expected = _gradients(op, arrays, substitute_batch_in(attrs, n), [weights])
    for i, g in enumerate(expected):
        assert (g is None) == (str(i) not in results)
        if g is not None:
            np.testing.assert_allclose(results[str(i)], g, rtol=1e-12, atol=1e-14)


def substitute_batch_in(attrs: dict[str, Any], n: int) -> dict[str, Any]:
    return {key: substitute_batch(value, n) for key, value in attrs.items()}


# -- operands of the wrong dtype --------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["add", "mul", "div", "pow", "maximum", "lt", "eq", "binary_cross_entropy"]
)
def test_binary_operators_refuse_two_dtypes(name: str) -> None:
    types = [TensorType(dtype_of(d), (3,)) for d in ("f32", "f64")]
    with pytest.raises(DTypeError, match="different dtypes; cast them"):
        infer_types(name, types, {})


@pytest.mark.parametrize("name", ["exp", "sqrt", "sigmoid", "gelu", "mean", "isnan"])
def test_float_operators_refuse_integers(name: str) -> None:
    attrs = {"dims": (0,), "keepdim": False} if name == "mean" else {}
    with pytest.raises(DTypeError, match="expected float32 or float64; cast it"):
        get(name).infer(TensorType(dtype_of("i64"), (3,)), **attrs)


@pytest.mark.parametrize("name", ["neg", "sum", "add"])
def test_arithmetic_refuses_bool(name: str) -> None:
    x = TensorType(bool_, (3,))
    attrs = {"dims": (0,), "keepdim": False} if name == "sum" else {}
    with pytest.raises(DTypeError, match="expected numbers; cast it"):
        get(name).infer(*((x, x) if name == "add" else (x,)), **attrs)
