"""recompute: blocks run again in the backward pass, in less memory and with the same bits."""

from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn, optim
from netwright.ir.graph import Graph
from netwright.ir.types import Dim
from netwright.passes.differentiate import GRAD, differentiate
from netwright.passes.recompute import recompute
from netwright.passes.rewriting import Ledger

N = Dim(1)


def forward_values(graph: Graph) -> set[Any]:
    results = {v for k, v in graph.outputs.items() if not k.startswith(GRAD)}
    return results | set(graph.updates.values())


def apply(graph: Graph, *blocks: str) -> tuple[Graph, list[str]]:
    ledger = Ledger()
    after = recompute(graph, blocks, forward_values(graph), ledger)
    return after, [e.code for e in ledger.entries]


def two_blocks(net: Any) -> Graph:
    """``b`` is linear, tanh, linear; ``c`` is exp."""
    hidden = net.op("tanh", net.linear(net.input("x", N, 4), 8, "b.0"), module="b.1")
    out = net.op("exp", net.linear(hidden, 4, "b.2"), module="c")
    return differentiate(net.done(out=out), {"x", "b.0_weight", "b.2_weight"})


def test_values_inside_of_a_block_are_made_again_and_those_that_leave_it_are_kept(
    new_net: Any, assert_same: Any
) -> None:
    graph = two_blocks(new_net())
    after, codes = apply(graph, "b")
    ops = [n.op for n in after.nodes]
    assert ops.count("tanh") == 2 and ops.count("linear") == 3 and ops.count("exp") == 1
    assert codes == ["R001"]
    first = next(n for n in after.nodes if n.op == "tanh")
    assert [u.op for u in after.users(first.name)] == ["linear"]
    assert_same(graph, after, 0.0)


def test_the_copies_stand_right_before_who_needs_them(new_net: Any) -> None:
    after, _ = apply(two_blocks(new_net()), "b")
    nodes = after.nodes
    again = [i for i, n in enumerate(nodes) if n.op == "tanh"][1]
    reader = min(i for i, n in enumerate(nodes) if nodes[again].value in n.operands)
    assert reader == again + 1


def test_a_block_that_the_backward_pass_does_not_look_into_stays(
    new_net: Any, assert_same: Any
) -> None:
    graph = two_blocks(new_net())
    after, codes = apply(graph, "c")  # the gradient of exp is its result, which is the output
    assert codes == ["R002"] and len(after.nodes) == len(graph.nodes)
    assert_same(graph, after, 0.0)


def test_a_value_that_is_read_outside_of_its_block_is_kept(new_net: Any, assert_same: Any) -> None:
    net = new_net()
    inner = net.op("tanh", net.input("x", N, 4), module="b.0")
    out = net.op("add", net.op("exp", inner, module="b.1"), inner, module="c")
    graph = differentiate(net.done(out=out), {"x"})
    after, _ = apply(graph, "b")
    assert [n.op for n in after.nodes].count("tanh") == 1
    assert_same(graph, after, 0.0)


def test_what_depends_on_state_alone_is_not_made_again(new_net: Any, assert_same: Any) -> None:
    net = new_net()
    scale = net.op("exp", net.parameter("w", 4), module="b")
    inner = net.op("tanh", net.op("mul", net.input("x", N, 4), scale, module="b"), module="b")
    out = net.op("exp", inner, module="b")
    graph = differentiate(net.done(out=out), {"x"})
    after, _ = apply(graph, "b")
    assert [n.op for n in after.nodes].count("exp") == 2
    assert_same(graph, after, 0.0)


def test_the_longest_path_is_the_block_of_a_node(new_net: Any, assert_same: Any) -> None:
    net = new_net()
    x = net.op("tanh", net.input("x", N, 4), module="b.0.a")
    x = net.op("sigmoid", net.op("tanh", x, module="b.0.b"), module="b.1")
    out = net.op("exp", net.op("exp", x, module="b.2"), module="d")
    graph = differentiate(net.done(out=out), {"x"})
    whole, _ = apply(graph, "b")
    nested, _ = apply(graph, "b", "b.0")
    assert [n.op for n in whole.nodes].count("tanh") == 4
    # what leaves b.0 for b.1 is kept
    assert [n.op for n in nested.nodes].count("tanh") == 3
    assert_same(graph, whole, 0.0)
    assert_same(graph, nested, 0.0)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 1)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        return self.drop(self.conv2(self.norm1(self.conv1(x)).relu())) + x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[Block(8) for _ in range(4)])
        self.head = nn.Linear(8, 3)

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        return self.head(self.layers(x).mean((2, 3)))


def trained(**options: Any) -> tuple[Any, dict[str, bytes]]:
    nw.manual_seed(0)
    model = Net()
    adam = optim.Adam(model.parameters())
    step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=adam, **options)
    x, t = nw.randn(5, 8, 6, 7), nw.tensor([0, 1, 2, 0, 1])
    for _ in range(2):
        step(x, t)
    return step, {k: v.numpy().tobytes() for k, v in model.state_dict().items()}


def test_a_step_gives_the_same_bits_in_less_memory() -> None:
    plain, expected = trained()
    step, state = trained(checkpoint=["layers.?"])
    assert state == expected  # dropout masks and running statistics included
    # The masks are drawn again, from the same seed and counter, instead of being kept.
    drawn = [n.op for n in step.graph(stage="recompute").nodes].count("uniform")
    assert drawn == 2 * 4
    assert step.memory().batch < 0.7 * plain.memory().batch
    assert "R001" in step.explain() and "R001" not in plain.explain()
    assert step.fallbacks == 0


def test_under_autograd_less_is_saved_for_the_same_gradients() -> None:
    found = []
    for options in ({}, {"checkpoint": ["layers.?"]}):
        nw.manual_seed(0)
        model = Net()
        fast = nw.compile(model, **options)
        x = nw.randn(5, 8, 6, 7)
        fast(x).square().mean().backward()
        grads = [p.grad.numpy().tobytes() for p in model.parameters() if p.grad is not None]
        found.append((fast.memory(1, "train").saved, grads))
    (plain, expected), (checkpointed, grads) = found
    assert grads == expected and len(grads) == len(list(model.parameters()))
    assert checkpointed < 0.5 * plain


def test_a_pattern_that_fits_no_module_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'layer\.0' fits no module of Net; did you mean 'layers"):
        nw.compile(Net(), checkpoint=["layer.0"])
    with pytest.raises(ValueError, match=r"fits no module of Net; named_modules\(\) lists"):
        nw.compile(Net(), checkpoint=["?"])


@pytest.mark.parametrize("wrong", ["layers.0", [3], 3])
def test_something_else_than_a_list_of_paths_is_a_type_error(wrong: Any) -> None:
    with pytest.raises(TypeError, match="list of module paths"):
        nw.compile(Net(), checkpoint=wrong)


def test_inference_does_not_change() -> None:
    nw.manual_seed(0)
    model = Net().eval()
    x = nw.randn(2, 8, 6, 7)
    with nw.no_grad():
        plain, other = nw.compile(model)(x), nw.compile(model, checkpoint=["layers.?"])(x)
    np.testing.assert_array_equal(plain.numpy(), other.numpy())
