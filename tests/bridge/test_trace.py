"""Tracing through compile(): every way to write a model that is captured, with eager's results."""

import sys
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import netwright as nw
import netwright.nn.functional as F
from netwright import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

from traced_models import Function, array, assert_equal, check, tensor

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
                z.reshape(b, t, 2, c // 2).transpose(1, 2) for z in self.qkv(x).chunk(3, dim=-1)
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
