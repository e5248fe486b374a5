"""Networks of the zoo's blocks, shorter or narrower than the published ones, here and in PyTorch.

PyTorch's side of a comparison is the same source file on ``torch.nn`` (benchmarks/on_torch.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import netwright as nw
from netwright.vision import models


def on_torch() -> ModuleType:
    """benchmarks/on_torch.py, which imports PyTorch."""
    path = Path(nw.__file__).parent / "benchmarks" / "on_torch.py"
    spec = util.spec_from_file_location("on_torch", path)
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    return m.ResNet(block, [1, 1, 1, 1], 7, width_per_group=32, replace_stride_with_dilation=dilate)


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


def _vit(m: Any) -> Any:
    """Two layers of 32 features; the last linear layer does not start with zeros, which would let
    no gradient through."""
    model = m.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=7)
    model.heads.head = type(model.heads.head)(32, 7)
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
    "vit": Net(_vit, 32),
}


def images(net: Net, seed: int = 0) -> np.ndarray:
    """A batch for a network."""
    rng = np.random.default_rng(seed)
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
