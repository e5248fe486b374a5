"""commits: an update is written straight into the state only where nothing can tell."""

from typing import Any

import pytest

from netwright.ir.plan import Location, Plan
from netwright.ir.types import Dim

N = Dim(1)


def committing(plan: Plan, path: str) -> str:
    """What writes the state: the operator, or ``copy``."""
    (step,) = (s for s in plan.steps if s.commits and s.results[0].slot == "state:" + path)
    return step.node.op if step.node else "copy"


def updated(net: Any) -> tuple[Any, Any, Any]:
    w, g = net.parameter("w", 8), net.input("g", 8)
    new = net.op("sub", w, g)
    net.graph.updates["w"] = new
    return w, g, new


def test_an_update_is_written_straight_into_the_parameter(
    new_net: Any, values_of: Any, check_plan: Any
) -> None:
    net = new_net()
    _, _, new = updated(net)
    graph = net.done(out=net.op("softmax", new, dim=0))
    plan = check_plan(graph, values_of(graph), 3)
    assert committing(plan, "w") == "sub" and plan.fixed_bytes == 0
    assert plan.locations[new] == Location("state:w")


def test_also_after_other_readers_have_run(new_net: Any, values_of: Any, check_plan: Any) -> None:
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
    new_net: Any, values_of: Any, check_plan: Any, case: str
) -> None:
    net = new_net()
    outputs: dict[str, Any] = {}
    hoist = case == "is_prepared"
    if case == "not_elementwise":
        w = net.parameter("w", 8)
        net.graph.updates["w"] = net.op("softmax", w, dim=0)
    elif case == "broadcast":
        w = net.parameter("w", 1, 1)
        net.graph.updates["w"] = net.op(
            "sum", net.op("add", w, net.input("g", 8, 1)), dims=(0,), keepdim=True
        )
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


def test_parameters_that_swap_are_staged(new_net: Any, values_of: Any, check_plan: Any) -> None:
    net = new_net()
    a, b, c = (net.parameter(name, 8) for name in "abc")
    net.graph.updates.update(a=b, b=a, c=b)
    graph = net.done(out=net.op("neg", c))
    plan = check_plan(graph, values_of(graph), 3)
    assert plan.fixed_bytes == 2 * 64


def test_a_parameter_that_stays_is_not_copied(
    new_net: Any, values_of: Any, check_plan: Any
) -> None:
    net = new_net()
    a = net.parameter("a", 8)
    net.graph.updates["a"] = a
    graph = net.done(out=net.op("neg", a))
    plan = check_plan(graph, values_of(graph), 3)
    assert len(plan.steps) == 1 and not plan.steps[0].commits
