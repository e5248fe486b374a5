"""The backward pass: accumulation, graphs, hooks, in-place checks, errors, higher derivatives."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import netwright.frontend as fe
import netwright.frontend.functions as nf
from netwright.errors import UnsupportedError
from netwright.frontend import autograd
from netwright.frontend.grad_fn import OpGradFn


def leaf(*values, dtype=None):
    return nf.tensor(values, dtype=dtype or "float64", requires_grad=True)


def finite_difference(function, x, eps=1e-6):
    grad = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += eps
        down[i] -= eps
        high = function(nf.tensor(up)).item()
        grad[i] = (high - function(nf.tensor(down)).item()) / (2 * eps)
    return grad


COMPOSITES = {
    "norm": lambda x: (x / x.norm(dim=1, keepdim=True)).exp().mean(),
    "attention": lambda x: (nf.softmax(x @ x.mT / 2, -1) @ x).tanh().sum(),
    "indexing": lambda x: (x[:, 1:] * x[:, :-1]).sum() + x[[0, 0, 1]].prod(),
    "mixed": lambda x: nf.cat([x, x.t().reshape(3, -1)], 1).logsumexp(1).std(),
    "where": lambda x: nf.where(x > 0, x.exp(), x * x).cumsum(0).sum(),
}


@pytest.mark.parametrize("name", COMPOSITES)
def test_gradients_of_composites_match_finite_differences(name):
    x = np.random.default_rng(1).normal(size=(3, 4)) + 0.1
    t = nf.tensor(x, requires_grad=True)
    COMPOSITES[name](t).backward()
    expected = finite_difference(COMPOSITES[name], x)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(t.grad.numpy(), expected, rtol=1e-6, atol=1e-8)


def test_gradients_accumulate_in_place():
    x = leaf(1.0, 2.0)
    (x * 3).sum().backward()
    kept = x.grad
    (x * 2).sum().backward()
    assert x.grad is kept
    assert x.grad.tolist() == [5.0, 5.0]


def test_leaves_of_one_operation_get_gradients_of_their_own():
    # The rule of add returns one array for both operands.
    x, y = leaf(1.0), leaf(2.0)
    (x + y).sum().backward()
    x.grad.zero_()
    assert y.grad.tolist() == [1.0]


def test_an_operand_that_is_used_twice_gets_both_gradients():
    x = leaf(3.0)
    (x * x + x).sum().backward()
    assert x.grad.tolist() == [7.0]


def test_a_diamond_runs_each_function_once():
    x = leaf(2.0)
    y = x * 1.0
    calls = []
    y.register_hook(lambda g: calls.append(g.item()))
    (y * 2 + y * 3 + y.exp() * 0).sum().backward()
    assert calls == [5.0]


def test_a_long_chain_needs_no_recursion():
    x = leaf(1.0)
    y = x
    for _ in range(5000):
        y = y + 1
    y.sum().backward()
    assert x.grad.tolist() == [1.0]


def test_results_do_not_keep_the_graph_in_a_cycle():
    x = leaf(1.0)
    gc.disable()
    try:
        y = x.exp()
        fn = weakref.ref(y.grad_fn)
        del y
        assert fn() is None
    finally:
        gc.enable()


# -- what backward refuses ---------------------------------------------------------------------


def test_a_second_backward_needs_retain_graph():
    x = leaf(2.0)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.backward()
    assert x.grad.tolist() == [8.0]


def test_a_second_backward_that_reads_nothing_saved_is_fine_as_in_torch():
    x = leaf(2.0)
    y = (x + 1).sum()
    y.backward()
    y.backward()
    assert x.grad.tolist() == [2.0]


def test_only_scalars_have_an_implicit_gradient():
    x = leaf(1.0, 2.0)
    with pytest.raises(RuntimeError, match="implicitly created only for scalar outputs"):
        (x * 2).backward()
    (x * 2).backward(nf.tensor([1.0, 10.0]))
    assert x.grad.tolist() == [2.0, 20.0]
    with pytest.raises(RuntimeError, match="Mismatch in shape"):
        (x * 2).backward(nf.ones(3))


def test_backward_without_history_is_an_error():
    with pytest.raises(RuntimeError, match="element 0 of tensors does not require grad"):
        nf.ones(1).backward()


def test_a_saved_tensor_that_was_modified_is_an_error():
    x = leaf(1.0, 2.0)
    y = x * 1.0
    z = (y * y).sum()
    y += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.backward()


def test_a_modified_parameter_is_an_error_only_if_backward_reads_it():
    w = leaf(1.0)
    x = leaf(5.0)
    used, unused = (w * x).sum(), (w + x).sum()
    with fe.no_grad():
        w.add_(1)
    unused.backward()
    with pytest.raises(RuntimeError, match=r"is at version 1; expected version 0"):
        used.backward()


def test_writes_through_data_and_views_are_noticed():
    for write in (lambda x: x.data.mul_(2), lambda x: x.detach()[0].fill_(3)):
        x = leaf(1.0, 2.0)
        y = (x * x).sum()
        write(x)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()


def test_in_place_on_a_leaf_is_an_error():
    x = leaf(1.0)
    for write in (lambda: x.add_(1), lambda: x.zero_(), lambda: x.__setitem__(0, 1.0)):
        with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
            write()
    with fe.no_grad():
        x += 1
    assert x.tolist() == [2.0] and x.requires_grad and x.is_leaf


def test_in_place_on_an_intermediate_is_differentiated():
    x = leaf(1.0, 2.0)
    y = x * 2
    y += x
    y.mul_(3.0)
    y[0] = x[1] * 5
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 14.0]


def test_in_place_overwrite_cuts_the_gradient():
    x = leaf(1.0, 2.0)
    y = x * 2
    y.zero_()
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 0.0]


def test_in_place_into_a_tensor_without_history_records():
    x = leaf(1.0, 2.0)
    y = nf.zeros(2, dtype="float64")
    y += x
    y.sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]


def test_recorded_in_place_is_refused_while_another_tensor_shares_the_memory():
    x = leaf(1.0, 2.0)
    y = x * 2
    view = y[:1]
    with pytest.raises(RuntimeError, match="shares memory"):
        view += 1
    with pytest.raises(RuntimeError, match="shares memory"):
        y += 1
    blank = nf.zeros(2, dtype="float64")
    row = blank[0]
    with pytest.raises(RuntimeError, match="shares memory"):
        row += x.sum()


def test_recorded_in_place_on_a_view_alone_is_differentiated():
    x = leaf(1.0, 2.0)
    y = (x * 2).reshape(2, 1)
    y *= 3
    y.relu_()
    y.sum().backward()
    assert x.grad.tolist() == [6.0, 6.0]


def test_recorded_in_place_on_a_clone_or_detached_tensor_is_allowed():
    x = leaf(1.0, 2.0)
    y, z = x * 2, x * 2
    copy, seen = y.clone(), z.detach()
    copy += x
    y += 1
    seen += x
    (copy + y + seen).sum().backward()
    assert x.grad.tolist() == [6.0, 6.0]


def test_many_views_of_one_tensor_are_made_in_linear_time():
    table = nf.zeros(20000, 1)
    rows = table.unbind(0)
    assert len(table._storage.sharers(table)) == len(rows)


# -- grad mode ---------------------------------------------------------------------------------


def test_grad_mode_switches_nest_and_decorate():
    x = leaf(1.0)

    @fe.no_grad()
    def inside():
        assert not fe.is_grad_enabled()
        with fe.enable_grad():
            assert (x * 2).requires_grad
        return x * 2

    @fe.no_grad
    def bare():
        return x * 2

    assert not inside().requires_grad and not bare().requires_grad
    assert fe.is_grad_enabled()
    with fe.set_grad_enabled(False):
        assert not (x * 2).requires_grad
    assert fe.is_grad_enabled()
    fe.set_grad_enabled(False)
    assert not fe.is_grad_enabled()
    fe.set_grad_enabled(True)
    with fe.inference_mode():
        assert fe.is_inference_mode_enabled() and not (x * 2).requires_grad
    with fe.inference_mode(False):
        assert (x * 2).requires_grad


def test_grad_mode_is_restored_after_an_exception():
    with pytest.raises(KeyError), fe.no_grad():
        raise KeyError
    assert fe.is_grad_enabled()


def test_comparisons_and_integers_are_not_recorded():
    x = leaf(1.0)
    assert not (x > 0).requires_grad and not x.long().requires_grad
    assert not x.argmax().requires_grad


# -- detach, hooks, retain_grad ------------------------------------------------------------------


def test_detach_stops_the_gradient():
    x = leaf(3.0)
    (x * x.detach()).sum().backward()
    assert x.grad.tolist() == [3.0]
    y = x * 2
    assert y.detach_() is y and y.is_leaf and not y.requires_grad


def test_hooks_see_and_replace_gradients():
    x = leaf(1.0)
    y = x * 2
    seen = []
    x.register_hook(lambda g: seen.append(g.item()))
    handle = y.register_hook(lambda g: g * 10)
    y.sum().backward(retain_graph=True)
    handle.remove()
    y.sum().backward()
    assert seen == [20.0, 2.0] and x.grad.tolist() == [22.0]
    with pytest.raises(RuntimeError, match="doesn't require gradient"):
        nf.ones(1).register_hook(print)


def test_retain_grad_keeps_the_gradient_of_an_intermediate():
    x = leaf(1.0)
    y = x * 2
    y.retain_grad()
    (y * 3).sum().backward()
    assert y.grad.tolist() == [3.0] and y.retains_grad


def test_the_grad_of_an_intermediate_warns():
    y = leaf(1.0) * 2
    with pytest.warns(UserWarning, match="not a leaf Tensor"):
        assert y.grad is None


def test_grad_may_only_be_set_to_a_tensor_of_the_same_type():
    x = leaf(1.0)
    x.grad = nf.tensor([2.0], dtype="float64")
    x.grad = None
    with pytest.raises(RuntimeError, match="different size"):
        x.grad = nf.ones(3)
    with pytest.raises(TypeError):
        x.grad = 1.0


def test_only_floating_leaves_may_change_requires_grad():
    with pytest.raises(RuntimeError, match="floating point dtype"):
        nf.arange(3).requires_grad_()
    with pytest.raises(RuntimeError, match="only change requires_grad flags of leaf"):
        (leaf(1.0) * 2).requires_grad = False


# -- autograd.grad -------------------------------------------------------------------------------


def test_grad_returns_gradients_without_accumulating():
    x, y = leaf(2.0), leaf(3.0)
    z = x * y
    gx, gy = autograd.grad((z * z).sum(), (x, y))
    assert gx.tolist() == [36.0] and gy.tolist() == [24.0]
    assert x.grad is None and y.grad is None


def test_grad_of_an_intermediate():
    x = leaf(2.0)
    y = x * 3
    (g,) = autograd.grad((y * y).sum(), y)
    assert g.tolist() == [12.0]


def test_unused_inputs_are_an_error_unless_allowed():
    x, y = leaf(1.0), leaf(1.0)
    with pytest.raises(RuntimeError, match="appears to not have been used"):
        autograd.grad((x * 2).sum(), (x, y))
    assert autograd.grad((x * 2).sum(), (x, y), allow_unused=True)[1] is None
    assert autograd.grad((x * 2).sum(), (y,), materialize_grads=True)[0].tolist() == [0.0]
    with pytest.raises(RuntimeError, match="does not require grad"):
        autograd.grad((x * 2).sum(), nf.ones(1))


def test_grad_runs_only_the_functions_it_needs():
    x, y = leaf(1.0), leaf(1.0)
    hidden = y.exp()
    calls = []
    hidden.register_hook(lambda g: calls.append(1))
    y2 = hidden * 2
    y2.register_hook(lambda g: calls.append(2))
    autograd.grad((x + y2).sum(), x)
    assert 1 not in calls


def test_higher_derivatives_match_calculus():
    x = leaf(0.7)
    value, factors = x.sin().sum(), [1.0]
    for _ in range(3):
        (value,) = autograd.grad(value.sum(), x, create_graph=True)
        factors.append(value.item())
    np.testing.assert_allclose(factors[1:], [np.cos(0.7), -np.sin(0.7), -np.cos(0.7)])


HIGHER = {
    "cube": lambda x: (x**3).sum(),
    "softmax": lambda x: (x.softmax(0) ** 2).sum(),
    "matmul": lambda x: (x.reshape(2, 2) @ x.reshape(2, 2)).exp().sum(),
    "outputs": lambda x: (x.exp() * x.sigmoid() * x.tanh() / (1 + x.sqrt())).sum(),
}


@pytest.mark.parametrize("name", HIGHER)
def test_hessian_vector_products_match_finite_differences(name):
    x = np.array([0.3, 0.8, 1.1, 0.5])
    v = np.array([1.0, -2.0, 0.5, 3.0])

    def directional(t):
        inner = t.detach().requires_grad_()
        (g,) = autograd.grad(HIGHER[name](inner), inner)
        return (g * nf.tensor(v)).sum()

    t = nf.tensor(x, requires_grad=True)
    (g,) = autograd.grad(HIGHER[name](t), t, create_graph=True)
    (g * nf.tensor(v)).sum().backward()
    np.testing.assert_allclose(t.grad.numpy(), finite_difference(directional, x), rtol=1e-5)


def test_backward_with_create_graph_gives_grads_with_history():
    x = leaf(2.0)
    (x**3).sum().backward(create_graph=True)
    assert x.grad.requires_grad
    (second,) = autograd.grad(x.grad.sum(), x)
    assert second.tolist() == [12.0]


# -- functions that bring their own gradient -----------------------------------------------------


class Double:
    """What a compiled executable looks like to autograd."""

    def __init__(self, *inputs):
        self.inputs = list(inputs)
        self.calls = []

    def backward(self, *grads):
        self.calls.append(grads)
        return [None if grads[0] is None else 2 * grads[0], None]


def test_a_custom_function_gets_none_for_unused_results():
    x, y = leaf(1.0, 2.0), leaf(1.0, 2.0)
    function = Double(x, y)
    first, second = autograd.record(function, [2 * x.detach().numpy(), np.arange(2)])
    assert first.requires_grad and not second.requires_grad
    (first * 5).sum().backward()
    assert x.grad.tolist() == [10.0, 10.0] and y.grad is None
    assert function.calls[0][1] is None


def test_a_custom_function_runs_once_and_has_no_second_derivative():
    x = leaf(1.0)
    (out,) = autograd.record(Double(x, leaf(1.0)), [x.detach().numpy() * 2])
    with pytest.raises(UnsupportedError, match="create_graph"):
        autograd.grad(out.sum(), x, create_graph=True)
    (out,) = autograd.record(Double(x, leaf(1.0)), [x.detach().numpy() * 2])
    out.sum().backward()
    with pytest.raises(RuntimeError, match="a second time"):
        out.sum().backward()


def test_custom_functions_are_not_recorded_without_grad_mode():
    x = leaf(1.0)
    with fe.no_grad():
        (out,) = autograd.record(Double(x, x), [np.ones(1)])
    assert not out.requires_grad


def test_grad_fn_names_follow_torch():
    y = leaf(1.0) + 1
    assert isinstance(y.grad_fn, OpGradFn) and repr(y.grad_fn) == "<AddBackward0>"
    assert (y.exp()).grad_fn.next_functions == ((y.grad_fn, 0),)
