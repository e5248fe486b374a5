"""Module: registration, traversal, state, modes, hooks, printing, and the errors' texts."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from netwright.errors import UnsupportedError
from netwright.frontend import nn
from netwright.frontend.nn.state import IncompatibleKeys
from netwright.frontend.tensor import Tensor


def tensor(*shape: int) -> Tensor:
    return Tensor(np.ones(shape, np.float32))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.scale = nn.Parameter(tensor(3))
        self.register_buffer("seen", tensor(1))
        self.register_buffer("cache", tensor(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x)) * self.scale


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Block(), nn.ReLU())
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


# -- traversal ------------------------------------------------------------------------------


def test_traversal_gives_paths_in_the_order_of_assignment() -> None:
    net = Net()
    assert [n for n, _ in net.named_parameters()] == [
        "body.0.scale",
        "body.0.linear.weight",
        "body.0.linear.bias",
        "body.0.norm.weight",
        "body.0.norm.bias",
        "head.weight",
        "head.bias",
    ]
    assert [n for n, _ in net.named_buffers()] == [
        "body.0.seen",
        "body.0.cache",
        "body.0.norm.running_mean",
        "body.0.norm.running_var",
        "body.0.norm.num_batches_tracked",
    ]
    assert [n for n, _ in net.named_modules()] == [
        "",
        "body",
        "body.0",
        "body.0.linear",
        "body.0.norm",
        "body.1",
        "head",
    ]
    assert [n for n, _ in net.named_children()] == ["body", "head"]
    assert [n for n, _ in net.body[0].named_parameters(prefix="p", recurse=False)] == ["p.scale"]
    assert len(list(net.parameters())) == 7
    assert len(list(net.buffers())) == 5
    assert next(net.modules()) is net
    assert list(net.children()) == [net.body, net.head]


def test_shared_members_are_listed_once_but_saved_under_both_paths() -> None:
    net = nn.Module()
    net.a = nn.Linear(2, 2)
    net.b = net.a
    assert [n for n, _ in net.named_parameters()] == ["a.weight", "a.bias"]
    every = [n for n, _ in net.named_parameters(remove_duplicate=False)]
    assert every == ["a.weight", "a.bias", "b.weight", "b.bias"]
    assert list(net.state_dict()) == every
    assert len(list(net.modules())) == 2


def test_members_are_found_by_path() -> None:
    net = Net()
    assert net.get_submodule("") is net
    assert net.get_submodule("body.0.linear") is net.body[0].linear
    assert net.get_parameter("head.weight") is net.head.weight
    assert net.get_buffer("body.0.seen") is net.body[0].seen
    with pytest.raises(AttributeError, match="ReLU has no attribute `x`"):
        net.get_submodule("body.1.x")
    with pytest.raises(AttributeError, match=r"`seen` is not an nn.Module"):
        net.get_submodule("body.0.seen")
    with pytest.raises(AttributeError, match=r"`head` is not an nn.Parameter"):
        net.get_parameter("head")
    with pytest.raises(AttributeError, match="`head` is not a buffer"):
        net.get_buffer("head")
    with pytest.raises(AttributeError, match="Net has no attribute `x`"):
        net.get_buffer("x")


# -- registration ---------------------------------------------------------------------------


def test_assignment_before_init_says_where_super_is_missing() -> None:
    class WithModule(nn.Module):
        def __init__(self) -> None:
            self.layer = nn.Linear(1, 1)

    class WithParameter(nn.Module):
        def __init__(self) -> None:
            self.p = nn.Parameter(tensor(1))

    class WithBuffer(nn.Module):
        def __init__(self) -> None:
            self.register_buffer("b", tensor(1))

    class WithNothing(nn.Module):
        def __init__(self) -> None:
            self.size = 3

        def forward(self, x: Tensor) -> Tensor:
            return x

    for cls, what in (
        (WithModule, "module"),
        (WithParameter, "parameters"),
        (WithBuffer, "buffer"),
    ):
        with pytest.raises(AttributeError) as found:
            cls()
        assert f"cannot assign {what} before Module.__init__() call" in str(found.value)
        assert f"first line of {cls.__name__}.__init__" in str(found.value)
    broken = WithNothing()
    for use in (lambda: broken(tensor(1)), lambda: list(broken.parameters()), broken.state_dict):
        with pytest.raises(AttributeError, match=r"first line of WithNothing.__init__"):
            use()


def test_registered_names_accept_only_their_kind_or_none() -> None:
    block = Block()
    with pytest.raises(TypeError, match="cannot assign 'Tensor' as parameter 'scale'"):
        block.scale = tensor(3)
    with pytest.raises(TypeError, match="cannot assign 'int' as child module 'linear'"):
        block.linear = 3
    with pytest.raises(TypeError, match="cannot assign 'int' as buffer 'seen'"):
        block.seen = 3
    block.scale = None
    block.linear = None
    block.seen = None
    assert [n for n, _ in block.named_parameters()] == ["norm.weight", "norm.bias"]
    assert block.scale is None
    assert block.linear is None


def test_assigning_another_kind_moves_the_name() -> None:
    module = nn.Module()
    module.x = 3
    module.x = nn.Parameter(tensor(1))
    assert "x" not in module.__dict__
    module.x = nn.Linear(1, 1)
    assert list(module._parameters) == []
    module.x = nn.Parameter(tensor(1))
    assert list(module._modules) == []
    del module.x
    assert not hasattr(module, "x")
    with pytest.raises(AttributeError, match="'Module' object has no attribute 'x'"):
        module.x  # noqa: B018


def test_replacing_a_member_keeps_its_position() -> None:
    net = Net()
    net.body = nn.Identity()
    net.head.weight = nn.Parameter(tensor(2, 3))
    assert list(net.state_dict()) == ["head.weight", "head.bias"]
    assert [n for n, _ in net.named_children()] == ["body", "head"]


@pytest.mark.parametrize("kind", ["parameter", "buffer", "module"])
def test_bad_names_are_rejected(kind: str) -> None:
    module = Block()
    value = {"parameter": nn.Parameter(tensor(1)), "buffer": tensor(1), "module": nn.ReLU()}[kind]
    register = getattr(module, f"register_{kind}")
    with pytest.raises(KeyError, match=f"{kind} name can.*t contain"):
        register("a.b", value)
    with pytest.raises(KeyError, match=f"{kind} name can.*t be empty"):
        register("", value)
    with pytest.raises(TypeError, match=f"{kind} name should be a string. Got int"):
        register(3, value)
    with pytest.raises(KeyError, match="attribute 'forward' already exists"):
        register("forward", value)


def test_bad_values_are_rejected() -> None:
    module = nn.Module()
    with pytest.raises(TypeError, match=r"cannot assign 'Tensor' object to parameter 'p' \(nn.Par"):
        module.register_parameter("p", tensor(1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cannot assign 'int' object to buffer 'b'"):
        module.register_buffer("b", 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="int is not a Module subclass"):
        module.add_module("m", 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes a Tensor, not list"):
        nn.Parameter([1.0])  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="floating point dtype can require gradients"):
        nn.Parameter(Tensor(np.zeros(2, np.int64)))
    with pytest.raises(TypeError, match="unexpected arguments"):
        nn.Module(3)


def test_buffer_objects_register_themselves() -> None:
    module = nn.Module()
    module.kept = nn.Buffer(tensor(1))
    module.scratch = nn.Buffer(tensor(1), persistent=False)
    assert [n for n, _ in module.named_buffers()] == ["kept", "scratch"]
    assert list(module.state_dict()) == ["kept"]


def test_forward_missing_names_the_class() -> None:
    class Empty(nn.Module):
        pass

    with pytest.raises(NotImplementedError, match=r'Module \[Empty\] is missing the required "for'):
        Empty()(tensor(1))
    with pytest.raises(NotImplementedError, match=r"Module \[ModuleList\]"):
        nn.ModuleList([nn.ReLU()])(tensor(1))


# -- state ----------------------------------------------------------------------------------


def test_state_dict_shares_memory_and_leaves_out_scratch_buffers() -> None:
    block = Block()
    state = block.state_dict(prefix="b.")
    assert isinstance(state, OrderedDict)
    assert "b.cache" not in state
    assert "b.seen" in state
    assert not state["b.scale"].requires_grad
    state["b.scale"].fill_(5.0)
    assert block.scale.tolist() == [5.0, 5.0, 5.0]
    assert block.state_dict(keep_vars=True)["scale"] is block.scale


def test_load_state_dict_copies_in_place_and_counts_as_a_write() -> None:
    block = Block()
    weight, array = block.linear.weight, block.linear.weight._array
    version = weight._storage.version
    values = np.arange(9, dtype=np.float64).reshape(3, 3)  # cast to float32
    result = block.load_state_dict({**block.state_dict(), "linear.weight": values})
    assert repr(result) == "<All keys matched successfully>"
    assert block.linear.weight is weight
    assert weight._array is array
    assert weight.tolist() == values.tolist()
    assert weight._storage.version > version
    assert weight.requires_grad


def test_load_state_dict_messages() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with pytest.raises(RuntimeError) as found:
        net.load_state_dict(
            {
                "0.weight": np.ones((1, 2)),
                "foo": np.ones(1),
                "bar.x": np.ones(1),
                "0.bias": 3,
                "1.weight": np.ones(3),
            }
        )
    assert str(found.value) == (
        "Error(s) in loading state_dict for Sequential:\n"
        '\tMissing key(s) in state_dict: "1.bias", "1.running_mean", "1.running_var". \n'
        '\tUnexpected key(s) in state_dict: "foo", "bar.x". \n'
        "\tsize mismatch for 0.weight: copying a param with shape [1, 2] from checkpoint, the "
        "shape in current model is [3, 2].\n"
        '\tWhile copying the parameter named "0.bias", expected a Tensor, a numpy array or a '
        "torch.Tensor from checkpoint but received <class 'int'>"
    )
    assert net[1].weight.tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(TypeError, match="Expected state_dict to be dict-like, got <class 'int'>"):
        net.load_state_dict(3)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="assign=True"):
        net.load_state_dict(net.state_dict(), assign=True)


def test_load_state_dict_not_strict_returns_what_did_not_match() -> None:
    result = nn.Linear(1, 1).load_state_dict({"foo": np.ones(1)}, strict=False)
    assert result == IncompatibleKeys(["weight", "bias"], ["foo"])
    with pytest.raises(RuntimeError, match="size mismatch for bias"):
        nn.Linear(1, 1).load_state_dict({"bias": np.ones(2)}, strict=False)


def test_batch_norm_loads_states_from_before_num_batches_tracked() -> None:
    norm = nn.BatchNorm1d(2)
    state = {k: v.numpy() for k, v in norm.state_dict().items() if k != "num_batches_tracked"}
    norm.load_state_dict(state)
    new = norm.state_dict()
    del new["num_batches_tracked"]
    with pytest.raises(RuntimeError, match="Missing key"):
        norm.load_state_dict(new)


def test_torch_state_dicts_load_in_both_directions() -> None:
    torch = pytest.importorskip("torch")
    make = lambda nn: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))  # noqa: E731
    ours, theirs = make(nn), make(torch.nn)
    ours.load_state_dict(theirs.state_dict())
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    half = {k: v.bfloat16() for k, v in theirs.state_dict().items()}
    ours.load_state_dict(half)
    np.testing.assert_array_equal(ours[0].bias.detach().numpy(), half["0.bias"].float().numpy())


def test_deepcopy_is_independent() -> None:
    net = Net()
    twin = copy.deepcopy(net)
    assert list(twin.state_dict()) == list(net.state_dict())
    twin.head.weight.data.fill_(7.0)
    assert net.head.weight.tolist() != twin.head.weight.tolist()


# -- modes, dtypes, gradients ---------------------------------------------------------------


def test_train_and_eval_reach_every_module() -> None:
    net = Net()
    assert all(m.training for m in net.modules())
    assert net.eval() is net
    assert not any(m.training for m in net.modules())
    net.body.train()
    assert net.body[1].training
    assert not net.training
    with pytest.raises(ValueError, match="training mode is expected to be boolean"):
        net.train(1)  # type: ignore[arg-type]


def test_to_casts_floating_state_and_keeps_identity_and_gradients() -> None:
    net = Net()
    weight = net.head.weight
    net(tensor(2, 3)).sum().backward()
    assert net.double() is net
    assert net.head.weight is weight
    assert weight.dtype.name == "float64"
    assert weight.grad.dtype.name == "float64"
    assert weight.requires_grad
    assert net.body[0].norm.running_var.dtype.name == "float64"
    assert net.body[0].norm.num_batches_tracked.dtype.name == "int64"
    net.to("cpu", np.float32)
    assert weight.dtype.name == "float32"
    assert net.to(Tensor(np.zeros(1))).head.bias.dtype.name == "float64"
    assert net.float().cpu().head.bias.dtype.name == "float32"


def test_other_devices_and_integer_dtypes_are_clear_errors() -> None:
    net = nn.Linear(1, 1)
    for move in (lambda: net.to("cuda"), lambda: net.to(device="cuda:0"), net.cuda):
        with pytest.raises(UnsupportedError, match="CPU"):
            move()
    with pytest.raises(UnsupportedError, match="CPU"):
        nn.Linear(1, 1, device="cuda")
    with pytest.raises(TypeError, match="only accepts floating point"):
        net.to(dtype="int64")
    with pytest.raises(TypeError, match="unexpected keyword argument 'foo'"):
        net.to(foo=1)
    assert nn.Linear(1, 1, dtype="float64").weight.dtype.name == "float64"


def test_zero_grad_and_requires_grad_() -> None:
    net = nn.Linear(2, 1)
    net(tensor(1, 2)).sum().backward()
    net.zero_grad(set_to_none=False)
    assert net.weight.grad.tolist() == [[0.0, 0.0]]
    net.zero_grad()
    assert net.weight.grad is None
    assert net.requires_grad_(False) is net
    assert not any(p.requires_grad for p in net.parameters())


def test_apply_visits_children_before_the_module() -> None:
    seen: list[str] = []
    net = Net()
    assert net.apply(lambda m: seen.append(type(m).__name__)) is net
    assert seen == ["Linear", "BatchNorm1d", "Block", "ReLU", "Sequential", "Linear", "Net"]


# -- hooks ----------------------------------------------------------------------------------


def test_hooks_see_and_change_arguments_and_results() -> None:
    layer = nn.Identity()
    calls: list[str] = []

    def before(module: Any, args: Any) -> Any:
        calls.append("before")
        return args[0] + 1

    def after(module: Any, args: Any, output: Tensor) -> Any:
        calls.append("after")
        return output * 10

    handles = [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
    layer.register_forward_hook(lambda m, a, o: calls.append("first"), prepend=True)
    assert layer(tensor(1)).tolist() == [20.0]
    assert calls == ["before", "first", "after"]
    for handle in handles:
        handle.remove()
    assert layer(tensor(1)).tolist() == [1.0]


def test_hooks_with_keyword_arguments() -> None:
    class Scale(nn.Module):
        def forward(self, x: Tensor, by: float = 1.0) -> Tensor:
            return x * by

    layer = Scale()
    with layer.register_forward_pre_hook(lambda m, a, k: (a, {"by": 3.0}), with_kwargs=True):
        layer.register_forward_hook(lambda m, a, k, o: o + k["by"], with_kwargs=True)
        assert layer(tensor(1), by=2.0).tolist() == [6.0]
    assert layer(tensor(1), by=2.0).tolist() == [4.0]
    layer.register_forward_pre_hook(lambda m, a, k: 3, with_kwargs=True)
    with pytest.raises(RuntimeError, match="must return None or a tuple"):
        layer(tensor(1), by=2.0)


# -- printing -------------------------------------------------------------------------------


def test_repr_of_nested_modules() -> None:
    assert repr(Net()) == (
        "Net(\n"
        "  (body): Sequential(\n"
        "    (0): Block(\n"
        "      (linear): Linear(in_features=3, out_features=3, bias=True)\n"
        "      (norm): BatchNorm1d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, "
        "track_running_stats=True)\n"
        "    )\n"
        "    (1): ReLU()\n"
        "  )\n"
        "  (head): Linear(in_features=3, out_features=2, bias=True)\n"
        ")"
    )


def test_extra_repr_with_and_without_children() -> None:
    class Noted(nn.Module):
        def extra_repr(self) -> str:
            return "a=1\nb=2"

    module = Noted()
    assert repr(module) == "Noted(\n  a=1\n  b=2\n)"
    module.act = nn.ReLU()
    assert repr(module) == "Noted(\n  a=1\n  b=2\n  (act): ReLU()\n)"


def test_parameter_prints_what_it_is() -> None:
    text = repr(nn.Parameter(tensor(1)))
    assert text == "Parameter containing:\ntensor([1.], requires_grad=True)"


# -- containers -----------------------------------------------------------------------------


def test_sequential_is_a_sequence_of_modules() -> None:
    a, b, c = nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)
    net = nn.Sequential(a, b)
    assert net.append(c) is net
    assert len(net) == 3
    assert list(net) == [a, b, c]
    assert net[-1] is c
    assert isinstance(net[1:], nn.Sequential)
    assert list(net[1:]) == [b, c]
    net[1] = nn.Tanh()
    assert isinstance(net[1], nn.Tanh)
    net.insert(1, b)
    assert [type(m).__name__ for m in net] == ["Linear", "ReLU", "Tanh", "Linear"]
    assert isinstance(net.pop(2), nn.Tanh)
    del net[0]
    assert list(net._modules) == ["0", "1"]
    assert list(net + nn.Sequential(a)) == [b, c, a]
    net.extend([a])
    net += nn.Sequential(b)
    assert len(net) == 4
    with pytest.raises(IndexError, match="index 9 is out of range"):
        net[9]
    with pytest.raises(IndexError, match="Index out of range: 9"):
        net.insert(9, a)
    with pytest.raises(TypeError, match="int is not a Module subclass"):
        nn.Sequential(3)
    with pytest.raises(TypeError, match="list is not a Module subclass"):
        nn.Sequential([a])
    with pytest.raises(ValueError, match="supports only objects of Sequential"):
        net + 3


def test_named_sequential_is_read_by_name_and_slices_keep_names() -> None:
    net = nn.Sequential(OrderedDict([("fc", nn.Linear(2, 2)), ("act", nn.ReLU())]))
    assert net.fc is net[0]
    assert next(net[1:].named_children())[0] == "act"
    assert list(net.state_dict()) == ["fc.weight", "fc.bias"]


def test_module_list_registers_what_is_put_in() -> None:
    layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    layers.append(nn.ReLU()).extend([nn.Linear(2, 1)])
    layers += [nn.ReLU()]
    assert len(list(layers.parameters())) == 8
    assert isinstance(layers[:2], nn.ModuleList)
    assert len(layers + nn.ModuleList([nn.ReLU()])) == 7
    assert repr(layers) == (
        "ModuleList(\n"
        "  (0-2): 3 x Linear(in_features=2, out_features=2, bias=True)\n"
        "  (3): ReLU()\n"
        "  (4): Linear(in_features=2, out_features=1, bias=True)\n"
        "  (5): ReLU()\n"
        ")"
    )
    assert repr(nn.ModuleList()) == "ModuleList()"
    with pytest.raises(TypeError, match="should be called with an iterable, but got int"):
        layers.extend(3)  # type: ignore[arg-type]


def test_module_dict_is_a_dictionary_of_modules() -> None:
    layers = nn.ModuleDict({"a": nn.Linear(1, 1)})
    layers["b"] = nn.ReLU()
    layers.update([("c", nn.Tanh())])
    assert list(layers) == list(layers.keys()) == ["a", "b", "c"]
    assert "b" in layers
    assert len(layers) == 3
    assert [n for n, _ in layers.items()] == ["a", "b", "c"]
    assert isinstance(layers.pop("c"), nn.Tanh)
    assert list(layers.state_dict()) == ["a.weight", "a.bias"]
    del layers["b"]
    assert len(list(layers.values())) == 1
    layers.clear()
    assert len(layers) == 0
    with pytest.raises(TypeError, match="iterable of key/value pairs, but got int"):
        layers.update(3)
    with pytest.raises(ValueError, match="element #0"):
        layers.update([("a", nn.ReLU(), 3)])


def test_parameter_list_turns_tensors_into_parameters() -> None:
    params = nn.ParameterList([tensor(2, 3), nn.Parameter(tensor(2))])
    params.append(tensor(1))
    assert len(params) == 3
    assert all(isinstance(p, nn.Parameter) for p in params)
    assert list(params.state_dict()) == ["0", "1", "2"]
    assert params[-1].shape == (1,)
    params[0] = tensor(4)
    assert params[0].shape == (4,)
    assert isinstance(params[1:], nn.ParameterList)
    with pytest.raises(TypeError, match="holds Parameters and Tensors, but got int"):
        params.append(3)
    with pytest.raises(TypeError, match="should be called with an iterable"):
        params.extend(3)  # type: ignore[arg-type]


def test_parameter_list_repr_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    ours = repr(nn.ParameterList([tensor(2, 3), tensor(2)]))
    theirs = repr(torch.nn.ParameterList([torch.ones(2, 3), torch.ones(2)]))
    assert ours.replace("netwright.", "torch.") == theirs
