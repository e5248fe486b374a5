"""Exported models, run by ONNX Runtime, give what the program gives."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import netwright as nw
import netwright.nn.functional as F
from netwright import nn
from netwright.errors import BatchSpecializationError, NetwrightError, UnsupportedError
from netwright.frontend.trace import Traced
from netwright.ir.graph import Graph, Source
from netwright.ir.interpreter import evaluate
from netwright.ir.ops.record import Sample, all_ops
from netwright.ir.types import Dim, TensorType, dtype_of, float32

onnx = pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from netwright.export.onnx import model as onnx_model  # noqa: E402
from netwright.export.onnx.rules import RULES, rule  # noqa: E402

N = Dim(1)


def run(model: Any, **inputs: np.ndarray) -> list[np.ndarray]:
    """Checks a model and runs it on one thread."""
    onnx.checker.check_model(model, full_check=True)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, inputs))


def assert_close(got: np.ndarray, expected: np.ndarray, bound: float = 1e-5) -> None:
    """Within ``bound`` of the largest value."""
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    if expected.size:
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(got / scale, expected / scale, rtol=0, atol=bound)


# -- every rule -----------------------------------------------------------------------------------


def finite_samples(op: str) -> list[Sample]:
    """The samples of an operator's record that have a form in ONNX Runtime: float32, NCHW, no
    special values (about whose treatment runtimes differ) and no empty arrays."""
    found = []
    for sample in all_ops()[op].samples(np.random.default_rng(0)):
        arrays = [
            a.astype(np.float32) if a.dtype == np.float64 else a for a in map(np.asarray, sample[0])
        ]
        if sample.attrs.get("layout", "NCHW") != "NCHW" or sample.attrs.get("dtype") == "f64":
            continue
        if any(a.size == 0 for a in arrays) or not (op == "isnan" or all(map(is_finite, arrays))):
            continue
        found.append(Sample(tuple(arrays), sample.attrs))
    return found


def is_finite(a: np.ndarray) -> bool:
    """Whether an array has neither NaN nor infinities."""
    return a.dtype.kind != "f" or bool(np.isfinite(a).all())


def one_node(op: str, sample: Sample) -> tuple[Traced, dict[str, np.ndarray]]:
    """A graph of one operator, and values for its inputs."""
    graph = Graph(op)
    values = {f"x{i}": array for i, array in enumerate(sample.arrays)}
    operands = [
        graph.add("input", name=k, path=k, type=TensorType(dtype_of(a.dtype), a.shape))
        for k, a in values.items()
    ]
    result = graph.add(op, *operands, **sample.attrs)
    graph.outputs["out"] = graph.node(op).value if isinstance(result, tuple) else result
    return Traced(graph, list(values), None, {}), values


TESTED = sorted(op for op in RULES if finite_samples(op))


@pytest.mark.parametrize("op", TESTED)
def test_a_rule_means_what_the_operators_record_means(op: str) -> None:
    for sample in finite_samples(op):
        traced, values = one_node(op, sample)
        with np.errstate(all="ignore"):
            expected = evaluate(traced.graph, values)["out"]
        if not is_finite(expected):
            continue
        (got,) = run(onnx_model.build(traced), **values)
        assert_close(got, expected)


def test_only_the_batch_size_itself_has_no_samples() -> None:
    assert sorted(set(RULES) - set(TESTED)) == ["extent"]


# -- models ---------------------------------------------------------------------------------------


def check_model(model: nn.Module, *shape: int, batches: tuple[int, ...] = (1, 5)) -> Any:
    """Exports with one batch size and compares at others; returns the ONNX model."""
    nw.manual_seed(1)
    randomise(model)
    made = nw.onnx.export(model, nw.randn(3, *shape))
    model.eval()
    name = made.graph.input[0].name
    for batch in batches:
        x = nw.randn(batch, *shape)
        with nw.no_grad():
            expected = model(x).numpy()
        (got,) = run(made, **{name: x.numpy()})
        assert_close(got, expected)
    return made


def randomise(model: nn.Module) -> None:
    """Gives BatchNorm statistics that make a difference."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(nw.randn(*buffer.shape) * 0.2)
        elif name.endswith("running_var"):
            buffer.copy_(nw.rand(*buffer.shape) + 0.5)


def example(file: str, name: str, **options: int) -> nn.Module:
    """A model of an example program."""
    import importlib.util

    path = Path(nw.__file__).parent / "examples" / f"{file}.py"
    spec = importlib.util.spec_from_file_location(f"exported_{file}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: nn.Module = getattr(module, name)(**options)
    return made


@pytest.mark.parametrize(
    ("file", "name", "shape"),
    [
        ("mlp", "MLP", (784,)),
        ("mlp_batchnorm", "MLPBatchNorm", (784,)),
        ("cnn", "CNN", (1, 28, 28)),
        ("functional", "FunctionalMLP", (1, 28, 28)),
        ("functional", "ListMLP", (784,)),
        ("functional", "NamedMLP", (784,)),
        ("functional", "ResidualMLP", (784,)),
        ("softmax_before_loss", "SoftmaxClassifier", (784,)),
        ("resnet18", "ResNet18", (3, 32, 32)),
    ],
)
def test_examples_run_for_other_batch_sizes(file: str, name: str, shape: tuple[int, ...]) -> None:
    model = example(file, name, **({"width": 8} if name == "ResNet18" else {}))
    made = check_model(model, *shape)
    keys = {i.name for i in made.graph.initializer}
    assert set(dict(model.named_parameters())) <= keys


class Patches(nn.Module):
    """What a vision transformer does around its blocks: a class token and a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(nw.randn(1, 1, 8))
        self.place = nn.Parameter(nw.randn(1, 5, 8))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        y = self.conv(x).flatten(2).permute(0, 2, 1)
        y = nw.cat([self.token.expand(x.shape[0], -1, -1), y], dim=1) + self.place
        y = self.norm(F.gelu(y))
        scores = F.softmax(y @ y.transpose(1, 2), dim=-1)
        return (scores @ y)[:, 0]


class Fire(nn.Module):
    """Branches that are joined, a split, asymmetric padding, dilation and groups."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(3, 4, 1)
        self.wide = nn.Conv2d(4, 8, 3, padding="same", dilation=2, groups=2)
        self.even = nn.Conv2d(4, 8, 2, padding="same")

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        x = F.hardswish(self.squeeze(x))
        y = nw.cat([F.relu6(self.wide(x)), F.silu(self.even(x))], dim=1)
        a, b = y.chunk(2, dim=1)
        pooled = F.avg_pool2d(a, 3, stride=2, padding=1, ceil_mode=True)
        gate = F.hardsigmoid(F.adaptive_avg_pool2d(pooled, 1))
        return F.adaptive_avg_pool2d(pooled * gate, (3, 2)) + b.amax(dim=(2, 3), keepdim=True)


class Pairs(nn.Module):
    """Reshapes that move the batch."""

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        rows = x.reshape(2 * x.shape[0], -1)
        return (rows - rows.mean(0, keepdim=True)).reshape(x.shape[0], 2, -1).sum(1)


def test_a_class_token_is_repeated_for_every_sample() -> None:
    check_model(Patches(), 3, 8, 8)


def test_branches_groups_and_padding() -> None:
    check_model(Fire(), 3, 9, 7)


def test_a_batch_that_is_reshaped_stays_symbolic() -> None:
    check_model(Pairs(), 6)


def test_indices_dictionaries_and_keyword_arguments() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 4)

        def forward(self, words: nw.Tensor, *, scale: nw.Tensor) -> dict[str, nw.Tensor]:
            y = self.table(words) * scale
            return {"rows": y, "best": y.argmax(-1), "scale": scale}

    model = Words()
    words = nw.randint(0, 10, (2, 7))
    made = nw.onnx.export(model, words, kwargs={"scale": nw.ones(2, 7, 1)})
    assert [i.name for i in made.graph.input] == ["words", "scale"]
    assert [o.name for o in made.graph.output] == ["rows", "best", "scale.1"]
    scale = np.full((3, 7, 1), 0.5, np.float32)
    indices = nw.randint(0, 10, (3, 7))
    rows, best, same = run(made, words=indices.numpy(), scale=scale)
    expected = model.table(indices).detach().numpy() * scale
    assert_close(rows, expected)
    assert (best == expected.argmax(-1)).all()
    assert (same == scale).all()


# -- the interface --------------------------------------------------------------------------------


def test_export_writes_a_file_and_leaves_the_modes_alone(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    model[2].eval()
    made = nw.onnx.export(model, np.zeros((2, 4), np.float32), tmp_path / "m.onnx")
    assert [m.training for m in model] == [True, True, False]
    assert onnx.load(tmp_path / "m.onnx") == made
    assert {n.op_type for n in made.graph.node} == {"Gemm", "BatchNormalization"}
    assert made.opset_import[0].version == onnx_model.OPSET >= 17


def test_a_compiled_model_exports_as_the_model_it_was_made_from() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    x = nw.randn(2, 4)
    assert nw.onnx.export(nw.compile(model), x).graph.node == nw.onnx.export(model, x).graph.node


def test_nodes_are_named_after_modules() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 3)), nn.ReLU())
    names = [n.name for n in nw.onnx.export(model, nw.randn(2, 4)).graph.node]
    assert names == ["0.0/linear", "1/relu"]


def test_import_netwright_onnx() -> None:
    import netwright.onnx

    assert netwright.onnx.export is nw.onnx.export


def test_an_operator_without_a_rule_is_named_with_its_module_and_line() -> None:
    class Noisy(nn.Module):
        def forward(self, x: nw.Tensor) -> nw.Tensor:
            return F.dropout(x, 0.5, training=True)

    model = nn.Sequential(nn.Linear(4, 4), Noisy())
    with pytest.raises(UnsupportedError, match=r"uniform at 1 at .*test_onnx.py:\d+ has no"):
        nw.onnx.export(model, nw.randn(2, 4))


def test_a_result_that_onnx_does_not_have_is_named() -> None:
    graph = Graph("rows")
    x = graph.add("input", name="x", path="x", type=TensorType(float32, (N, 4)))
    _, mean, _ = graph.add("layer_norm", x, ndim=1, eps=1e-5, source=Source("norm", "m.py", 7))
    graph.outputs["out"] = graph.add("relu", mean, source=Source("act", "m.py", 8))
    with pytest.raises(UnsupportedError, match=r"relu at act at m.py:8: %layer_norm#1, result 1"):
        onnx_model.build(Traced(graph, ["x"], None, {}))


def test_a_program_that_counts_its_calls_is_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", nw.zeros(1))

        def forward(self, x: nw.Tensor) -> nw.Tensor:
            self.calls.add_(1.0)
            return x * self.calls

    with pytest.raises(UnsupportedError, match=r"Counting changes its state .*calls"):
        nw.onnx.export(Counting(), nw.randn(2, 4))


def test_a_program_that_needs_the_batch_as_a_number_asks_for_a_fixed_one() -> None:
    class Depends(nn.Module):
        def forward(self, x: nw.Tensor) -> nw.Tensor:
            return x * 2 if x.shape[0] > 1 else x

    with pytest.raises(BatchSpecializationError):
        nw.onnx.export(Depends(), nw.randn(2, 4))
    made = nw.onnx.export(Depends(), nw.ones(2, 4), dynamic=False)
    assert made.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    assert (run(made, x=np.ones((2, 4), np.float32))[0] == 2).all()


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    for name in [n for n in sys.modules if n.startswith("netwright.export.onnx")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(NetwrightError, match=r"netwright\[onnx\]"):
        nw.onnx.export(nn.Linear(4, 3), nw.randn(2, 4))


def test_something_else_than_a_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"nn\.Module, got function"):
        nw.onnx.export(lambda x: x, nw.randn(2, 4))  # type: ignore[arg-type]


def test_an_operator_has_one_rule() -> None:
    with pytest.raises(ValueError, match="'relu' has two ONNX rules"):
        rule("relu")(lambda b, node, x: x)
