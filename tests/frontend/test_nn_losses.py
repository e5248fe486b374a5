"""Every loss against torch: values, gradients, reductions, ignored rows, weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from netwright.frontend import nn
from netwright.frontend.nn import functional as F
from netwright.frontend.tensor import Tensor

torch = pytest.importorskip("torch")
TF = torch.nn.functional
REDUCTIONS = ("none", "mean", "sum")


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return rng().normal(size=shape).astype(np.float32)


def to_torch(value: Any) -> Any:
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value


def to_ours(value: Any) -> Any:
    return Tensor(value.copy()) if isinstance(value, np.ndarray) else value


def check(name: str, input: np.ndarray, target: np.ndarray, **options: Any) -> None:
    """Loss and gradients with respect to the input (and a floating target)."""
    soft = target.dtype.kind == "f"
    x, t = Tensor(input.copy(), requires_grad=True), Tensor(target.copy(), requires_grad=soft)
    u = to_torch(input).requires_grad_()
    v = to_torch(target).requires_grad_(soft)
    ours = getattr(F, name)(x, t, **{k: to_ours(o) for k, o in options.items()})
    theirs = getattr(TF, name)(u, v, **{k: to_torch(o) for k, o in options.items()})
    close(ours.detach().numpy(), theirs.detach().numpy())
    assert ours.dtype.name == str(theirs.dtype).removeprefix("torch.")
    weights = rng().uniform(1, 2, theirs.shape).astype(np.float32)
    (ours * Tensor(weights)).sum().backward()
    (theirs * torch.from_numpy(np.asarray(weights))).sum().backward()
    close(x.grad.numpy(), u.grad.numpy())
    if soft:
        close(t.grad.numpy(), v.grad.numpy())


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(6, 4), (4,), (2, 4, 3), (2, 4, 3, 2)], ids=str)
def test_cross_entropy_of_class_indices(
    shape: tuple[int, ...], weighted: bool, smoothing: float, reduction: str
) -> None:
    logits = floats(*shape)
    labels = np.array(rng().integers(0, 4, shape[:1] + shape[2:] if len(shape) > 1 else ()))
    if labels.ndim:
        labels.flat[0] = -100
    weight = rng().uniform(0.5, 2, 4).astype(np.float32) if weighted else None
    options = {"weight": weight, "label_smoothing": smoothing, "reduction": reduction}
    check("cross_entropy", logits, labels, **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(6, 4), (4,), (2, 4, 3)], ids=str)
def test_cross_entropy_of_class_probabilities(
    shape: tuple[int, ...], weighted: bool, smoothing: float, reduction: str
) -> None:
    target = rng().uniform(0, 1, shape).astype(np.float32)
    weight = rng().uniform(0.5, 2, 4).astype(np.float32) if weighted else None
    options = {"weight": weight, "label_smoothing": smoothing, "reduction": reduction}
    check("cross_entropy", floats(*shape), target, **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(6, 4), (4,), (2, 4, 3), (2, 4, 3, 2)], ids=str)
def test_nll_loss(shape: tuple[int, ...], weighted: bool, reduction: str) -> None:
    labels = np.array(rng().integers(0, 4, shape[:1] + shape[2:] if len(shape) > 1 else ()))
    if labels.ndim:
        labels.flat[0] = 7
    weight = rng().uniform(0.5, 2, 4).astype(np.float32) if weighted else None
    check("nll_loss", floats(*shape), labels, weight=weight, reduction=reduction, ignore_index=7)


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_uint8_labels_and_an_unbatched_label_of_one_element(name: str) -> None:
    check(name, floats(3, 4), np.array([0, 3, 1], np.uint8))
    x, t = floats(4), np.array([2])
    ours = getattr(F, name)(Tensor(x), Tensor(t), reduction="none")
    close(ours.numpy(), getattr(TF, name)(to_torch(x), to_torch(t), reduction="none").numpy())


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_mean_over_ignored_rows_only_or_no_rows_is_nan_as_in_torch(name: str) -> None:
    check(name, floats(2, 4), np.array([-100, -100]))
    check(name, floats(0, 4), np.zeros(0, np.int64))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "smooth_l1_loss"])
def test_regression_losses(name: str, reduction: str) -> None:
    check(name, floats(3, 4), 2 * floats(4, 3).reshape(3, 4)[::-1].copy(), reduction=reduction)
    if name != "smooth_l1_loss":
        weight = rng().uniform(0.5, 2, (3, 4)).astype(np.float32)
        check(name, floats(3, 4), 3 * floats(3, 4), reduction=reduction, weight=weight)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_smooth_l1_beta(beta: float) -> None:
    check("smooth_l1_loss", floats(3, 4), 2 * floats(3, 4) + 0.1, beta=beta)


@pytest.mark.parametrize("name", ["mse_loss", "l1_loss"])
def test_integer_target_is_promoted(name: str) -> None:
    check(name, floats(3, 4), rng().integers(0, 3, (3, 4)))


@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "smooth_l1_loss"])
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_regression_target_is_broadcast_with_a_warning(name: str) -> None:
    with pytest.warns(UserWarning, match="different to the input size"):
        F.mse_loss(Tensor(floats(3, 4)), Tensor(floats(3, 1)))
    check(name, floats(3, 4), floats(3, 1))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_binary_cross_entropy(reduction: str, weighted: bool) -> None:
    weight = rng().uniform(0.5, 2, 4).astype(np.float32) if weighted else None
    probabilities = rng().uniform(0.05, 0.95, (3, 4)).astype(np.float32)
    target = rng().uniform(0, 1, (3, 4)).astype(np.float32)
    check("binary_cross_entropy", probabilities, target, weight=weight, reduction=reduction)


def test_binary_cross_entropy_is_finite_at_0_and_1() -> None:
    x, t = np.array([0, 0, 1, 1], np.float32), np.array([0, 1, 0, 1], np.float32)
    ours = F.binary_cross_entropy(Tensor(x), Tensor(t), reduction="none")
    assert ours.numpy().tolist() == [0.0, 100.0, 100.0, 0.0]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("pos_weighted", [False, True])
def test_binary_cross_entropy_with_logits(
    reduction: str, weighted: bool, pos_weighted: bool
) -> None:
    options = {
        "weight": rng().uniform(0.5, 2, (3, 4)).astype(np.float32) if weighted else None,
        "pos_weight": rng().uniform(0.5, 3, 4).astype(np.float32) if pos_weighted else None,
        "reduction": reduction,
    }
    target = rng().uniform(0, 1, (3, 4)).astype(np.float32)
    check("binary_cross_entropy_with_logits", 3 * floats(3, 4), target, **options)


def test_binary_cross_entropy_with_logits_does_not_overflow() -> None:
    logits = np.array([-1e4, -90, 0.0, 90, 1e4], np.float32)
    for t in (0.0, 1.0):
        target = np.full(5, t, np.float32)
        check("binary_cross_entropy_with_logits", logits, target, reduction="none")


MODULES = {
    "CrossEntropyLoss": {"ignore_index": 1, "label_smoothing": 0.1, "reduction": "sum"},
    "NLLLoss": {"ignore_index": 1},
    "MSELoss": {"reduction": "none"},
    "L1Loss": {},
    "SmoothL1Loss": {"beta": 0.5},
    "BCELoss": {},
    "BCEWithLogitsLoss": {"reduction": "sum"},
}


@pytest.mark.parametrize("name", MODULES)
def test_loss_modules_equal_torchs(name: str) -> None:
    labels = name in ("CrossEntropyLoss", "NLLLoss")
    input = rng().uniform(0.1, 0.9, (3, 4)).astype(np.float32)
    target = np.array([0, 1, 3]) if labels else rng().uniform(0, 1, (3, 4)).astype(np.float32)
    weights = [None, np.array([1, 2, 3, 4], np.float32)]
    weighted = name in ("CrossEntropyLoss", "NLLLoss", "BCELoss", "BCEWithLogitsLoss")
    for weight in weights if weighted else [None]:
        extra = {} if weight is None else {"weight": weight}
        ours = getattr(nn, name)(**MODULES[name], **{k: Tensor(v) for k, v in extra.items()})
        theirs = getattr(torch.nn, name)(
            **MODULES[name], **{k: torch.from_numpy(v) for k, v in extra.items()}
        )
        assert repr(ours) == repr(theirs)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        a = ours(Tensor(input), Tensor(target))
        b = theirs(torch.from_numpy(input), torch.from_numpy(target))
        close(a.numpy(), b.numpy())


@pytest.mark.parametrize(
    ("arguments", "reduction"),
    [({"size_average": False}, "sum"), ({"reduce": False}, "none"), ({"reduce": True}, "mean")],
)
def test_deprecated_reduction_arguments_warn_and_work(
    arguments: dict[str, bool], reduction: str
) -> None:
    with pytest.warns(UserWarning, match=f"reduction='{reduction}' instead"):
        assert nn.MSELoss(**arguments).reduction == reduction
