"""Tensor itself: memory, versions, conversions, Python protocols, printing."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import netwright.frontend as fe
import netwright.frontend.functions as nf
from netwright.errors import UnsupportedError
from netwright.frontend import Size, Tensor
from netwright.ir.types import bool_, float32, float64, int32, int64

# -- memory --------------------------------------------------------------------------------------


def test_numpy_shares_memory_and_marks_the_storage():
    x = nf.zeros(2)
    assert not x._storage.exported
    array = x.numpy()
    array[0] = 5
    assert x.tolist() == [5.0, 0.0] and x._storage.exported


def test_numpy_of_a_tensor_that_requires_grad_is_refused():
    x = nf.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"Use tensor.detach\(\).numpy\(\) instead"):
        x.numpy()
    with pytest.raises(RuntimeError, match="requires grad"):
        np.asarray(x)
    assert x.detach().numpy().sum() == 2 and x.numpy(force=True).sum() == 2


def test_asarray_converts_and_copies_on_demand():
    x = nf.ones(2)
    assert np.shares_memory(np.asarray(x), x._array)
    assert np.asarray(x, dtype=np.float64).dtype == np.float64
    assert not np.shares_memory(np.array(x), x._array)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[0],
        lambda x: x[:, 1:],
        lambda x: x.view(-1),
        lambda x: x.t(),
        lambda x: x.T,
        lambda x: x.detach(),
        lambda x: x.data,
        lambda x: x.unsqueeze(0),
        lambda x: x[...],
        lambda x: x.narrow(1, 0, 2),
        lambda x: x.unbind(0)[1],
        lambda x: x.chunk(2)[0],
        lambda x: x.transpose(0, 1),
        lambda x: x.flatten(),
        lambda x: x.squeeze(),
    ],
)
def test_views_share_memory_and_version(view):
    x = nf.zeros(2, 3)
    v = view(x)
    v.fill_(1)
    assert x.sum().item() == v.numel()
    assert v._storage is x._storage and x._storage.version == 1


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x + 0,
        lambda x: x.clone(),
        lambda x: x.mT.contiguous(),
        lambda x: x[[0, 1]],
        lambda x: x[x == 0],
        lambda x: x.repeat(1, 1),
        lambda x: nf.cat([x]),
        lambda x: x.double().float(),
        lambda x: nf.tensor(x),
        lambda x: x.mT.reshape(-1),
        lambda x: x.to(float32, copy=True),
        lambda x: x.sum(()) + x,
        lambda x: x.clamp(min=0),
    ],
)
def test_results_of_operations_have_memory_of_their_own(operation):
    x = nf.zeros(2, 3)
    operation(x).fill_(1)
    assert x.sum().item() == 0 and x._storage.version == 0


def test_an_expanded_tensor_shares_memory_and_cannot_be_written():
    x = nf.zeros(1)
    wide = x.expand(3)
    x.fill_(2)
    assert wide.tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(RuntimeError, match="single memory location"):
        wide.add_(1)


def test_contiguous_and_to_return_the_tensor_itself_where_nothing_changes():
    x = nf.ones(2, 3)
    assert x.contiguous() is x and x.to("cpu") is x and x.float() is x and x.cpu() is x
    assert not x.t().is_contiguous() and x.t().contiguous().is_contiguous()
    assert x.t().stride() == (1, 3)


# -- in place ------------------------------------------------------------------------------------


def test_in_place_operations_write_and_count():
    x = nf.tensor([1.0, 2.0])
    array = x._array
    x.add_(1).mul_(2).sub_(nf.tensor([1.0, 1.0])).div_(3)
    x += 1
    x -= 1
    x *= 2
    x /= 2
    x **= 2
    assert x._array is array
    np.testing.assert_allclose(array, [1.0, (5 / 3) ** 2], rtol=1e-6)
    assert x._storage.version == 9


def test_fill_copy_zero_clamp():
    x = nf.zeros(2, 2)
    assert x.fill_(3).tolist() == [[3.0, 3.0], [3.0, 3.0]]
    assert x.copy_(nf.tensor([1, 2])).tolist() == [[1.0, 2.0], [1.0, 2.0]]
    assert x.clamp_(max=1).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert x.zero_().sum().item() == 0
    assert nf.arange(3).fill_(2.9).tolist() == [2, 2, 2]


def test_random_fills_follow_the_seed():
    fe.manual_seed(3)
    a = nf.zeros(1000).normal_(2.0, 0.5)
    b = nf.zeros(1000).uniform_(-1.0, 1.0)
    fe.manual_seed(3)
    assert nf.equal(a, nf.zeros(1000).normal_(2.0, 0.5))
    assert abs(a.mean().item() - 2) < 0.1 and abs(a.std().item() - 0.5) < 0.1
    assert b.min().item() >= -1 and b.max().item() < 1
    assert set(nf.zeros(50).bernoulli_(0.5).tolist()) == {0.0, 1.0}


def test_in_place_results_must_fit():
    x = nf.ones(2)
    with pytest.raises(RuntimeError, match=r"doesn't match the broadcast shape \[3, 2\]"):
        x.add_(nf.ones(3, 2))
    with pytest.raises(RuntimeError, match="result type float32 can't be cast"):
        nf.arange(2).add_(1.5)
    assert nf.ones(2).add_(nf.ones(2, dtype="float64")).dtype is float32


# -- conversions ---------------------------------------------------------------------------------


def test_dtype_conversions():
    x = nf.tensor([0.0, 1.7])
    assert x.double().dtype is float64 and x.long().tolist() == [0, 1]
    assert x.int().dtype is int32 and x.bool().tolist() == [False, True]
    assert x.to(int64).dtype is int64 and x.to(dtype=float64).dtype is float64
    assert x.to("cpu", float64).dtype is float64 and x.to(nf.arange(2)).dtype is int64
    assert x.type_as(nf.arange(2)).dtype is int64
    with pytest.raises(TypeError):
        x.to(nonsense=True)


def test_there_is_no_gpu():
    x = nf.ones(1)
    for move in (lambda: x.cuda(), lambda: x.to("cuda"), lambda: x.to(fe.device("cuda:1"))):
        with pytest.raises(UnsupportedError, match="runs on the CPU only"):
            move()
    assert not fe.cuda.is_available() and fe.cuda.device_count() == 0
    assert str(x.device) == "cpu" and x.device == fe.device("cpu")
    assert repr(fe.device("cuda:1")) == "device(type='cuda', index=1)"


def test_python_numbers():
    x = nf.tensor([3.5])
    assert (x.item(), float(x), int(x), bool(x)) == (3.5, 3.5, 3, True)
    assert [10, 20, 30][nf.tensor(1)] == 20
    assert isinstance(nf.tensor(2).item(), int) and isinstance(nf.tensor(True).item(), bool)
    assert f"{nf.tensor(1.23456):.2f}" == "1.23" and f"{nf.tensor([1.0])}" == "tensor([1.])"
    with pytest.raises(RuntimeError, match="a Tensor with 2 elements cannot be converted"):
        nf.ones(2).item()
    with pytest.raises(RuntimeError, match="more than one value is ambiguous"):
        bool(nf.ones(2))
    with pytest.raises(RuntimeError, match="no values is ambiguous"):
        bool(nf.ones(0))
    with pytest.raises(TypeError, match="only integer tensors"):
        [1, 2][nf.tensor(1.0)]


def test_sequence_protocol():
    x = nf.arange(6).reshape(3, 2)
    assert len(x) == 3 and [r.tolist() for r in x] == [[0, 1], [2, 3], [4, 5]]
    assert 5 in x and 9 not in x
    *_, c = x
    assert c.tolist() == [4, 5]
    for wrong in (lambda: len(nf.tensor(1)), lambda: iter(nf.tensor(1))):
        with pytest.raises(TypeError, match="0-d tensor"):
            wrong()


def test_tensors_are_hashed_by_identity_and_compared_by_element():
    x, y = nf.ones(2), nf.ones(2)
    assert len({x, y}) == 2 and (x == y).dtype is bool_
    assert (x == None) is False and (x != None) is True  # noqa: E711


def test_shape_is_a_size():
    x = nf.ones(2, 3)
    assert repr(x.shape) == "netwright.Size([2, 3])" and x.shape.numel() == 6
    assert x.size() == (2, 3) and x.size(-1) == 3 and x.dim() == x.ndim == 2
    assert isinstance(x.shape[:1], Size) and x.shape.__add__((4,)) == (2, 3, 4)
    assert x.numel() == 6 and x.element_size() == 4 and x.nbytes == 24
    with pytest.raises(IndexError):
        x.size(2)


# -- copies --------------------------------------------------------------------------------------


def test_deepcopy_keeps_class_flag_and_gradient_but_not_memory():
    class Weight(Tensor):
        pass

    w = Weight(np.ones(2, np.float32), requires_grad=True)
    w.sum().backward()
    w.label = ["a"]
    twin = copy.deepcopy({"a": w, "b": w})
    assert twin["a"] is twin["b"] and type(twin["a"]) is Weight and twin["a"].requires_grad
    assert twin["a"].grad.tolist() == [1.0, 1.0] and twin["a"].label is not w.label
    with fe.no_grad():
        twin["a"].fill_(9)
    assert w.tolist() == [1.0, 1.0]
    with pytest.raises(RuntimeError, match="graph leaves"):
        copy.deepcopy(w * 2)


def test_pickling_keeps_values_and_flag():
    x = pickle.loads(pickle.dumps(nf.ones(2, requires_grad=True)))
    assert x.tolist() == [1.0, 1.0] and x.requires_grad


def test_replacing_data_counts_as_a_change():
    x = nf.ones(2, requires_grad=True)
    before = x._storage
    x.data = nf.zeros(3)
    assert before.version == 1 and x.tolist() == [0.0, 0.0, 0.0] and x.requires_grad


def test_the_constructor_shares_arrays_and_makes_float32_of_lists():
    array = np.zeros(2)
    assert Tensor(array)._array is array
    assert Tensor([1, 2]).dtype is float32 and Tensor(2, 3).shape == (2, 3)
    x = nf.ones(2)
    assert Tensor(x)._storage is x._storage


# -- printing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda lib: lib.tensor([[1.0, 2.0], [3.0, -4.0]]),
        lambda lib: lib.tensor([1, 20, -3]),
        lambda lib: lib.tensor([True, False]),
        lambda lib: lib.tensor(1.5),
        lambda lib: lib.tensor(3),
        lambda lib: lib.tensor([0.5, 0.25, 3.0]),
        lambda lib: lib.tensor([1e-6, 1.0]),
        lambda lib: lib.tensor([1e10, 1.0]),
        lambda lib: lib.tensor([float("nan"), 1.0, float("inf")]),
        lambda lib: lib.tensor([]),
        lambda lib: lib.zeros(2, 0),
        lambda lib: lib.zeros(3),
        lambda lib: lib.tensor([1.0], requires_grad=True),
        lambda lib: lib.ones(2, 2, 2),
        lambda lib: lib.arange(2000),
        lambda lib: lib.arange(40) * 1.0,
        lambda lib: lib.tensor([1.0], requires_grad=True) + 1,
        lambda lib: lib.tensor([0.1, 123.456]),
        lambda lib: lib.ones(1)[0] * 1e-5,
    ],
)
def test_repr_is_torchs(make):
    torch = pytest.importorskip("torch")
    assert repr(make(nf)) == repr(make(torch))


def test_repr_shows_a_dtype_that_is_not_the_default():
    assert repr(nf.ones(1, dtype="float64")) == "tensor([1.], dtype=netwright.float64)"
