"""compile(tune=True) and compile(accuracy=...)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn, tuning
from netwright.passes.pack_weights import Choice


@pytest.fixture
def model() -> nn.Module:
    nw.manual_seed(0)
    layers = [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 64, 64)]
    return nn.Sequential(*layers).eval()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETWRIGHT_CACHE_DIR", str(tmp_path))


def run(model: nn.Module, x: nw.Tensor, **options: Any) -> tuple[Any, np.ndarray]:
    fast = nw.compile(model, **options)
    with nw.no_grad():
        return fast, fast(x).numpy()


def test_a_tuned_model_computes_the_same(own_cache: None, model: nn.Module) -> None:
    x = nw.randn(2, 16, 8, 8)
    fast, tuned = run(model, x, tune=True)
    np.testing.assert_allclose(tuned, run(model, x)[1], rtol=1e-4, atol=1e-5)
    text = fast.explain()
    assert text.count("U101") + text.count("U102") == 2  # the convolution and the linear layer


def test_winners_are_remembered(
    own_cache: None, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = nw.randn(2, 16, 8, 8)
    first, _ = run(model, x, tune=True)

    def measured_again(*arguments: Any) -> Choice:
        raise AssertionError("the winner should come from the cache")

    monkeypatch.setattr(tuning, "_measured", measured_again)
    second, _ = run(model, x, tune=True)
    assert str(first.graph()) == str(second.graph())


def test_the_fastest_candidate_wins_only_if_it_is_clearly_faster(
    own_cache: None, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(fastest: float) -> Any:
        # The cost model's choice comes first and takes a second; the last candidate is the fastest.
        def take(runners: dict[Choice, Any]) -> dict[Choice, float]:
            return {c: 1.0 for c in runners} | {list(runners)[-1]: fastest}

        return take

    x = nw.randn(3, 16, 8, 8)
    monkeypatch.setattr(tuning, "_take_turns", seconds(0.99))
    assert run(model, x, tune=True)[0].explain().count("U101") == 0
    monkeypatch.setattr(tuning, "_take_turns", seconds(0.5))
    other = nw.randn(5, 16, 8, 8)
    assert run(model, other, tune=True)[0].explain().count("U101") == 2


def test_weights_that_no_kernel_reads_packed_are_not_measured(
    own_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of linear layers in a step, which change in every call; a frozen one is packed."""
    measured: list[str] = []

    def note(key: str, alone: Any, product: Any, default: Any, *more: Any) -> Choice:
        measured.append(product.node.source.module)
        return default.choice

    monkeypatch.setattr(tuning, "_measured", note)
    network = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20, bias=False))
    network[0].weight.requires_grad_(False)
    optimizer = nw.optim.SGD(network.parameters(), lr=0.1)
    step = nw.compile(network, loss=nn.CrossEntropyLoss(), optimizer=optimizer, tune=True)
    step(nw.randn(64, 40), nw.tensor(np.arange(64) % 20))
    assert measured == ["0"]


def test_relaxed_accuracy_allows_larger_tiles(model: nn.Module) -> None:
    x = nw.randn(2, 16, 8, 8)
    relaxed, y = run(model, x, accuracy="relaxed")
    standard, exact = run(model, x)
    assert "tile=4" in str(relaxed.graph()) and "tile=2" in str(standard.graph())
    np.testing.assert_allclose(y, exact, rtol=1e-3, atol=1e-4)


def test_an_unknown_accuracy_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="'exact' is not one of standard, relaxed"):
        nw.compile(nn.Linear(2, 2), accuracy="exact")
