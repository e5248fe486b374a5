"""evaluate(): means over all samples in eval mode, compiled."""

from typing import Any

import numpy as np
import pytest

import netwright as nw
import netwright.nn.functional as F
from netwright import nn, optim
from netwright.utils.data import DataLoader, TensorDataset


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


X, Y = array(37, 6), np.random.default_rng(1).integers(0, 4, 37)


def loader(*arrays: np.ndarray, size: int = 16) -> DataLoader:
    return DataLoader(TensorDataset(*map(nw.from_numpy, arrays)), batch_size=size)


def made(loss: Any = None, outputs: int = 4) -> tuple[nn.Module, Any]:
    nw.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(16, outputs),
    )  # fmt: skip
    loss = nn.CrossEntropyLoss() if loss is None else loss
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    return model, nw.compile(model, loss=loss, optimizer=optimizer)


@pytest.mark.parametrize("disabled", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_means_are_over_samples_also_with_a_last_partial_batch(
    reduction: str, disabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if disabled:
        monkeypatch.setenv("NETWRIGHT_DISABLE", "1")
    model, step = made(nn.CrossEntropyLoss(reduction=reduction))
    step(X[:16], Y[:16])  # running statistics other than those of a new model
    before = {k: v.numpy().copy() for k, v in model.state_dict().items()}
    found = step.evaluate(loader(X, Y))
    assert model.training
    model.eval()
    output = model(nw.from_numpy(X))
    expected = F.cross_entropy(output, nw.from_numpy(Y)).item()
    assert list(found) == ["loss", "accuracy"]
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["accuracy"] == (output.detach().numpy().argmax(1) == Y).mean()
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])


def test_every_batch_size_shares_one_program_that_follows_the_weights() -> None:
    _, step = made()
    first = step.evaluate(loader(X, Y))
    assert step.compilations == 1
    assert step.fallbacks == 0
    assert step.evaluate(loader(X, Y, size=5)) == pytest.approx(first)
    for _ in range(20):
        step(X, Y)
    assert step.evaluate([(X, Y)])["loss"] < first["loss"]
    assert step.compilations == 2
    assert step.graph(mode="eval").updates == {}


def test_other_targets_have_no_accuracy() -> None:
    _, step = made(nn.MSELoss())
    target = array(37, 4, seed=2)
    found = step.evaluate(loader(X, target))
    assert list(found) == ["loss"]
    _, step = made(lambda output, target: F.mse_loss(output, target["y"]))
    got = step.evaluate([(X[:20], {"y": target[:20]}), (X[20:], {"y": target[20:]})])
    assert got == pytest.approx(found, rel=1e-5)


def test_targets_that_are_ignored_do_not_count() -> None:
    model, step = made(nn.CrossEntropyLoss(ignore_index=1))
    found = step.evaluate(loader(X, Y))
    model.eval()
    kept = Y != 1
    output = model(nw.from_numpy(X[kept]))
    assert found["loss"] == pytest.approx(F.cross_entropy(output, nw.from_numpy(Y[kept])).item())
    assert found["accuracy"] == pytest.approx((output.detach().numpy().argmax(1) == Y[kept]).mean())


def test_a_batch_of_ignored_targets_alone_is_left_out() -> None:
    _, step = made(nn.CrossEntropyLoss(ignore_index=1))
    alone = step.evaluate([(X[:8], np.zeros(8, np.int64))])
    both = step.evaluate([(X[:8], np.zeros(8, np.int64)), (X[8:16], np.ones(8, np.int64))])
    assert both == alone


def test_modes_come_back_after_an_error_and_each_module_keeps_its_own() -> None:
    model, step = made()
    model[1].eval()
    with pytest.raises(IndexError, match="Target 9"):
        step.evaluate([(X, np.full(37, 9))])
    assert [m.training for m in model] == [True, False, True, True, True]


def test_no_samples_and_no_batches_are_errors() -> None:
    _, step = made()
    with pytest.raises(ValueError, match="there are no samples"):
        step.evaluate([])
    with pytest.raises(TypeError, match=r"must be a tuple \(\*inputs, target\).*got ndarray"):
        step.evaluate([X])
