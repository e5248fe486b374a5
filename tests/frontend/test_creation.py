"""Creation functions, dtype inference, sharing with numpy, and the random generator."""

from __future__ import annotations

import numpy as np
import pytest

import netwright.frontend as fe
import netwright.frontend.functions as nf
from netwright.errors import DTypeError, TraceError
from netwright.frontend import dispatch
from netwright.ir.types import bool_, float32, float64, int64


@pytest.mark.parametrize(
    "data",
    [
        1,
        1.5,
        True,
        [1, 2],
        [1.0, 2],
        [True, False],
        [True, 2],
        [],
        [[]],
        [[1], [2]],
        (1, 2),
        [[1.0, float("nan")]],
        np.float32(1),
        np.float64(1.5),
        np.int32(3),
        [np.float64(1.5)],
        np.arange(3),
        np.ones((2, 0)),
        [np.int64(1), 2],
        range(3),
        np.array(True),
        [[1, 2], (3, 4)],
    ],
    ids=repr,
)
def test_tensor_infers_torch_dtypes_and_shapes(data):
    torch = pytest.importorskip("torch")
    ours, theirs = nf.tensor(data), torch.tensor(data)
    assert ours.numpy().dtype == theirs.numpy().dtype
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    assert ours.shape == tuple(theirs.shape)


def test_tensor_copies_and_takes_tensors():
    array = np.zeros(2)
    nf.tensor(array).fill_(1)
    assert array.sum() == 0
    x = nf.tensor(nf.ones(2), dtype=int64)
    assert x.dtype is int64
    assert nf.tensor([nf.tensor(1.0), nf.tensor(2.0)]).tolist() == [1.0, 2.0]
    assert nf.tensor([np.ones(2), np.zeros(2)]).dtype is float64
    assert nf.tensor([1], dtype="float64", requires_grad=True).requires_grad


@pytest.mark.parametrize(
    "data, kind, text",
    [
        ([[1, 2], [3]], ValueError, r"expected sequence of length 2 at dim 1 \(got 1\)"),
        ([1, [2]], ValueError, "expected sequence"),
        (["a"], TypeError, "expected numbers"),
        ([1 + 2j], TypeError, "expected numbers"),
        (2**70, RuntimeError, "Overflow when unpacking long"),
        (np.zeros(2, np.complex64), DTypeError, "complex64 is not supported"),
    ],
)
def test_tensor_refuses_what_is_no_array_of_numbers(data, kind, text):
    with pytest.raises(kind, match=text):
        nf.tensor(data)


def test_from_numpy_shares_memory_even_of_strided_arrays():
    base = np.arange(6.0).reshape(2, 3)
    for array in (base, base.T, base[:, ::-1], base[::-1, ::2]):
        x = nf.from_numpy(array)
        assert x._array is array and x._storage.exported
        np.testing.assert_array_equal((x * 1).numpy(), array)
    assert nf.as_tensor(base)._array is base
    assert nf.as_tensor(base, dtype=float32).dtype is float32
    x = nf.ones(1)
    assert nf.as_tensor(x) is x


def test_from_numpy_converts_foreign_byte_order():
    array = np.arange(3, dtype=">f4")
    x = nf.from_numpy(array)
    assert x.dtype is float32 and x.tolist() == [0.0, 1.0, 2.0]
    assert (nf.tensor(np.arange(3, dtype=">i8")) + 1).tolist() == [1, 2, 3]
    with pytest.raises(TypeError):
        nf.from_numpy([1.0])


MAKERS = {
    "zeros": lambda lib: lib.zeros(2, 3),
    "zeros tuple": lambda lib: lib.zeros((2, 3)),
    "ones": lambda lib: lib.ones([2], dtype=lib.tensor(1).dtype),
    "no size": lambda lib: lib.ones(()),
    "full": lambda lib: lib.full((2, 2), 7),
    "full float": lambda lib: lib.full((2,), 0.5),
    "full bool": lambda lib: lib.full((2,), True),
    "arange": lambda lib: lib.arange(5),
    "arange float": lambda lib: lib.arange(0, 1, 0.3),
    "arange from": lambda lib: lib.arange(2, 7, 2),
    "arange down": lambda lib: lib.arange(5, 0, -2),
    "arange empty": lambda lib: lib.arange(0),
    "linspace": lambda lib: lib.linspace(0, 1, 5),
    "linspace 1": lambda lib: lib.linspace(2, 3, 1),
    "eye": lambda lib: lib.eye(3),
    "eye wide": lambda lib: lib.eye(2, 3),
    "zeros_like": lambda lib: lib.zeros_like(lib.arange(3)),
    "ones_like": lambda lib: lib.ones_like(lib.ones(2, 0)),
    "full_like": lambda lib: lib.full_like(lib.ones(2), 3),
    "ones_like dtype": lambda lib: lib.ones_like(lib.ones(2), dtype=lib.arange(1).dtype),
}


@pytest.mark.parametrize("name", MAKERS)
def test_makers_match_torch(name):
    torch = pytest.importorskip("torch")
    ours, theirs = MAKERS[name](nf).numpy(), MAKERS[name](torch).numpy()
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_makers_take_flags_and_refuse_nonsense():
    assert nf.zeros(2, requires_grad=True, device="cpu").requires_grad
    assert nf.empty_like(nf.ones(2)).shape == (2,)
    for wrong in (lambda: nf.zeros(-1), lambda: nf.arange(0, 5, -1), lambda: nf.arange(0, 1, 0)):
        with pytest.raises(RuntimeError):
            wrong()
    with pytest.raises(TypeError):
        nf.zeros(2, nonsense=True)
    with pytest.raises(TypeError):
        nf.zeros(2.5)
    with pytest.raises(NotImplementedError, match="CPU only"):
        nf.zeros(2, device="cuda")


def test_the_default_dtype_is_a_setting():
    fe.set_default_dtype(float64)
    try:
        assert nf.zeros(1).dtype is float64 and nf.tensor(1.5).dtype is float64
        assert (nf.arange(2) / 2).dtype is float64
    finally:
        fe.set_default_dtype(float32)
    with pytest.raises(TypeError):
        fe.set_default_dtype(int64)


# -- random --------------------------------------------------------------------------------------


def test_the_seed_determines_everything():
    def draw():
        fe.manual_seed(11)
        key = fe.default_generator.next_key()
        return [nf.rand(3), nf.randn(2, 2), nf.randint(0, 9, (4,)), nf.randperm(5)], key

    (first, key), (second, again) = draw(), draw()
    assert all(nf.equal(a, b) for a, b in zip(first, second, strict=True))
    assert key.tolist() == again.tolist() == [11, 0]


def test_random_makers_have_the_right_moments_and_types():
    fe.manual_seed(0)
    x, n = nf.rand(5000), nf.randn(5000, dtype=float64)
    assert x.dtype is float32 and x.min().item() >= 0 and x.max().item() < 1
    assert abs(x.mean().item() - 0.5) < 0.02
    assert n.dtype is float64 and abs(n.mean().item()) < 0.05 and abs(n.std().item() - 1) < 0.05
    assert nf.rand_like(n).dtype is float64 and nf.randn_like(n).shape == n.shape
    r = nf.randint(5, (1000,))
    assert r.dtype is int64 and set(r.tolist()) == set(range(5))
    assert sorted(nf.randperm(10).tolist()) == list(range(10))
    assert abs(nf.normal(3.0, 0.1, (1000,)).mean().item() - 3) < 0.02
    assert nf.bernoulli(nf.ones(3)).tolist() == [1.0, 1.0, 1.0]
    assert nf.multinomial(nf.tensor([[0.0, 1.0], [1.0, 0.0]]), 1).tolist() == [[1], [0]]
    with pytest.raises(RuntimeError, match="expects 'from' to be less than 'to'"):
        nf.randint(3, 3, (1,))
    with pytest.raises(DTypeError):
        nf.rand(2, dtype=int64)


def test_a_generator_is_independent_of_the_default_one():
    g = fe.Generator().manual_seed(5)
    a = nf.rand(3, generator=g)
    nf.rand(3)
    g.manual_seed(5)
    assert nf.equal(a, nf.rand(3, generator=g)) and g.initial_seed() == 5


def test_keys_advance_by_the_number_of_draws():
    g = fe.Generator().manual_seed(7)
    assert g.next_key(3).tolist() == [7, 0]
    assert g.next_key().tolist() == [7, 3]
    assert g.next_key().dtype == np.int64
    g.manual_seed(2**63 + 1)
    assert g.next_key()[0] == -(2**63) + 1


def test_the_state_of_the_generator_can_be_restored():
    state = fe.get_rng_state()
    a, key = nf.rand(4), fe.default_generator.next_key()
    fe.set_rng_state(state)
    assert nf.equal(a, nf.rand(4)) and (fe.default_generator.next_key() == key).all()


def test_fixed_random_numbers_in_a_trace_are_refused(monkeypatch):
    monkeypatch.setattr(dispatch.current, "tracer", object())
    with pytest.raises(TraceError, match="every run would see the same"):
        nf.rand(3)


def test_boolean_masks_are_made_from_lists():
    assert nf.tensor([[True], [False]]).dtype is bool_


def test_new_makers_keep_the_dtype():
    x = nf.ones(2, dtype=float64)
    assert x.new_zeros(2, 3).dtype is float64 and x.new_ones((2,)).tolist() == [1.0, 1.0]
    assert x.new_full((2,), 3).dtype is float64 and x.new_tensor([1], dtype=int64).dtype is int64
    assert x.new_tensor([1]).dtype is float64
