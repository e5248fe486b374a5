"""fuse_moments: convolutions take the moments of their results for BatchNorm in training."""

from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn, optim
from netwright.ir.graph import Graph, Node, Value
from netwright.ir.types import Dim, float64
from netwright.passes.fuse_moments import fuse_moments
from netwright.passes.pack_weights import pack_weights
from netwright.passes.rewriting import Ledger
from netwright.runtime import settings

N = Dim(1)
SAMPLE = Dim(36)  # rows of the batch


def conv(net: Any, height: int = 6, **attrs: Any) -> Value:
    x = net.input("x", N, height, 6, 4)
    return net.conv(x, 8, "conv", layout="NHWC", **attrs)


def moments(net: Any, x: Value) -> Value:
    return net.op("batch_norm_moments", x, parts=8, module="norm")


def statistics(net: Any, found: Value, rows: Any = SAMPLE) -> Any:
    gamma = net.parameter("norm_weight", 8)
    return net.op("batch_norm_statistics", found, gamma, rows=rows, eps=1e-5, module="norm")


def twelve(node: Node, graph: Graph) -> int:
    return 12


def fuse(graph: Graph, choose: Any = twelve) -> tuple[Graph, list[str], str]:
    ledger = Ledger()
    after = fuse_moments(graph, choose, ledger)
    return after, [e.code for e in ledger.entries], "".join(e.message for e in ledger.entries)


def test_the_convolution_takes_the_moments_of_parts_of_every_image(
    new_net: Any, assert_same: Any
) -> None:
    net = new_net(float64)
    y = conv(net)
    mean, var, *_ = statistics(net, moments(net, y))
    graph = net.done(y=net.op("relu", y), mean=mean, var=var)  # its other users do not matter
    after, codes, _ = fuse(graph)
    node = after.node("conv2d")
    ops = [n.op for n in node.attrs["body"].nodes if n.op != "input"]
    assert ops == ["conv2d", "batch_norm_moments"] and codes == ["F801"]
    assert [t.shape for t in node.types] == [(N, 6, 6, 8), (Dim(3), 2, 8)]
    (last,) = [n for n in after.nodes if n.op == "batch_norm_statistics"]
    assert last.operands[0] == node.values[1] and last.source.module == "norm"
    assert_same(graph, after, 1e-12)


def test_packed_weights_change_nothing(new_net: Any) -> None:
    net = new_net()
    y = conv(net, bias=False)
    graph = net.done(y=y, mean=statistics(net, moments(net, y))[0])
    after, codes, _ = fuse(pack_weights(graph, lambda n, dtype: 16))
    ops = [n.op for n in after.node("conv2d").attrs["body"].nodes if n.op != "input"]
    assert ops == ["conv2d_packed", "batch_norm_moments"] and codes == ["F801"]


def check_not(graph: Graph, reason: str, choose: Any = twelve) -> None:
    after, codes, message = fuse(graph, choose)
    assert after is graph and codes == ["F802"] and reason in message


def test_not_where_the_kernel_takes_none(new_net: Any) -> None:
    net = new_net()
    y = conv(net)
    graph = net.done(y=y, mean=statistics(net, moments(net, y))[0])
    check_not(graph, "takes none", lambda node, graph: 0)


def test_not_of_what_follows_the_convolution(new_net: Any) -> None:
    net = new_net()
    y = net.op("relu", conv(net))
    check_not(net.done(y=y, mean=statistics(net, moments(net, y))[0]), "is no convolution")


def test_not_if_something_else_reads_the_moments(new_net: Any) -> None:
    net = new_net()
    found = moments(net, conv(net))
    both = net.op("mul", found, found)
    check_not(net.done(both=both, mean=statistics(net, found)[0]), "reads them, too")


def test_not_if_the_moments_are_a_result(new_net: Any) -> None:
    net = new_net()
    found = moments(net, conv(net))
    check_not(net.done(m=found, mean=statistics(net, found)[0]), "a result of the graph")


def test_not_for_a_batch_of_a_fixed_size(new_net: Any) -> None:
    net = new_net()
    y = net.conv(net.input("x", 5, 6, 6, 4), 8, "conv", layout="NHWC")
    found = statistics(net, moments(net, y), 5 * 36)
    check_not(net.done(y=y, mean=found[0]), "fixed size")


def test_nothing_to_do_in_eval_mode(new_net: Any) -> None:
    net = new_net()
    graph = net.done(y=net.batch_norm(conv(net), "norm", dim=3))
    assert fuse(graph) == (graph, [], "")


class Block(nn.Module):
    """A 3x3 and a 1x1 convolution with results of more than the caches of two cores."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.second, self.norm2 = nn.Conv2d(24, 40, 1, bias=False), nn.BatchNorm2d(40)

    def forward(self, x: Any) -> Any:
        x = nn.functional.relu(self.norm1(self.first(x)))
        return nn.functional.relu(self.norm2(self.second(x))).mean((2, 3))


@pytest.fixture
def step_of(monkeypatch: pytest.MonkeyPatch):
    """``step_of(**options)``: a training step that takes moments in both convolutions."""
    monkeypatch.setattr("netwright.codegen.conv_moments.is_faster", lambda *args: True)

    def make(**options: Any) -> tuple[Any, Block]:
        nw.manual_seed(3)
        model = Block().train()
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=optimizer, **options), model

    yield make
    settings.set_num_threads(None)


def batch(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    return rng.normal(5, 1, (n, 3, 20, 18)).astype(np.float32), rng.integers(0, 40, n)


def state(model: Block) -> dict[str, np.ndarray]:
    return {k: np.array(v.numpy()) for k, v in model.state_dict().items()}


def test_training_gives_the_same_bits_with_one_and_two_threads(step_of: Any) -> None:
    found = []
    for threads in (1, 2):
        settings.set_num_threads(threads)
        step, model = step_of()
        losses = [step(*batch(n)).numpy().tobytes() for n in (16, 16, 5)]
        found.append((losses, {k: v.tobytes() for k, v in state(model).items()}))
        assert str(step.explain()).count("F801") == 2
    assert found[0] == found[1]


def test_training_is_as_without_the_pass(step_of: Any) -> None:
    together, apart = step_of(), step_of(passes={"fuse_moments": False})
    for n in (16, 16, 5):
        first, second = (float(step(*batch(n)).numpy()) for step, _ in (together, apart))
        assert first == pytest.approx(second, rel=1e-5)
    for key, value in state(apart[1]).items():
        np.testing.assert_allclose(state(together[1])[key], value, rtol=1e-3, atol=2e-5)


def test_running_statistics_are_those_of_torch(step_of: Any) -> None:
    torch = pytest.importorskip("torch", reason="compares with torch")
    step, model = step_of()
    before = state(model)
    conv = torch.nn.Conv2d(3, 24, 3, padding=1, bias=False)
    norm = torch.nn.BatchNorm2d(24)
    conv.weight.data = torch.from_numpy(before["first.weight"])
    x, target = batch(16)
    norm(conv(torch.from_numpy(x)))
    step(x, target)
    after = state(model)
    for name in ("running_mean", "running_var"):
        right = getattr(norm, name).numpy()
        np.testing.assert_allclose(after[f"norm1.{name}"], right, rtol=1e-6, atol=1e-6)
