"""benchmarks/zoo_gradients.py: a wrong gradient and bits that differ are found."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from netwright import nn
from netwright.vision import models

CORNERS = ("ReLU", "ReLU6", "Hardswish", "Hardsigmoid", "MaxPool2d")


@pytest.fixture
def gradients(program: Callable[[str], ModuleType]) -> ModuleType:
    pytest.importorskip("torch")
    return program("zoo_gradients")


@pytest.fixture
def row(gradients: ModuleType) -> dict[str, Any]:
    """That of a network that takes no time."""
    sizes = {"image_size": 32, "patch_size": 8, "hidden_dim": 16, "mlp_dim": 32}
    options = {**sizes, "num_layers": 1, "num_heads": 2}
    net = gradients.Net("VisionTransformer", size=32, options=options)
    found: dict[str, Any] = gradients.measured(net, False, 1)
    return {**found, "smooth": True}


def test_a_row_has_errors_bits_and_the_memory_of_a_step(
    gradients: ModuleType, row: dict[str, Any]
) -> None:
    assert gradients.is_right(row)
    assert 0 < row["errors"]["netwright"]["median"] < 1e-5
    assert row["memory"].startswith("memory at batch 2")
    assert row["step_losses"][0] != row["step_losses"][1]
    for flag in ("same_bits", "step_same_bits", "finite", "step_finite"):
        assert not gradients.is_right({**row, flag: False}), flag
    ours = {key: 3 * value + 1e-5 for key, value in row["errors"]["torch"].items()}
    assert not gradients.is_right({**row, "errors": {**row["errors"], "netwright": ours}})


def test_a_wrong_gradient_has_a_large_error(gradients: ModuleType) -> None:
    rng = np.random.default_rng(0)
    exact = {name: rng.standard_normal((20, 30)) for name in "abc"}
    found = {**exact, "b": exact["b"] * 1.01}
    errors = gradients.errors(found, exact)
    assert errors["median"] == 0
    assert errors["worst"] == pytest.approx(0.01)
    assert errors["rms"] == pytest.approx(0.01 / 3**0.5)


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small"])
def test_a_smooth_network_has_no_corners(gradients: ModuleType, name: str) -> None:
    model = gradients.smoothed(getattr(models, name)(), nn)
    kinds = {type(module).__name__ for module in model.modules()}
    assert kinds.isdisjoint(CORNERS)
    assert "SiLU" in kinds


def test_functions_are_smooth_only_meanwhile(gradients: ModuleType) -> None:
    before = models.inception_blocks.F, models.densenet.F
    with gradients.smooth_functions((models,), True):
        assert models.densenet.F is not before[1]
    after = models.inception_blocks.F, models.densenet.F
    assert all(a is b for a, b in zip(after, before, strict=True))
