"""The model zoo compiled: no fallbacks, and PyTorch's results in inference and training.

The networks in their published sizes go through all passes and kernel generators, but not through
LLVM, which would take minutes; networks of the same blocks, shorter or narrower, run natively.
PyTorch's side of a comparison is the same source file on ``torch.nn``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import compiler
from netwright.frontend.nn import init
from netwright.vision import models

sys.path.insert(0, str(Path(__file__).resolve().parent))

from zoo_networks import NETS, distance, images, on_torch, trained, twins

# VGG with BatchNorm keeps the biases in front of it, as it was published.
pytestmark = pytest.mark.filterwarnings("ignore:L005")


@pytest.fixture(scope="module")
def theirs() -> Any:
    """``netwright.vision.models`` with PyTorch in place of netwright."""
    pytest.importorskip("torch")
    return on_torch().models()


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
    model = NETS["densenet"].build(models).eval()
    x = nw.zeros(1, 3, 32, 32)
    made = compiler.capture(model, {"": model}, (x,), {}, compiler.Options(), "graph", set())
    sources = {str(node.source.module): node.source for node in made.traced.graph.nodes}
    source = sources["features.denseblock2.denselayer3.conv2"]
    assert source.file.endswith("densenet.py")
    line = Path(source.file).read_text().splitlines()[source.line - 1]
    assert "conv2" in line
