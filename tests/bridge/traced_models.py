"""What the tests of tracing share: inputs, a module around a function, compiled against eager."""

from collections.abc import Callable
from typing import Any

import numpy as np

import netwright as nw
from netwright import nn


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def tensor(*shape: int, seed: int = 0) -> nw.Tensor:
    return nw.from_numpy(array(*shape, seed=seed))


def arrays(result: Any) -> list[np.ndarray]:
    """The result's tensors in order, as arrays."""
    if isinstance(result, nw.Tensor):
        return [result.detach().numpy()]
    items = result.values() if isinstance(result, dict) else result
    return [a for item in items for a in arrays(item)]


def check(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Compiled equals eager in training and eval mode, with and without gradients, and for
    another batch size without another compilation; returns the compiled model."""
    fast = nw.compile(model)
    for training in (True, False):
        model.train(training)
        assert_equal(fast, model, args, kwargs)
        with nw.no_grad():
            assert_equal(fast, model, args, kwargs)
    before = fast.compilations
    with nw.no_grad():
        assert_equal(fast, model, [_doubled(a) for a in args], kwargs)
    assert fast.compilations == before
    return fast


def _doubled(value: Any) -> Any:
    return nw.cat([value, value * 0.5]) if isinstance(value, nw.Tensor) and value.dim() else value


def assert_equal(fast: nn.Module, model: nn.Module, args: Any, kwargs: Any) -> None:
    got, expected = fast(*args, **kwargs), model(*args, **kwargs)
    assert type(got) is type(expected)
    for a, b in zip(arrays(got), arrays(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


class Function(nn.Module):
    """A module around a function of tensors."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)
