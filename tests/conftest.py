"""Fixtures for all tests: random valid graphs and inputs for them; LLVM work is done once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from netwright.codegen import llvm
from netwright.codegen.target import Target
from netwright.errors import ShapeError
from netwright.ir.graph import Graph, Source, Value
from netwright.ir.types import Dim, TensorType, float32
from netwright.runtime import compile_workers
from netwright.runtime.cache import ObjectCache

# PyTorch's idle threads sleep instead of spinning: other processes run other tests. Read when
# PyTorch is imported, which is later.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

N = Dim(1)
MAX_BOUND = 1e3  # magnitudes stay far from where float32 loses the plot
MAX_ELEMENTS = 4096  # per sample

# Name, and the largest result for operands up to b.
UNARY: dict[str, Callable[[float], float]] = {
    "relu": lambda b: b,
    "neg": lambda b: b,
    "abs": lambda b: b,
    "square": lambda b: b * b,
    "tanh": lambda b: 1.0,
    "sigmoid": lambda b: 1.0,
    "silu": lambda b: b,
    "sin": lambda b: 1.0,
}
BINARY: dict[str, Callable[[float, float], float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "maximum": max,
    "minimum": max,
}


class _Generator:
    """Grows a graph of float32 values by random steps; a step that does not fit does nothing."""

    def __init__(self, seed: int, regions: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = Graph(f"random_{seed}")
        self.values: list[Value] = []
        self.bounds: dict[Value, float] = {}
        self.steps: list[Callable[[], None]] = [
            self.unary, self.unary, self.unary, self.binary, self.binary, self.binary, self.select,
            self.reduce, self.mean_over_batch, self.permute, self.reshape, self.broadcast,
            self.join, self.cut, self.pad, self.matmul, self.linear, self.softmax, self.normalise,
        ]  # fmt: skip
        if regions:
            self.steps.append(self.region)

    def build(self, size: int) -> Graph:
        inner = int(self.rng.integers(1, 7))
        for i, shape in enumerate([(N, inner), (N, 3, inner), (inner,)][: self.rng.integers(1, 4)]):
            kind = TensorType(float32, shape)
            self.keep(self.graph.add("input", name=f"x{i}", path=f"x{i}", type=kind), 1.0)
        while len(self.graph) < size:
            step = self.steps[self.rng.integers(len(self.steps))]
            self.source = Source(f"block.{self.rng.integers(4)}", "model.py", len(self.graph))
            try:
                step()
            except ShapeError:
                continue
        self.finish()
        return self.graph

    def finish(self) -> None:
        unused = [v for v in self.values if not self.graph.users(v)]
        for i, value in enumerate(dict.fromkeys([*unused, self.pick()])):
            self.graph.outputs[f"out{i}"] = value
        fixed = [v for v in self.values if not any(isinstance(d, Dim) for d in self.shape(v))]
        if fixed:
            kind = self.graph.type(fixed[-1])
            old = self.graph.add("buffer", name="running", path="block.running", type=kind)
            self.graph.updates["block.running"] = self.graph.add("add", old, fixed[-1])

    # -- values -----------------------------------------------------------------------------

    def keep(self, value: Value, bound: float) -> None:
        size = self.graph.type(value).size
        if (size.coef if isinstance(size, Dim) else size) > MAX_ELEMENTS:
            return
        if bound > MAX_BOUND:
            value, bound = self.graph.add("tanh", value, source=self.source), 1.0
        self.values.append(value)
        self.bounds[value] = bound

    def pick(self) -> Value:
        return self.values[self.rng.integers(len(self.values))]

    def shape(self, value: Value) -> tuple[int | Dim, ...]:
        return self.graph.type(value).shape

    def op(self, name: str, *operands: Value, **attrs: object) -> Value:
        return self.graph.add(name, *operands, source=self.source, **attrs)

    def constant(self) -> Value:
        number = np.float32(self.rng.choice([0.5, -1.0, 2.0, 0.1, -0.0]))
        return self.graph.add("constant", value=np.array(number))

    def parameter(self, *shape: int) -> Value:
        path = f"block.w{len(self.graph)}"
        kind = TensorType(float32, shape)
        return self.graph.add("parameter", name=path, path=path, type=kind)

    def a_dim(self, value: Value) -> int:
        """A dimension whose extent is a number."""
        dims = [i for i, d in enumerate(self.shape(value)) if isinstance(d, int)]
        if not dims:
            raise ShapeError("every dimension is symbolic")
        return dims[self.rng.integers(len(dims))]

    def features(self, value: Value) -> int:
        shape = self.shape(value)
        if not shape or not isinstance(shape[-1], int):
            raise ShapeError("the last dimension is not a number")
        return shape[-1]

    # -- steps ------------------------------------------------------------------------------

    def unary(self) -> None:
        x, name = self.pick(), str(self.rng.choice(list(UNARY)))
        self.keep(self.op(name, x), UNARY[name](self.bounds[x]))

    def binary(self) -> None:
        x, y, name = self.pick(), self.pick(), str(self.rng.choice(list(BINARY)))
        bound = self.bounds[y]
        if self.rng.random() < 0.25:
            y, bound = self.constant(), 2.0
        self.keep(self.op(name, x, y), BINARY[name](self.bounds[x], bound))

    def select(self) -> None:
        x, y = self.pick(), self.pick()
        mask = self.op("gt", x, self.constant())
        self.keep(self.op("where", mask, x, y), max(self.bounds[x], self.bounds[y]))

    def reduce(self) -> None:
        x = self.pick()
        rank = len(self.shape(x))
        dims = tuple(int(d) for d in range(rank) if self.rng.random() < 0.5)
        name = str(self.rng.choice(["sum", "mean", "amax", "amin"]))
        bound = self.bounds[x] * (64 if name == "sum" else 1)
        self.keep(self.op(name, x, dims=dims, keepdim=bool(self.rng.random() < 0.5)), bound)

    def mean_over_batch(self) -> None:
        x = self.pick()
        dims = tuple(i for i, d in enumerate(self.shape(x)) if isinstance(d, Dim))
        if dims:
            size = self.op("extent", size=self.shape(x)[dims[0]], dtype="f32")
            total = self.op("sum", x, dims=dims[:1], keepdim=False)
            self.keep(self.op("div", total, size), self.bounds[x])

    def permute(self) -> None:
        x = self.pick()
        dims = tuple(int(d) for d in self.rng.permutation(len(self.shape(x))))
        self.keep(self.op("permute", x, dims=dims), self.bounds[x])

    def reshape(self) -> None:
        x = self.pick()
        shape = self.shape(x)
        at = int(self.rng.integers(0, len(shape) + 1))
        if self.rng.random() < 0.5 or at + 2 > len(shape):
            target = (*shape[:at], 1, *shape[at:])
        else:
            target = (*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])
        self.keep(self.op("reshape", x, shape=target), self.bounds[x])

    def broadcast(self) -> None:
        x = self.pick()
        target = (2, *(3 if d == 1 else d for d in self.shape(x)))
        self.keep(self.op("broadcast_to", x, shape=target), self.bounds[x])

    def join(self) -> None:
        x = self.pick()
        if self.shape(x):
            dim = int(self.rng.integers(len(self.shape(x))))
            self.keep(self.op("cat", x, self.op("neg", x), dim=dim), self.bounds[x])

    def cut(self) -> None:
        x = self.pick()
        dim = self.a_dim(x)
        size = self.shape(x)[dim]
        start = int(self.rng.integers(0, size))
        step = int(self.rng.integers(1, 3))
        self.keep(self.op("slice", x, dim=dim, start=start, stop=size, step=step), self.bounds[x])

    def pad(self) -> None:
        x = self.pick()
        dim, rank = self.a_dim(x), len(self.shape(x))
        low = tuple(int(i == dim) for i in range(rank))
        self.keep(self.op("pad", x, low=low, high=(0,) * rank, value=0.25), self.bounds[x])

    def matmul(self) -> None:
        x = self.pick()
        w = self.parameter(self.features(x), int(self.rng.integers(1, 6)))
        self.keep(self.op("matmul", x, w), self.bounds[x] * self.features(x))

    def linear(self) -> None:
        x, out = self.pick(), int(self.rng.integers(1, 6))
        operands = [self.parameter(out, self.features(x))]
        if self.rng.random() < 0.5:
            operands.append(self.parameter(out))
        self.keep(self.op("linear", x, *operands), self.bounds[x] * self.features(x) + 1)

    def softmax(self) -> None:
        x = self.pick()
        self.features(x)
        self.keep(self.op("softmax", x, dim=len(self.shape(x)) - 1), 1.0)

    def normalise(self) -> None:
        x = self.pick()
        results = self.graph.add("layer_norm", x, source=self.source, ndim=1, eps=0.1)
        for value, bound in zip(results, (self.features(x), self.bounds[x], 4.0), strict=True):
            self.keep(value, float(bound))

    def region(self) -> None:
        x = self.pick()
        body = Graph("elementwise")
        inside = body.add("input", name="arg0", path="0", type=self.graph.type(x))
        first = body.add("tanh", inside, source=self.source)
        second = body.add("add", first, body.add("constant", value=np.array(0.1, np.float32)))
        body.outputs = {"0": second, "1": first} if self.rng.random() < 0.5 else {"0": second}
        result = self.op("fused", x, kind="elementwise", body=body)
        for value in [result] if isinstance(result, Value) else result:
            self.keep(value, 1.1)


@pytest.fixture
def random_graph() -> Callable[..., Graph]:
    """``random_graph(seed, size=24, regions=False)``: a valid float32 graph of about that many
    nodes over elementwise, reduction, shape, matmul, linear, softmax and layer_norm operators, with
    a symbolic batch, several outputs, often an update, and with ``fused`` nodes on demand."""

    def make(seed: int, size: int = 24, regions: bool = False) -> Graph:
        return _Generator(seed, regions).build(size)

    return make


@pytest.fixture
def graph_values() -> Callable[..., dict[str, np.ndarray]]:
    """``graph_values(graph, n=3, seed=0)``: arrays in [-1, 1] by path for the inputs, parameters
    and buffers of a graph."""

    def make(graph: Graph, n: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        nodes = [node for kind in ("input", "parameter", "buffer") for node in graph.sources(kind)]
        return {
            node.attrs["path"]: rng.uniform(-1, 1, node.type.at(n).shape).astype(node.type.dtype.np)
            for node in nodes
        }

    return make


@pytest.fixture(scope="session", autouse=True)
def _llvm_work_is_done_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Parts of programs that have the same text, in whichever tests, are compiled once per session;
    and by the process that runs the test, since the other CPUs run other tests.

    Programs are still taken apart, linked and counted as compiled. Compiling in several processes
    is the subject of runtime/test_compile_workers.py, which undoes this for itself, and of the
    tests that start a program.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # the processes that share the tests share it
    store = ObjectCache(folder / "compiled_parts")
    compile_ir = llvm.compile_ir

    def compile_once(text: str, target: Target, optimize: bool = True) -> bytes:
        key = store.key({"ir": text, "target": repr(target), "optimize": str(optimize)})
        found = store.get(key)
        if found is None:
            found = compile_ir(text, target, optimize)
            store.put(key, found)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llvm, "compile_ir", compile_once)
        patch.setattr(compile_workers, "MAX_WORKERS", 0)
        yield
    shutil.rmtree(folder / "compiled_parts", ignore_errors=True)
