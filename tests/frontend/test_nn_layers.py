"""Every layer against torch: output, gradients, running statistics, state and repr."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from netwright.frontend import nn
from netwright.frontend.tensor import Tensor

torch = pytest.importorskip("torch")

# (a function of the nn namespace, shapes of the input to try)
LAYERS: dict[str, tuple[Any, list[tuple[int, ...]]]] = {
    "identity": (lambda nn: nn.Identity(3, unused=True), [(2, 3)]),
    "linear": (lambda nn: nn.Linear(5, 3), [(4, 5), (5,), (2, 3, 5), (0, 5), (1, 5)]),
    "linear no bias": (lambda nn: nn.Linear(5, 3, bias=False), [(4, 5), (2, 1, 5)]),
    "flatten": (lambda nn: nn.Flatten(), [(2, 3, 4), (2, 3), (1, 2, 3, 4)]),
    "flatten range": (lambda nn: nn.Flatten(0, 1), [(2, 3, 4)]),
    "unflatten": (lambda nn: nn.Unflatten(1, (2, -1)), [(3, 6), (3, 4, 2)]),
    "conv1d": (lambda nn: nn.Conv1d(4, 6, 3, padding=1), [(2, 4, 7), (4, 7)]),
    "conv1d strided": (
        lambda nn: nn.Conv1d(4, 6, 3, stride=2, dilation=2, groups=2, bias=False),
        [(2, 4, 11)],
    ),
    "conv1d same": (lambda nn: nn.Conv1d(2, 3, 4, padding="same"), [(2, 2, 9)]),
    "conv2d": (lambda nn: nn.Conv2d(3, 4, 3), [(2, 3, 6, 5), (3, 6, 5)]),
    "conv2d 1x1": (lambda nn: nn.Conv2d(3, 4, 1, stride=2, bias=False), [(2, 3, 6, 5)]),
    "conv2d general": (
        lambda nn: nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), dilation=2, groups=2),
        [(2, 4, 11, 9)],
    ),
    "conv2d depthwise": (lambda nn: nn.Conv2d(4, 4, 3, padding=1, groups=4), [(2, 4, 5, 5)]),
    "conv2d same": (lambda nn: nn.Conv2d(3, 4, 3, padding="same", dilation=2), [(2, 3, 7, 6)]),
    "conv2d same even": (lambda nn: nn.Conv2d(3, 4, (2, 4), padding="same"), [(2, 3, 7, 6)]),
    "conv2d valid": (lambda nn: nn.Conv2d(3, 4, 3, padding="valid", stride=2), [(2, 3, 7, 6)]),
    "max_pool2d": (lambda nn: nn.MaxPool2d(2), [(2, 3, 6, 5), (3, 6, 5)]),
    "max_pool2d general": (
        lambda nn: nn.MaxPool2d((3, 2), stride=2, padding=1, dilation=(1, 2), ceil_mode=True),
        [(2, 3, 8, 9)],
    ),
    "avg_pool2d": (lambda nn: nn.AvgPool2d(2), [(2, 3, 6, 5), (3, 6, 5)]),
    "avg_pool2d general": (
        lambda nn: nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
        [(2, 3, 8, 7)],
    ),
    "avg_pool2d divisor": (lambda nn: nn.AvgPool2d(2, 1, divisor_override=3), [(2, 3, 4, 4)]),
    "adaptive 1": (lambda nn: nn.AdaptiveAvgPool2d(1), [(2, 3, 6, 5), (3, 6, 5)]),
    "adaptive": (lambda nn: nn.AdaptiveAvgPool2d((3, None)), [(2, 3, 7, 5)]),
    "batch_norm1d": (lambda nn: nn.BatchNorm1d(3), [(4, 3), (2, 3, 5)]),
    "batch_norm1d plain": (
        lambda nn: nn.BatchNorm1d(3, affine=False, track_running_stats=False),
        [(4, 3)],
    ),
    "batch_norm1d average": (lambda nn: nn.BatchNorm1d(3, momentum=None), [(4, 3)]),
    "batch_norm2d": (lambda nn: nn.BatchNorm2d(3, eps=1e-3, momentum=0.3), [(4, 3, 2, 5)]),
    "batch_norm2d no affine": (lambda nn: nn.BatchNorm2d(3, affine=False), [(4, 3, 2, 5)]),
    "layer_norm": (lambda nn: nn.LayerNorm(5), [(4, 5), (2, 3, 5), (5,)]),
    "layer_norm two dims": (lambda nn: nn.LayerNorm((3, 5), eps=1e-3), [(2, 3, 5)]),
    "layer_norm no bias": (lambda nn: nn.LayerNorm(5, bias=False), [(4, 5)]),
    "layer_norm plain": (lambda nn: nn.LayerNorm(5, elementwise_affine=False), [(4, 5)]),
    "relu": (lambda nn: nn.ReLU(), [(3, 4), ()]),
    "relu6": (lambda nn: nn.ReLU6(), [(3, 4)]),
    "leaky_relu": (lambda nn: nn.LeakyReLU(0.2), [(3, 4)]),
    "elu": (lambda nn: nn.ELU(1.5), [(3, 4)]),
    "gelu": (lambda nn: nn.GELU(), [(3, 4)]),
    "gelu tanh": (lambda nn: nn.GELU(approximate="tanh"), [(3, 4)]),
    "silu": (lambda nn: nn.SiLU(), [(3, 4)]),
    "sigmoid": (lambda nn: nn.Sigmoid(), [(3, 4)]),
    "tanh": (lambda nn: nn.Tanh(), [(3, 4)]),
    "hardswish": (lambda nn: nn.Hardswish(), [(3, 4)]),
    "hardsigmoid": (lambda nn: nn.Hardsigmoid(), [(3, 4)]),
    "softplus": (lambda nn: nn.Softplus(beta=2.0, threshold=3.0), [(3, 4)]),
    "softmax": (lambda nn: nn.Softmax(dim=1), [(3, 4), (2, 3, 4)]),
    "softmax last": (lambda nn: nn.Softmax(dim=-1), [(2, 3, 4)]),
    "log_softmax": (lambda nn: nn.LogSoftmax(dim=1), [(3, 4), (2, 3, 4)]),
    "selu": (lambda nn: nn.SELU(), [(3, 4)]),
    "celu": (lambda nn: nn.CELU(0.7), [(3, 4)]),
    "mish": (lambda nn: nn.Mish(), [(3, 4)]),
    "hardtanh": (lambda nn: nn.Hardtanh(-0.5, 0.7), [(3, 4)]),
    "threshold": (lambda nn: nn.Threshold(0.1, 2.0), [(3, 4)]),
    "softsign": (lambda nn: nn.Softsign(), [(3, 4)]),
    "logsigmoid": (lambda nn: nn.LogSigmoid(), [(3, 4)]),
    "tanhshrink": (lambda nn: nn.Tanhshrink(), [(3, 4)]),
    "hardshrink": (lambda nn: nn.Hardshrink(0.3), [(3, 4)]),
    "softshrink": (lambda nn: nn.Softshrink(0.3), [(3, 4)]),
    "prelu": (lambda nn: nn.PReLU(), [(3, 4), (4,), (2, 3, 4)]),
    "prelu per channel": (lambda nn: nn.PReLU(4), [(3, 4), (2, 4, 5, 2)]),
    "glu": (lambda nn: nn.GLU(1), [(3, 4), (2, 6, 3)]),
    "softmin": (lambda nn: nn.Softmin(dim=1), [(3, 4)]),
    "group_norm": (lambda nn: nn.GroupNorm(2, 4), [(3, 4, 5, 2), (2, 4), (2, 4, 3)]),
    "group_norm plain": (lambda nn: nn.GroupNorm(3, 6, eps=1e-3, affine=False), [(2, 6, 3)]),
    "group_norm no bias": (lambda nn: nn.GroupNorm(1, 6, bias=False), [(2, 6, 3)]),
    "instance_norm1d": (lambda nn: nn.InstanceNorm1d(4), [(3, 4, 5), (4, 5)]),
    "instance_norm2d": (lambda nn: nn.InstanceNorm2d(4, affine=True), [(3, 4, 5, 2), (4, 3, 3)]),
    "instance_norm3d": (lambda nn: nn.InstanceNorm3d(2), [(2, 2, 3, 2, 2)]),
    "batch_norm3d": (lambda nn: nn.BatchNorm3d(2), [(2, 2, 3, 2, 2)]),
    "rms_norm": (lambda nn: nn.RMSNorm(5), [(4, 5), (2, 3, 5), (5,)]),
    "rms_norm two dims": (lambda nn: nn.RMSNorm((3, 5), eps=1e-3), [(2, 3, 5)]),
    "rms_norm plain": (lambda nn: nn.RMSNorm(5, elementwise_affine=False), [(4, 5)]),
    "max_pool1d": (lambda nn: nn.MaxPool1d(3, 2, 1), [(2, 3, 8), (3, 7)]),
    "max_pool1d general": (lambda nn: nn.MaxPool1d(2, dilation=2, ceil_mode=True), [(2, 3, 9)]),
    "avg_pool1d": (lambda nn: nn.AvgPool1d(3, 2, 1), [(2, 3, 8), (3, 7)]),
    "avg_pool1d general": (
        lambda nn: nn.AvgPool1d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        [(2, 3, 8)],
    ),
    "adaptive_avg_pool1d": (lambda nn: nn.AdaptiveAvgPool1d(3), [(2, 3, 8), (3, 9)]),
    "adaptive_max_pool1d": (lambda nn: nn.AdaptiveMaxPool1d(3), [(2, 3, 8), (3, 9)]),
    "adaptive_max_pool2d": (lambda nn: nn.AdaptiveMaxPool2d((3, 2)), [(2, 3, 7, 6), (3, 2, 5)]),
    "adaptive_max_pool2d one side": (lambda nn: nn.AdaptiveMaxPool2d((None, 1)), [(2, 3, 7, 6)]),
    "conv1d circular": (
        lambda nn: nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular"),
        [(2, 2, 6), (2, 6)],
    ),
    "conv2d reflect": (
        lambda nn: nn.Conv2d(2, 3, 3, padding=(1, 2), stride=2, padding_mode="reflect"),
        [(2, 2, 6, 5)],
    ),
    "conv2d replicate same": (
        lambda nn: nn.Conv2d(2, 3, (3, 4), padding="same", padding_mode="replicate"),
        [(2, 2, 6, 5)],
    ),
    "conv_transpose1d": (lambda nn: nn.ConvTranspose1d(4, 6, 3, 2, 1, 1), [(2, 4, 5), (4, 5)]),
    "conv_transpose2d": (lambda nn: nn.ConvTranspose2d(4, 6, 2, 2), [(2, 4, 3, 5), (4, 3, 3)]),
    "conv_transpose2d general": (
        lambda nn: nn.ConvTranspose2d(
            4,
            6,
            (3, 2),
            stride=(2, 3),
            padding=(1, 0),
            output_padding=(1, 2),
            groups=2,
            dilation=(2, 1),
            bias=False,
        ),
        [(2, 4, 4, 3)],
    ),
    "constant_pad1d": (lambda nn: nn.ConstantPad1d((1, 2), 3.5), [(2, 3, 4)]),
    "constant_pad2d": (lambda nn: nn.ConstantPad2d((1, -1, 0, 2), 3.5), [(2, 3, 4)]),
    "zero_pad1d": (lambda nn: nn.ZeroPad1d(2), [(2, 3, 4)]),
    "zero_pad2d": (lambda nn: nn.ZeroPad2d((1, 2, 0, 1)), [(2, 3, 4, 5)]),
    "reflection_pad1d": (lambda nn: nn.ReflectionPad1d((2, 3)), [(2, 3, 4), (3, 4)]),
    "reflection_pad2d": (lambda nn: nn.ReflectionPad2d((1, 2, 3, 0)), [(2, 3, 4, 5)]),
    "replication_pad1d": (lambda nn: nn.ReplicationPad1d((5, 3)), [(2, 3, 4)]),
    "replication_pad2d": (lambda nn: nn.ReplicationPad2d((1, 2, 3, -1)), [(2, 3, 4, 5)]),
    "circular_pad1d": (lambda nn: nn.CircularPad1d((2, 3)), [(2, 3, 4)]),
    "circular_pad2d": (lambda nn: nn.CircularPad2d((1, 2, 3, 0)), [(2, 3, 4, 5)]),
    "pixel_shuffle": (lambda nn: nn.PixelShuffle(2), [(2, 8, 3, 2), (4, 2, 2)]),
    "pixel_unshuffle": (lambda nn: nn.PixelUnshuffle(2), [(2, 2, 4, 6)]),
    "upsample nearest": (lambda nn: nn.Upsample(scale_factor=2), [(2, 3, 4, 5), (2, 3, 4)]),
    "upsample nearest 3d": (lambda nn: nn.Upsample(scale_factor=(1, 2, 2)), [(1, 2, 2, 3, 2)]),
    "upsample nearest size": (lambda nn: nn.Upsample((7, 3)), [(2, 3, 4, 5)]),
    "upsample nearest exact": (
        lambda nn: nn.Upsample((7, 3), mode="nearest-exact"),
        [(2, 3, 4, 5)],
    ),
    "upsample bilinear": (
        lambda nn: nn.Upsample(scale_factor=(2.5, 0.5), mode="bilinear"),
        [(2, 3, 5, 5)],
    ),
    "upsample linear": (lambda nn: nn.Upsample(7, mode="linear"), [(2, 3, 4)]),
    "upsample trilinear": (lambda nn: nn.Upsample((3, 2, 4), mode="trilinear"), [(1, 2, 2, 3, 3)]),
    "upsampling bilinear": (lambda nn: nn.UpsamplingBilinear2d((7, 1)), [(2, 3, 4, 5)]),
    "upsampling nearest": (lambda nn: nn.UpsamplingNearest2d(scale_factor=3), [(2, 3, 4, 5)]),
    "dropout 0": (lambda nn: nn.Dropout(0.0), [(3, 4)]),
    "dropout 1": (lambda nn: nn.Dropout(1.0), [(3, 4)]),
    "sequential": (
        lambda nn: nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)
        ),
        [(3, 2, 4, 4)],
    ),
    "named sequential": (
        lambda nn: nn.Sequential(OrderedDict([("a", nn.Linear(4, 3)), ("b", nn.Tanh())])),
        [(3, 4)],
    ),
}
CASES = [
    pytest.param(make, shape, mode, id=f"{name}-{'x'.join(map(str, shape))}-{mode}")
    for name, (make, shapes) in LAYERS.items()
    for shape in shapes
    for mode in ("train", "eval")
]


def close(ours: Any, theirs: Any, what: str) -> None:
    a, b = np.asarray(ours.detach().numpy()), theirs.detach().numpy()
    assert a.shape == b.shape, what
    assert a.dtype == b.dtype, what
    # Sums that cancel are as exact as their largest terms.
    scale = max(1.0, float(np.abs(b).max(initial=0.0, where=np.isfinite(b))))
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6 * scale, err_msg=what)


def pair(make: Any, seed: int = 0) -> tuple[Any, Any]:
    """The layer in both libraries with the same random state."""
    ours, theirs = make(nn), make(torch.nn)
    rng = np.random.default_rng(seed)
    state = {}
    for key, value in theirs.state_dict().items():
        array = rng.uniform(0.5, 1.5, value.shape).astype(np.float32)
        state[key] = array if value.dtype == torch.float32 else np.full(value.shape, 3, np.int64)
    ours.load_state_dict(state)
    theirs.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in state.items()})
    return ours, theirs


def both_backward(ours: Any, theirs: Any, seed: int = 1) -> None:
    weights = np.random.default_rng(seed).normal(size=tuple(theirs.shape)).astype(np.float32)
    (ours * Tensor(weights)).sum().backward()
    (theirs * torch.from_numpy(weights)).sum().backward()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("make", "shape", "mode"), CASES)
def test_layer_equals_torch(make: Any, shape: tuple[int, ...], mode: str) -> None:
    ours, theirs = pair(make)
    ours.train(mode == "train")
    theirs.train(mode == "train")
    rng = np.random.default_rng(2)
    for step in range(2):  # twice, so that running statistics are used again
        array = rng.normal(size=shape).astype(np.float32)
        x = Tensor(array, requires_grad=True)
        t = torch.from_numpy(np.array(array)).requires_grad_()
        ours.zero_grad()
        theirs.zero_grad()
        y, u = ours(x), theirs(t)
        close(y, u, f"output in step {step}")
        both_backward(y, u)
        close(x.grad, t.grad, "input gradient")
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            close(p.grad, q.grad, f"gradient of {name}")
        for (name, p), q in zip(ours.named_buffers(), theirs.buffers(), strict=True):
            close(p, q, f"buffer {name}")


@pytest.mark.parametrize("name", LAYERS)
def test_repr_and_state_keys_are_torchs(name: str) -> None:
    make = LAYERS[name][0]
    ours, theirs = make(nn), make(torch.nn)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert tuple(a.shape) == tuple(b.shape)
        assert a.dtype.name == str(b.dtype).removeprefix("torch.")


@pytest.mark.parametrize("padding_idx", [None, 1, -1])
def test_embedding_equals_torch(padding_idx: int | None) -> None:
    ours, theirs = pair(lambda nn: nn.Embedding(5, 3, padding_idx=padding_idx))
    index = np.array([[0, 1, 1], [4, 2, 0]])
    y, u = ours(Tensor(index)), theirs(torch.from_numpy(index))
    close(y, u, "rows")
    both_backward(y, u)
    close(ours.weight.grad, theirs.weight.grad, "gradient")
    assert repr(ours) == repr(theirs)


def test_double_model_computes_in_float64() -> None:
    ours, theirs = pair(lambda nn: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    x = np.random.default_rng(0).normal(size=(6, 4))
    y, u = ours.double()(Tensor(x)), theirs.double()(torch.from_numpy(x))
    close(y, u, "output")
    assert ours[1].num_batches_tracked.dtype.name == "int64"


def test_inplace_activation_also_changes_its_input_as_in_torch() -> None:
    array = np.array([-1.0, 2.0], np.float32)
    results = []
    for lib, tensor in ((nn, Tensor(array.copy())), (torch.nn, torch.from_numpy(array.copy()))):
        y = tensor * 1.0
        z = lib.ReLU(inplace=True)(y) + y
        results.append((z.numpy(), y.numpy()))
    np.testing.assert_array_equal(results[0], results[1])


def test_inplace_relu_after_a_layer_has_torchs_gradients() -> None:
    ours, theirs = pair(lambda nn: nn.Sequential(nn.Linear(4, 3), nn.ReLU(True), nn.Linear(3, 2)))
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    both_backward(ours(Tensor(x)), theirs(torch.from_numpy(x)))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        close(p.grad, q.grad, "gradient")


def test_inplace_layers_in_a_chain_and_a_residual_block_have_torchs_gradients() -> None:
    def make(nn: Any) -> Any:
        class Block(nn.Module):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv1d(3, 3, 3, padding=1)
                self.norm = nn.BatchNorm1d(3)
                self.relu = nn.ReLU(inplace=True)
                self.elu = nn.ELU(inplace=True)

            def forward(self, x: Any) -> Any:
                out = self.elu(self.norm(self.relu(self.conv(x))))
                out = self.norm(self.conv(out))
                out += x
                return self.relu(out)

        return Block()

    ours, theirs = pair(make)
    x = np.random.default_rng(0).normal(size=(5, 3, 6)).astype(np.float32)
    y, u = ours(Tensor(x)), theirs(torch.from_numpy(x.copy()))
    close(y, u, "output")
    both_backward(y, u)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        close(p.grad, q.grad, "gradient")


def test_inplace_dropout_of_a_result_keeps_its_gradient() -> None:
    x = Tensor(np.ones(20, np.float32), requires_grad=True)
    y = x * 2.0
    nn.Dropout(0.5, inplace=True)(nn.SiLU(inplace=True)(y))
    y.sum().backward()
    assert 0.0 in x.grad.tolist()
    assert any(x.grad.tolist())


def test_shared_layer_gets_the_sum_of_both_gradients() -> None:
    ours, theirs = pair(lambda nn: nn.Linear(3, 3))
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    both_backward(ours(ours(Tensor(x))), theirs(theirs(torch.from_numpy(x))))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        close(p.grad, q.grad, "gradient")


def test_initialisation_has_torchs_distribution() -> None:
    for make in (lambda nn: nn.Linear(400, 300), lambda nn: nn.Conv2d(16, 32, 5, groups=2)):
        ours, theirs = make(nn), make(torch.nn)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            bound = 1 / np.sqrt(np.prod(theirs.weight.shape[1:]))
            assert np.abs(p.detach().numpy()).max() <= bound * (1 + 1e-6)
            assert p.detach().numpy().std() == pytest.approx(q.detach().numpy().std(), rel=0.3)
