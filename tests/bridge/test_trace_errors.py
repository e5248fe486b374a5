"""What cannot be compiled: errors that name the module or the user's line, and the fix."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn, optim
from netwright.errors import TraceError


def array(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def line_of(function: Any, text: str) -> str:
    """``file:line`` of the line of ``function`` that contains ``text``."""
    lines, start = inspect.getsourcelines(function)
    return f"{__file__}:{start + next(i for i, line in enumerate(lines) if text in line)}"


class Function(nn.Module):
    """A module around a function of tensors."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


# -- values that are not known while tracing ------------------------------------------------------


def branch(x: nw.Tensor) -> nw.Tensor:
    if x.sum() > 0:
        return x * 2
    return x


def item(x: nw.Tensor) -> nw.Tensor:
    return x / x.max().item()


def to_numpy(x: nw.Tensor) -> nw.Tensor:
    return nw.from_numpy(np.abs(x.numpy()))


def to_array(x: nw.Tensor) -> nw.Tensor:
    return nw.from_numpy(np.asarray(x) + 1)


def to_float(x: nw.Tensor) -> nw.Tensor:
    return x * float(x[0, 0])


def to_int(x: nw.Tensor) -> nw.Tensor:
    return x[:, : int(x[0, 0])]


def to_list(x: nw.Tensor) -> nw.Tensor:
    return nw.tensor(x.tolist())


def while_loop(x: nw.Tensor) -> nw.Tensor:
    while (x > 1).any():
        x = x / 2
    return x


def membership(x: nw.Tensor) -> nw.Tensor:
    return x * 2 if 1.0 in x else x


def logical_and(x: nw.Tensor) -> nw.Tensor:
    return x * ((x[0, 0] > 0) and 1.0)


def an_assert(x: nw.Tensor) -> nw.Tensor:
    assert (x == x).all()
    return x


def formatted(x: nw.Tensor) -> nw.Tensor:
    return x * len(f"{x.sum().item():.3f}")


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (branch, "if x.sum()"),
        (item, ".item()"),
        (to_numpy, ".numpy()"),
        (to_array, "np.asarray"),
        (to_float, "x * float("),
        (to_int, ": int("),
        (to_list, ".tolist()"),
        (while_loop, "while ("),
        (membership, "in x"),
        (logical_and, "and 1.0"),
        (an_assert, "assert ("),
        (formatted, ".item()"),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_using_a_value_while_tracing_names_the_line_and_the_fix(
    function: Callable[..., Any], text: str
) -> None:
    function(nw.from_numpy(array(3, 4)))  # the model is fine in eager mode
    fast = nw.compile(Function(function))
    with pytest.raises(TraceError) as error:
        fast(array(3, 4))
    message = str(error.value)
    assert line_of(function, text) in message
    assert "nw.where" in message


def test_printing_a_tensor_inside_forward_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    def forward(x: nw.Tensor) -> nw.Tensor:
        print("x is", x, repr(x), f"{x}")
        return x * 2

    nw.compile(Function(forward))(array(3, 4))
    assert "shape=netwright.Size([N, 4])" in capsys.readouterr().out


def test_a_branch_on_a_parameters_value_is_an_error_too() -> None:
    layer = nn.Linear(4, 4)

    def forward(x: nw.Tensor) -> nw.Tensor:
        y = layer(x)
        return y if layer.weight.sum() > 1e9 else y * 2

    with pytest.raises(TraceError, match=r"needs the value of a tensor") as error:
        nw.compile(Function(forward, layer=layer))(array(3, 4))
    assert line_of(forward, "layer.weight.sum()") in str(error.value)


# -- modules --------------------------------------------------------------------------------------


class PlainList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(4, 4) for _ in range(2)]

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_plain_list_of_layers_is_an_error_that_names_the_remedy() -> None:
    model = nn.Sequential(nn.Identity(), PlainList())
    with pytest.raises(TraceError, match=r"nn\.ModuleList") as error:
        nw.compile(model)(array(3, 4))
    message = str(error.value)
    assert "1 at" in message
    assert line_of(PlainList.forward, "layer(x)") in message


def test_a_parameter_that_no_module_owns_is_an_error() -> None:
    stray = nn.Parameter(nw.from_numpy(array(4)))
    with pytest.raises(TraceError, match=r"nn\.Parameter attributes"):
        nw.compile(Function(lambda x: x * stray))(array(3, 4))


def test_a_missing_super_init_says_which_line_is_missing() -> None:
    class Forgot(nn.Module):
        def __init__(self) -> None:
            self.layer = nn.Linear(3, 2)

    class ForgotToo(nn.Module):
        def __init__(self) -> None:
            self.width = 3

        def forward(self, x: nw.Tensor) -> nw.Tensor:
            return x * self.width

    with pytest.raises(AttributeError, match=r"super\(\).__init__\(\).*Forgot"):
        Forgot()
    with pytest.raises(AttributeError, match=r"super\(\).__init__\(\).*ForgotToo"):
        nw.compile(ForgotToo())(array(3, 4))


def test_a_model_without_forward() -> None:
    class Empty(nn.Module):
        pass

    for model in (Empty(), nn.ModuleList([nn.Linear(4, 4)])):
        with pytest.raises(NotImplementedError, match=r"missing the required \"forward\" function"):
            nw.compile(model)(array(3, 4))


@pytest.mark.parametrize("result", [None, 3.0, (), {"a": 1}, "text"])
def test_a_result_without_a_tensor(result: Any) -> None:
    with pytest.raises(TraceError, match=r"Function.forward\(\) returned no tensor"):
        nw.compile(Function(lambda x: result))(array(3, 4))


def test_a_result_made_of_constants_is_computed() -> None:
    fast = nw.compile(Function(lambda x: nw.ones(2, 3)))
    assert (fast(array(3, 4)).numpy() == 1).all()


def test_a_wrong_number_of_arguments_is_the_type_error_of_eager() -> None:
    fast = nw.compile(nn.Linear(4, 3))
    for args in ((array(3, 4), array(3, 4)), ()):
        with pytest.raises(TypeError):
            fast(*args)


def test_an_in_place_change_of_an_input_is_an_error_not_a_silent_copy() -> None:
    def forward(x: nw.Tensor) -> nw.Tensor:
        x += 1
        return x

    with pytest.raises(TraceError, match=r"in-place operation.*input") as error:
        nw.compile(Function(forward))(array(3, 4))
    assert line_of(forward, "x += 1") in str(error.value)


def test_an_in_place_change_of_a_view_of_an_input_is_an_error() -> None:
    def forward(x: nw.Tensor) -> nw.Tensor:
        y = x.view(-1)
        y += 1
        return y

    with pytest.raises(TraceError, match=r"in-place operation.*view of an input") as error:
        nw.compile(Function(forward))(array(3, 4))
    assert line_of(forward, "y += 1") in str(error.value)


def _write_to_a_view(read: str) -> Callable[[nw.Tensor], nw.Tensor]:
    """y, a view z of it and a view of z; z is written to; then ``read`` is read."""

    def forward(x: nw.Tensor) -> nw.Tensor:
        y = x * 2
        total = y.sum()
        z = y.flatten(1)
        part = z[:, 1:]
        z += 1
        names = {"written": z, "base": y, "view": part}
        return names[read] * total

    return forward


def test_a_view_that_was_written_to_in_place_can_be_read() -> None:
    forward = _write_to_a_view("written")
    x = array(3, 4, 2)
    with nw.no_grad():
        expected = forward(nw.from_numpy(x)).numpy()
        np.testing.assert_allclose(nw.compile(Function(forward))(x).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("read", ["base", "view"])
def test_reading_another_name_of_overwritten_memory_is_an_error(read: str) -> None:
    forward = _write_to_a_view(read)
    with pytest.raises(TraceError, match="overwritten under another name") as error:
        nw.compile(Function(forward))(array(3, 4, 2))
    assert line_of(forward, "z += 1") in str(error.value)
    assert line_of(forward, "* total") in str(error.value)


def test_a_tensor_kept_from_an_earlier_trace_is_an_error() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last: Any = None

        def forward(self, x: nw.Tensor) -> nw.Tensor:
            y = x if self.last is None else x + self.last
            self.last = y
            return y

    fast = nw.compile(Keeps())
    fast(array(3, 4))
    with pytest.raises(TraceError, match="another trace"):
        fast(array(3, 5))


def test_an_error_of_a_layer_names_its_path_and_the_users_line() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 2)

        def forward(self, x: nw.Tensor) -> nw.Tensor:
            return self.head(x)

    model = nn.Sequential(nn.ReLU(), Net())
    with pytest.raises(RuntimeError) as eager:
        model(nw.from_numpy(array(3, 4)))
    with pytest.raises(RuntimeError) as compiled:
        nw.compile(model)(array(3, 4))
    assert type(eager.value) is type(compiled.value)
    assert str(eager.value) in str(compiled.value)
    assert f"1.head at {line_of(Net.forward, 'self.head(x)')}" in str(compiled.value)


def test_the_users_own_exception_passes_through_and_the_next_call_works() -> None:
    class Picky(nn.Module):
        def forward(self, x: nw.Tensor) -> nw.Tensor:
            if x.shape[1] != 4:
                raise KeyError("four columns, please")
            return x * 2

    fast = nw.compile(Picky())
    with pytest.raises(KeyError, match="four columns"):
        fast(array(3, 5))
    assert (fast(array(3, 4)).numpy() == array(3, 4) * 2).all()


# -- compile() ------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [lambda x: x, 3, None, nn.Linear, [nn.Linear(2, 2)]])
def test_something_else_than_a_module(model: Any) -> None:
    with pytest.raises(TypeError, match=r"compile\(\): expected an nn.Module, got"):
        nw.compile(model)


def test_an_unknown_pass_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown pass 'fuse_all'.*fuse_conv_bn_relu"):
        nw.compile(nn.Linear(2, 2), passes={"fuse_all": False})


def test_unknown_options_are_errors() -> None:
    model: Any = nn.Linear(2, 2)
    compile_: Any = nw.compile
    for options in ({"mode": "max-autotune"}, {"fullgraph": True}, {"backend": "inductor"}):
        with pytest.raises(TypeError, match=next(iter(options))):
            compile_(model, **options)
    with pytest.raises(TypeError):
        compile_(model, nn.MSELoss())


def test_a_loss_without_an_optimizer_and_the_reverse() -> None:
    model: Any = nn.Linear(2, 2)
    compile_: Any = nw.compile
    with pytest.raises(TypeError, match="optimizer is missing"):
        compile_(model, loss=nn.MSELoss())
    with pytest.raises(TypeError, match="loss is missing"):
        compile_(model, optimizer=optim.SGD(model.parameters(), lr=0.1))


def test_a_loss_or_an_optimizer_of_a_wrong_kind() -> None:
    model: Any = nn.Linear(2, 2)
    compile_: Any = nw.compile
    good = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"loss must be a module or a function f.*, got str"):
        compile_(model, loss="mse", optimizer=good)
    with pytest.raises(TypeError, match=r"optimizer must be a netwright.optim.Optimizer, got str"):
        compile_(model, loss=nn.MSELoss(), optimizer="adam")


def test_an_optimizer_of_another_model() -> None:
    other = optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"shape \(2, 3\).*model.parameters\(\)"):
        nw.compile(nn.Linear(2, 2), loss=nn.MSELoss(), optimizer=other)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.MSELoss(reduction="none"), r"the loss must be a scalar, it is f32\[N,2\].*reduction"),
        (lambda y, t: (y.sum(), t.sum()), "must return one tensor"),
        (lambda y, t: {"loss": y.sum()}, "must return one tensor"),
        (lambda y, t: 3.0, "returned no tensor"),
        (lambda y, t: (y > t).any(), "floating"),
    ],
    ids=["none", "tuple", "dict", "number", "bool"],
)
def test_a_loss_that_is_no_scalar(loss: Any, message: str) -> None:
    model = nn.Linear(2, 2)
    step = nw.compile(model, loss=loss, optimizer=optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises((ValueError, RuntimeError), match=message):
        step(array(3, 2), array(3, 2))


def test_a_step_without_a_target() -> None:
    model = nn.Linear(2, 2)
    step = nw.compile(model, loss=nn.MSELoss(), optimizer=optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match=r"step\(x, target\)"):
        step(array(3, 2))


def test_asking_for_a_graph_before_a_call_and_for_an_unknown_stage() -> None:
    fast = nw.compile(nn.Linear(2, 2))
    with pytest.raises(nw.errors.NetwrightError, match="call it once with an input"):
        fast.graph()
    fast(array(3, 2))
    with pytest.raises(ValueError, match=r"'fused'.*optimized"):
        fast.graph("fused")
    with pytest.raises(ValueError, match="unknown mode 'test'"):
        fast.graph(mode="test")
