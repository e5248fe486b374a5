"""plan_memory: lifetimes are re-simulated, updates are committed only where nothing can tell."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from netwright.errors import ShapeError
from netwright.ir.graph import Graph
from netwright.ir.interpreter import evaluate, run_node
from netwright.ir.plan import Location, Plan
from netwright.ir.types import Dim, TensorType, bool_, float64, int64, numel
from netwright.passes.differentiate import differentiate
from netwright.passes.fuse_conv_bn_relu import fuse_conv_bn_relu
from netwright.passes.fuse_elementwise import fuse_elementwise
from netwright.passes.plan_memory import plan_memory
from netwright.passes.simplify import simplify
from netwright.passes.state import state_only

N = Dim(1)
ARENAS = ("batch", "fixed", "prepared")


# -- a machine that runs plans --------------------------------------------------------------------


class Memory:
    """Bytes per slot. An arena is one block, as in the runtime, filled with NaN at first."""

    def __init__(self, plan: Plan, n: int, slots: dict[str, np.ndarray]) -> None:
        self.n = n
        self.slots = {k: np.array(v).reshape(-1).view(np.uint8) for k, v in slots.items()}
        sizes = (plan.batch_bytes * n, plan.fixed_bytes, plan.prepared_bytes)
        for slot, size in zip(ARENAS, sizes, strict=True):
            self.slots[slot] = np.full(size, 255, np.uint8)

    def view(self, at: Location, kind: TensorType) -> np.ndarray:
        shape = kind.at(self.n).shape
        size = int(np.prod(shape)) * kind.dtype.itemsize
        start = at.offset * (self.n if at.slot == "batch" else 1)
        raw = self.slots[at.slot][start : start + size]
        assert raw.size == size, f"{at} is outside of its slot"
        return raw.view(kind.dtype.np).reshape(shape)


def run_plan(graph: Graph, plan: Plan, values: dict[str, np.ndarray], n: int) -> dict[str, Any]:
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
    memory = Memory(plan, n, slots)
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


def check_plan(graph: Graph, values: dict[str, np.ndarray], n: int, hoist: bool = False) -> Plan:
    """The plan gives the interpreter's results, and no two live values overlap."""
    plan = plan_memory(graph, hoist)
    expected, found = evaluate(graph, values, n), run_plan(graph, plan, values, n)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    check_overlaps(graph, plan)
    return plan


def check_overlaps(graph: Graph, plan: Plan) -> None:
    """Re-simulates lifetimes: values that are live at one step do not share bytes of an arena,
    except reshapes of one value and an elementwise result over an operand that dies there."""
    root: dict[Any, Any] = {}
    for node in graph.nodes:
        for v in node.values:
            root[v] = root[node.operands[0]] if node.op == "reshape" else v
    steps = [*plan.prepare, *plan.steps]
    born: dict[Any, int] = {}
    died: dict[Any, int] = {}
    for at, step in enumerate(steps):
        used = step.node.operands if step.node else (step.copied,)
        for v in used:
            died[root[v]] = at
        for v in step.node.values if step.node else ():
            born[v] = at
            died[v] = at
    for v in born:  # prepared values that a call reads stay for the next call
        if plan.locations[v].slot == "prepared" and died[v] >= len(plan.prepare):
            died[v] = len(steps)
    live = [(v, plan.locations[v], size_of(graph, v)) for v in born]
    live = [item for item in live if item[1].slot in ARENAS]
    for i, (a, la, sa) in enumerate(live):
        assert la.offset % 64 == 0
        for b, lb, sb in live[i + 1 :]:
            apart = la.offset >= lb.offset + sb or lb.offset >= la.offset + sa
            if la.slot != lb.slot or apart:
                continue
            first, second = (a, b) if born[a] <= born[b] else (b, a)
            if died[first] == born[second] > born[first]:  # handed on
                node = graph.node(second)
                assert first in [root[v] for v in node.operands] and la.offset == lb.offset
                assert graph.type(first).dtype.itemsize == graph.type(second).dtype.itemsize
            else:
                assert died[first] < born[second], f"{first} and {second} overlap"


def squared(kind: TensorType) -> list[Any]:
    """The symbolic extents after the first: a value of N x N elements has no place in a plan."""
    return [d for d in kind.shape if isinstance(d, Dim)][1:]


def size_of(graph: Graph, value: Any) -> int:
    kind = graph.type(value)
    size = numel(kind.shape)
    return (size.coef if isinstance(size, Dim) else size) * kind.dtype.itemsize


# -- whole graphs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("hoist", [False, True])
def test_plans_of_random_graphs(
    random_graph: Callable[..., Graph], graph_values: Any, hoist: bool
) -> None:
    for seed in range(40):
        graph = random_graph(seed, size=30, regions=seed % 2 == 0)
        if any(isinstance(d, Dim) for n in graph.nodes for t in n.types for d in squared(t)):
            continue
        if seed % 3 == 0:
            graph = fuse_elementwise(simplify(graph))
        check_plan(graph, graph_values(graph, n=3, seed=seed), 3, hoist)


@pytest.mark.parametrize("hoist", [False, True])
def test_plans_of_the_example_networks(
    example_graphs: dict[str, Graph], values_of: Any, hoist: bool
) -> None:
    for graph in example_graphs.values():
        check_plan(graph, values_of(graph), 3, hoist)
        fused = fuse_elementwise(fuse_conv_bn_relu(simplify(graph)))
        check_plan(fused, values_of(graph), 3, hoist)


@pytest.mark.parametrize("hoist", [False, True])
def test_plan_of_a_training_step(new_net: Any, values_of: Any, hoist: bool) -> None:
    net = new_net(float64)
    x = net.conv(net.input("x", N, 2, 6, 6), 4, "conv")
    x = net.max_pool(net.op("relu", net.batch_norm(x, "bn", train=True)))
    graph = net.done(loss=net.cross_entropy(net.linear(net.flatten(x), 4, "fc"), net.labels()))
    weights = [n.attrs["path"] for n in graph.sources("parameter")]
    step = differentiate(graph, weights, "loss")
    for path in weights:
        parameter = next(n for n in step.sources("parameter") if n.attrs["path"] == path)
        grad = step.outputs.pop("grad:" + path)
        rate = step.add("constant", value=np.array(0.1))
        step.updates[path] = step.add("sub", parameter.value, step.add("mul", grad, rate))
    step = fuse_elementwise(simplify(step))
    plan = check_plan(step, values_of(step), 3, hoist)
    committed = {s.results[0].slot for s in plan.steps if s.commits and s.node}
    assert {"state:" + w for w in weights} <= committed, "every parameter is written in place"


def test_plan_of_a_folded_network(new_net: Any, values_of: Any) -> None:
    net = new_net(float64)
    x = net.conv(net.input("x", N, 2, 6, 6), 4, "conv")
    graph = net.done(out=net.linear(net.flatten(net.op("relu", net.batch_norm(x, "bn"))), 3, "fc"))
    plan = check_plan(fuse_conv_bn_relu(graph), values_of(graph), 3, hoist=True)
    assert plan.prepared_bytes and plan.prepare
    assert len([s for s in plan.steps if s.node]) == 2


def test_a_value_of_batch_by_batch_elements_is_refused_by_name(new_net: Any) -> None:
    net = new_net()
    x = net.input("x", N)
    y = net.op("mul", net.op("reshape", x, shape=(N, 1)), x, module="gram")
    graph = net.done(out=net.op("sum", y, dims=(1,), keepdim=False))
    with pytest.raises(ShapeError, match=r"%mul: f32\[N,N\] \[gram at model.py:2\].*dynamic=False"):
        plan_memory(graph)


def test_ten_layers_need_two_live_activations(new_net: Any) -> None:
    net = new_net()
    value = net.input("x", N, 256)
    for i in range(10):
        value = net.op("relu", net.linear(value, 256, f"fc{i}"))
    plan = plan_memory(net.done(out=net.linear(value, 10, "head")))
    assert plan.batch_bytes == 2 * 256 * 4
    assert plan.fixed_bytes == plan.prepared_bytes == 0
    assert plan.arena_bytes(7) == 7 * plan.batch_bytes


def test_an_arena_of_thousands_of_buffers_is_packed_in_good_time(new_net: Any) -> None:
    net = new_net()
    values = [net.op("softmax", net.input("x", N, 4), dim=1)]
    for _ in range(2000):
        values.append(net.op("softmax", values[-1], dim=1))
    graph = net.done(out=net.op("cat", *values[::40], dim=1))
    assert plan_memory(graph).batch_bytes < 60 * 64


# -- writing over operands ------------------------------------------------------------------------


def in_place(plan: Plan, node: str) -> bool:
    step = next(s for s in plan.steps if s.node and s.node.name == node)
    return step.results[0] in step.operands


def test_an_elementwise_result_takes_the_place_of_a_dying_operand(new_net: Any) -> None:
    net = new_net()
    a = net.op("softmax", net.input("x", N, 64), dim=1)
    plan = plan_memory(net.done(out=net.op("softmax", net.op("exp", a), dim=1)))
    assert in_place(plan, "exp")
    assert plan.batch_bytes == 256


def test_also_of_a_reshaped_and_of_a_repeated_operand(new_net: Any) -> None:
    net = new_net()
    a = net.op("softmax", net.input("x", N, 64), dim=1)
    r = net.op("reshape", a, shape=(N, 8, 8))
    y = net.op("mul", r, r)
    plan = plan_memory(net.done(out=net.op("softmax", y, dim=1)))
    assert in_place(plan, y.node)


@pytest.mark.parametrize("case", ["later", "broadcast", "both_ways", "size", "softmax", "input"])
def test_operands_that_must_stay(new_net: Any, values_of: Any, case: str) -> None:
    net = new_net(float64)
    x = net.input("x", 8, 8)
    a = net.op("softmax", x, dim=1)
    if case == "later":
        y = net.op("exp", a)
        y = net.op("matmul", y, a)
        watched = "exp"
    elif case == "broadcast":
        row = net.op("sum", a, dims=(0,), keepdim=False)
        y = net.op("add", row, x)
        watched = y.node
    elif case == "both_ways":
        flat = net.op("reshape", net.op("softmax", net.input("z", 8), dim=0), shape=(8, 1))
        y = net.op("mul", flat, net.op("reshape", flat, shape=(1, 8)))
        watched = y.node
    elif case == "size":
        y = net.op("cast", a, dtype="f32")
        y = net.op("softmax", y, dim=1)
        watched = "cast"
    elif case == "softmax":
        y = net.op("softmax", a, dim=1)
        watched = y.node
        y = net.op("softmax", y, dim=1)
    else:
        y = net.op("exp", x)
        watched = y.node
        y = net.op("softmax", y, dim=1)
    graph = net.done(out=y)
    assert not in_place(check_plan(graph, values_of(graph), 3), watched)


def test_the_key_of_random_numbers_is_not_written_over(new_net: Any, values_of: Any) -> None:
    net = new_net(float64)
    key = net.op("add", net.input("rng", 2, dtype=int64), net.constant([0, 1], int64))
    draw = net.op("uniform", key, shape=(2,), stream=0)
    graph = net.done(out=net.op("softmax", draw, dim=0))
    check_plan(graph, values_of(graph), 3)
    fused = fuse_elementwise(graph)
    check_plan(fused, values_of(graph), 3)


# -- results --------------------------------------------------------------------------------------


def test_outputs_are_computed_where_the_caller_wants_them(new_net: Any) -> None:
    net = new_net()
    y = net.op("exp", net.input("x", N, 4))
    plan = plan_memory(net.done(out=net.op("reshape", y, shape=(N, 2, 2))))
    assert len(plan.steps) == 1 and plan.locations[y] == Location("output:out")


def test_outputs_that_are_something_else_are_copied(new_net: Any, values_of: Any) -> None:
    net = new_net()
    x, w = net.input("x", N, 4), net.parameter("w", 4)
    y = net.op("exp", x)
    scaled = net.op("neg", w)
    graph = net.done(
        x=x, flat=net.op("reshape", x, shape=(4 * N,)), w=w, y=y, again=y, scaled=scaled,
        constant=net.constant([1.0, 2.0]), reshaped=net.op("reshape", y, shape=(N, 2, 2)),
    )  # fmt: skip
    plan = check_plan(graph, values_of(graph), 3, hoist=True)
    assert sum(s.node is None for s in plan.steps) == 7


def test_the_source_of_a_copy_is_pinned(new_net: Any, values_of: Any) -> None:
    """It must not be written over between its last reader and the copy at the end."""
    net = new_net()
    w = net.buffer("w", 64)
    total = net.op("sum", net.input("x", N, 64), dims=(0,), keepdim=False)
    net.graph.updates["w"] = total
    value = net.op("exp", total)
    for _ in range(3):
        value = net.op("softmax", net.op("neg", value), dim=0)
    graph = net.done(out=net.op("add", value, w))
    check_plan(graph, values_of(graph), 3)


# -- updates of state -----------------------------------------------------------------------------


def committing(plan: Plan, path: str) -> str:
    """What writes the state: the operator, or ``copy``."""
    (step,) = (s for s in plan.steps if s.commits and s.results[0].slot == "state:" + path)
    return step.node.op if step.node else "copy"


def updated(net: Any) -> tuple[Any, Any, Any]:
    w, g = net.parameter("w", 8), net.input("g", 8)
    new = net.op("sub", w, g)
    net.graph.updates["w"] = new
    return w, g, new


def test_an_update_is_written_straight_into_the_parameter(new_net: Any, values_of: Any) -> None:
    net = new_net()
    _, _, new = updated(net)
    graph = net.done(out=net.op("softmax", new, dim=0))
    plan = check_plan(graph, values_of(graph), 3)
    assert committing(plan, "w") == "sub" and plan.fixed_bytes == 0
    assert plan.locations[new] == Location("state:w")


def test_also_after_other_readers_have_run(new_net: Any, values_of: Any) -> None:
    net = new_net()
    w, g = net.parameter("w", 8), net.input("g", 8)
    y = net.op("exp", w)
    net.graph.updates["w"] = net.op("sub", w, net.op("mul", g, y))
    graph = net.done(out=y)
    assert committing(check_plan(graph, values_of(graph), 3), "w") == "sub"


@pytest.mark.parametrize(
    "case",
    ["read_later", "read_through_reshape", "output", "reshaped_output", "other_update",
     "result_is_output", "not_elementwise", "broadcast", "checked_later", "is_input",
     "is_prepared"],
)  # fmt: skip
def test_an_update_that_would_be_seen_is_copied_at_the_end(
    new_net: Any, values_of: Any, case: str
) -> None:
    net = new_net()
    outputs: dict[str, Any] = {}
    hoist = case == "is_prepared"
    if case == "not_elementwise":
        w = net.parameter("w", 8)
        net.graph.updates["w"] = net.op("softmax", w, dim=0)
    elif case == "broadcast":
        w = net.parameter("w", 1, 1)
        net.graph.updates["w"] = net.op("sum", net.op("add", w, net.input("g", 8, 1)), dims=(0,),
                                        keepdim=True)
        outputs["late"] = net.op("neg", w)
    elif case == "is_input":
        net.parameter("w", 8)
        net.graph.updates["w"] = net.input("g", 8)
    elif case == "is_prepared":
        net.parameter("w", 8)
        net.graph.updates["w"] = net.op("exp", net.parameter("other", 8))
    else:
        w, _, new = updated(net)
        if case == "read_later":
            outputs["late"] = net.op("exp", w)
        elif case == "read_through_reshape":
            outputs["late"] = net.op("exp", net.op("reshape", w, shape=(2, 4)))
        elif case == "output":
            outputs["old"] = w
        elif case == "reshaped_output":
            outputs["old"] = net.op("reshape", w, shape=(2, 4))
        elif case == "other_update":
            net.parameter("mirror", 8)
            net.graph.updates["mirror"] = w
        elif case == "result_is_output":
            outputs["new"] = new
        elif case == "checked_later":
            outputs["loss"] = net.cross_entropy(net.input("x", N, 4), net.labels())
    graph = net.done(**outputs)
    plan = check_plan(graph, values_of(graph), 3, hoist)
    assert committing(plan, "w") == "copy"


def test_parameters_that_swap_are_staged(new_net: Any, values_of: Any) -> None:
    net = new_net()
    a, b, c = (net.parameter(name, 8) for name in "abc")
    net.graph.updates.update(a=b, b=a, c=b)
    graph = net.done(out=net.op("neg", c))
    plan = check_plan(graph, values_of(graph), 3)
    assert plan.fixed_bytes == 2 * 64


def test_a_parameter_that_stays_is_not_copied(new_net: Any, values_of: Any) -> None:
    net = new_net()
    a = net.parameter("a", 8)
    net.graph.updates["a"] = a
    graph = net.done(out=net.op("neg", a))
    plan = check_plan(graph, values_of(graph), 3)
    assert len(plan.steps) == 1 and not plan.steps[0].commits


# -- what is prepared -----------------------------------------------------------------------------


def test_functions_of_state_are_prepared_once(new_net: Any, values_of: Any) -> None:
    net = new_net()
    scale = net.op("mul", net.parameter("w", 8), net.constant(2.0))
    graph = net.done(out=net.op("add", net.input("x", N, 8), net.op("exp", scale)))
    plan = check_plan(graph, values_of(graph), 3, hoist=True)
    assert [s.node.op for s in plan.prepare if s.node] == ["mul", "exp"]
    assert plan.prepared_bytes == 64, "the second over the first"
    assert not plan_memory(graph).prepare


def test_a_prepared_value_that_a_call_reads_is_not_written_over(
    new_net: Any, values_of: Any
) -> None:
    """The call comes after all that is prepared, wherever it stands in the graph."""
    net = new_net()
    once = net.op("exp", net.parameter("w", 8))
    y = net.op("add", net.input("x", 8), once)
    twice = net.op("neg", once)
    graph = net.done(y=y, z=net.op("mul", y, twice))
    plan = check_plan(graph, values_of(graph), 3, hoist=True)
    assert plan.prepared_bytes == 128


def test_what_depends_on_the_batch_is_not_prepared(new_net: Any, values_of: Any) -> None:
    net = new_net()
    w = net.parameter("w", 8)
    total = net.op("sum", net.op("broadcast_to", w, shape=(N, 8)), dims=(0,), keepdim=False)
    count = net.op("div", w, net.graph.add("extent", size=N, dtype="f32"))
    graph = fuse_elementwise(net.done(total=total, mean=net.op("neg", count)))
    plan = check_plan(graph, values_of(graph), 3, hoist=True)
    assert not plan.prepare


def test_what_depends_on_state_that_changes_is_not_prepared(new_net: Any, values_of: Any) -> None:
    net = new_net()
    mean, x = net.buffer("mean", 8), net.input("x", 8)
    kept = net.op("mul", mean, net.constant(0.9))
    net.graph.updates["mean"] = net.op("add", kept, x)
    graph = net.done(out=net.op("neg", x))
    assert not state_only(graph) - {n.name for n in graph.sources("constant")}
    assert not check_plan(graph, values_of(graph), 3, hoist=True).prepare


def test_masks_and_numbers_have_their_own_sizes(new_net: Any, values_of: Any) -> None:
    net = new_net(float64)
    x = net.input("x", N, 100)
    mask = net.op("gt", x, net.constant(0.0))
    both = net.op("logical_and", mask, net.input("m", N, 100, dtype=bool_))
    graph = net.done(out=net.op("where", both, x, net.op("softmax", x, dim=1)))
    plan = check_plan(graph, values_of(graph), 3)
    assert in_place(plan, "logical_and")
