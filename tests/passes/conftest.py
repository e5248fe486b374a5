"""Fixtures of the pass tests: a short way to write graphs, values for them, comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from netwright.ir.graph import Graph, Source, Value
from netwright.ir.interpreter import evaluate, run_node
from netwright.ir.plan import Location, Plan
from netwright.ir.text import parse
from netwright.ir.types import Dim, DType, TensorType, float32, float64, int64, numel
from netwright.ir.verify import verify
from netwright.passes.differentiate import differentiate
from netwright.passes.parts import Accepts
from netwright.passes.plan_memory import plan_memory


class Net:
    """Writes a graph like a traced model: every call is a module of its own on its own line."""

    def __init__(self, dtype: DType = float32, name: str = "net") -> None:
        self.graph = Graph(name)
        self.dtype = dtype
        self._line = 0

    def source(self, module: str) -> Source:
        self._line += 1
        return Source(module or f"layer{self._line}", "model.py", self._line)

    def input(self, path: str, *shape: int | Dim, dtype: DType | None = None) -> Value:
        kind = TensorType(dtype or self.dtype, shape)
        return self.graph.add("input", name=path, path=path, type=kind)

    def labels(self, path: str = "target", *shape: int | Dim) -> Value:
        return self.input(path, *(shape or (Dim(1),)), dtype=int64)

    def parameter(self, path: str, *shape: int) -> Value:
        kind = TensorType(self.dtype, shape)
        return self.graph.add("parameter", name=path, path=path, type=kind)

    def buffer(self, path: str, *shape: int) -> Value:
        kind = TensorType(self.dtype, shape)
        return self.graph.add("buffer", name=path, path=path, type=kind)

    def constant(self, value: Any, dtype: DType | None = None) -> Value:
        return self.graph.add("constant", value=np.asarray(value, (dtype or self.dtype).np))

    def op(self, op: str, *operands: Value, module: str = "", **attrs: Any) -> Any:
        return self.graph.add(op, *operands, source=self.source(module), **attrs)

    def linear(self, x: Value, features: int, module: str, bias: bool = True) -> Value:
        inner = self.graph.type(x).shape[-1]
        state = [self.parameter(f"{module}_weight", features, inner)]
        state += [self.parameter(f"{module}_bias", features)] if bias else []
        return self.op("linear", x, *state, module=module)

    def conv(
        self, x: Value, out: int, module: str, kernel: int = 3, bias: bool = True, **attrs: Any
    ) -> Value:
        layout = attrs.setdefault("layout", "NCHW")
        groups = attrs.setdefault("groups", 1)
        channels = self.graph.type(x).shape[1 if layout == "NCHW" else 3]
        state = [self.parameter(f"{module}_weight", out, channels // groups, kernel, kernel)]
        state += [self.parameter(f"{module}_bias", out)] if bias else []
        p = kernel // 2
        defaults = {"stride": (1, 1), "padding": ((p, p), (p, p)), "dilation": (1, 1)}
        return self.op("conv2d", x, *state, module=module, **{**defaults, **attrs})

    def batch_norm(self, x: Value, module: str, dim: int = 1, train: bool = False) -> Value:
        c = self.graph.type(x).shape[dim]
        affine = [self.parameter(f"{module}_{n}", c) for n in ("weight", "bias")]
        if train:
            y, *statistics = self.op(
                "batch_norm_train", x, *affine, module=module, eps=1e-5, channel_dim=dim
            )
            for name, value in zip(("mean", "var"), statistics[:2], strict=True):
                old = self.buffer(f"{module}_running_{name}", c)
                kept = self.op("mul", old, self.constant(0.9))
                new = self.op("add", kept, self.op("mul", value, self.constant(0.1)))
                self.graph.updates[f"{module}_running_{name}"] = new
            return y
        running = [self.buffer(f"{module}_running_{n}", c) for n in ("mean", "var")]
        return self.op("batch_norm", x, *affine, *running, module=module, eps=1e-5, channel_dim=dim)

    def max_pool(self, x: Value, size: int = 2) -> Value:
        pair, none = (size, size), ((0, 0), (0, 0))
        return self.op(
            "max_pool2d", x, kernel_size=pair, stride=pair, padding=none, dilation=(1, 1),
            ceil_mode=False, layout="NCHW",
        )  # fmt: skip

    def flatten(self, x: Value) -> Value:
        n, *rest = self.graph.type(x).shape
        return self.op("reshape", x, shape=(n, int(np.prod(rest))))

    def cross_entropy(self, logits: Value, target: Value, module: str = "loss") -> Value:
        return self.op(
            "cross_entropy", logits, target, module=module, reduction="mean", ignore_index=-100,
            label_smoothing=0.0,
        )  # fmt: skip

    def done(self, **outputs: Value) -> Graph:
        self.graph.outputs.update(outputs)
        return self.graph


@pytest.fixture
def new_net() -> Callable[..., Net]:
    """``new_net(dtype=float32)``: an empty Net."""
    return Net


def _values(graph: Graph, n: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    found = {}
    for node in graph.nodes:
        if node.op not in ("input", "parameter", "buffer"):
            continue
        kind = node.type.at(n)
        path = node.attrs["path"]
        if node.type.dtype.is_int:
            found[path] = rng.integers(0, 4, kind.shape)
        elif path.endswith("var"):
            found[path] = rng.uniform(0.5, 2.0, kind.shape)
        elif node.type.dtype.is_float:
            found[path] = rng.normal(size=kind.shape)
        else:
            found[path] = rng.random(kind.shape) < 0.5
        found[path] = np.asarray(found[path], node.type.dtype.np)
    return found


@pytest.fixture
def values_of() -> Callable[..., dict[str, np.ndarray]]:
    """``values_of(graph, n=3, seed=0)``: normal numbers, positive variances, labels 0 to 3."""
    return _values


def _assert_same(before: Graph, after: Graph, rtol: float = 1e-5, n: int = 3) -> None:
    verify(after)
    assert parse(str(after)) == after
    values = _values(before, n)
    old, new = evaluate(before, values, n), evaluate(after, values, n)
    assert list(old) == list(new)
    for name in old:
        scale = max(1.0, float(np.abs(old[name]).max(initial=0.0)))
        np.testing.assert_allclose(new[name], old[name], rtol=rtol, atol=rtol * scale, err_msg=name)


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """``assert_same(before, after, rtol=1e-5, n=3)``: ``after`` is valid, its text round-trips, and
    both graphs compute the same."""
    return _assert_same


def _mlp(net: Net) -> Value:
    x = net.op("relu", net.linear(net.flatten(net.input("x", Dim(1), 1, 4, 4)), 8, "fc1"))
    x = net.op("gelu", net.batch_norm(net.linear(x, 8, "fc2"), "bn"), approximate="none")
    return net.op("softmax", net.linear(x, 4, "fc3"), dim=1)


def _residual(net: Net, train: bool = False) -> Value:
    x = net.conv(net.input("x", Dim(1), 3, 8, 8), 4, "conv1")
    x = net.max_pool(net.op("relu", net.batch_norm(x, "bn1", train=train)))
    y = net.op("relu", net.batch_norm(net.conv(x, 4, "conv2"), "bn2", train=train))
    x = net.op("relu", net.op("add", net.conv(y, 4, "conv3", bias=False), x))
    return net.linear(net.flatten(x), 4, "fc")


def _words(net: Net) -> Value:
    idx = net.input("idx", Dim(1), 5, dtype=int64)
    x = net.op("embedding", idx, net.parameter("table", 6, 4), padding_idx=0)
    norm = [net.parameter("norm_weight", 4), net.parameter("norm_bias", 4)]
    x, _, _ = net.op("layer_norm", x, *norm, ndim=1, eps=1e-5)
    keep = net.op("uniform", net.input("rng", 2, dtype=int64), shape=(Dim(1), 5, 4), stream=0)
    mask = net.op("ge", keep, net.constant(0.5, dtype=float32))
    x = net.op("where", mask, net.op("mul", x, net.constant(2.0)), net.constant(0.0))
    return net.linear(net.op("mean", x, dims=(1,), keepdim=False), 4, "fc")


@pytest.fixture
def example_graphs() -> dict[str, Graph]:
    """Small networks in float64 by name: their outputs, and their training graphs, which have a
    loss, gradients and updates."""
    makers = {
        "mlp": _mlp,
        "residual": _residual,
        "residual_train": lambda net: _residual(net, train=True),
        "words": _words,
    }
    found = {}
    for name, make in makers.items():
        net = Net(float64, name)
        found[name] = net.done(out=make(net))
        net = Net(float64, name)
        graph = net.done(loss=net.cross_entropy(make(net), net.labels()))
        weights = {n.attrs["path"] for n in graph.sources("parameter")}
        found[f"{name}_loss"] = differentiate(graph, weights, loss="loss")
    return found


@pytest.fixture
def ops() -> Callable[[Graph], list[str]]:
    """The operators of a graph in order, without its sources."""

    def find(graph: Graph) -> list[str]:
        return [n.op for n in graph.nodes if n.operands]

    return find


ARENAS = ("batch", "fixed", "prepared")


# -- a machine that runs plans --------------------------------------------------------------------


class _Memory:
    """Bytes per slot. An arena is one block, as in the runtime, filled with NaN at first."""

    def __init__(self, plan: Plan, n: int, slots: dict[str, np.ndarray]) -> None:
        self.n = n
        self.slots = {k: np.array(v).reshape(-1).view(np.uint8) for k, v in slots.items()}
        sizes = (plan.batch_bytes * n, plan.fixed_bytes, plan.prepared_bytes)
        for slot, size in zip(ARENAS, sizes, strict=True):
            self.slots[slot] = np.full(size, 255, np.uint8)

    def view(self, at: Location, kind: TensorType) -> np.ndarray:
        shape, size = kind.at(self.n).shape, kind.dtype.itemsize
        start = at.offset * (self.n if at.slot == "batch" else 1) + at.start
        # numpy raises an error for what is outside of the slot.
        return np.ndarray(shape, kind.dtype.np, self.slots[at.slot], start, at.strides(shape, size))


def _run_plan(graph: Graph, plan: Plan, values: dict[str, np.ndarray], n: int) -> dict[str, Any]:
    """Runs the steps of a plan on one memory: what overlaps wrongly is overwritten, and seen."""
    slots: dict[str, np.ndarray] = {}
    for node in graph.nodes:
        if node.op in ("parameter", "buffer"):
            slots["state:" + node.attrs["path"]] = values[node.attrs["path"]]
        elif node.op == "input":
            slots["input:" + node.attrs["path"]] = values[node.attrs["path"]]
        elif node.op == "constant":
            slots["constant:" + node.name] = node.attrs["value"]
    for name, value in graph.outputs.items():
        kind = graph.type(value).at(n)
        slots["output:" + name] = np.empty(kind.shape, kind.dtype.np)
    memory = _Memory(plan, n, slots)
    for step in (*plan.prepare, *plan.steps):
        if step.node is None:
            assert step.copied is not None
            kind = graph.type(step.copied)
            memory.view(step.results[0], kind)[...] = memory.view(step.operands[0], kind)
            continue
        kinds = [graph.type(v) for v in step.node.operands]
        operands = [memory.view(at, k).copy() for at, k in zip(step.operands, kinds, strict=True)]
        results = run_node(step.node, operands, n)
        for at, kind, result in zip(step.results, step.node.types, results, strict=True):
            memory.view(at, kind)[...] = result
    found = {
        k: memory.view(Location("output:" + k), graph.type(v)) for k, v in graph.outputs.items()
    }
    for path, value in graph.updates.items():
        found["update:" + path] = memory.view(Location("state:" + path), graph.type(value))
    return found


def _check_plan(
    graph: Graph,
    values: dict[str, np.ndarray],
    n: int,
    hoist: bool = False,
    accepts: Accepts | None = None,
) -> Plan:
    """The plan gives the interpreter's results, and no two live values overlap."""
    plan = plan_memory(graph, hoist, accepts)
    expected, found = evaluate(graph, values, n), _run_plan(graph, plan, values, n)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    _check_overlaps(graph, plan)
    return plan


def _check_overlaps(graph: Graph, plan: Plan) -> None:
    """Re-simulates lifetimes: values that are live at one step do not share bytes of an arena,
    except reshapes of one value and an elementwise result over an operand that dies there."""
    steps = [*plan.prepare, *plan.steps]
    launched = {step.node.name for step in steps if step.node}
    # What is written somewhere: a reshape is its operand, and so are parts that were placed.
    origins: dict[Any, set[Any]] = {}
    for node in graph.nodes:
        placed = node.op in ("cat", "slice") and node.name not in launched
        renames = node.op == "reshape" or placed
        for v in node.values:
            origins[v] = set().union(*(origins[x] for x in node.operands)) if renames else {v}
    born: dict[Any, int] = {}
    died: dict[Any, int] = {}
    for at, step in enumerate(steps):
        used = step.node.operands if step.node else (step.copied,)
        died |= dict.fromkeys(set().union(*(origins[v] for v in used)), at)
        for v in step.node.values if step.node else ():
            born[v] = at
            died[v] = at
    for v in born:  # prepared values that a call reads stay for the next call
        if plan.locations[v].slot == "prepared" and died[v] >= len(plan.prepare):
            died[v] = len(steps)
    live = [v for v in born if plan.locations[v].slot in ARENAS]
    for i, a in enumerate(live):
        la = plan.locations[a]
        assert la.offset % 64 == 0
        for b in live[i + 1 :]:
            lb = plan.locations[b]
            if la.slot != lb.slot or _apart(graph, (a, la), (b, lb)):
                continue
            first, second = (a, b) if born[a] <= born[b] else (b, a)
            if died[first] == born[second] > born[first]:  # handed on
                node = graph.node(second)
                assert any(first in origins[v] for v in node.operands)
                spans = [_span(graph.type(v), at) for v, at in ((a, la), (b, lb))]
                assert la.offset == lb.offset and spans[0] == spans[1]
                assert not plan.locations[second].pitch
                assert graph.type(first).dtype.itemsize == graph.type(second).dtype.itemsize
            else:
                assert died[first] < born[second], f"{first} and {second} overlap"


def _apart(graph: Graph, *values: tuple[Value, Location]) -> bool:
    """Whether two values of one slot share no byte."""
    ((a, first), (b, second)) = values
    if first.pitch and (first.offset, first.pitch) == (second.offset, second.pitch):
        sizes = [graph.type(v).shape[-1] * graph.type(v).dtype.itemsize for v in (a, b)]
        return first.start >= second.start + sizes[1] or second.start >= first.start + sizes[0]
    ends = [at.offset + _span(graph.type(v), at) for v, at in values]
    return first.offset >= ends[1] or second.offset >= ends[0]


def _span(kind: TensorType, at: Location) -> int:
    """Bytes from the offset of a place to its end (per sample)."""
    size = numel(kind.shape)
    count = (size.coef if isinstance(size, Dim) else size) * kind.dtype.itemsize
    return count // (kind.shape[-1] * kind.dtype.itemsize) * at.pitch if at.pitch else count


@pytest.fixture
def check_plan() -> Callable[..., Plan]:
    """``check_plan(graph, values, n, hoist=False, accepts=None)``: the memory plan of a graph,
    after it has been run, with the interpreter's results, and its lifetimes were re-simulated."""
    return _check_plan
