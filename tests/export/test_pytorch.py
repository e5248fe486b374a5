"""A traced graph as a PyTorch module gives what the program gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import netwright as nw
import netwright.nn.functional as F
from netwright import nn
from netwright.errors import UnsupportedError
from netwright.frontend.trace import Traced, trace
from netwright.ir.graph import Graph
from netwright.ir.interpreter import evaluate
from netwright.ir.ops.record import all_ops
from netwright.ir.types import TensorType, dtype_of

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")

from netwright.export.pytorch.functions import FUNCTIONS  # noqa: E402
from netwright.export.pytorch.module import build  # noqa: E402


def traced(model: nn.Module, *shape: int) -> Traced:
    """The model in eval mode as a graph."""
    return trace(model.eval(), {"": model}, (nw.randn(*shape),))


@pytest.mark.parametrize("op", sorted(set(FUNCTIONS) - {"extent"}))
def test_a_function_means_what_the_operators_record_means(op: str) -> None:
    compared = 0
    for sample in all_ops()[op].samples(np.random.default_rng(0)):
        graph = Graph(op)
        values = {f"x{i}": np.asarray(array) for i, array in enumerate(sample.arrays)}
        operands = [
            graph.add("input", name=k, path=k, type=TensorType(dtype_of(a.dtype), a.shape))
            for k, a in values.items()
        ]
        graph.add(op, *operands, **sample.attrs)
        graph.outputs["out"] = graph.node(op).value
        with np.errstate(all="ignore"):
            expected = evaluate(graph, values)["out"]
        try:
            module = build(Traced(graph, list(values), None, {}))
        except UnsupportedError as error:
            assert "NHWC" in str(error) or "asymmetric" in str(error)
            continue
        got = module(*map(torch.tensor, sample.arrays)).numpy()
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
        compared += 1
    assert compared


class Mixed(nn.Module):
    """Constants, a class token, an asymmetric convolution, slices, several results."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 2, padding="same")
        self.norm = nn.BatchNorm2d(8)
        self.token = nn.Parameter(nw.randn(1, 1, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: nw.Tensor) -> tuple[nw.Tensor, nw.Tensor]:
        y = F.hardswish(self.norm(self.conv(x))) * 0.5
        y = y.flatten(2).permute(0, 2, 1)
        y = nw.cat([self.token.expand(x.shape[0], -1, -1), y], dim=1)
        rows = y.reshape(2 * x.shape[0], -1)
        return self.head(y[:, 0]), rows - rows.mean(0)


def test_a_module_runs_at_any_batch_size() -> None:
    nw.manual_seed(0)
    model = Mixed()
    module = build(traced(model, 2, 3, 5, 7))
    for batch in (1, 4):
        x = nw.randn(batch, 3, 5, 7)
        with nw.no_grad(), torch.no_grad():
            found, expected = module(torch.tensor(x.numpy())), model(x)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-5)


def test_the_code_is_what_a_user_would_write() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())
    module = build(traced(model, 1, 1, 5, 5))
    calls = [n.target for n in module.graph.nodes if n.op in ("call_function", "call_method")]
    functional = torch.nn.functional
    assert calls == [torch.conv2d, functional.batch_norm, functional.relu, "reshape"]
    assert "for " not in module.code
    assert set(dict(module.named_parameters())) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_constants_are_numbers_where_a_user_would_write_numbers() -> None:
    class Scaled(nn.Module):
        def forward(self, x: nw.Tensor) -> nw.Tensor:
            return nw.maximum(x * 0.5 + 1.0, nw.tensor(0.25))

    module = build(traced(Scaled(), 2, 3))
    assert [b.item() for b in module.buffers()] == [0.25]
    assert "* 0.5" in module.code
    assert "+ 1.0" in module.code


def test_double_computes_in_float64_throughout() -> None:
    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: nw.Tensor) -> nw.Tensor:
            return self.layer((x > 0).float() + x)

    nw.manual_seed(0)
    model = Casting()
    x = np.random.default_rng(0).standard_normal((5, 4))
    program = traced(model, 5, 4)
    with torch.no_grad():
        found = build(program, double=True)(torch.tensor(x)).numpy()
    w, b = (p.detach().numpy().astype(np.float64) for p in model.parameters())
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, ((x > 0) + x) @ w.T + b, rtol=1e-14)


def test_a_program_in_training_mode_updates_running_statistics_and_counters() -> None:
    nw.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=0.3), nn.ReLU(),
        nn.Flatten(), nn.Linear(27, 2),
    )  # fmt: skip
    model[0].weight.requires_grad_(False)
    program = trace(model.train(), {"": model}, (nw.randn(4, 2, 5, 5),), {}, False)
    module = build(program, training=True)
    twin = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3, momentum=0.3), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(27, 2),
    )  # fmt: skip
    state = {k: torch.tensor(v.numpy()) for k, v in model.state_dict().items()}
    twin.load_state_dict(state)
    module.load_state_dict(state)
    x = torch.tensor(nw.randn(4, 2, 5, 5).numpy())
    for _ in range(2):
        for each in (module, twin):
            each.zero_grad()
            each(x).square().sum().backward()
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(module.state_dict()[key], value)
    gradients = {name: p.grad for name, p in module.named_parameters()}
    assert gradients.pop("0.weight") is None
    assert module.state_dict()["1.num_batches_tracked"] == 2
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, twin.get_parameter(name).grad)
    with pytest.raises(UnsupportedError, match="changes its state"):
        build(program)


def test_an_update_that_is_not_batch_norms_is_named() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", nw.zeros(()))

        def forward(self, x: nw.Tensor) -> nw.Tensor:
            self.seen.copy_(self.seen * 0.5)
            return x

    model = Counting()
    program = trace(model, {"": model}, (nw.randn(2, 3),), {}, False)
    with pytest.raises(UnsupportedError, match=r"the update of 'seen' at .* has no PyTorch form"):
        build(program, training=True)


def test_the_module_has_its_own_copy_of_the_weights() -> None:
    model = nn.Linear(4, 3)
    module = build(traced(model, 2, 4))
    with torch.no_grad():
        next(module.parameters()).zero_()
    assert float(model.weight.abs().sum()) > 0


def test_an_operator_without_a_form_is_named_with_its_module() -> None:
    class Noisy(nn.Module):
        def forward(self, x: nw.Tensor) -> nw.Tensor:
            return F.dropout(x, 0.5, training=True)

    model: Any = nn.Sequential(Noisy())
    with pytest.raises(UnsupportedError, match=r"uniform at 0 at .*test_pytorch.py:\d+ has no"):
        build(traced(model, 2, 4))
