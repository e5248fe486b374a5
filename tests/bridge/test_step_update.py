"""Steps whose gradients' kernels update the weights: the bits, and the state after a bad label."""

from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn, optim

OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.1, weight_decay=1e-3),
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
}


def compiled(name: str, **options: Any) -> tuple[nn.Module, Any]:
    nw.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 33), nn.ReLU(), nn.Linear(33, 30))
    optimizer = OPTIMIZERS[name](model.parameters())
    return model, nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=optimizer, **options)


def state(model: nn.Module, step: Any) -> list[np.ndarray]:
    buffers = [s for p in model.parameters() for s in step.optimizer.state[p].values()]
    values = [*model.state_dict().values(), *(b for b in buffers if isinstance(b, nw.Tensor))]
    return [v.numpy().copy() for v in values]


def updating(step: Any) -> int:
    graph = step.graph()
    return sum(
        any(n.op == "linear_grad_weight" for n in node.attrs["body"].nodes)
        for node in graph.nodes
        if node.op == "fused"
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_has_the_bits_of_separate_updates(name: str) -> None:
    models, steps = zip(compiled(name), compiled(name, passes={"fuse_update": False}), strict=True)
    rng = np.random.default_rng(0)
    for n in (64, 5, 300, 64):
        x, t = rng.standard_normal((n, 20)).astype(np.float32), rng.integers(0, 30, n)
        first, second = (s(x, t).item() for s in steps)
        assert first == second
    assert [updating(s) for s in steps] == [2, 0]
    assert steps[0].fallbacks == 0
    for one, other in zip(*map(state, models, steps), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_label_out_of_range_leaves_weights_and_state_as_they_were() -> None:
    model, step = compiled("momentum")
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((64, 20)).astype(np.float32), rng.integers(0, 30, 64)
    step(x, t)
    before = state(model, step)
    assert updating(step) == 2
    with pytest.raises(IndexError):
        step(x, np.where(np.arange(64) == 63, 30, t))
    for one, other in zip(before, state(model, step), strict=True):
        np.testing.assert_array_equal(one, other)
