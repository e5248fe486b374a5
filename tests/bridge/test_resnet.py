"""ResNet-18 for 32x32 images: compiled equals eager, nothing falls back to numpy, and the graphs of
all stages are valid and have a text form."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import netwright as nw
import netwright.nn.functional as F
from netwright import nn, optim
from netwright.ir.parser import parse
from netwright.ir.verify import verify


class BasicBlock(nn.Module):
    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet18(nn.Module):
    """Basic blocks 2-2-2-2 with ``width``, 2, 4 and 8 times ``width`` channels."""

    def __init__(self, width: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        layers, planes = [], width
        for i in range(4):
            out = width * 2**i
            layers.append(
                nn.Sequential(BasicBlock(planes, out, 1 if i == 0 else 2), BasicBlock(out, out, 1))
            )
            planes = out
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.linear = nn.Linear(planes, classes)

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            out = layer(out)
        out = F.avg_pool2d(out, 4)
        return self.linear(out.view(out.size(0), -1))


def resnet() -> nn.Module:
    nw.manual_seed(0)
    model = ResNet18(width=8)
    with nw.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                buffer.uniform_(-0.1, 0.1)
    return model


def images(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, 3, 32, 32), np.float32)


def labels(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 10, n)


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-3))


@pytest.fixture(scope="module")
def compiled() -> Iterator[tuple[nn.Module, Any, Any]]:
    """The model, its compiled form after a call in both modes, and a compiled step after one."""
    model = resnet()
    fast = nw.compile(model)
    step = nw.compile(
        model, loss=nn.CrossEntropyLoss(), optimizer=optim.SGD(model.parameters(), 0.0, 0.9)
    )
    start = {k: v.clone() for k, v in model.state_dict().items()}
    fast.train()
    fast(images(2)).sum().backward()
    step(images(2), labels(2))
    fast.eval()
    with nw.no_grad():
        fast(images(2))
    model.load_state_dict(start)
    yield model, fast, step


@pytest.mark.parametrize("n", [1, 5])
def test_inference_equals_eager(compiled: tuple[nn.Module, Any, Any], n: int) -> None:
    model, fast, _ = compiled
    model.eval()
    with nw.no_grad():
        expected = model(nw.from_numpy(images(n))).numpy()
        assert relative_error(fast(images(n)).numpy(), expected) < 1e-4


def test_training_gradients_and_statistics_equal_eager(
    compiled: tuple[nn.Module, Any, Any],
) -> None:
    model, fast, _ = compiled
    model.train()
    start = {k: v.clone() for k, v in model.state_dict().items()}
    exact = ResNet18(width=8).double()
    exact.load_state_dict(start)
    found = []
    for f, owner, dtype in ((fast, model, "f4"), (model, model, "f4"), (exact, exact, "f8")):
        owner.load_state_dict(start)
        owner.zero_grad()
        x = nw.from_numpy(images(4).astype(dtype)).requires_grad_()
        out = f(x)
        nn.CrossEntropyLoss()(out, nw.from_numpy(labels(4))).backward()
        found.append(
            {
                "out": out.detach().numpy(),
                "x": x.grad.numpy(),
                **{n: p.grad.numpy() for n, p in owner.named_parameters()},
                **{n: b.numpy().copy() for n, b in owner.named_buffers()},
            }
        )
    model.load_state_dict(start)
    for name, truth in found[2].items():
        got, eager = (relative_error(f[name], truth) for f in found[:2])
        # Twenty layers amplify rounding: compiled may not be further from float64 than eager.
        assert got <= 2 * eager + 1e-5, (name, got, eager)


def test_three_steps_equal_eager(compiled: tuple[nn.Module, Any, Any]) -> None:
    model, _, step = compiled
    twin = resnet().train()
    model.train()
    model.load_state_dict(twin.state_dict())
    step.optimizer.param_groups[0]["lr"] = 0.01
    step.optimizer.load_state_dict({**step.optimizer.state_dict(), "state": {}})
    optimizer = optim.SGD(twin.parameters(), 0.01, 0.9)
    for n in (4, 4, 3):
        optimizer.zero_grad()
        loss = nn.CrossEntropyLoss()(twin(nw.from_numpy(images(n))), nw.from_numpy(labels(n)))
        loss.backward()
        optimizer.step()
        assert step(images(n), labels(n)).item() == pytest.approx(loss.item(), rel=2e-3)
    assert step.compilations == 1
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert relative_error(p.detach().numpy(), q.detach().numpy()) < 5e-3, name


def programs(compiled: tuple[nn.Module, Any, Any]) -> list[tuple[str, Any]]:
    _, fast, step = compiled
    return [
        ("eval", fast._compilation("eval")),
        ("train", fast._compilation("train")),
        ("step", step._compilation("step")),
    ]


def test_nothing_falls_back_to_numpy(compiled: tuple[nn.Module, Any, Any]) -> None:
    found = [
        f"{mode}: {node.op} [{node.source}]"
        for mode, made in programs(compiled)
        for node in made.fallbacks
    ]
    assert found == []


def test_every_stage_is_valid_and_its_text_reads_back(
    compiled: tuple[nn.Module, Any, Any],
) -> None:
    seen: set[str] = set()
    for mode, made in programs(compiled):
        for stage, graph in made.stages.items():
            verify(graph)
            text = str(graph)
            if text not in seen:  # a pass that found nothing to do
                assert parse(text) == graph, (mode, stage)
            seen.add(text)


def test_inference_is_fused_and_every_node_has_a_source(
    compiled: tuple[nn.Module, Any, Any],
) -> None:
    _, fast, _ = compiled
    graph = fast.graph("optimized", "eval")
    assert not [n for n in graph.nodes if n.op in ("batch_norm", "relu", "add")]
    convolutions = [n for n in graph.nodes if n.op in ("fused", "conv2d_packed")]
    assert len(convolutions) >= 20
    for node in convolutions:
        assert node.source.module, node
        assert node.source.file == __file__
    assert "layer3.0.shortcut" in fast.explain("eval")
