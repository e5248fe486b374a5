"""ResNet-18 for 32x32 images (He et al. 2015, with the 3x3 stem that is usual at this size).

python examples/resnet18.py                   # a short training run on padded digits
netwright bench examples/resnet18.py:ResNet18 --input 1x3x32x32 --batch 1,16
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import netwright as nw
import netwright.nn.functional as F
from netwright import nn, optim
from netwright.utils.data import DataLoader, TensorDataset


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a strided 1x1 convolution if sizes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        """(batch, inputs, h, w) -> (batch, outputs, h / stride, w / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class ResNet18(nn.Module):
    """Four stages of two blocks with ``width`` to 8 ``width`` channels; 11 million parameters at
    the usual width of 64."""

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, 1)
        self.layer2 = self._stage(width, 2 * width, 2)
        self.layer3 = self._stage(2 * width, 4 * width, 2)
        self.layer4 = self._stage(4 * width, 8 * width, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, classes)

    def _stage(self, inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1))

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        """Logits (batch, classes) of images (batch, 3, 32, 32)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.pool(x).flatten(1))


def padded_digits(train: bool, count: int) -> tuple[nw.Tensor, nw.Tensor]:
    """The first ``count`` digits as 32x32 images with three equal channels."""
    images, labels = nw.vision.datasets.MNIST(train=train).tensors()
    padded = nw.zeros(count, 3, 32, 32)
    padded[:, :, 2:30, 2:30] = images[:count].reshape(count, 1, 28, 28)
    return padded, labels[:count]


def train(model: nn.Module, epochs: int, count: int, eager: bool = False) -> None:
    """SGD with momentum on ``count`` padded digits; the learning rate falls to 0 as a cosine, so
    that the running statistics of the batch norms settle before they are used."""
    data = TensorDataset(*padded_digits(True, count))
    loader = DataLoader(data, batch_size=32, shuffle=True, drop_last=True)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    step = nw.compile(model, loss=criterion, optimizer=optimizer)
    for epoch in range(epochs):
        model.train()
        for x, y in loader:
            if eager:
                optimizer.zero_grad()
                loss = criterion(model(x), y)
                loss.backward()
                optimizer.step()
            else:
                loss = step(x, y)
        schedule.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}")


def accuracy(model: nn.Module, count: int) -> float:
    """Share of the first ``count`` test digits that are classified correctly."""
    model.eval()
    correct = 0
    with nw.no_grad():
        for x, y in DataLoader(TensorDataset(*padded_digits(False, count)), batch_size=50):
            correct += (model(x).argmax(1) == y).sum().item()
    return correct / count


def main(argv: Sequence[str] | None = None) -> float:
    """Trains and returns the test accuracy."""
    parser = argparse.ArgumentParser(description="ResNet-18 on padded digits")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=512, help="training images per epoch")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--eager", action="store_true", help="numpy instead of native code")
    options = parser.parse_args(argv)
    nw.manual_seed(0)
    model = ResNet18(options.width)
    train(model, options.epochs, options.images, options.eager)
    result = accuracy(model if options.eager else nw.compile(model), 200)
    print(f"test accuracy {result:.1%}")
    return result


if __name__ == "__main__":
    main()
