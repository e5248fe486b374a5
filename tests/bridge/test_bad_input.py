"""Odd and wrong input to compiled programs: eager's result or eager's error, never a crash."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn, optim


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def cnn() -> nn.Module:
    nw.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 3 * 3, 5),
    )


def mlp() -> nn.Module:
    nw.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def outcome(f: Callable[[], Any]) -> Any:
    """The array that ``f`` computes, or the exception that it raises."""
    try:
        with nw.no_grad():
            return f().numpy()
    except (ValueError, TypeError, RuntimeError, IndexError) as error:
        return error


def assert_same_outcome(model: nn.Module, fast: nn.Module, x: Any) -> Any:
    """Compiled and eager give the same array or the same kind of error; returns compiled's."""
    expected = outcome(lambda: model(nw.from_numpy(x) if isinstance(x, np.ndarray) else x))
    got = outcome(lambda: fast(x))
    if isinstance(expected, Exception):
        assert type(got) is type(expected), (got, expected)
    else:
        assert not isinstance(got, Exception), got
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    return got


# -- shapes and dtypes that do not fit ------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "shape",
    [(4, 7), (4,), (), (4, 6, 6), (0, 7), (2, 6, 1), (6,), (1, 6), (3, 5, 6)],
    ids=str,
)
def test_shapes_at_a_linear_layer(shape: tuple[int, ...], training: bool) -> None:
    model = mlp().train(training)
    fast = nw.compile(model)
    got = assert_same_outcome(model, fast, np.ones(shape, np.float32))
    if isinstance(got, Exception):
        assert "linear" in str(got)
        assert "0 at" in str(got) or "(0)" in str(got)
    # An error leaves nothing behind.
    assert_same_outcome(model, fast, array(4, 6))


@pytest.mark.parametrize(
    "shape",
    [(3, 1, 6, 6), (3, 2, 6), (2, 6, 6), (3, 2, 6, 5), (3, 2, 1, 1), (3, 2, 0, 6), (2, 2, 2, 6, 6)],
    ids=str,
)
def test_shapes_at_a_convolution(shape: tuple[int, ...]) -> None:
    model = cnn().eval()
    fast = nw.compile(model)
    got = assert_same_outcome(model, fast, np.ones(shape, np.float32))
    if isinstance(got, Exception):
        assert " at " in str(got)  # the module's path and its line
        assert __file__ in str(got)


@pytest.mark.parametrize("dtype", ["f8", "i8", "i4", "u1", "?", "f2", "c8", "U3", "O", "M8[s]"])
def test_dtypes_at_a_linear_layer(dtype: str) -> None:
    model = mlp()
    fast = nw.compile(model)
    got = outcome(lambda: fast(np.zeros((4, 6), dtype)))
    expected = outcome(lambda: model(nw.from_numpy(np.zeros((4, 6), dtype))))
    assert isinstance(got, TypeError)
    assert isinstance(expected, TypeError)
    if dtype in ("f8", "i8", "i4", "u1", "?"):
        assert "float" in str(got)
        assert "0 at" in str(got)


def test_float_indices_and_indices_out_of_range_at_an_embedding() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    fast = nw.compile(model)
    assert_same_outcome(model, fast, np.ones((2, 3), np.float32))
    for bad in (5, -1, 2**40, -(2**63)):
        idx = np.array([[0, 1, bad]])
        for call in (model, fast):
            with pytest.raises(IndexError):
                call(nw.from_numpy(idx))
    for dtype in ("i8", "i4"):
        assert_same_outcome(model, fast, np.array([[0, 4, 2]], dtype))


@pytest.mark.parametrize(
    "value", ["text", None, 3.0, [[1.0] * 6], object()], ids=lambda v: type(v).__name__
)
def test_arguments_that_are_no_arrays(value: Any) -> None:
    fast = nw.compile(mlp())
    with pytest.raises(TypeError):
        fast(value)


# -- memory layouts -------------------------------------------------------------------------------


def _layouts() -> dict[str, np.ndarray]:
    wide = array(8, 2, 12, 12)
    read_only = array(4, 2, 6, 6)
    read_only.flags.writeable = False
    odd = np.zeros(4 * 2 * 36 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(4, 2, 6, 6)
    odd[...] = array(4, 2, 6, 6)
    return {
        "strided": wide[::2, :, ::2, ::2],
        "negative": wide[3::-1, :, 5::-1, 11:5:-1],
        "fortran": np.asfortranarray(array(4, 2, 6, 6)),
        "transposed": array(6, 6, 2, 4).T,
        "broadcast": np.broadcast_to(array(1, 2, 6, 6), (4, 2, 6, 6)),
        "big-endian": array(4, 2, 6, 6).astype(">f4"),
        "read-only": read_only,
        "unaligned": odd,
    }


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("name", list(_layouts()))
def test_memory_layouts(name: str) -> None:
    x = _layouts()[name]
    model = cnn()
    fast = nw.compile(model)
    plain = np.array(x, np.float32, order="C")
    for training in (False, True):
        model.train(training)
        before = x.copy()
        with nw.no_grad():
            expected = model(nw.from_numpy(plain)).numpy()
            np.testing.assert_allclose(fast(x).numpy(), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(x, before)
    loss = fast(x).sum()
    loss.backward()
    assert model[0].weight.grad is not None


def test_a_big_endian_and_strided_target() -> None:
    model = mlp()
    step = nw.compile(
        model, loss=nn.CrossEntropyLoss(), optimizer=optim.SGD(model.parameters(), lr=0.0)
    )
    y = np.array([0, 1, 2, 1])
    expected = step(array(4, 6), y).item()
    assert step(array(4, 6), y.astype(">i8")).item() == expected
    assert step(array(4, 6), np.repeat(y, 2)[::2]).item() == expected
    assert step(array(4, 6).astype(">f4"), y).item() == expected


def test_results_are_new_memory_in_every_call() -> None:
    fast = nw.compile(mlp().eval())
    x = array(4, 6)
    with nw.no_grad():
        first = fast(x)
        copy = first.numpy().copy()
        second = fast(array(4, 6, seed=1))
    assert not np.shares_memory(first.numpy(), second.numpy())
    np.testing.assert_array_equal(first.numpy(), copy)


# -- special values -------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_special_inputs_give_eagers_pattern(value: float, training: bool) -> None:
    model = cnn().train(training)
    fast = nw.compile(model)
    x = array(4, 2, 6, 6)
    x[1, 0, 2, 3] = value
    with nw.no_grad(), np.errstate(all="ignore"):
        got, expected = fast(x).numpy(), model(nw.from_numpy(x)).numpy()
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    np.testing.assert_array_equal(np.isposinf(got), np.isposinf(expected))
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(expected))


@pytest.mark.parametrize(
    "layer",
    [
        nn.ReLU(),
        nn.ReLU6(),
        nn.LeakyReLU(),
        nn.ELU(),
        nn.GELU(),
        nn.GELU(approximate="tanh"),
        nn.SiLU(),
        nn.Sigmoid(),
        nn.Tanh(),
        nn.Hardswish(),
        nn.Hardsigmoid(),
        nn.Softplus(),
        nn.Softmax(dim=1),
        nn.LogSoftmax(dim=1),
        nn.LayerNorm(9),
    ],
    ids=lambda m: repr(m),
)
def test_special_values_in_every_activation(layer: nn.Module) -> None:
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e38, -1e38, 1e-40, 88.8], np.float32)
    x = np.concatenate([np.diag(special).astype(np.float32), special[None]])
    x[np.isnan(x) & ~np.isnan(special)] = 0  # 0 * inf off the diagonal
    fast = nw.compile(layer)
    with nw.no_grad(), np.errstate(all="ignore"):
        got, expected = fast(x).numpy(), layer(nw.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)


def test_nan_labels_give_a_nan_loss() -> None:
    model = mlp()
    step = nw.compile(model, loss=nn.MSELoss(), optimizer=optim.SGD(model.parameters(), lr=0.0))
    target = array(4, 3)
    target[2, 1] = np.nan
    assert np.isnan(step(array(4, 6), target).item())
    with np.errstate(all="ignore"):
        out = model(nw.from_numpy(array(4, 6)))
        assert np.isnan(nn.MSELoss()(out, nw.from_numpy(target)).item())


def test_float_class_labels_of_one_dimension_are_a_type_error() -> None:
    model = mlp()
    step = nw.compile(
        model, loss=nn.CrossEntropyLoss(), optimizer=optim.SGD(model.parameters(), lr=0.1)
    )
    bad = np.array([0.0, np.nan, 1.0, 2.0], np.float32)
    with pytest.raises((TypeError, RuntimeError, ValueError)) as eager:
        nn.CrossEntropyLoss()(model(nw.from_numpy(array(4, 6))), nw.from_numpy(bad))
    with pytest.raises(type(eager.value)):
        step(array(4, 6), bad)


# -- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [optim.SGD, optim.Adam])
@pytest.mark.parametrize("bad", [3, -1, 10**12, -(2**63)])
def test_a_label_out_of_range_changes_nothing_and_the_next_step_works(
    bad: int, optimizer: Callable[..., optim.Optimizer]
) -> None:
    model = cnn()
    reference = cnn()
    step = nw.compile(
        model, loss=nn.CrossEntropyLoss(), optimizer=optimizer(model.parameters(), lr=0.1)
    )
    other = nw.compile(
        reference, loss=nn.CrossEntropyLoss(), optimizer=optimizer(reference.parameters(), lr=0.1)
    )
    x, y = array(4, 2, 6, 6), np.array([0, 4, 2, 1])
    step(x, y)
    other(x, y)
    before = {k: v.numpy().copy() for k, v in model.state_dict().items()}
    wrong = y.copy()
    wrong[1] = bad if bad != 3 else 5
    with pytest.raises(IndexError, match="out of bounds"):
        step(x, wrong)
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[key], err_msg=key)
    assert step(x, y).item() == other(x, y).item()
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), reference.state_dict()[key].numpy())


def test_a_label_out_of_range_under_autograd_is_the_index_error_of_eager() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()
            self.loss = nn.CrossEntropyLoss()

        def forward(self, x: nw.Tensor, y: nw.Tensor) -> nw.Tensor:
            return self.loss(self.body(x), y)

    model = Net()
    fast = nw.compile(model)
    for call in (model, fast):
        with pytest.raises(IndexError, match="Target 3 is out of bounds"):
            call(nw.from_numpy(array(4, 6)), nw.from_numpy(np.array([0, 3, 1, 1])))
    fast(array(4, 6), np.array([0, 2, 1, 1])).backward()


def test_ignore_index_may_be_out_of_range() -> None:
    for index in (-100, 255):
        loss = nn.CrossEntropyLoss(ignore_index=index)
        model = mlp()
        step = nw.compile(model, loss=loss, optimizer=optim.SGD(model.parameters(), lr=0.0))
        y = np.array([0, index, 2, index])
        expected = loss(model(nw.from_numpy(array(4, 6))), nw.from_numpy(y)).item()
        assert step(array(4, 6), y).item() == pytest.approx(expected, rel=1e-5)
        with np.errstate(all="ignore"):
            nothing = step(array(4, 6), np.full(4, index)).item()
        assert np.isnan(nothing)  # a mean over no sample


# -- empty batches and batches of one -------------------------------------------------------------


def test_an_empty_batch_in_inference() -> None:
    for model, shape in ((mlp(), (0, 6)), (cnn().eval(), (0, 2, 6, 6))):
        fast = nw.compile(model)
        got = assert_same_outcome(model, fast, np.zeros(shape, np.float32))
        assert got.shape == (0, model[-1].out_features)
        assert_same_outcome(model, fast, array(3, *shape[1:]))
        assert_same_outcome(model, fast, np.zeros(shape, np.float32))


def test_an_empty_batch_gives_zero_gradients() -> None:
    model = mlp()
    fast = nw.compile(model)
    for call in (model, fast):
        model.zero_grad()
        x = nw.tensor(np.zeros((0, 6), np.float32), requires_grad=True)
        call(x).sum().backward()
        assert x.grad.shape == (0, 6)
        for p in model.parameters():
            assert (p.grad.numpy() == 0).all()


def test_an_empty_batch_in_a_step_is_eagers_nan_loss() -> None:
    for loss, target in (
        (nn.MSELoss(), np.zeros((0, 3), np.float32)),
        (nn.CrossEntropyLoss(), np.zeros(0, np.int64)),
    ):
        model = mlp()
        step = nw.compile(model, loss=loss, optimizer=optim.SGD(model.parameters(), lr=0.0))
        with np.errstate(all="ignore"):
            assert np.isnan(step(np.zeros((0, 6), np.float32), target).item())
        summed = type(loss)(reduction="sum")
        step = nw.compile(model, loss=summed, optimizer=optim.SGD(model.parameters(), lr=0.1))
        assert step(np.zeros((0, 6), np.float32), target).item() == 0.0
        assert all(np.isfinite(p.detach().numpy()).all() for p in model.parameters())


def test_a_batch_of_one() -> None:
    for model, shape in ((mlp(), (1, 6)), (cnn().eval(), (1, 2, 6, 6)), (cnn(), (1, 2, 6, 6))):
        assert_same_outcome(model, nw.compile(model), array(*shape))


def test_batch_norm_with_one_value_per_channel_is_pytorchs_error() -> None:
    model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 2))
    fast = nw.compile(model)
    step = nw.compile(model, loss=nn.MSELoss(), optimizer=optim.SGD(model.parameters(), lr=0.1))
    text = r"Expected more than 1 value per channel when training"
    for _ in range(2):  # before and after something was compiled
        before = {k: v.numpy().copy() for k, v in model.state_dict().items()}
        with pytest.raises(ValueError, match=text):
            model(nw.from_numpy(array(1, 6)))
        with pytest.raises(ValueError, match=text) as error:
            fast(array(1, 6))
        assert "1 at" in str(error.value)
        with pytest.raises(ValueError, match=text):
            step(array(1, 6), array(1, 2))
        for key, value in model.state_dict().items():
            if key != "1.num_batches_tracked":  # eager counts before it checks, as PyTorch does
                np.testing.assert_array_equal(value.numpy(), before[key])
        fast(array(4, 6))
        step(array(4, 6), array(4, 2))
    fast.eval()
    assert fast(array(1, 6)).shape == (1, 2)


# -- odd models -----------------------------------------------------------------------------------


def test_a_double_model() -> None:
    model = cnn().double()
    fast = nw.compile(model)
    x = array(4, 2, 6, 6).astype(np.float64)
    for training in (True, False):
        model.train(training)
        with nw.no_grad():
            got, expected = fast(x).numpy(), model(nw.from_numpy(x)).numpy()
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)
    with pytest.raises(TypeError, match="float64"):
        fast(array(4, 2, 6, 6))


def test_a_double_step() -> None:
    model, twin = mlp().double(), mlp().double()
    step = nw.compile(model, loss=nn.MSELoss(), optimizer=optim.Adam(model.parameters()))
    optimizer = optim.Adam(twin.parameters())
    x, y = array(4, 6).astype(np.float64), array(4, 3).astype(np.float64)
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.MSELoss()(twin(nw.from_numpy(x)), nw.from_numpy(y))
        loss.backward()
        optimizer.step()
        assert step(x, y).item() == pytest.approx(loss.item(), rel=1e-10)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=1e-9, atol=1e-12)


def test_a_model_without_parameters() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Softmax(dim=1))
    fast = nw.compile(model)
    assert_same_outcome(model, fast, array(3, 2, 4))
    x = nw.tensor(array(3, 2, 4), requires_grad=True)
    (fast(x)[:, 0]).sum().backward()
    assert x.grad.shape == (3, 2, 4)
    with pytest.raises(ValueError, match="empty parameter list"):
        optim.SGD(model.parameters(), lr=0.1)


def test_a_model_without_tensor_inputs_says_what_is_missing() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(nw.ones(2, 2))

        def forward(self, scale: float = 1.0) -> nw.Tensor:
            return self.table * scale

    fast = nw.compile(Table())
    for args in ((), (2.0,)):
        with pytest.raises(TypeError, match="needs at least one netwright tensor or numpy array"):
            fast(*args)


def test_a_frozen_model() -> None:
    model = cnn().requires_grad_(False)
    fast = nw.compile(model)
    assert not fast(array(4, 2, 6, 6)).requires_grad
    x = nw.tensor(array(4, 2, 6, 6), requires_grad=True)
    fast(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in model.parameters())
    step = nw.compile(model, loss=nn.MSELoss(), optimizer=optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises((RuntimeError, ValueError), match="grad"):
        step(array(4, 2, 6, 6), array(4, 5))


def test_a_gpu_is_refused_clearly() -> None:
    assert not nw.cuda.is_available()
    model = nw.compile(mlp())
    for request in (lambda: model.to("cuda"), lambda: model.cuda(), lambda: nw.ones(2).to("cuda")):
        with pytest.raises((RuntimeError, NotImplementedError), match=r"(?i)cpu"):
            request()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_zero_sized_features() -> None:
    for model in (
        nn.Sequential(nn.Linear(6, 0)),
        nn.Sequential(nn.Linear(0, 3)),
        nn.Sequential(nn.ReLU(), nn.Linear(0, 3), nn.Softmax(dim=1)),
    ):
        columns = next(m for m in model if isinstance(m, nn.Linear)).in_features
        fast = nw.compile(model)
        for n in (4, 0, 1):
            assert_same_outcome(model, fast, array(n, columns))


# -- what cannot be compiled, and what there is not ------------------------------------------------


def test_a_class_in_the_place_of_a_module_is_named():
    with pytest.raises(TypeError, match=r"got the class Linear; make one"):
        nw.compile(nn.Linear)


def test_a_module_of_pytorch_in_the_place_of_ours_is_named():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"got Linear of PyTorch; build the model with netwright"):
        nw.compile(torch.nn.Linear(2, 3))


def test_a_list_of_passes_says_what_is_expected():
    with pytest.raises(TypeError, match=r"passes must be a dict .* got list"):
        nw.compile(mlp(), passes=["fuse_conv_bn_relu"])


@pytest.mark.parametrize("name", ["half", "bfloat16"])
def test_half_precision_is_an_error_that_lists_the_dtypes(name):
    for value in (mlp(), nw.ones(3)):
        with pytest.raises(nw.errors.DTypeError, match=r"float16 is not supported; netwright has"):
            getattr(value, name)()
    with pytest.raises(nw.errors.DTypeError, match="float16 is not supported"):
        nw.ones(3).to("float16")


def test_a_tensor_that_a_hook_kept_says_how_to_get_it():
    """It said that the model was being traced, long after the trace."""
    kept = []
    model = mlp().eval()
    model[0].register_forward_hook(lambda module, args, output: kept.append(output))
    nw.compile(model)(array(2, 6))
    with pytest.raises(nw.errors.TraceError, match=r"a hook kept it.*Return it from forward"):
        kept[0].numpy()
