"""nn.utils.clip_grad_*: what torch.nn.utils gives, in place."""

from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn
from netwright.errors import UnsupportedError

GRADS = [np.array([[3.0, -4.0], [0.5, 0.0]], np.float32), np.array([12.0], np.float32), None]


def parameters(grads: list[Any]) -> list[nn.Parameter]:
    found = []
    for grad in grads:
        parameter = nn.Parameter(nw.zeros(3) if grad is None else nw.zeros(*grad.shape))
        parameter.grad = None if grad is None else nw.from_numpy(grad.copy())
        found.append(parameter)
    return found


@pytest.mark.parametrize("kind", [2.0, 1.0, 3.0, float("inf"), 0.0])
@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_the_norm_is_limited_as_in_torch(kind: float, limit: float) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    mine = parameters(GRADS)
    others = []
    for grad in GRADS:
        other = torch.nn.Parameter(torch.zeros(3 if grad is None else grad.shape))
        other.grad = None if grad is None else torch.from_numpy(grad.copy())
        others.append(other)
    norm = nn.utils.clip_grad_norm_(mine, limit, norm_type=kind)
    expected = torch.nn.utils.clip_grad_norm_(others, limit, norm_type=kind)
    assert norm.shape == ()
    assert norm.item() == pytest.approx(expected.item(), rel=1e-6)
    for a, b in zip(mine[:2], others[:2], strict=True):
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-6)
    assert mine[2].grad is None


def test_the_norm_before_is_returned_and_the_gradients_stay_the_same_arrays() -> None:
    found = parameters(GRADS)
    before = found[0].grad
    assert nn.utils.clip_grad_norm_(found, 1.3).item() == pytest.approx(169.25**0.5)
    assert found[0].grad is before
    np.testing.assert_allclose(found[1].grad.numpy(), [12 * 1.3 / 169.25**0.5], rtol=1e-6)
    after = nn.utils.get_total_norm([p.grad for p in found if p.grad is not None])
    assert after.item() == pytest.approx(1.3, rel=1e-5)


def test_a_single_tensor_and_a_generator_are_accepted() -> None:
    (one,) = parameters(GRADS[1:2])
    assert nn.utils.clip_grad_norm_(one, 6.0).item() == 12.0
    assert one.grad.item() == pytest.approx(6.0)
    nn.utils.clip_grad_value_((p for p in [one]), 2)
    assert one.grad.item() == 2.0


def test_no_gradients_have_norm_zero() -> None:
    assert nn.utils.clip_grad_norm_(parameters([None]), 1.0).item() == 0.0


def test_a_norm_that_is_not_finite_spreads_or_is_refused() -> None:
    found = parameters([np.array([1.0, np.nan], np.float32), np.ones(2, np.float32)])
    with pytest.raises(RuntimeError, match=r"total norm of order 2.0 .* is non-finite"):
        nn.utils.clip_grad_norm_(found, 1.0, error_if_nonfinite=True)
    assert (found[1].grad.numpy() == 1).all()
    assert np.isnan(nn.utils.clip_grad_norm_(found, 1.0).item())
    assert np.isnan(found[1].grad.numpy()).all()
    infinite = parameters([np.array([np.inf, 1.0], np.float32)])
    nn.utils.clip_grad_norm_(infinite, 1.0)
    got = infinite[0].grad.numpy()
    assert np.isnan(got[0])
    assert got[1] == 0


def test_elements_are_limited_and_nan_stays() -> None:
    (one,) = parameters([np.array([3.0, -3.0, 0.5, np.nan, -np.inf], np.float32)])
    nn.utils.clip_grad_value_([one], 1.0)
    np.testing.assert_array_equal(one.grad.numpy(), [1.0, -1.0, 0.5, np.nan, -1.0])


def test_torchs_choice_of_an_implementation_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="foreach=True"):
        nn.utils.clip_grad_norm_(parameters(GRADS), 1.0, foreach=True)


def test_the_module_is_found_under_pytorchs_name() -> None:
    import netwright.nn.utils as found

    assert found.clip_grad_norm_ is nn.utils.clip_grad_norm_
