"""The example programs: compiled and eager give the same results, and training reaches its goal."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn, optim

# The programs keep a bias in front of BatchNorm, as they were asked for.
pytestmark = pytest.mark.filterwarnings("ignore:L005")

EXAMPLES = Path(nw.__file__).parent / "examples"
STEPS = 10


def load(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


mlp, mlp_batchnorm, cnn = load("mlp"), load("mlp_batchnorm"), load("cnn")
functional, resnet18 = load("functional"), load("resnet18")
softmax_before_loss = load("softmax_before_loss")
regression, binary_classification = load("regression"), load("binary_classification")

Batch = tuple[nw.Tensor, nw.Tensor]


def digits(count: int) -> Batch:
    """The first shipped digits."""
    images, labels = nw.vision.datasets.MNIST(train=True).tensors()
    return images[:count].contiguous(), labels[:count].contiguous()


def coloured(count: int) -> Batch:
    """Digits as 32x32 images with three channels."""
    padded: Batch = resnet18.padded_digits(True, count)
    return padded


def sgd(parameters: Any) -> optim.Optimizer:
    return optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=1e-4)


def adam(parameters: Any) -> optim.Optimizer:
    return optim.Adam(parameters, lr=1e-3)


@dataclass(frozen=True)
class Program:
    """A model, a loss, an optimizer and data for them; ``size`` is the usual batch."""

    model: Callable[[], nn.Module]
    loss: Callable[[], nn.Module]
    optimizer: Callable[[Any], optim.Optimizer]
    data: Callable[[int], Batch]
    size: int = 16

    def batches(self) -> list[Batch]:
        """STEPS batches, the last of which is smaller."""
        nw.manual_seed(1)
        x, y = self.data(STEPS * self.size - 3)
        starts = range(0, len(x), self.size)
        return [(x[i : i + self.size], y[i : i + self.size]) for i in starts]


def small_resnet() -> nn.Module:
    made: nn.Module = resnet18.ResNet18(width=8)
    return made


PROGRAMS = {
    "1 MLP": Program(mlp.MLP, nn.CrossEntropyLoss, sgd, digits),
    "2 MLP with BatchNorm": Program(mlp_batchnorm.MLPBatchNorm, nn.CrossEntropyLoss, adam, digits),
    "3 CNN": Program(cnn.CNN, nn.CrossEntropyLoss, adam, digits),
    "4 functional": Program(functional.FunctionalMLP, nn.CrossEntropyLoss, sgd, digits),
    "4 ModuleList": Program(functional.ListMLP, nn.CrossEntropyLoss, sgd, digits),
    "4 named layers": Program(functional.NamedMLP, nn.CrossEntropyLoss, adam, digits),
    "4 residual": Program(functional.ResidualMLP, nn.CrossEntropyLoss, adam, digits),
    "4 ResNet-18": Program(small_resnet, nn.CrossEntropyLoss, sgd, coloured, size=6),
    "6 MSELoss": Program(regression.Regressor, nn.MSELoss, adam, regression.samples),
    "6 L1Loss": Program(regression.Regressor, nn.L1Loss, sgd, regression.samples),
    "6 BCELoss": Program(
        binary_classification.SigmoidClassifier, nn.BCELoss, adam, binary_classification.samples
    ),
    "6 BCEWithLogitsLoss": Program(
        binary_classification.LogitClassifier,
        nn.BCEWithLogitsLoss,
        adam,
        binary_classification.samples,
    ),
}
every_program = pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)


def make_twins(program: Program) -> tuple[nn.Module, nn.Module]:
    """Two models with the same weights."""
    nw.manual_seed(0)
    model = program.model()
    twin = program.model()
    twin.load_state_dict(model.state_dict())
    return model, twin


def train_eagerly(program: Program, model: nn.Module, seen: nn.Module) -> list[float]:
    """Losses of training steps under autograd; ``seen`` is called, ``model`` has the parameters."""
    criterion, optimizer = program.loss(), program.optimizer(model.parameters())
    losses = []
    batches = program.batches()
    nw.manual_seed(2)  # of dropout
    for x, y in batches:
        optimizer.zero_grad()
        loss = criterion(seen(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def outputs(model: nn.Module, x: nw.Tensor) -> np.ndarray:
    with nw.no_grad():
        found: np.ndarray = model(x).numpy()
    return found


@every_program
def test_inference_is_the_same(program: Program) -> None:
    model, twin = make_twins(program)
    fast = nw.compile(twin.eval())
    model.eval()
    for x, _ in program.batches()[-2:]:
        np.testing.assert_allclose(outputs(fast, x), outputs(model, x), rtol=1e-5, atol=1e-5)
    assert fast.fallbacks == 0
    assert fast.compilations == 1


@every_program
def test_training_under_autograd_is_the_same(program: Program) -> None:
    model, twin = make_twins(program)
    fast = nw.compile(twin)
    expected = train_eagerly(program, model, model)
    got = train_eagerly(program, twin, fast)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    assert fast.fallbacks == 0
    assert fast.compilations == 1


@every_program
def test_a_compiled_step_trains_the_same(program: Program) -> None:
    model, twin = make_twins(program)
    expected = train_eagerly(program, model, model)
    step = nw.compile(
        twin.train(), loss=program.loss(), optimizer=program.optimizer(twin.parameters())
    )
    batches = program.batches()
    nw.manual_seed(2)
    got = [step(x, y).item() for x, y in batches]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    assert step.fallbacks == 0
    assert step.compilations == 1


@every_program
def test_after_training_the_compiled_model_has_the_new_weights(program: Program) -> None:
    model, twin = make_twins(program)
    fast = nw.compile(twin.eval())
    x, _ = program.batches()[0]
    before = outputs(fast, x)
    step = nw.compile(
        twin.train(), loss=program.loss(), optimizer=program.optimizer(twin.parameters())
    )
    for batch in program.batches()[:3]:
        step(*batch)
    twin.eval()
    model.load_state_dict(twin.state_dict())
    model.eval()
    after = outputs(fast, x)
    np.testing.assert_allclose(after, outputs(model, x), rtol=1e-5, atol=1e-5)
    assert not np.allclose(after, before, atol=1e-4)


@every_program
def test_graphs_of_every_stage_read_back_and_can_be_shown(program: Program) -> None:
    model, _ = make_twins(program)
    x, y = program.batches()[0]
    step = nw.compile(
        model.train(), loss=program.loss(), optimizer=program.optimizer(model.parameters())
    )
    step(x, y)
    trained = nw.compile(model)
    trained(x)
    served = nw.compile(model.eval())
    with nw.no_grad():
        served(x)
    read: dict[str, Any] = {}
    for compiled in (step, trained, served):
        for stage in compiled.stages:
            graph = compiled.graph(stage)
            text = str(graph)
            if text not in read:  # else a pass that found nothing to do
                read[text] = nw.ir.parse(text)
            assert read[text] == graph, stage
        graph = compiled.graph()
        assert nw.ir.table(graph)
        assert nw.ir.summary(graph, 4)
        assert nw.ir.to_dot(graph).startswith("digraph")
        assert nw.ir.to_svg(graph).startswith("<svg")
        assert compiled.explain()


# -- program 5: a softmax before CrossEntropyLoss -------------------------------------------------


def softmax_step(model: nn.Module, strict: bool) -> Any:
    optimizer = sgd(model.parameters())
    return nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=optimizer, strict=strict)


def softmax_program(corrected: bool) -> Program:
    """What the compiled step computes, written by hand."""

    def make() -> nn.Module:
        model: nn.Module = softmax_before_loss.SoftmaxClassifier()
        if corrected:
            model.layers[-1] = nn.Identity()
        return model

    return Program(make, nn.CrossEntropyLoss, sgd, digits)


@pytest.mark.parametrize("strict", [False, True])
def test_the_loss_is_that_of_the_corrected_program_or_strictly_that_of_the_written_one(
    strict: bool,
) -> None:
    reference = softmax_program(corrected=not strict)
    nw.manual_seed(0)
    model = softmax_before_loss.SoftmaxClassifier()
    twin = reference.model()
    twin.load_state_dict(model.state_dict())
    expected = train_eagerly(reference, twin, twin)
    step = softmax_step(model, strict)
    batches = reference.batches()
    with pytest.warns(nw.LintWarning, match="L001: Softmax .*layers.4"):
        got = [step(x, y).item() for x, y in batches]
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    assert step.fallbacks == 0
    ops = {node.op for node in step.graph("eliminate_dead_code").nodes}
    assert ("softmax" in ops) == strict
    assert ("S001" in step.explain()) == (not strict)
    if strict:  # log(e + 9) - 1 is the least that a softmax of a softmax can reach
        assert min(got) > 1.46


def test_the_model_itself_still_returns_probabilities() -> None:
    nw.manual_seed(0)
    model = softmax_before_loss.SoftmaxClassifier().eval()
    x, _ = digits(5)
    got = outputs(nw.compile(model), x)
    np.testing.assert_allclose(got, outputs(model, x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.sum(1), 1, rtol=1e-5)


# -- the programs as users run them ---------------------------------------------------------------


def test_mlp_with_batch_norm_reaches_94_percent_within_10_epochs() -> None:
    assert mlp_batchnorm.main(["--epochs", "10"]) >= 0.94


def test_cnn_reaches_97_percent_within_10_epochs() -> None:
    assert cnn.main(["--epochs", "10"]) >= 0.97


@pytest.mark.parametrize("example", [mlp_batchnorm, cnn])
@pytest.mark.parametrize("validate", [False, True])
def test_an_epoch_is_one_pass_over_digits_that_are_not_tested(
    monkeypatch: pytest.MonkeyPatch, example: ModuleType, validate: bool
) -> None:
    used: dict[str, Any] = {}
    monkeypatch.setattr(example, "train", lambda model, digits, *rest: used.update(training=digits))
    monkeypatch.setattr(
        example, "accuracy", lambda model, digits: used.update(tested=digits) or 0.0
    )
    example.main(["--validate"] if validate else [])
    if validate:
        training, tested = used["training"].indices, used["tested"].indices
        assert (len(training), len(tested)) == (3400, 600)
        assert sorted([*training, *tested]) == list(range(4000))
        assert used["training"].dataset.train and used["tested"].dataset.train
        digits = used["tested"].dataset
    else:
        assert used["training"].train and len(used["training"]) == 4000
        digits = used["tested"]
        assert not digits.train
    assert digits.transform is None  # tested as they are


def test_mlp_learns_the_same_eagerly(capsys: pytest.CaptureFixture[str]) -> None:
    compiled = mlp.main(["--epochs", "1"])
    eager = mlp.main(["--epochs", "1", "--eager"])
    assert compiled > 0.7
    assert abs(compiled - eager) <= 0.01
    assert "test accuracy" in capsys.readouterr().out


def test_four_styles_learn() -> None:
    results = functional.main(["--epochs", "1"])
    assert set(results) == {"FunctionalMLP", "ListMLP", "NamedMLP", "ResidualMLP"}
    assert min(results.values()) > 0.75


def test_a_narrow_resnet_learns() -> None:
    assert resnet18.main(["--epochs", "4", "--images", "512", "--width", "8"]) > 0.75


def test_softmax_before_loss_runs_corrected_and_as_written() -> None:
    with pytest.warns(nw.LintWarning, match="L001"):
        assert softmax_before_loss.main(["--epochs", "1"]) < 1.0
    with pytest.warns(nw.LintWarning, match="L001"):
        assert softmax_before_loss.main(["--epochs", "1", "--strict"]) > 1.46


@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_regression_learns(loss: str) -> None:
    assert regression.main(["--loss", loss, "--steps", "600"]) < 0.05


@pytest.mark.parametrize("options", [[], ["--sigmoid"]])
def test_binary_classification_learns(options: list[str]) -> None:
    assert binary_classification.main(["--steps", "400", *options]) > 0.95
