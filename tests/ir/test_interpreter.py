"""The numpy interpreter, the specification of the IR."""

from collections.abc import Callable

import numpy as np
import pytest

from netwright.errors import NetwrightError, ShapeError
from netwright.ir.graph import Graph
from netwright.ir.interpreter import batch_size, evaluate, run_node
from netwright.ir.parser import parse

F32 = np.float32


def _x(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(F32)


def test_outputs_and_updates_are_returned_by_name() -> None:
    graph = parse(
        """graph g {
          %x: f32[N,2] = input {path="x"}
          %w: f32[3,2] = parameter {path="w"}
          %m: f32[3] = buffer {path="m"}
          %y: f32[N,3] = linear(%x, %w, %m)
          %s: f32[3] = sum(%y) {dims=(0,), keepdim=False}
          output "out" = %y
          output "same" = %x
          update "m" = %s
        }"""
    )
    values = {"x": _x(4, 2), "w": _x(3, 2), "m": _x(3)}
    results = evaluate(graph, values)
    expected = values["x"] @ values["w"].T + values["m"]
    assert list(results) == ["out", "same", "update:m"]
    np.testing.assert_allclose(results["out"], expected, rtol=1e-6)
    np.testing.assert_allclose(results["update:m"], expected.sum(0), rtol=1e-6)
    assert results["same"] is values["x"]


def test_results_of_a_node_are_told_apart() -> None:
    graph = parse(
        """graph g {
          %x: f32[2,8] = input {path="x"}
          %n: (f32[2,8], f32[2], f32[2]) = layer_norm(%x) {eps=0.0, ndim=1}
          output "mean" = %n#1
          output "rstd" = %n#2
        }"""
    )
    x = _x(2, 8)
    results = evaluate(graph, {"x": x})
    np.testing.assert_allclose(results["mean"], x.mean(1), atol=1e-6)
    np.testing.assert_allclose(results["rstd"], 1 / x.std(1), rtol=1e-5)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_symbolic_attributes_get_the_batch_size(n: int) -> None:
    graph = parse(
        """graph g {
          %x: f32[N,2,3] = input {path="x"}
          %y: f32[2N,3] = reshape(%x) {shape=(2N,3)}
          %z: f32[N,3] = slice(%y) {dim=0, start=N, stop=2N, step=1}
          %c: f32[] = extent {dtype="f32", size=6N}
          output "y" = %y
          output "z" = %z
          output "c" = %c
        }"""
    )
    x = _x(n, 2, 3)
    results = evaluate(graph, {"x": x})
    np.testing.assert_array_equal(results["y"], x.reshape(2 * n, 3))
    np.testing.assert_array_equal(results["z"], x.reshape(2 * n, 3)[n:])
    assert results["c"].shape == () and results["c"] == 6 * n and results["c"].dtype == F32


def test_the_batch_size_is_read_from_the_inputs() -> None:
    graph = parse(
        'graph g { %a: f32[3] = input {path="a"} %b: f32[7,2N] = input {path="b"} output "b" = %b }'
    )
    assert batch_size(graph, {"a": _x(3), "b": _x(7, 10)}) == 5
    assert batch_size(graph, {"a": _x(3)}) == 1
    assert batch_size(Graph("empty"), {}) == 1


def test_the_batch_size_may_be_given() -> None:
    graph = parse('graph g { %c: i64[] = extent {dtype="i64", size=3N} output "c" = %c }')
    assert evaluate(graph, {}, n=4)["c"] == 12


def test_a_region_means_its_body() -> None:
    graph = parse(
        """graph g {
          %x: f32[N,4] = input {path="x"}
          %y: f32[4] = input {path="y"}
          %f: (f32[N,4], f32[N,4]) = fused(%y, %x) {kind="elementwise", body=graph elementwise {
            %b: f32[N,4] = input {path="1"}
            %a: f32[4] = input {path="0"}
            %n: f32[] = extent {dtype="f32", size=N}
            %s: f32[N,4] = sub(%a, %b)
            %d: f32[N,4] = div(%s, %n)
            output "0" = %s
            output "1" = %d
          }}
          output "difference" = %f
          output "scaled" = %f#1
        }"""
    )
    x, y = _x(2, 4), _x(4)
    results = evaluate(graph, {"x": x, "y": y})
    np.testing.assert_array_equal(results["difference"], y - x)
    np.testing.assert_array_equal(results["scaled"], (y - x) / F32(2))


def test_a_region_knows_the_batch_size_that_none_of_its_operands_shows() -> None:
    graph = parse(
        """graph g {
          %x: f32[N,4] = input {path="x"}
          %s: f32[4] = sum(%x) {dims=(0,), keepdim=False}
          %m: f32[4] = fused(%s) {kind="elementwise", body=graph elementwise {
            %a: f32[4] = input {path="0"}
            %n: f32[] = extent {dtype="f32", size=N}
            %d: f32[4] = div(%a, %n)
            output "0" = %d
          }}
          output "mean" = %m
        }"""
    )
    x = _x(6, 4)
    np.testing.assert_allclose(evaluate(graph, {"x": x})["mean"], x.mean(0), rtol=1e-5)


def test_a_missing_value_is_an_error_with_its_path() -> None:
    graph = parse('graph g { %w: f32[2] = parameter {path="head.weight"} output "w" = %w }')
    with pytest.raises(NetwrightError, match=r"no value for parameter 'head\.weight'"):
        evaluate(graph, {})


@pytest.mark.parametrize("value", [_x(3, 5), _x(3), _x(3, 4).astype(np.float64)])
def test_a_value_of_another_type_is_an_error_with_both(value: np.ndarray) -> None:
    graph = parse('graph g { %x: f32[N,4] = input {path="x"} output "x" = %x }')
    with pytest.raises(ShapeError, match=r"input 'x' is float.*the graph expects f32\[3,4\]"):
        evaluate(graph, {"x": value})


def test_one_node_runs_on_given_operands() -> None:
    graph = parse(
        'graph g { %x: f32[N,4] = input {path="x"} %y: f32[4N] = reshape(%x) {shape=(4N,)} }'
    )
    (result,) = run_node(graph.node("y"), [_x(2, 4)], 2)
    assert result.shape == (8,)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("n", [1, 4])
def test_results_have_the_types_that_the_graph_promises(
    random_graph: Callable[..., Graph], graph_values: Callable[..., dict], seed: int, n: int
) -> None:
    graph = random_graph(seed, regions=True)
    graph.outputs = {str(v): v for node in graph.nodes for v in node.values}
    results = evaluate(graph, graph_values(graph, n, seed))
    for name, value in graph.outputs.items():
        kind = graph.type(value).at(n)
        assert results[name].shape == kind.shape and results[name].dtype == kind.dtype.np, name


def test_evaluation_does_not_change_its_inputs(
    random_graph: Callable[..., Graph], graph_values: Callable[..., dict]
) -> None:
    for seed in range(10):
        graph = random_graph(seed)
        values = graph_values(graph)
        before = {k: v.copy() for k, v in values.items()}
        evaluate(graph, values)
        assert all(np.array_equal(values[k], before[k]) for k in before)
