"""Reading and writing with indices, against torch, with gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest

import netwright.frontend.functions as nf
from netwright.errors import BatchSpecializationError, UnsupportedError
from netwright.frontend import indexing
from netwright.ir.types import Dim

X = np.random.default_rng(0).normal(size=(4, 3, 5))
MASK = X[:, 0, 0] > 0


def index_array(*values):
    return np.array(values)


KEYS = {
    "int": 1,
    "negative": -1,
    "two ints": (1, 2),
    "all ints": (1, 2, 3),
    "slice": slice(1, 3),
    "step": slice(None, None, 2),
    "tail": slice(-2, None),
    "beyond": slice(2, 99),
    "empty": slice(3, 1),
    "ellipsis": ...,
    "last": (..., 0),
    "first": (0, ...),
    "none": None,
    "mixed": (slice(None), None, 1),
    "new last": (..., None),
    "middle": (slice(1, 3), 0, slice(2)),
    "list": [0, 2, 2],
    "array": index_array(3, 0, -1),
    "matrix": index_array([0, 1], [2, 3]),
    "along 1": (slice(None), index_array(2, 0)),
    "along 2": (..., index_array(4, 4, 1)),
    "pairs": (index_array(0, 1), index_array(2, 0)),
    "apart": (index_array(0, 1), 0, index_array(2, 3)),
    "separated": (index_array(0, 1), slice(None), index_array(2, 3)),
    "with none": (None, index_array(1, 2)),
    "int and array": (1, index_array(0, 2)),
    "mask": MASK,
    "full mask": X > 0.3,
    "mask and slice": (MASK, slice(1)),
    "mask second": (slice(None), X[0, :, 0] > 0),
    "nothing": [],
    "no mask": np.zeros(4, bool),
    "broadcast": (index_array([0], [1]), index_array(0, 2)),
}


def key_for(lib, key):
    if isinstance(key, tuple):
        return tuple(key_for(lib, k) for k in key)
    if isinstance(key, np.ndarray):
        return lib.tensor(key)
    return key


@pytest.mark.parametrize("name", KEYS)
def test_reading_matches_torch_with_gradients(name):
    torch = pytest.importorskip("torch")
    x, y = nf.tensor(X, requires_grad=True), torch.tensor(X, requires_grad=True)
    a, b = x[key_for(nf, KEYS[name])], y[key_for(torch, KEYS[name])]
    np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())
    weight = np.random.default_rng(1).normal(size=tuple(b.shape))
    (a * nf.tensor(weight)).sum().backward()
    (b * torch.tensor(weight)).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), rtol=1e-12)
    detached = x.detach()[key_for(nf, KEYS[name])]
    np.testing.assert_array_equal(detached.numpy(), b.detach().numpy())


# Which of two writes to one element wins is undefined, so keys that repeat one are left out.
@pytest.mark.parametrize("name", [k for k in KEYS if k not in ("list", "array", "along 2")])
@pytest.mark.parametrize("recorded", [False, True])
def test_writing_matches_torch_with_gradients(name, recorded):
    torch = pytest.importorskip("torch")
    results = []
    for lib in (nf, torch):
        x = lib.tensor(X, requires_grad=recorded)
        y = x * 1.0
        target = y[key_for(lib, KEYS[name])]
        shape = tuple(target.shape)
        del target  # a live view would make the write ambiguous
        value = (lib.arange(math.prod(shape)) + 0.5).double().reshape(shape)
        if recorded:
            value.requires_grad_()
        y[key_for(lib, KEYS[name])] = value
        grads = []
        if recorded and math.prod(shape):
            (y * y).sum().backward()
            grads = [x.grad, value.grad]
        results.append([y.detach(), *grads])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy())


def test_numbers_and_smaller_values_are_broadcast_into_place():
    x = nf.zeros(2, 3)
    x[0] = 1
    x[:, 2] = nf.tensor([5.0, 6.0])
    x[1, :2] = nf.ones(1, 1, 2, dtype="float64")
    assert x.tolist() == [[1.0, 1.0, 5.0], [1.0, 1.0, 6.0]]
    x[x > 4] = 0
    x[0] += 1
    assert x.tolist() == [[2.0, 2.0, 1.0], [1.0, 1.0, 0.0]]
    assert x._storage.version == 6


def test_basic_indexing_is_a_view_and_advanced_a_copy():
    x = nf.zeros(3, 4)
    assert x[1:, 0]._storage is x._storage and x[None, ..., 1]._storage is x._storage
    assert x[[0, 1]]._storage is not x._storage and x[x == 0]._storage is not x._storage


def test_zero_dimensional_tensors_are_integers():
    x = nf.arange(3)
    assert x[nf.tensor(1)].tolist() == 1 and x[np.int64(2)].item() == 2
    assert x[...].tolist() == [0, 1, 2] and nf.tensor(5)[None].shape == (1,)
    assert nf.tensor(5)[...].item() == 5 and nf.tensor(5)[()].item() == 5


@pytest.mark.parametrize(
    "key, kind, text",
    [
        (4, IndexError, "index 4 is out of bounds for dimension 0 with size 4"),
        ((0, -4), IndexError, "index -4 is out of bounds for dimension 1 with size 3"),
        ((0, 0, 0, 0), IndexError, "too many indices for tensor of dimension 3"),
        (slice(None, None, -1), ValueError, "step must be greater than zero"),
        (slice(None, None, 0), ValueError, "step must be greater than zero"),
        ((..., ...), IndexError, "single ellipsis"),
        ([0, 9], IndexError, "index 9 is out of bounds for dimension 0 with size 4"),
        (np.zeros(3, bool), IndexError, "The shape of the mask"),
        (1.0, IndexError, "only integers, slices"),
        (np.zeros(2), IndexError, "must be long, int or bool"),
        ("a", IndexError, "only integers, slices"),
    ],
    ids=repr,
)
def test_wrong_indices_have_torch_errors(key, kind, text):
    x = nf.tensor(X)
    with pytest.raises(kind, match=text):
        x[key]
    with pytest.raises(kind, match=text):
        x[key] = 0
    with pytest.raises(kind, match=text):
        nf.tensor(X, requires_grad=True)[key]


def test_a_value_that_does_not_fit_is_an_error():
    x = nf.zeros(2, 3)
    with pytest.raises(RuntimeError, match="expanded size"):
        x[0] = nf.ones(4)


class Symbolic:
    """The little of a traced tensor that index checks look at."""

    _traced = True
    shape = (Dim(1), 3)

    def dim(self):
        return 2


def test_the_symbolic_batch_cannot_be_indexed_or_assigned():
    with pytest.raises(BatchSpecializationError, match="symbolic batch N"):
        indexing.get(Symbolic(), 0)
    with pytest.raises(UnsupportedError, match=r"nw\.where"):
        indexing.set(Symbolic(), 0, 1.0)


def test_gathering_a_long_index_from_a_table_has_a_sparse_sum_gradient():
    table = nf.zeros(1000, 2, requires_grad=True)
    table[nf.tensor([[3, 3], [5, -1]])].sum().backward()
    assert table.grad[3].tolist() == [2.0, 2.0] and table.grad[999].tolist() == [1.0, 1.0]
    assert table.grad.sum().item() == 8
