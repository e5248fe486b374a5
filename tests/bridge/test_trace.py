"""Tracing through compile(): every way to write a model that is captured, with eager's results."""

import inspect
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import netwright as nw
import netwright.nn.functional as F
from netwright import nn
from netwright.ir.graph import Graph


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def tensor(*shape: int, seed: int = 0) -> nw.Tensor:
    return nw.from_numpy(array(*shape, seed=seed))


def arrays(result: Any) -> list[np.ndarray]:
    """The result's tensors in order, as arrays."""
    if isinstance(result, nw.Tensor):
        return [result.detach().numpy()]
    items = result.values() if isinstance(result, dict) else result
    return [a for item in items for a in arrays(item)]


def check(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Compiled equals eager in training and eval mode, with and without gradients, and for
    another batch size without another compilation; returns the compiled model."""
    fast = nw.compile(model)
    for training in (True, False):
        model.train(training)
        assert_equal(fast, model, args, kwargs)
        with nw.no_grad():
            assert_equal(fast, model, args, kwargs)
    before = fast.compilations
    with nw.no_grad():
        assert_equal(fast, model, [_doubled(a) for a in args], kwargs)
    assert fast.compilations == before
    return fast


def _doubled(value: Any) -> Any:
    return nw.cat([value, value * 0.5]) if isinstance(value, nw.Tensor) and value.dim() else value


def assert_equal(fast: nn.Module, model: nn.Module, args: Any, kwargs: Any) -> None:
    got, expected = fast(*args, **kwargs), model(*args, **kwargs)
    assert type(got) is type(expected)
    for a, b in zip(arrays(got), arrays(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


class Function(nn.Module):
    """A module around a function of tensors."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def traced(model: nn.Module, *args: Any) -> Graph:
    fast = nw.compile(model)
    with nw.no_grad():
        fast(*args)
    return fast.graph("traced")


# -- ways to write a model ----------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, width)
        self.linear2 = nn.Linear(width, width)

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        return F.relu(self.linear2(F.relu(self.linear1(x)))) + x


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.ReLU(), Block(8)))
        self.head = nn.Linear(8, 3)

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        return self.head(self.stem(x))


def test_nested_modules_and_a_residual_branch() -> None:
    fast = check(Nested(), tensor(4, 6))
    modules = {n.source.module for n in fast.graph("traced").nodes}
    assert {"stem.0", "stem.1.0", "stem.1.1.linear1", "stem.1.1", "head"} <= modules


def test_a_module_list_in_a_loop() -> None:
    layers = nn.ModuleList([nn.Linear(5, 5) for _ in range(3)])

    def forward(x: nw.Tensor) -> nw.Tensor:
        for layer in layers:
            x = x + layer(x).relu()
        return x

    fast = check(Function(forward, layers=layers), tensor(3, 5))
    paths = [n.attrs["path"] for n in fast.graph("traced").sources("parameter")]
    assert "layers.2.weight" in paths


def test_an_ordered_dict_sequential_with_access_by_name() -> None:
    net = nn.Sequential(
        OrderedDict([("first", nn.Linear(4, 6)), ("act", nn.Tanh()), ("last", nn.Linear(6, 2))])
    )
    check(net, tensor(3, 4))
    check(Function(lambda x: net.last(net.act(net.first(x))), net=net), tensor(3, 4))


def test_a_module_dict_chosen_by_a_python_argument() -> None:
    heads = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 3)})
    model = Function(lambda x, which: heads[which](x), heads=heads)
    fast = nw.compile(model.eval())
    assert fast(array(5, 4), "a").shape == (5, 2)
    assert fast(array(5, 4), which="b").shape == (5, 3)
    assert fast.compilations == 2


def test_one_layer_used_twice_is_one_parameter_and_its_gradients_add() -> None:
    layer = nn.Linear(4, 4)
    model = Function(lambda x: layer(F.relu(layer(x))), layer=layer)
    fast = check(model, tensor(3, 4))
    assert len(fast.graph("traced").sources("parameter")) == 2
    found = []
    for f in (fast.train(), model):
        f.zero_grad()
        f(tensor(3, 4)).sum().backward()
        found.append(layer.weight.grad.numpy().copy())
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


def test_tied_weights_under_two_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 4)
            self.out = nn.Linear(4, 7, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, idx: nw.Tensor) -> nw.Tensor:
            return self.out(self.embed(idx))

    model = Tied()
    fast = nw.compile(model)
    idx = nw.from_numpy(np.array([0, 3, 6, 3]))
    found = []
    for f in (fast, model):
        f.zero_grad()
        out = f(idx)
        (out * out).sum().backward()
        found.append(model.embed.weight.grad.numpy().copy())
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


def test_the_batch_size_flattens_by_view_and_scales_by_a_factor() -> None:
    check(Function(lambda x: x.view(x.size(0), -1)), tensor(2, 3, 4))
    check(Function(lambda x: x.reshape(x.shape[0] * 3, 4)), tensor(2, 3, 4))
    check(Function(lambda x: x.reshape(-1, 4).relu().reshape(-1, 3, 4)), tensor(2, 3, 4))
    check(Function(lambda x: x.flatten()), tensor(2, 3))
    check(Function(lambda x: x.reshape(x.size(0), 2, -1).transpose(1, 2)), tensor(2, 6))


def test_the_batch_size_enters_arithmetic() -> None:
    check(Function(lambda x: x.sum() / x.shape[0]), tensor(4, 3))
    check(Function(lambda x: (x - x.mean(0)) / x.numel()), tensor(4, 3))


def test_chunk_split_and_cat() -> None:
    def forward(x: nw.Tensor) -> nw.Tensor:
        a, b = x.chunk(2, dim=1)
        c, d, e = nw.split(x, [1, 2, 3], dim=1)
        return nw.cat([a * b, c, nw.cat([d, e], 1).tanh()], dim=1)

    check(Function(forward), tensor(4, 6))
    check(Function(lambda x: nw.stack([x, x * 2], dim=1)), tensor(4, 6))


def test_indexing() -> None:
    check(Function(lambda x: x[:, 0]), tensor(4, 6))
    check(Function(lambda x: x[:, -1].relu() + x[:, 1]), tensor(4, 6))
    check(Function(lambda x: x[..., 1::2, None]), tensor(4, 6))
    check(Function(lambda x: x[:, 1:3, :2].reshape(x.shape[0], -1)), tensor(4, 6, 5))


def test_multi_head_attention_written_by_hand() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, 24)
            self.out = nn.Linear(8, 8)

        def forward(self, x: nw.Tensor) -> nw.Tensor:
            b, t, c = x.shape
            q, k, v = (
                z.reshape(b, t, 2, c // 2).transpose(1, 2)
                for z in self.qkv(x).chunk(3, dim=-1)
            )
            weights = F.softmax(q @ k.transpose(-2, -1) / 2.0, dim=-1)
            return self.out((weights @ v).transpose(1, 2).reshape(b, t, c))

    check(Attention(), tensor(2, 5, 8))


def test_a_buffer_and_a_constant() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", tensor(3, seed=1))
            self.offset = tensor(3, seed=2)

        def forward(self, x: nw.Tensor) -> nw.Tensor:
            return x * self.scale + self.offset

    model = Scaled()
    fast = check(model, tensor(4, 3))
    paths = [n.attrs["path"] for n in fast.graph("traced").sources("buffer")]
    assert paths == ["scale", "offset"]
    model.scale.mul_(2.0)
    with nw.no_grad():
        assert_equal(fast, model, (tensor(4, 3),), {})


def test_a_lambda_of_pure_functions_without_parameters() -> None:
    fast = check(Function(lambda x: (x.exp() + 1).log().clamp(0.1, 2.0).mean(1)), tensor(4, 3))
    assert list(fast.parameters()) == []


# -- arguments ----------------------------------------------------------------------------------


def test_several_inputs() -> None:
    layer = nn.Linear(4, 3)
    check(Function(lambda x, y: layer(x) * y, layer=layer), tensor(5, 4), tensor(5, 3, seed=1))


def test_an_input_without_the_batch_keeps_its_size() -> None:
    model = Function(lambda x, w: x @ w)
    fast = nw.compile(model)
    w = tensor(4, 3, seed=1)
    for n in (5, 2, 7):
        np.testing.assert_allclose(
            fast(array(n, 4), w).numpy(), array(n, 4) @ w.numpy(), rtol=1e-5, atol=1e-5
        )
    assert fast.compilations == 1


def test_one_tensor_as_two_arguments_stays_two_inputs() -> None:
    model = Function(lambda x, y: x - 2 * y)
    fast = nw.compile(model)
    x, y = tensor(3, 4), tensor(3, 4, seed=1)
    assert_equal(fast, model, (x, x), {})
    assert_equal(fast, model, (x, y), {})
    a, b = (nw.tensor(array(3, 4, seed=s), requires_grad=True) for s in (0, 1))
    fast(a, b).sum().backward()
    assert (a.grad.numpy() == 1).all()
    assert (b.grad.numpy() == -2).all()


def test_keyword_arguments_and_defaults() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(
            self, x: nw.Tensor, mask: Any = None, *, scale: float = 2.0, skip: bool = False
        ) -> nw.Tensor:
            y = x if skip else self.layer(x)
            return y * scale if mask is None else y * mask * scale

    model = Model()
    fast = check(model, tensor(3, 4))
    for kwargs in ({"scale": 3.0}, {"skip": True}, {"mask": tensor(3, 4, seed=1), "scale": 0.5}):
        assert_equal(fast, model, (tensor(3, 4),), kwargs)
    assert_equal(fast, model, (), {"x": tensor(3, 4)})
    with pytest.raises(TypeError, match="masc"):
        fast(tensor(3, 4), masc=None)


def test_nested_arguments() -> None:
    model = Function(lambda batch: batch["x"] + batch["pair"][0] * batch["pair"][1])
    fast = nw.compile(model)
    batch = {"x": array(3, 4), "pair": (array(3, 4, seed=1), array(3, 4, seed=2))}
    expected = batch["x"] + batch["pair"][0] * batch["pair"][1]
    np.testing.assert_allclose(fast(batch).numpy(), expected, rtol=1e-6, atol=1e-6)


# -- results ------------------------------------------------------------------------------------

Pair = namedtuple("Pair", ["logits", "features"])


@pytest.mark.parametrize(
    "pack",
    [
        lambda a, b: (a, b),
        lambda a, b: [a, b],
        lambda a, b: {"logits": a, "features": b},
        Pair,
        lambda a, b: {"nested": (a, [b, a])},
        lambda a, b: (a, a),
        lambda a, b: OrderedDict(b=b, a=a),
    ],
    ids=["tuple", "list", "dict", "namedtuple", "nested", "twice", "OrderedDict"],
)
def test_results_keep_their_nest(pack: Callable[..., Any]) -> None:
    layer = nn.Linear(4, 4)

    def forward(x: nw.Tensor) -> Any:
        features = F.relu(layer(x))
        return pack(features * 2, features)

    model = Function(forward, layer=layer)
    fast = check(model, tensor(3, 4))
    if pack is Pair:
        assert fast(tensor(3, 4)).features.shape == (3, 4)


def test_values_that_are_no_tensors_pass_through_a_result() -> None:
    model = Function(lambda x: {"y": x * 2, "name": "double", "nothing": None})
    result = nw.compile(model)(array(2, 3))
    assert (result["name"], result["nothing"]) == ("double", None)


def test_gradients_of_several_results() -> None:
    layer = nn.Linear(4, 4)
    model = Function(lambda x: (layer(x), {"h": layer(x).tanh()}), layer=layer)
    fast = nw.compile(model)
    found = []
    for f in (fast, model):
        f.zero_grad()
        x = nw.tensor(array(3, 4), requires_grad=True)
        a, rest = f(x)
        (a.sum() + (rest["h"] * 3).mean()).backward()
        found.append([x.grad.numpy(), *(p.grad.numpy() for p in layer.parameters())])
        f.zero_grad()
        f(x)[1]["h"].sum().backward()  # one of two results only
        found[-1] += [p.grad.numpy() for p in layer.parameters()]
    for got, expected in zip(*found, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_an_input_returned_unchanged() -> None:
    model = Function(lambda x: (x, x * 2))
    fast = check(model, tensor(3, 4))
    x = nw.tensor(array(3, 4), requires_grad=True)
    same, doubled = fast(x)
    (same.sum() + doubled.sum()).backward()
    assert (x.grad.numpy() == 3).all()
    check(nn.Identity(), tensor(3, 4))


def test_a_returned_input_is_not_the_callers_memory() -> None:
    x = array(3, 4)
    with nw.no_grad():
        y = nw.compile(nn.Identity())(x)
    y.add_(1.0)
    assert (x == array(3, 4)).all()


def test_a_parameter_returned() -> None:
    layer = nn.Linear(4, 2)
    model = Function(lambda x: (layer(x), layer.weight), layer=layer)
    fast = nw.compile(model)
    assert_equal(fast, model, (tensor(3, 4),), {})
    found = []
    for f in (fast, model):
        f.zero_grad()
        out, weight = f(tensor(3, 4))
        (out.sum() + (weight * weight).sum()).backward()
        found.append(layer.weight.grad.numpy().copy())
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)


# -- modes --------------------------------------------------------------------------------------


def test_code_that_asks_for_the_mode() -> None:
    class Model(nn.Module):
        def forward(self, x: nw.Tensor) -> nw.Tensor:
            return x * 2 if self.training else x + 1

    check(Model(), tensor(3, 4))


def test_a_part_in_eval_mode_compiles_for_that_combination() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3), nn.ReLU(), nn.BatchNorm1d(3))
    fast = nw.compile(model)
    model[0].eval()
    before = model[0].running_mean.numpy().copy(), model[3].running_mean.numpy().copy()
    fast(array(8, 4))
    assert (model[0].running_mean.numpy() == before[0]).all()
    assert (model[3].running_mean.numpy() != before[1]).any()
    model[0].train()
    fast(array(8, 4))
    assert (model[0].running_mean.numpy() != before[0]).any()


def test_a_backward_after_a_change_of_mode_is_that_of_the_forward() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3), nn.Linear(3, 2)).eval()
    fast = nw.compile(model)
    found = []
    for f in (fast, model):
        f.zero_grad()
        f.eval()
        out = f(tensor(8, 4))
        f.train()
        (out * out).sum().backward()
        found.append([p.grad.numpy() for p in model.parameters()])
    for got, expected in zip(*found, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert model[1].num_batches_tracked.item() == 0


def test_dropout_in_eval_mode_has_the_mask_of_its_own_forward_in_backward() -> None:
    model = Function(lambda x: F.dropout(x, 0.5, training=True)).eval()
    x = nw.tensor(np.ones((20, 30), np.float32), requires_grad=True)
    out = nw.compile(model)(x)
    out.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), out.detach().numpy())


def test_no_grad_inside_forward_stops_the_gradient() -> None:
    layer = nn.Linear(4, 4)

    def forward(x: nw.Tensor) -> nw.Tensor:
        with nw.no_grad():
            scale = layer(x).sigmoid()
        return layer(x) * scale + x.detach()

    model = Function(forward, layer=layer)
    fast = nw.compile(model)
    found = []
    for f in (fast, model):
        f.zero_grad()
        x = nw.tensor(array(3, 4), requires_grad=True)
        f(x).sum().backward()
        found.append([x.grad.numpy(), layer.weight.grad.numpy().copy()])
    for got, expected in zip(*found, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_compiled_model_is_a_part_of_another_model() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model = nn.Sequential(nw.compile(inner), nn.Linear(4, 2))
    reference = nn.Sequential(inner, model[1])
    fast = nw.compile(model)
    with nw.no_grad():
        assert_equal(model, reference, (tensor(3, 4),), {})
        assert_equal(fast, reference, (tensor(3, 4),), {})


def test_compiling_a_compiled_model_compiles_the_model() -> None:
    model = nn.Linear(3, 2)
    assert nw.compile(nw.compile(model))._model is model


# -- sources ------------------------------------------------------------------------------------


def line_of(function: Any, text: str) -> int:
    """The line in this file on which ``function`` contains ``text``."""
    lines, start = inspect.getsourcelines(function)
    return start + next(i for i, line in enumerate(lines) if text in line)


def test_nodes_carry_the_module_path_and_the_users_line() -> None:
    graph = traced(Nested().eval(), tensor(4, 6))
    add = next(n for n in graph.nodes if n.op == "add")
    assert (add.source.module, add.source.file) == ("stem.1.1", __file__)
    assert add.source.line == line_of(Block.forward, "+ x")
    linear = [n for n in graph.nodes if n.op == "linear"]
    assert [n.source.module for n in linear] == [
        "stem.0",
        "stem.1.1.linear1",
        "stem.1.1.linear2",
        "head",
    ]
    assert linear[-1].source.line == line_of(Nested.forward, "self.head")


def test_layers_of_a_sequential_carry_the_line_that_made_or_called_them() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    for node in traced(model, tensor(2, 4)).nodes:
        if node.op in ("linear", "relu"):
            assert node.source.file == __file__
            assert node.source.module in ("0", "1")


# -- a program that needs the batch size ----------------------------------------------------------


def test_a_branch_on_the_batch_size_compiles_per_size_and_says_so() -> None:
    def forward(x: nw.Tensor) -> nw.Tensor:
        if x.shape[0] > 1:
            return x - x.mean(0)
        return x

    model = Function(forward)
    fast = nw.compile(model)
    for n in (1, 4, 1, 3, 4):
        assert_equal(fast, model, (tensor(n, 3),), {})
    assert fast.compilations == 3
    assert "T001" in fast.explain()
    assert f"{__file__}:{line_of(forward, 'if x.shape')}" in fast.explain()


def test_a_step_with_a_branch_on_the_batch_size_works_for_each_size() -> None:
    layer = nn.Linear(3, 2)
    model = Function(lambda x: layer(x) if x.size(0) != 2 else layer(x) * 2, layer=layer)
    step = nw.compile(
        model, loss=nn.MSELoss(), optimizer=nw.optim.SGD(model.parameters(), lr=0.0)
    )
    for n in (2, 3, 2):
        expected = nn.MSELoss()(model(tensor(n, 3)), tensor(n, 2)).item()
        assert step(array(n, 3), array(n, 2)).item() == pytest.approx(expected, rel=1e-5)
    assert step.compilations == 2


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * float(x.shape[0]),
        lambda x: x + (x.shape[0] + 1),
        lambda x: x * int(x.size(0)),
        lambda x: sum([x] * len(range(x.shape[0]))),
        lambda x: x * (x.shape[0] % 2),
        lambda x: x[: x.shape[0] // 2] if x.shape[0] == 4 else x,
        lambda x: nw.zeros(x.shape[0], 3) + x,
        lambda x: x.view(2, -1, 3) if len(x) == 4 else x,
        lambda x: x * 2 if x.shape[0] in {4, 8} else x,
        lambda x: x * -x.shape[0],
        lambda x: x / x.shape[0] ** 0.5,
        lambda x: x[: x.shape[0] // 2],
        lambda x: x + nw.arange(x.shape[0]).reshape(-1, 1),
        lambda x: x * max(x.shape[0], 2),
    ],
    ids=[
        *("float", "plus", "int", "range", "modulo", "half", "zeros", "len", "set", "negative"),
        *("root", "floor", "arange", "max"),
    ],
)
def test_other_uses_of_the_batch_size_as_a_number(function: Callable[..., Any]) -> None:
    fast = nw.compile(Function(function))
    for n in (4, 3):
        np.testing.assert_allclose(
            fast(array(n, 3)).numpy(), function(tensor(n, 3)).numpy(), rtol=1e-5, atol=1e-6
        )


def test_static_batch_on_request() -> None:
    fast = nw.compile(nn.Linear(3, 2).eval(), dynamic=False)
    for n in (2, 3, 2):
        fast(array(n, 3))
    assert fast.compilations == 2


# -- what is odd but legal ------------------------------------------------------------------------


def test_keywords_in_another_order_than_the_signature() -> None:
    class Model(nn.Module):
        def forward(self, x: nw.Tensor, y: nw.Tensor) -> nw.Tensor:
            return x - 2 * y

    fast = nw.compile(Model())
    x, y = array(3, 4), array(3, 4, seed=1)
    for _ in range(2):
        np.testing.assert_allclose(fast(y=y, x=x).numpy(), x - 2 * y, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(fast(x=x, y=y).numpy(), x - 2 * y, rtol=1e-6, atol=1e-6)


def test_names_that_are_no_words() -> None:
    heads = nn.ModuleDict({"my-head 1": nn.Linear(4, 2), "größe": nn.Linear(2, 2)})

    def forward(batch: Any) -> Any:
        hidden = heads["my-head 1"](batch["an input"]).relu()
        return {"an output": heads["größe"](hidden), 3: batch[0]}

    model = Function(forward, heads=heads)
    fast = nw.compile(model)
    batch = {"an input": tensor(3, 4), 0: tensor(3, 1)}
    assert_equal(fast, model, (batch,), {})


def test_an_extent_that_equals_the_batch_by_chance() -> None:
    model = Function(lambda x, w: x @ w)
    fast = nw.compile(model)
    for n in (4, 5, 4):  # w has 4 rows
        x, w = array(n, 4), array(4, 3, seed=1)
        np.testing.assert_allclose(fast(x, w).numpy(), x @ w, rtol=1e-5, atol=1e-5)


def test_a_batch_of_one_is_no_extent_to_broadcast() -> None:
    model = Function(lambda x, y: x * y)
    fast = nw.compile(model)
    for n, m in ((1, 1), (5, 1), (1, 5), (5, 5)):
        x, y = array(n, 4), array(m, 4, seed=1)
        np.testing.assert_allclose(fast(x, y).numpy(), x * y, rtol=1e-6)


def test_a_changed_number_attribute_makes_another_program() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = 2.0
            self.shifts = [1.0]
            self.options = {"power": 1}

        def forward(self, x: nw.Tensor) -> nw.Tensor:
            return x ** self.options["power"] * self.scale + self.shifts[0]

    model = Scaled()
    fast = nw.compile(model)
    x = tensor(3, 4)
    assert_equal(fast, model, (x,), {})
    model.scale = 3.0
    assert_equal(fast, model, (x,), {})
    model.shifts = [2.0]
    assert_equal(fast, model, (x,), {})


def test_a_changed_tensor_attribute_is_seen() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = tensor(4)

        def forward(self, x: nw.Tensor) -> nw.Tensor:
            return x * self.scale

    model = Scaled()
    fast = nw.compile(model)
    x = tensor(3, 4)
    assert_equal(fast, model, (x,), {})
    model.scale.mul_(2.0)
    assert_equal(fast, model, (x,), {})
    model.scale = tensor(4, seed=3)
    assert_equal(fast, model, (x,), {})


def test_hooks_run_in_the_compiled_program() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    fast = nw.compile(model)
    with nw.no_grad():
        before = fast(array(3, 4)).numpy()
        handle = model[0].register_forward_hook(lambda module, args, output: output * 2)
        np.testing.assert_allclose(fast(array(3, 4)).numpy(), before * 2, rtol=1e-6)
        handle.remove()
        np.testing.assert_allclose(fast(array(3, 4)).numpy(), before, rtol=1e-6)


def test_a_replaced_layer_is_seen() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    fast = nw.compile(model)
    with nw.no_grad():
        assert_equal(fast, model, (tensor(3, 4),), {})
        model[0] = nn.Linear(4, 5)
        assert_equal(fast, model, (tensor(3, 4),), {})
        model[0].weight = nn.Parameter(tensor(2, 4))
        model[0].bias = None
        assert_equal(fast, model, (tensor(3, 4),), {})


def test_double_converts_a_compiled_model() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    fast = nw.compile(model)
    fast(array(3, 4))
    model.double()
    assert_equal(fast, model, (nw.from_numpy(array(3, 4).astype(np.float64)),), {})
    model.float()
    assert_equal(fast, model, (tensor(3, 4),), {})


def test_squeeze_drops_a_batch_of_one_as_in_eager_and_no_other() -> None:
    layer = nn.Linear(3, 1)
    for function in (lambda x: layer(x).squeeze(), lambda x: x.squeeze(0) * 2):
        model = Function(function, layer=layer)
        fast = nw.compile(model)
        for n in (1, 4, 1, 3, 2, 1):
            with nw.no_grad():
                assert_equal(fast, model, (tensor(n, 3),), {})
                assert fast(tensor(n, 3)).shape == model(tensor(n, 3)).shape
        assert fast.compilations == 2


def test_a_cache_that_forward_fills_compiles_once_more_and_then_stays() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table: Any = None

        def forward(self, x: nw.Tensor) -> nw.Tensor:
            if self.table is None:
                self.table = nw.arange(x.shape[1]).to(x.dtype)
            return x * self.table

    model = Cached()
    fast = nw.compile(model)
    for n in (3, 3, 4, 5):
        np.testing.assert_allclose(fast(array(n, 4)).numpy(), array(n, 4) * np.arange(4))
    assert fast.compilations <= 2
