"""The model zoo compiled: no fallbacks, and PyTorch's results in inference and training.

The networks in their published sizes go through all passes and kernel generators, but not through
LLVM, which would take minutes; networks of the same blocks, shorter or narrower, run natively.
PyTorch's side of a comparison is the same source file on ``torch.nn``.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import compiler, errors
from netwright.frontend.nn import init
from netwright.vision import models

# VGG with BatchNorm keeps the biases in front of it, as it was published.
pytestmark = pytest.mark.filterwarnings("ignore:L005")

# -- the zoo on torch.nn --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs() -> Iterator[Any]:
    """``netwright.vision.models`` with PyTorch in place of netwright.

    The files are imported a second time, as part of a package in which the names that they import
    from netwright's frontend are PyTorch's.
    """
    torch = pytest.importorskip("torch")
    here = Path(nw.__file__).parent / "frontend" / "vision"
    root, frontend, vision = (
        types.ModuleType(name) for name in ("zoo", "zoo.frontend", "zoo.frontend.vision")
    )
    root.__path__, frontend.__path__, vision.__path__ = [], [], [str(here)]
    frontend.nn = torch.nn  # type: ignore[attr-defined]
    made = {
        "zoo": root,
        "zoo.errors": errors,
        "zoo.frontend": frontend,
        "zoo.frontend.nn": torch.nn,
        "zoo.frontend.creation": torch,
        "zoo.frontend.functions": torch,
        "zoo.frontend.shaping": torch,
        "zoo.frontend.tensor": torch,
        "zoo.frontend.vision": vision,
    }
    sys.modules.update(made)
    yield importlib.import_module("zoo.frontend.vision.models")
    for name in [n for n in sys.modules if n.partition(".")[0] == "zoo"]:
        del sys.modules[name]


@pytest.fixture
def empty_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are built with the weights that their memory holds, in no time."""
    for name in ("uniform_", "normal_", "trunc_normal_"):
        monkeypatch.setattr(init, name, lambda tensor, *args, **kwargs: tensor)


# -- the published sizes --------------------------------------------------------------------------

# Image sizes at which every layer has work to do.
PUBLISHED = {
    "alexnet": 63,
    "vgg11": 32,
    "vgg11_bn": 32,
    "vgg16": 32,
    "vgg16_bn": 32,
    "resnet18": 64,
    "resnet34": 64,
    "resnet50": 64,
    "squeezenet1_1": 33,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "mobilenet_v3_large": 64,
    "efficientnet_b0": 64,
    "densenet121": 64,
    "inception_v3": 299,
}
# Their concatenations are written by the kernels of the operands.
CONCATENATE = ("squeezenet1_1", "densenet121", "inception_v3")


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.usefixtures("empty_weights")
def test_every_operator_of_a_published_network_has_a_kernel(
    name: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlinked = lambda program, *_: SimpleNamespace(program=program, seconds={})  # noqa: E731
    monkeypatch.setattr(compiler, "Executable", unlinked)
    model = getattr(models, name)().train(training)
    x = nw.zeros(2, 3, PUBLISHED[name], PUBLISHED[name])
    made = compiler.capture(model, {"": model}, (x,), {}, compiler.Options(), "graph", set())
    if training:
        wrt = {path for path, _ in model.named_parameters()}
        compiler.compile_training(made, wrt, compiler.Options())
    else:
        compiler.compile_inference(made, compiler.Options())
    assert [f"{node.op} [{node.source}]" for node in made.fallbacks] == []
    if name in CONCATENATE and not training:
        launches = made.executables["optimized"].program.launches
        assert "cat" in {node.op for node in made.stages["optimized"].nodes}
        assert "cat" not in {launch.node.op for launch in launches}
    assert "T001" not in {entry.code for entry in made.ledger.entries}, "the batch is a number"


# -- shorter networks of the same blocks ----------------------------------------------------------


@dataclass(frozen=True)
class Net:
    """A network as a function of the package of models; ``size`` is that of the images."""

    build: Callable[[Any], Any]
    size: int
    batch: int = 2


def _alexnet(m: Any) -> Any:
    """With narrow linear layers in place of 58 million weights."""
    model = m.AlexNet(7, dropout=0.0)
    linear = type(model.classifier[1])
    for i, (inputs, outputs) in {1: (9216, 96), 4: (96, 64), 6: (64, 7)}.items():
        model.classifier[i] = linear(inputs, outputs)
    return model


def _resnet(m: Any) -> Any:
    return m.ResNet(m.resnet.BasicBlock, [2, 1, 1, 1], num_classes=7)


def _bottlenecks(m: Any) -> Any:
    dilate = [False, False, True]
    block = m.resnet.Bottleneck
    return m.ResNet(
        block, [1, 1, 1, 1], 7, width_per_group=32, replace_stride_with_dilation=dilate
    )


def _mobilenet_v2(m: Any) -> Any:
    rows = [[1, 16, 1, 1], [6, 24, 2, 2]]
    return m.MobileNetV2(7, inverted_residual_setting=rows, dropout=0.0)


def _mobilenet_v3(m: Any) -> Any:
    rows = [
        (16, 3, 16, 16, True, "RE", 2, 1),
        (16, 3, 72, 24, False, "RE", 2, 1),
        (24, 5, 96, 24, True, "HS", 1, 1),
        (24, 5, 96, 40, True, "HS", 2, 2),
    ]
    config = m.mobilenetv3.InvertedResidualConfig
    return m.MobileNetV3([config(*row, width_mult=1.0) for row in rows], 64, 7, dropout=0.0)


def _efficientnet(m: Any) -> Any:
    rows = [(1, 3, 1, 32, 16, 1), (6, 5, 2, 16, 24, 2)]
    stages = [m.efficientnet.MBConvConfig(*row) for row in rows]
    return m.EfficientNet(stages, 0.0, stochastic_depth_prob=0.0, num_classes=7, last_channel=64)


def _densenet(m: Any) -> Any:
    return m.DenseNet(16, (2, 3), 32, num_classes=7)


def _vgg(m: Any) -> Any:
    """Without the linear layers, which are like AlexNet's."""
    return m.vgg.make_features((1, 1, 1, 1, 1), batch_norm=True)


def _inception(m: Any) -> Any:
    """All blocks with an eighth of the channels: 299x299 is the least that has a second
    classifier."""
    blocks = m.inception.BLOCKS

    def conv(inputs: int, outputs: int, **kwargs: Any) -> Any:
        return blocks[0](inputs if inputs == 3 else inputs // 8, outputs // 8, **kwargs)

    narrow = [conv, *(partial(block, conv_block=conv) for block in blocks[1:])]
    model = m.Inception3(7, transform_input=True, inception_blocks=narrow, dropout=0.0)
    linear = type(model.fc)
    model.fc, model.AuxLogits.fc = linear(2048 // 8, 7), linear(768 // 8, 7)
    return model


NETS = {
    "alexnet": Net(_alexnet, 63),
    "vgg": Net(_vgg, 32, batch=3),
    "resnet": Net(_resnet, 64),
    "resnet_bottlenecks": Net(_bottlenecks, 64),
    "squeezenet": Net(lambda m: m.squeezenet1_1(num_classes=7, dropout=0.0), 33),
    "mobilenet_v2": Net(_mobilenet_v2, 32),
    "mobilenet_v3": Net(_mobilenet_v3, 64),
    "efficientnet": Net(_efficientnet, 32),
    "densenet": Net(_densenet, 64),
    "inception": Net(_inception, 299),
}


def images(net: Net) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((net.batch, 3, net.size, net.size), np.float32)


def twins(net: Net, theirs: Any) -> tuple[Any, Any]:
    """The network here and in PyTorch, with the same weights and running statistics."""
    import torch

    torch.manual_seed(0)
    other = net.build(theirs)
    with torch.no_grad():
        for name, buffer in other.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                buffer.uniform_(-0.1, 0.1)
    model = net.build(models)
    model.load_state_dict({k: v.numpy() for k, v in other.state_dict().items()})
    return model, other


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, relative to the largest element of ``b``."""
    return float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-3))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.usefixtures("empty_weights")
def test_inference_of_torch_weights_equals_torch(name: str, theirs: Any) -> None:
    import torch

    net = NETS[name]
    model, other = twins(net, theirs)
    fast = nw.compile(model.eval())
    x = images(net)
    with torch.no_grad(), nw.no_grad():
        expected = other.eval()(torch.from_numpy(x)).numpy()
        assert distance(fast(x).numpy(), expected) < 1e-4
        assert distance(fast(x[:1]).numpy(), expected[:1]) < 1e-4
    assert fast.fallbacks == 0
    assert fast.compilations == 1


def trained(
    model: Any, call: Callable[[Any], Any], x: Any, labels: Any, library: Any
) -> dict[str, np.ndarray]:
    """Outputs, gradients of the loss and buffers after a forward and backward in training mode."""
    outputs = call(x)
    outputs = tuple(outputs) if isinstance(outputs, tuple) else (outputs,)
    loss_of = library.nn.CrossEntropyLoss()
    losses = [loss_of(out.flatten(1), labels) for out in outputs]
    sum(losses[1:], losses[0]).backward()
    return {
        **{f"output {i}": out.detach().numpy() for i, out in enumerate(outputs)},
        **{name: p.grad.numpy() for name, p in model.named_parameters()},
        **{name: b.numpy().copy() for name, b in model.named_buffers()},
    }


@pytest.mark.parametrize("name", NETS)
@pytest.mark.usefixtures("empty_weights")
def test_training_equals_torch(name: str, theirs: Any) -> None:
    """In float64: in float32 a ReLU's input that rounds to the other side of 0 changes gradients by
    far more than an error that would have to be found."""
    import torch

    net = NETS[name]
    model, other = (made.double().train() for made in twins(net, theirs))
    x, labels = images(net).astype(np.float64), np.arange(net.batch) + 1
    fast = nw.compile(model)
    got = trained(model, fast, nw.from_numpy(x), nw.from_numpy(labels), nw)
    expected = trained(other, other, torch.from_numpy(x), torch.from_numpy(labels), torch)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        # PyTorch 2.13 has a float32 1/6 in its gradient of hardsigmoid, 3e-8 off.
        assert distance(got[key], value) < 1e-7, key
    assert fast.fallbacks == 0


def test_branches_and_elements_are_dropped_as_in_eager() -> None:
    nw.manual_seed(0)
    stage = models.efficientnet.MBConvConfig(1, 3, 1, 16, 16, 2)
    model = models.EfficientNet([stage], 0.5, stochastic_depth_prob=0.9, num_classes=7).train()
    fast = nw.compile(model)
    x = np.random.default_rng(0).standard_normal((6, 3, 16, 16), np.float32)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    found = []
    for call in (model, fast):
        nw.manual_seed(3)
        model.load_state_dict(start)
        model.zero_grad()
        out = call(nw.from_numpy(x))
        out.sum().backward()
        gradients = [p.grad.numpy().copy() for p in model.parameters()]
        found.append([out.detach().numpy(), *gradients])
    for eager, compiled in zip(*found, strict=True):
        assert distance(compiled, eager) < 1e-3
    assert fast.fallbacks == 0


# -- what the user sees ---------------------------------------------------------------------------


def test_nodes_point_to_the_lines_of_the_model() -> None:
    model = _densenet(models).eval()
    x = nw.zeros(1, 3, 32, 32)
    made = compiler.capture(model, {"": model}, (x,), {}, compiler.Options(), "graph", set())
    sources = {str(node.source.module): node.source for node in made.traced.graph.nodes}
    source = sources["features.denseblock2.denselayer3.conv2"]
    assert source.file.endswith("densenet.py")
    line = Path(source.file).read_text().splitlines()[source.line - 1]
    assert "conv2" in line
