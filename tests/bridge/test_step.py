"""The compiled step: what eager forward, backward and optimizer.step() give, in one call."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import netwright as nw
import netwright.nn.functional as F
from netwright import nn, optim
from netwright.errors import LintWarning, UnsupportedError


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def labels(n: int, count: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, count, n)


def small() -> nn.Module:
    nw.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)
    )


def state(model: nn.Module) -> dict[str, np.ndarray]:
    return {k: v.detach().numpy().copy() for k, v in model.state_dict().items()}


def eager_step(
    model: nn.Module, loss: Callable[..., nw.Tensor], optimizer: optim.Optimizer, *args: Any
) -> float:
    """One step as a user writes it."""
    optimizer.zero_grad()
    *inputs, target = (nw.from_numpy(a) for a in args)
    found = loss(model(*inputs), target)
    found.backward()
    optimizer.step()
    return found.item()


def assert_same_state(a: nn.Module, b: nn.Module, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    for (name, x), y in zip(state(a).items(), state(b).values(), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol, err_msg=name)


Make = Callable[[nn.Module], optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda m: optim.SGD(m.parameters(), lr=0.1),
    "nesterov": lambda m: optim.SGD(
        m.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3
    ),
    "adam": lambda m: optim.Adam(m.parameters(), lr=1e-2, weight_decay=1e-2),
    "amsgrad": lambda m: optim.Adam(m.parameters(), lr=1e-2, amsgrad=True),
    "adamw": lambda m: optim.AdamW(m.parameters(), lr=1e-2),
    "maximize": lambda m: optim.SGD(m.parameters(), lr=0.01, maximize=True),
    "groups": lambda m: optim.AdamW(
        [
            {"params": [p for p in m.parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in m.parameters() if p.dim() == 1], "lr": 1e-3},
        ],
        lr=1e-2,
    ),
}


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_steps_equal_eager_and_so_does_the_optimizers_state(name: str) -> None:
    model, twin = small(), small()
    mine, other = OPTIMIZERS[name](model), OPTIMIZERS[name](twin)
    step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=mine)
    for i in range(6):
        n = 5 if i == 3 else 8  # a partial batch
        x, y = array(n, 6, seed=i), labels(n, seed=i)
        expected = eager_step(twin, nn.CrossEntropyLoss(), other, x, y)
        assert step(x, y).item() == pytest.approx(expected, rel=1e-4)
    assert step.compilations == 1
    assert step.fallbacks == 0
    assert_same_state(model, twin, atol=2e-5)
    got, wanted = mine.state_dict(), other.state_dict()
    assert got["param_groups"] == wanted["param_groups"]
    assert list(got["state"]) == list(wanted["state"])
    for key, values in wanted["state"].items():
        assert list(got["state"][key]) == list(values)
        for what, value in values.items():
            if isinstance(value, nw.Tensor):
                np.testing.assert_allclose(
                    got["state"][key][what].numpy(), value.numpy(), rtol=1e-3, atol=1e-5
                )


def test_compiled_and_eager_steps_may_alternate() -> None:
    model, twin = small(), small()
    mine, other = OPTIMIZERS["adam"](model), OPTIMIZERS["adam"](twin)
    step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=mine)
    for i in range(6):
        x, y = array(8, 6, seed=i), labels(8, seed=i)
        expected = eager_step(twin, nn.CrossEntropyLoss(), other, x, y)
        odd = i % 2 == 1
        got = eager_step(model, nn.CrossEntropyLoss(), mine, x, y) if odd else step(x, y).item()
        assert got == pytest.approx(expected, rel=1e-4)
    assert_same_state(model, twin, atol=2e-5)


@pytest.mark.filterwarnings("ignore::netwright.errors.LintWarning")
def test_a_scheduler_and_changed_options_compile_nothing_new() -> None:
    model, twin = small(), small()
    mine, other = OPTIMIZERS["nesterov"](model), OPTIMIZERS["nesterov"](twin)
    schedulers = [optim.lr_scheduler.CosineAnnealingLR(o, T_max=5) for o in (mine, other)]
    step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=mine)
    for i in range(5):
        x, y = array(8, 6, seed=i), labels(8, seed=i)
        expected = eager_step(twin, nn.CrossEntropyLoss(), other, x, y)
        assert step(x, y).item() == pytest.approx(expected, rel=1e-4)
        for scheduler in schedulers:
            scheduler.step()
        for optimizer in (mine, other):
            optimizer.param_groups[0]["weight_decay"] = 0.01 * i
    assert_same_state(model, twin)


def test_an_epoch_with_a_last_partial_batch_compiles_once() -> None:
    model = small()
    step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=OPTIMIZERS["sgd"](model))
    for n in (16, 16, 7, 16, 2, 33):
        step(array(n, 6), labels(n))
    assert step.compilations == 1


def test_the_loss_is_that_before_the_update_and_it_falls() -> None:
    model = small()
    step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=OPTIMIZERS["adam"](model))
    x, y = array(32, 6), labels(32)
    before = nn.CrossEntropyLoss()(small()(nw.from_numpy(x)), nw.from_numpy(y)).item()
    losses = [step(x, y) for _ in range(60)]
    assert losses[0].item() == pytest.approx(before, rel=1e-5)
    assert losses[0].shape == ()
    assert not losses[0].requires_grad
    assert losses[-1].item() < 0.5 * losses[0].item()


def test_gradients_of_the_parameters_are_not_touched() -> None:
    model = small()
    step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=OPTIMIZERS["sgd"](model))
    model[0].weight.grad = nw.ones(16, 6)
    step(array(8, 6), labels(8))
    assert (model[0].weight.grad.numpy() == 1).all()
    assert model[3].weight.grad is None


def test_predict_is_eval_mode_with_the_weights_of_now() -> None:
    model = small()
    step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=OPTIMIZERS["adam"](model))
    x, y = array(8, 6), labels(8)
    for _ in range(3):
        step(x, y)
        got = step.predict(x)
        assert not got.requires_grad
        assert model.training
        model.eval()
        np.testing.assert_allclose(
            got.numpy(), model(nw.from_numpy(x)).detach().numpy(), rtol=1e-4, atol=1e-5
        )
        model.train()


def test_a_step_in_eval_mode_leaves_the_running_statistics() -> None:
    model, twin = small().eval(), small().eval()
    step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=OPTIMIZERS["sgd"](model))
    other = OPTIMIZERS["sgd"](twin)
    x, y = array(8, 6), labels(8)
    for _ in range(3):
        expected = eager_step(twin, nn.CrossEntropyLoss(), other, x, y)
        assert step(x, y).item() == pytest.approx(expected, rel=1e-5)
    assert_same_state(model, twin)
    assert model[1].num_batches_tracked.item() == 0


def test_dropout_draws_the_masks_of_eager() -> None:
    def make() -> nn.Module:
        nw.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4), nn.Dropout(0.1)
        )

    model, twin = make(), make()
    step = nw.compile(model, loss=nn.MSELoss(), optimizer=OPTIMIZERS["sgd"](model))
    other = OPTIMIZERS["sgd"](twin)
    nw.manual_seed(3)
    got = [step(array(8, 6, seed=i), array(8, 4, seed=i)).item() for i in range(4)]
    nw.manual_seed(3)
    expected = [
        eager_step(twin, nn.MSELoss(), other, array(8, 6, seed=i), array(8, 4, seed=i))
        for i in range(4)
    ]
    assert got == pytest.approx(expected, rel=1e-4)


# -- losses ---------------------------------------------------------------------------------------


def test_a_loss_written_as_a_function() -> None:
    def loss(output: nw.Tensor, target: nw.Tensor) -> nw.Tensor:
        return F.mse_loss(output, target) + 0.1 * output.abs().mean()

    model, twin = small(), small()
    step = nw.compile(model, loss=loss, optimizer=OPTIMIZERS["sgd"](model))
    other = OPTIMIZERS["sgd"](twin)
    for i in range(3):
        x, y = array(8, 6, seed=i), array(8, 4, seed=i)
        assert step(x, y).item() == pytest.approx(eager_step(twin, loss, other, x, y), rel=1e-4)
    assert_same_state(model, twin)


def test_a_loss_with_parameters_of_its_own_is_trained_too() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(nw.ones(4))

        def forward(self, output: nw.Tensor, target: nw.Tensor) -> nw.Tensor:
            return ((output * self.scale - target) ** 2).mean()

    found = []
    for compiled in (True, False):
        model, loss = small(), Weighted()
        optimizer = optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1)
        step = nw.compile(model, loss=loss, optimizer=optimizer) if compiled else None
        for i in range(3):
            x, y = array(8, 6, seed=i), array(8, 4, seed=i)
            if step is not None:
                step(x, y)
            else:
                eager_step(model, loss, optimizer, x, y)
        found.append(loss.scale.detach().numpy().copy())
    np.testing.assert_allclose(*found, rtol=1e-4)
    assert (found[0] != 1).all()


def test_several_inputs_and_several_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(3, 4)

        def forward(self, x: nw.Tensor, y: nw.Tensor) -> Any:
            return {"logits": self.a(x) + self.b(y), "size": self.b(y)}

    def loss(output: Any, target: nw.Tensor) -> nw.Tensor:
        return F.cross_entropy(output["logits"], target) + 0.1 * (output["size"] ** 2).mean()

    nw.manual_seed(0)
    model = Two()
    nw.manual_seed(0)
    twin = Two()
    step = nw.compile(model, loss=loss, optimizer=OPTIMIZERS["adam"](model))
    other = OPTIMIZERS["adam"](twin)
    for i in range(3):
        args = array(8, 6, seed=i), array(8, 3, seed=i), labels(8, seed=i)
        assert step(*args).item() == pytest.approx(eager_step(twin, loss, other, *args), rel=1e-4)


def test_a_nested_target() -> None:
    model = small()

    def loss(output: nw.Tensor, target: Any) -> nw.Tensor:
        return F.mse_loss(output, target["y"]) * target["weight"]

    step = nw.compile(model, loss=loss, optimizer=OPTIMIZERS["sgd"](model))
    x, y = array(8, 6), array(8, 4)
    single = step(x, {"y": y, "weight": 1.0}).item()
    model.load_state_dict(small().state_dict())
    assert step(x, {"y": y, "weight": 2.0}).item() == pytest.approx(2 * single, rel=1e-4)


def test_a_softmax_before_cross_entropy_is_removed_unless_strict() -> None:
    def make() -> nn.Module:
        return nn.Sequential(small(), nn.Softmax(dim=1))

    x, y = nw.from_numpy(array(8, 6)), nw.from_numpy(labels(8))
    corrected = nn.CrossEntropyLoss()(small()(x), y).item()
    double = nn.CrossEntropyLoss()(make()(x), y).item()
    for strict, expected in ((False, corrected), (True, double)):
        model = make()
        step = nw.compile(
            model, loss=nn.CrossEntropyLoss(), optimizer=OPTIMIZERS["sgd"](model), strict=strict
        )
        with pytest.warns(LintWarning, match="Softmax"):
            assert step(x, y).item() == pytest.approx(expected, rel=1e-5)
    assert abs(corrected - double) > 1e-2


# -- which parameters -----------------------------------------------------------------------------


def test_frozen_parameters_stay_and_thawed_ones_move() -> None:
    model, twin = small(), small()
    mine, other = OPTIMIZERS["nesterov"](model), OPTIMIZERS["nesterov"](twin)
    step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=mine)
    x, y = array(8, 6), labels(8)
    for m in (model, twin):
        m[0].requires_grad_(False)
    frozen = state(model)["0.weight"]
    for _ in range(2):
        step(x, y)
        eager_step(twin, nn.CrossEntropyLoss(), other, x, y)
    np.testing.assert_array_equal(state(model)["0.weight"], frozen)
    assert_same_state(model, twin)
    for m in (model, twin):
        m[0].requires_grad_(True)
    step(x, y)
    eager_step(twin, nn.CrossEntropyLoss(), other, x, y)
    assert_same_state(model, twin)
    assert (state(model)["0.weight"] != frozen).any()


def test_adam_after_thawing_counts_per_parameter_or_refuses() -> None:
    model, twin = small(), small()
    mine, other = OPTIMIZERS["adam"](model), OPTIMIZERS["adam"](twin)
    step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=mine)
    x, y = array(8, 6), labels(8)
    for m in (model, twin):
        m[0].requires_grad_(False)
    for _ in range(5):
        step(x, y)
        eager_step(twin, nn.CrossEntropyLoss(), other, x, y)
    for m in (model, twin):
        m[0].requires_grad_(True)
    before = state(model)
    with pytest.raises(UnsupportedError, match="different numbers of steps"):
        step(x, y)
    for name, value in state(model).items():
        np.testing.assert_array_equal(value, before[name])
    eager_step(model, nn.CrossEntropyLoss(), mine, x, y)  # the way out that the error names
    eager_step(twin, nn.CrossEntropyLoss(), other, x, y)
    assert_same_state(model, twin)


def test_an_optimizer_of_a_part_of_the_model() -> None:
    model, twin = small(), small()
    mine = optim.SGD(model[3].parameters(), lr=0.1)
    other = optim.SGD(twin[3].parameters(), lr=0.1)
    step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=mine)
    for i in range(3):
        x, y = array(8, 6, seed=i), labels(8, seed=i)
        step(x, y)
        eager_step(twin, nn.CrossEntropyLoss(), other, x, y)
    assert_same_state(model, twin)


def test_a_parameter_group_added_later_is_trained() -> None:
    model = small()
    optimizer = optim.SGD(model[3].parameters(), lr=0.1)
    step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=optimizer)
    x, y = array(8, 6), labels(8)
    step(x, y)
    optimizer.add_param_group({"params": list(model[0].parameters())})
    before = state(model)["0.weight"]
    step(x, y)
    assert (state(model)["0.weight"] != before).any()


def test_tied_weights_are_updated_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 4)
            self.out = nn.Linear(4, 7, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, idx: nw.Tensor) -> nw.Tensor:
            return self.out(F.relu(self.embed(idx)))

    nw.manual_seed(0)
    model = Tied()
    nw.manual_seed(0)
    twin = Tied()
    step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=OPTIMIZERS["adam"](model))
    other = OPTIMIZERS["adam"](twin)
    for i in range(3):
        x, y = labels(8, 7, seed=i), labels(8, 7, seed=i + 9)
        expected = eager_step(twin, nn.CrossEntropyLoss(), other, x, y)
        assert step(x, y).item() == pytest.approx(expected, rel=1e-4)
    assert_same_state(model, twin)


@pytest.mark.filterwarnings("ignore::netwright.errors.LintWarning")
def test_a_parameter_without_gradient_is_not_decayed() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x: nw.Tensor) -> nw.Tensor:
            return self.used(x)

    model = Unused()
    optimizer = optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5, momentum=0.9)
    step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=optimizer)
    before = state(model)
    step(array(8, 6), labels(8))
    after = state(model)
    np.testing.assert_array_equal(after["unused.weight"], before["unused.weight"])
    assert (after["used.weight"] != before["used.weight"]).any()
    assert model.unused.weight not in optimizer.state


def test_a_loaded_checkpoint_continues_the_same_training() -> None:
    def run(save_at: int | None) -> dict[str, np.ndarray]:
        model = small()
        optimizer = OPTIMIZERS["adam"](model)
        step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=optimizer)
        for i in range(6):
            if i == save_at:
                weights = {k: v.clone() for k, v in model.state_dict().items()}
                saved = _copied(optimizer.state_dict())
                step(array(8, 6, seed=50), labels(8))  # leads away, then back
                model.load_state_dict(weights)
                optimizer.load_state_dict(saved)
            step(array(8, 6, seed=i), labels(8, seed=i))
        return state(model)

    plain, resumed = run(None), run(3)
    for name, value in plain.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def _copied(value: Any) -> Any:
    if isinstance(value, nw.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    return list(value) if isinstance(value, list) else value


def test_trajectories_are_bitwise_equal_for_any_thread_count() -> None:
    def run(threads: int) -> dict[str, np.ndarray]:
        nw.set_num_threads(threads)
        model = small()
        step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=OPTIMIZERS["adam"](model))
        for i in range(4):
            step(array(37, 6, seed=i), labels(37, seed=i))
        return state(model)

    try:
        one, two, three = run(1), run(2), run(3)
    finally:
        nw.set_num_threads(None)
    for name, value in one.items():
        assert value.tobytes() == two[name].tobytes() == three[name].tobytes(), name


def test_weights_read_as_they_are_in_memory_train_alike_for_any_thread_count() -> None:
    """Layers large enough for ``linear_transposed``, with a last batch of another size."""

    def model() -> nn.Module:
        nw.manual_seed(0)
        return nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 90, bias=False))

    def run(threads: int) -> nn.Module:
        nw.set_num_threads(threads)
        made = model()
        step = nw.compile(made, loss=nn.CrossEntropyLoss(), optimizer=OPTIMIZERS["sgd"](made))
        for n in (64, 64, 21, 3):
            step(array(n, 300, seed=n), labels(n, 90))
        assert str(step.graph(stage="optimized")).count("linear_transposed(") == 2
        assert step.compilations == 1
        return made

    try:
        one, two, three = run(1), run(2), run(3)
    finally:
        nw.set_num_threads(None)
    for name, value in state(one).items():
        assert value.tobytes() == state(two)[name].tobytes() == state(three)[name].tobytes(), name
    twin = model()
    optimizer = OPTIMIZERS["sgd"](twin)
    for n in (64, 64, 21, 3):
        eager_step(twin, nn.CrossEntropyLoss(), optimizer, array(n, 300, seed=n), labels(n, 90))
    assert_same_state(one, twin)


@pytest.mark.parametrize("first", [1, 64])
def test_the_first_batch_does_not_decide_how_weights_are_read(first: int) -> None:
    """One program has a way for few rows and one for many."""
    made = nn.Sequential(nn.Linear(60, 90), nn.ReLU(), nn.Linear(90, 80))
    step = nw.compile(made, loss=nn.CrossEntropyLoss(), optimizer=OPTIMIZERS["sgd"](made))
    for n in (first, 1, 64):
        step(array(n, 60, seed=n), labels(n, 80))
    assert str(step.graph(stage="optimized")).count("linear_transposed(") == 2
    assert step.compilations == 1


def test_disabled_compilation_trains_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETWRIGHT_DISABLE", "1")
    model, twin = small(), small()
    step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=OPTIMIZERS["sgd"](model))
    other = OPTIMIZERS["sgd"](twin)
    x, y = array(8, 6), labels(8)
    expected = eager_step(twin, nn.CrossEntropyLoss(), other, x, y)
    assert step(x, y).item() == pytest.approx(expected)
    assert step.compilations == 0
    assert_same_state(model, twin)
