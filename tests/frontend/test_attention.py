"""Attention functions and layers against PyTorch: numbers, gradients, state, errors; eager and
compiled."""

import copy
import re
from typing import Any

import numpy as np
import pytest

import netwright as nw
import netwright.nn.functional as F
from netwright import nn
from netwright.errors import DTypeError, ShapeError, UnsupportedError

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(4)
both_ways = pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])


def draw(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return RNG.normal(size=shape).astype(dtype)


def close(found: Any, wanted: Any, tolerance: float = 2e-5, name: str = "") -> None:
    if hasattr(wanted, "detach"):
        wanted = wanted.detach().numpy()
    np.testing.assert_allclose(
        found.detach().numpy(), wanted, rtol=tolerance, atol=tolerance, err_msg=name
    )


class Function(nn.Module):
    """A function as a module, so that it can be compiled."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def runner(function: Any, compiled: bool) -> Any:
    return nw.compile(Function(function)) if compiled else function


# -- scaled_dot_product_attention -----------------------------------------------------------------

SHAPES = [
    ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)),
    ((2, 1, 1), (2, 7, 1), (2, 7, 3)),
    ((5, 8), (3, 8), (3, 2)),
    ((2, 2, 3, 5, 4), (2, 2, 3, 5, 4), (2, 2, 3, 5, 4)),
    ((2, 1, 5, 4), (1, 3, 7, 4), (2, 3, 7, 6)),
]


@pytest.mark.parametrize(
    "shapes,compiled",
    [*((s, False) for s in SHAPES), (SHAPES[1], True), (SHAPES[4], True)],
    ids=str,
)
def test_attention_equals_torch_for_every_rank(shapes: tuple, compiled: bool) -> None:
    arrays = [draw(*s) for s in shapes]
    ours = [nw.from_numpy(a.copy()).requires_grad_() for a in arrays]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    found = runner(F.scaled_dot_product_attention, compiled)(*ours)
    wanted = torch.nn.functional.scaled_dot_product_attention(*theirs)
    close(found, wanted)
    g = draw(*wanted.shape)
    found.backward(nw.from_numpy(g))
    wanted.backward(torch.tensor(g))
    for a, b in zip(ours, theirs, strict=True):
        close(a.grad, b.grad)


MASKS = [(5, 7), (2, 1, 5, 7), (2, 3, 5, 7), (1, 7), (2, 1, 1, 7), (3, 5, 1)]


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("shape", MASKS, ids=str)
def test_masks_equal_torch(shape: tuple, kind: str) -> None:
    q, k, v = draw(2, 3, 5, 4), draw(2, 3, 7, 4), draw(2, 3, 7, 4)
    mask = RNG.random(shape) < 0.6 if kind == "bool" else draw(*shape)
    mask.flat[0] = False if kind == "bool" else -np.inf
    options = {"scale": 0.3}
    found = F.scaled_dot_product_attention(
        *map(nw.from_numpy, (q, k, v)), attn_mask=nw.from_numpy(mask), **options
    )
    tensors = map(torch.tensor, (q, k, v))
    wanted = torch.nn.functional.scaled_dot_product_attention(
        *tensors, attn_mask=torch.tensor(mask), **options
    )
    close(found, wanted)


@pytest.mark.parametrize("dims", [(2, 2, 3, 5, 7), (2, 1, 3, 1, 7), (1, 1, 1, 5, 7)], ids=str)
def test_masks_of_more_than_two_leading_dimensions(dims: tuple) -> None:
    q, k = draw(2, 2, 3, 5, 4), draw(2, 2, 3, 7, 4)
    mask = draw(*dims)
    found = F.scaled_dot_product_attention(*map(nw.from_numpy, (q, k, k, mask)))
    wanted = torch.nn.functional.scaled_dot_product_attention(*map(torch.tensor, (q, k, k, mask)))
    close(found, wanted)


@both_ways
def test_causal_and_blind_queries_equal_torch(compiled: bool) -> None:
    q, k = draw(2, 3, 6, 4), draw(2, 3, 6, 4)
    mask = np.tri(6, dtype=bool)
    mask[3] = False

    def ours(q: Any, k: Any) -> Any:
        causal = F.scaled_dot_product_attention(q, k, k, is_causal=True)
        return causal, F.scaled_dot_product_attention(q, k, k, nw.from_numpy(mask))

    found = runner(ours, compiled)(nw.from_numpy(q), nw.from_numpy(k))
    tensors = [torch.tensor(a) for a in (q, k, k)]
    attention = torch.nn.functional.scaled_dot_product_attention
    close(found[0], attention(*tensors, is_causal=True))
    close(found[1], attention(*tensors, torch.tensor(mask)))
    assert not found[1].numpy()[:, :, 3].any()


def test_float64_is_computed_in_float64() -> None:
    q = draw(1, 2, 5, 4, dtype=np.float64)
    found = nw.compile(Function(F.scaled_dot_product_attention))(*[nw.from_numpy(q)] * 3)
    wanted = torch.nn.functional.scaled_dot_product_attention(*[torch.tensor(q)] * 3)
    close(found, wanted, 1e-13)


@both_ways
def test_dropout_drops_weights_and_keeps_their_mean(compiled: bool) -> None:
    nw.manual_seed(0)
    q, v = nw.zeros(1, 4, 300, 8), nw.ones(1, 4, 300, 8)

    def dropped(q: Any, v: Any) -> Any:
        return F.scaled_dot_product_attention(q, q, v, dropout_p=0.5)

    found = runner(dropped, compiled)(q, v).numpy()
    # Every element is 2 / 300 times the number of weights that stay, of 300.
    counts = found[..., 0] * 150
    np.testing.assert_allclose(counts, counts.round(), atol=1e-3)
    assert abs(counts.mean() - 150) < 3 and counts.std() > 4


def test_arguments_that_do_not_fit_are_errors() -> None:
    x = nw.zeros(2, 3, 5, 4)
    attention = F.scaled_dot_product_attention
    with pytest.raises(UnsupportedError, match="enable_gqa=True is not supported; repeat"):
        attention(x, x, x, enable_gqa=True)
    with pytest.raises(TypeError, match="argument 'key'"):
        attention(x, None, x)
    with pytest.raises(RuntimeError, match=r"at least 2 dimensional, but got query\.dim: 1"):
        attention(nw.zeros(4), x, x)
    with pytest.raises(DTypeError, match="have the same dtype"):
        attention(x, x.double(), x)
    with pytest.raises(DTypeError, match="must be a floating tensor"):
        attention(x.long(), x.long(), x.long())
    with pytest.raises(ShapeError, match="same last dimension"):
        attention(x, x[..., :3], x)
    with pytest.raises(ShapeError, match="leading dimensions of query, key and value"):
        attention(x, nw.zeros(3, 3, 5, 4), x)
    with pytest.raises(DTypeError, match="attn_mask dtype to be bool or to match"):
        attention(x, x, x, nw.zeros(5, 5, dtype=nw.int64))
    with pytest.raises(RuntimeError, match=r"attn_mask \[5, 6\] does not broadcast"):
        attention(x, x, x, nw.zeros(5, 6))
    with pytest.raises(ValueError, match="dropout probability"):
        attention(x, x, x, dropout_p=1.5)


# -- MultiheadAttention ---------------------------------------------------------------------------

LAYERS: dict[str, dict[str, Any]] = {
    "batch_first": {"batch_first": True},
    "rows_first": {},
    "no_bias": {"batch_first": True, "bias": False},
    "other_sizes": {"batch_first": True, "kdim": 5, "vdim": 7},
}


def pair(options: dict[str, Any]) -> tuple[Any, Any]:
    """Layers with one state; the biases are not 0."""
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(12, 3, **options)
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.5)
    ours = nn.MultiheadAttention(12, 3, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize(
    "name,compiled", [*((n, False) for n in LAYERS), ("batch_first", True), ("other_sizes", True)]
)
def test_multihead_attention_equals_torch(name: str, compiled: bool) -> None:
    ours, theirs = pair(LAYERS[name])
    run = nw.compile(ours) if compiled else ours
    kdim, vdim = LAYERS[name].get("kdim", 12), LAYERS[name].get("vdim", 12)
    arrays = [draw(4, 6, 12), draw(4, 6, kdim), draw(4, 6, vdim)]
    inputs = [nw.from_numpy(a.copy()).requires_grad_() for a in arrays]
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    found, wanted = run(*inputs), theirs(*tensors)
    for a, b in zip(found, wanted, strict=True):
        close(a, b)
    (found[0].square().sum() + found[1][..., 0].sum()).backward()
    (wanted[0].square().sum() + wanted[1][..., 0].sum()).backward()
    for a, b in zip(inputs, tensors, strict=True):
        close(a.grad, b.grad, 2e-4)
    grads = dict(theirs.named_parameters())
    for key, p in ours.named_parameters():
        close(p.grad, grads[key].grad, 2e-4, key)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("shared", ["all", "key and value", "nothing"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_inputs_that_are_the_same_tensor(
    shared: str, batch_first: bool, need_weights: bool
) -> None:
    ours, theirs = pair({"batch_first": batch_first})
    q, k, v = (nw.from_numpy(draw(5, 5, 12)) for _ in range(3))
    args = {"all": (q, q, q), "key and value": (q, k, k), "nothing": (q, k, v)}[shared]
    wanted = theirs(*(torch.tensor(x.numpy()) for x in args), need_weights=need_weights)
    found = ours(*args, need_weights=need_weights)
    close(found[0], wanted[0])
    assert (found[1] is None) == (wanted[1] is None)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("padding", [None, "bool", "float"])
@pytest.mark.parametrize("attention", [None, "bool", "float", "heads", "causal"])
def test_masks_of_a_layer_equal_torch(
    attention: str | None, padding: str | None, need_weights: bool
) -> None:
    ours, theirs = pair({"batch_first": True})
    x = draw(2, 5, 12)
    masks: dict[str, np.ndarray] = {}
    if attention is not None:
        shape = (6, 5, 5) if attention == "heads" else (5, 5)
        mask = {"float": draw(*shape), "causal": ~np.tri(5, dtype=bool)}
        masks["attn_mask"] = mask.get(attention, RNG.random(shape) < 0.3)
        if attention != "float":
            masks["attn_mask"][..., 0] = False
    if padding is not None:
        hidden = np.array([[False] * 5, [False] * 3 + [True] * 2])
        numbers = np.where(hidden, np.float32(-np.inf), np.float32(0.5))
        masks["key_padding_mask"] = hidden if padding == "bool" else numbers
    kinds = {m.dtype for m in masks.values()}
    options = {"need_weights": need_weights, "is_causal": attention == "causal"}
    if len(kinds) > 1:  # torch wants both in one form
        masks = {
            n: np.where(m, np.float32(-np.inf), np.float32(0)) if m.dtype == bool else m
            for n, m in masks.items()
        }
    given = {n: nw.from_numpy(m) for n, m in masks.items()}
    found = ours(*[nw.from_numpy(x)] * 3, **options, **given)
    tensors = {n: torch.tensor(m) for n, m in masks.items()}
    wanted = theirs(*[torch.tensor(x)] * 3, **options, **tensors)
    close(found[0], wanted[0])
    if need_weights:
        close(found[1], wanted[1])


@pytest.mark.parametrize("need_weights", [False, True])
def test_a_query_without_keys_is_nan_with_weights_and_zero_heads_without(
    need_weights: bool,
) -> None:
    ours, theirs = pair({"batch_first": True})
    x = draw(1, 4, 12)
    mask = np.zeros((4, 4), bool)
    mask[2] = True
    found, _ = ours(
        *[nw.from_numpy(x)] * 3, attn_mask=nw.from_numpy(mask), need_weights=need_weights
    )
    wanted, _ = theirs(
        *[torch.tensor(x)] * 3, attn_mask=torch.tensor(mask), need_weights=need_weights
    )
    close(found, wanted)
    assert np.isnan(found.detach().numpy()[0, 2]).all() == need_weights


def test_without_a_batch_and_weights_of_each_head() -> None:
    ours, theirs = pair({})
    x, y = draw(5, 12), draw(7, 12)
    padding = np.array([False] * 5 + [True] * 2)
    options = {"average_attn_weights": False}
    found = ours(*map(nw.from_numpy, (x, y, y)), key_padding_mask=nw.from_numpy(padding), **options)
    wanted = theirs(
        *map(torch.tensor, (x, y, y)), key_padding_mask=torch.tensor(padding), **options
    )
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == tuple(b.shape)
        close(a, b)


class SelfAttention(nn.Module):
    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, batch_first=batch_first)

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


def test_self_attention_is_three_kernels_in_evaluation() -> None:
    fast = nw.compile(SelfAttention().eval())
    fast(draw(2, 6, 12))
    kernels = [n for n in fast.graph("optimized", "eval").nodes if n.operands]
    assert [n.op for n in kernels if n.op != "pack_matrix"] == [
        "linear_packed", "attention", "linear_packed",
    ]  # fmt: skip
    assert fast.compilations == 1
    fast(draw(5, 6, 12))
    assert fast.compilations == 1, "another batch size compiled again"
    assert "Y201" in fast.explain("eval")


def test_rows_before_the_batch_compile_for_one_size() -> None:
    """The first dimension is the number of rows here: scores would be N x N."""
    model = SelfAttention(batch_first=False).eval()
    fast = nw.compile(model)
    x = nw.from_numpy(draw(6, 2, 12))
    close(fast(x), model(x).detach().numpy())
    assert fast.fallbacks == 0
    assert "compiled for one batch size" in fast.explain("eval")


def test_dropout_of_weights_only_in_training() -> None:
    layer = nn.MultiheadAttention(12, 3, dropout=0.5, batch_first=True)
    x = nw.from_numpy(draw(2, 6, 12))
    for need_weights in (False, True):
        layer.train()
        one, two = (layer(x, x, x, need_weights=need_weights)[0].detach() for _ in range(2))
        assert not nw.equal(one, two)
        layer.eval()
        one, two = (layer(x, x, x, need_weights=need_weights)[0].detach() for _ in range(2))
        assert nw.equal(one, two)


def test_layers_that_cannot_be_made_or_called_are_errors() -> None:
    with pytest.raises(ValueError, match="embed_dim must be divisible by num_heads"):
        nn.MultiheadAttention(10, 3)
    for name in ("add_bias_kv", "add_zero_attn"):
        with pytest.raises(UnsupportedError, match=f"{name}=True is not supported"):
            nn.MultiheadAttention(12, 3, **{name: True})
    layer, x = nn.MultiheadAttention(12, 3, batch_first=True), nw.zeros(2, 5, 12)
    with pytest.raises(ShapeError, match="expecting 12 features in the last dimension of the key"):
        layer(x, nw.zeros(2, 5, 11), x)
    with pytest.raises(ShapeError, match="3 dimensions"):
        layer(x, x[0], x)
    with pytest.raises(RuntimeError, match="Need attn_mask"):
        layer(x, x, x, is_causal=True)
    with pytest.raises(ShapeError, match=re.escape("(N * num_heads, L, S) = (6, 5, 5)")):
        layer(x, x, x, attn_mask=nw.zeros(2, 5, 5))
    with pytest.raises(ShapeError, match=re.escape("expected (N, S) = (2, 5)")):
        layer(x, x, x, key_padding_mask=nw.zeros(5, 2))
    with pytest.raises(DTypeError, match="only bool and floating types of attn_mask"):
        layer(x, x, x, attn_mask=nw.zeros(5, 5, dtype=nw.int64))


# -- TransformerEncoder ---------------------------------------------------------------------------

ENCODERS: dict[str, dict[str, Any]] = {
    "after": {"batch_first": True},
    "before": {"batch_first": True, "norm_first": True, "activation": "gelu"},
    "rows_first": {"layer_norm_eps": 1e-3, "bias": False},
}


@pytest.mark.parametrize("name,compiled", [*((n, False) for n in ENCODERS), ("before", True)])
def test_an_encoder_equals_torch(name: str, compiled: bool) -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 12, "nhead": 3, "dim_feedforward": 20, "dropout": 0.0}
    options = {**sizes, **ENCODERS[name]}
    layer = torch.nn.TransformerEncoderLayer(**options)
    plain = {"enable_nested_tensor": False}
    layers = 1 if compiled else 2
    theirs = torch.nn.TransformerEncoder(layer, layers, torch.nn.LayerNorm(12), **plain)
    ours = nn.TransformerEncoder(nn.TransformerEncoderLayer(**options), layers, nn.LayerNorm(12))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    run = nw.compile(ours) if compiled else ours
    x, weights = draw(4, 6, 12), draw(4, 6, 12)
    found, wanted = run(nw.from_numpy(x)), theirs(torch.tensor(x))
    close(found, wanted, 1e-4)
    (found * nw.from_numpy(weights)).sum().backward()
    (wanted * torch.tensor(weights)).sum().backward()
    grads = dict(theirs.named_parameters())
    for key, p in ours.named_parameters():
        close(p.grad, grads[key].grad, 1e-3, key)
    if compiled:
        assert run.fallbacks == 0


def test_masks_of_an_encoder_equal_torch() -> None:
    torch.manual_seed(0)
    options = {"d_model": 12, "nhead": 3, "dim_feedforward": 20, "dropout": 0.0}
    theirs = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(**options, batch_first=True), 2, enable_nested_tensor=False
    )
    ours = nn.TransformerEncoder(nn.TransformerEncoderLayer(**options, batch_first=True), 2)
    ours.load_state_dict(theirs.state_dict())
    x, mask = draw(2, 5, 12), ~np.tri(5, dtype=bool)
    padding = np.array([[False] * 5, [False] * 3 + [True] * 2])
    for names in (["mask"], ["src_key_padding_mask"], ["mask", "src_key_padding_mask"]):
        both = {"mask": mask, "src_key_padding_mask": padding}
        found = ours(nw.from_numpy(x), **{n: nw.from_numpy(both[n]) for n in names})
        close(found, theirs(torch.tensor(x), **{n: torch.tensor(both[n]) for n in names}), 1e-4)
    causal = ours(nw.from_numpy(x), mask=nw.from_numpy(mask), is_causal=True)
    close(causal, theirs(torch.tensor(x), torch.tensor(mask), is_causal=True), 1e-4)


def test_an_activation_is_a_name_or_a_function() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, activation=F.silu)
    twin = copy.deepcopy(layer)
    x = nw.from_numpy(draw(3, 2, 8))
    assert nw.equal(layer(x), twin(x))
    twin.activation = F.relu
    assert not nw.equal(layer(x), twin(x))
    with pytest.raises(RuntimeError, match="activation should be relu/gelu, not tanh"):
        nn.TransformerEncoderLayer(8, 2, activation="tanh")


def test_the_layers_of_an_encoder_are_copies() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 8)
    encoder = nn.TransformerEncoder(layer, 2)
    weights = [e.linear1.weight for e in (*encoder.layers, layer)]
    assert nw.equal(weights[0], weights[1])
    assert len({id(w) for w in weights}) == 3
