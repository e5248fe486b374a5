"""A step in two halves: gradients that wait in buffers, accumulation, clipping, update."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn, optim

Make = Callable[[nn.Module], optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "momentum": lambda m: optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda m: optim.AdamW(m.parameters(), lr=1e-2),
}
LOSS = nn.CrossEntropyLoss()


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def labels(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, n)


def batch(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return array(n, 6, seed=seed), labels(n, seed)


def small() -> nn.Module:
    nw.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)
    )


def compiled(name: str = "momentum", **options: Any) -> tuple[nn.Module, Any]:
    model = small()
    return model, nw.compile(model, loss=LOSS, optimizer=OPTIMIZERS[name](model), **options)


def state(model: nn.Module) -> dict[str, np.ndarray]:
    return {k: v.detach().numpy().copy() for k, v in model.state_dict().items()}


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    for (name, x), y in zip(state(a).items(), state(b).values(), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-5, err_msg=name)


def eager_backward(model: nn.Module, x: np.ndarray, y: np.ndarray, scale: float = 1.0) -> float:
    loss = LOSS(model(nw.from_numpy(x)), nw.from_numpy(y))
    (loss * scale).backward()
    return loss.item()


# -- gradients while others are computed ----------------------------------------------------------


@pytest.mark.parametrize("before", [0, 1])
def test_buckets_are_told_in_order_as_soon_as_their_gradients_are_there(before: int) -> None:
    """With the same bits as in one go; ``before``: gradients that wait already."""
    (_, whole), (_, cut) = (compiled(accumulate=before + 1) for _ in range(2))
    for i in range(before):
        whole.gradients(*batch(8, i))
        cut.gradients(*batch(8, i))
    whole.gradients(*batch(8, 5))
    seen: list[np.ndarray] = []

    def ready(flat: list[np.ndarray], bucket: int) -> None:
        assert bucket == len(seen)
        seen.append(flat[0].copy())

    cut.gradients_in_buckets(64, ready, *batch(8, 5))
    (final,), (expected,) = cut.flat_grads, whole.flat_grads
    np.testing.assert_array_equal(final, expected)
    assert len(seen) == final.nbytes // 64
    for bucket, moment in enumerate(seen):
        done = 16 * (bucket + 1)
        np.testing.assert_array_equal(moment[:done], final[:done])
    # The first one came before the last gradient did.
    assert not np.array_equal(seen[0], final)
    assert cut.accumulated == before + 1


def test_no_bucket_is_told_of_after_a_bad_label() -> None:
    _, step = compiled()
    x, y = batch(8, 0)
    y[3] = 4
    told: list[int] = []
    with pytest.raises(IndexError, match="Target 4 is out of bounds"):
        step.gradients_in_buckets(64, lambda _, bucket: told.append(bucket), x, y)
    assert told == []


# -- gradients and update apart -------------------------------------------------------------------


@pytest.mark.parametrize("disabled", [False, True])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_the_halves_are_a_step(name: str, disabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if disabled:
        monkeypatch.setenv("NETWRIGHT_DISABLE", "1")
    model, step = compiled(name)
    twin, whole = compiled(name)
    for i in range(4):
        x, y = batch(5 if i == 2 else 8, i)
        loss = step.gradients(x, y)
        assert step.accumulated == 1
        step.update()
        assert step.accumulated == 0
        assert loss.item() == pytest.approx(whole(x, y).item(), rel=1e-5)
    assert_same_state(model, twin)
    assert step.compilations == (0 if disabled else 2)
    assert step.fallbacks == 0


def test_the_buffers_hold_what_eager_backward_leaves_in_grad() -> None:
    model, step = compiled()
    twin = small()
    assert step.grads == {}
    assert step.flat_grads == []
    for i in range(3):  # the third is the second run of the program that adds
        x, y = batch(8, i)
        assert step.gradients(x, y).item() == pytest.approx(eager_backward(twin, x, y), rel=1e-5)
        for path, parameter in twin.named_parameters():
            np.testing.assert_allclose(
                step.grads[path], parameter.grad.numpy(), rtol=1e-4, atol=1e-6, err_msg=path
            )
    assert step.accumulated == 3
    assert step.compilations == 2
    assert all(p.grad is None for p in model.parameters())
    step.zero_grad()
    assert step.accumulated == 0
    before = state(model)
    step.update()  # nothing waits
    for name, value in state(model).items():
        np.testing.assert_array_equal(value, before[name])


def test_flat_memory_holds_the_gradients_in_the_order_of_backward() -> None:
    _, step = compiled()
    step.gradients(*batch(8, 0))
    assert list(step.grads) == ["3.weight", "3.bias", "1.weight", "1.bias", "0.weight"]
    (flat,) = step.flat_grads
    start = flat.__array_interface__["data"][0]
    offsets = [a.__array_interface__["data"][0] - start for a in step.grads.values()]
    assert offsets == sorted(offsets)
    assert all(offset % 64 == 0 for offset in offsets)
    assert offsets[-1] + step.grads["0.weight"].nbytes <= flat.nbytes
    squares = sum(float(np.square(a).sum()) for a in step.grads.values())
    assert float(np.square(flat).sum()) == pytest.approx(squares)


def test_what_is_written_into_the_buffers_is_applied() -> None:
    model, step = compiled()
    twin, other = compiled()
    x, y = batch(8, 0)
    step.gradients(x, y)
    for flat in step.flat_grads:
        flat *= 2
    step.update()
    other.gradient_scale = 2.0
    other(x, y)
    assert_same_state(model, twin)


def test_changing_the_trained_parameters_while_gradients_wait_is_an_error() -> None:
    model, step = compiled()
    step.gradients(*batch(8, 0))
    model[0].requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"1 call.*frozen, thawed or exchanged.*zero_grad"):
        step.gradients(*batch(8, 1))
    step.update()  # as in PyTorch, what has a gradient is updated
    frozen = state(model)
    step.gradients(*batch(8, 1))
    assert list(step.grads) == ["3.weight", "3.bias", "1.weight", "1.bias"]
    step.update()
    np.testing.assert_array_equal(state(model)["0.weight"], frozen["0.weight"])
    assert (state(model)["3.weight"] != frozen["3.weight"]).any()


def test_a_parameter_that_leaves_the_optimizer_while_its_gradient_waits_is_named() -> None:
    _, step = compiled()
    step.gradients(*batch(8, 0))
    step.optimizer.param_groups[0]["params"].pop(0)
    with pytest.raises(RuntimeError, match=r"gradient of '0.weight' waits.*zero_grad"):
        step.update()
    step.zero_grad()
    step.gradients(*batch(8, 0))
    assert "0.weight" not in step.grads


def test_a_label_out_of_range_changes_neither_gradients_nor_their_number() -> None:
    model, step = compiled()
    step.gradients(*batch(8, 0))
    before, weights = {k: v.copy() for k, v in step.grads.items()}, state(model)
    with pytest.raises(IndexError, match="Target 9 is out of bounds"):
        step.gradients(array(8, 6), np.full(8, 9))
    assert step.accumulated == 1
    for name, value in step.grads.items():
        np.testing.assert_array_equal(value, before[name])
    for name, value in state(model).items():
        np.testing.assert_array_equal(value, weights[name])


@pytest.mark.filterwarnings("ignore::netwright.errors.LintWarning")
def test_a_parameter_that_no_gradient_reaches_has_no_buffer_and_no_decay() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x: nw.Tensor) -> nw.Tensor:
            return self.used(x)

    model = Unused()
    step = nw.compile(model, loss=LOSS, optimizer=OPTIMIZERS["momentum"](model))
    before = state(model)
    step.gradients(*batch(8, 0))
    assert list(step.grads) == ["used.weight", "used.bias"]
    step.update()
    np.testing.assert_array_equal(state(model)["unused.weight"], before["unused.weight"])
    assert model.unused.weight not in step.optimizer.state


def test_halves_are_bitwise_equal_for_any_thread_count() -> None:
    def run(threads: int) -> list[bytes]:
        nw.set_num_threads(threads)
        model, step = compiled("adamw", accumulate=2, clip_grad_norm=0.5)
        for i in range(4):
            step(*batch(37, i))
        return [v.tobytes() for v in state(model).values()]

    try:
        assert run(1) == run(2) == run(3)
    finally:
        nw.set_num_threads(None)


# -- accumulation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("disabled", [False, True])
def test_an_update_follows_every_so_many_calls(
    disabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if disabled:
        monkeypatch.setenv("NETWRIGHT_DISABLE", "1")
    model, step = compiled("adamw", accumulate=3)
    twin = small()
    other = OPTIMIZERS["adamw"](twin)
    for i in range(7):
        x, y = batch(8, i)
        before = state(model)
        assert step(x, y).item() == pytest.approx(eager_backward(twin, x, y, 1 / 3), rel=1e-4)
        assert step.accumulated == (i + 1) % 3
        moved = (state(model)["3.weight"] != before["3.weight"]).any()
        assert moved == (i % 3 == 2)
        if i % 3 == 2:
            other.step()
            other.zero_grad()
    step.update()  # the rest of an epoch
    other.step()
    assert step.accumulated == 0
    assert_same_state(model, twin)
    assert step.compilations == (0 if disabled else 3)


def test_equal_batches_accumulated_are_one_large_batch() -> None:
    def run(k: int, n: int) -> nn.Module:
        nw.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
        optimizer = OPTIMIZERS["momentum"](model)
        step = nw.compile(model, loss=LOSS, optimizer=optimizer, accumulate=k)
        for i in range(2):
            x, y = batch(12, i)
            for j in range(0, 12, n):
                step(x[j : j + n], y[j : j + n])
        return model

    assert_same_state(run(1, 12), run(4, 3))


def test_the_number_of_calls_may_change_without_compiling() -> None:
    _, step = compiled(accumulate=2)
    for i in range(4):
        step(*batch(8, i))
    made = step.compilations
    step.accumulate = 4
    for i in range(4):
        step(*batch(8, i))
        assert step.accumulated == (i + 1) % 4
    assert step.compilations == made


# -- clipping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    "limits", [{"norm": 0.3}, {"value": 0.02}, {"norm": 0.5, "value": 0.05}, {"norm": 1e3}], ids=str
)
def test_clipped_steps_equal_eager_ones(limits: dict[str, float], whole: bool) -> None:
    model, step = compiled(**{f"clip_grad_{kind}": limit for kind, limit in limits.items()})
    twin = small()
    other = OPTIMIZERS["momentum"](twin)
    for i in range(3):
        x, y = batch(8, i)
        if whole:
            step(x, y)
        else:
            step.gradients(x, y)
            step.update()
        other.zero_grad()
        eager_backward(twin, x, y)
        if "norm" in limits:
            norm = nn.utils.clip_grad_norm_(twin.parameters(), limits["norm"])
            assert step.grad_norm.item() == pytest.approx(norm.item(), rel=1e-4)
        else:
            assert step.grad_norm is None
        if "value" in limits:
            nn.utils.clip_grad_value_(twin.parameters(), limits["value"])
        other.step()
    assert_same_state(model, twin)
    assert step.fallbacks == 0


def test_another_limit_compiles_nothing_and_turning_it_off_is_no_clipping() -> None:
    model, step = compiled(clip_grad_norm=0.1)
    step(*batch(8, 0))
    first = step.grad_norm.item()
    made = step.compilations
    start = state(model)
    step.clip_grad_norm = 0.0
    step.optimizer.param_groups[0].update(weight_decay=1e-9, momentum=1e-9)
    step(*batch(8, 1))
    assert step.compilations == made
    np.testing.assert_allclose(state(model)["3.weight"], start["3.weight"], atol=1e-6)
    assert step.grad_norm.item() != first
    step.clip_grad_norm = None
    step(*batch(8, 1))
    assert np.abs(state(model)["3.weight"] - start["3.weight"]).max() > 1e-3
    assert step.grad_norm is None


def test_a_gradient_that_is_not_a_number_makes_the_norm_and_all_parameters_so() -> None:
    for limit in (1.0, float("inf")):
        model, step = compiled(clip_grad_norm=limit)
        x, y = batch(8, 0)
        x[0, 0] = np.nan
        step(x, y)
        assert np.isnan(step.grad_norm.item())
        assert all(np.isnan(p.detach().numpy()).all() for p in model.parameters())


def test_double_precision_limits() -> None:
    model = small().double()
    step = nw.compile(
        model,
        loss=LOSS,
        optimizer=optim.SGD(model.parameters(), lr=0.1),
        clip_grad_norm=0.1,
        accumulate=2,
    )
    twin = small().double()
    other = optim.SGD(twin.parameters(), lr=0.1)
    for i in range(2):
        x, y = batch(8, i)
        step(x.astype(np.float64), y)
        eager_backward(twin, x.astype(np.float64), y, 0.5)
    nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
    other.step()
    for (name, a), b in zip(state(model).items(), state(twin).values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, err_msg=name)


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate=0: expected the number of calls per update, at least 1"),
        ({"accumulate": 2.0}, "accumulate=2.0"),
        ({"clip_grad_norm": -1.0}, "clip_grad_norm=-1.0: expected a number that is not negative"),
        ({"clip_grad_norm": "large"}, "clip_grad_norm='large': expected a number"),
        ({"clip_grad_value": float("nan")}, "clip_grad_value=nan"),
        ({"clip_grad_value": [1.0]}, r"clip_grad_value=\[1.0\]: expected a number"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compiled(**options)


def test_options_of_a_step_need_a_loss() -> None:
    with pytest.raises(TypeError, match=r"accumulate.*options of a training step; give loss"):
        nw.compile(small(), accumulate=2)  # type: ignore[call-overload]
