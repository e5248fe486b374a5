"""Every distinct convolution and linear layer of a model, compiled alone: GFLOP/s and FMA peak.

    python benchmarks/layers.py                       # resnet50 at 1x3x224x224, 1 and 2 threads
    python benchmarks/layers.py --model vgg11 --batch 4
    python benchmarks/layers.py --model examples/resnet18.py:ResNet18 --batch 32 --shape 3x32x32 \\
        --backward

A layer is one program in the layout in which compiled programs keep images (channels last), with
its bias if it has one; with --backward, the gradients of each convolution with respect to its input
(dx) and its weight (dw) follow, each a program of its own. The FMA peak is probed just before and
just after each layer in the same process. Writes results/layers_MODEL.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import netwright as nw
from netwright import nn
from netwright.commands.model_file import load_model
from netwright.commands.text import counts
from netwright.commands.timing import interleave
from netwright.frontend import dispatch
from netwright.frontend.trace import trace
from netwright.ir.columns import aligned
from netwright.ir.graph import Graph
from netwright.ir.ops.spatial import conv_extent
from netwright.ir.report import flops
from netwright.ir.types import Dim, fixed
from netwright.runtime import probe, settings

sys.path.insert(0, str(Path(__file__).resolve().parent))

from environment import environment

RESULTS = Path(__file__).resolve().parent / "results"
_GRADIENTS = {"conv2d_grad_input": "dx", "conv2d_grad_weight": "dw"}
_HEADER = ("layer", "uses", "GFLOP", "threads", "ms", "GFLOP/s", "of peak", "scaling", "error")


@dataclass(frozen=True)
class Shape:
    """What two layers must share to be the same work: operator, shapes without the batch (images
    as channels, height, width), attributes, whether there is a bias."""

    op: str
    image: tuple[int, ...]
    weight: tuple[int, ...]
    attrs: tuple[tuple[str, Any], ...]
    bias: bool

    @property
    def text(self) -> str:
        """``3x3/2 64->128 56x56``, ``dw 3x3 depthwise 96 112x112`` or ``linear 2048->1000``."""
        if self.op == "linear":
            rows = "x".join(map(str, self.image[:-1]))
            return f"linear {self.weight[1]}->{self.weight[0]}" + (f" {rows} rows" if rows else "")
        found = dict(self.attrs)
        out, inputs, height, width = self.weight
        groups = found["groups"]
        stride = "x".join(map(str, sorted(set(found["stride"]))))
        dilation = max(found["dilation"])
        kind = f"{inputs * groups}->{out}"
        if groups > 1:
            kind = f"depthwise {out}" if inputs == 1 else f"{kind} in {groups} groups"
        gradient = f"{_GRADIENTS[self.op]} " if self.op in _GRADIENTS else ""
        return (
            f"{gradient}{height}x{width}{'' if stride == '1' else f'/{stride}'} {kind} "
            f"{self.image[1]}x{self.image[2]}" + (f" dilation {dilation}" if dilation > 1 else "")
        )

    @property
    def inputs(self) -> list[tuple[int, ...]]:
        """Shapes, without the batch, of what the operator reads besides its weight."""
        if self.op == "linear":
            return [self.image]
        channels, *size = self.image
        image = (*size, channels)
        if self.op == "conv2d":
            return [image]
        names = ("stride", "padding", "dilation")
        axes = zip(size, self.weight[2:], *(dict(self.attrs)[n] for n in names), strict=True)
        gradient = (*(conv_extent(*axis) for axis in axes), self.weight[0])
        return [gradient, image] if self.op == "conv2d_grad_weight" else [gradient]

    @property
    def gradients(self) -> list[Shape]:
        """The gradients of a convolution, as layers."""
        if self.op != "conv2d":
            return []
        return [replace(self, op=op, bias=False) for op in _GRADIENTS]


class Layer(nn.Module):
    """One operator with a weight of its own; images are (batch, height, width, channels).

    The gradient of a weight has none; it reads the gradient of the result and the image.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._op, self._attrs = shape.op, dict(shape.attrs)
        self.weight = self.bias = None
        if shape.op == "conv2d_grad_weight":
            self._attrs["kernel_size"] = shape.weight[2:]
            return
        if shape.op == "conv2d_grad_input":
            self._attrs["size"] = shape.image[1:]
        fan_in = int(np.prod(shape.weight[1:]))
        self.weight = nn.Parameter(nw.randn(*shape.weight) / fan_in**0.5)
        self.bias = nn.Parameter(nw.randn(shape.weight[0])) if shape.bias else None

    def forward(self, *inputs: nw.Tensor) -> nw.Tensor:
        state = (p for p in (self.weight, self.bias) if p is not None)
        return dispatch.apply(self._op, *inputs, *state, **self._attrs)


def layers_of(graph: Graph) -> dict[Shape, int]:
    """The distinct layers of a traced graph in order, and how often each occurs."""
    found: dict[Shape, int] = {}
    for node in graph.nodes:
        if node.op not in ("conv2d", "linear"):
            continue
        image, weight = (graph.type(v).shape for v in node.operands[:2])
        if not isinstance(image[0], Dim) or any(isinstance(d, Dim) for d in image[1:]):
            raise SystemExit(f"%{node.name} = {node.op}: its batch is not its leading dimension")
        attrs = {**node.attrs, "layout": "NHWC"} if node.op == "conv2d" else dict(node.attrs)
        shape = Shape(
            node.op,
            tuple(map(fixed, image[1:])),
            tuple(map(fixed, weight)),
            tuple(sorted(attrs.items())),
            len(node.operands) == 3,
        )
        found[shape] = found.get(shape, 0) + 1
    return found


def with_gradients(found: dict[Shape, int]) -> dict[Shape, int]:
    """The layers, each convolution followed by its gradients."""
    both: dict[Shape, int] = {}
    for shape, uses in found.items():
        for part in (shape, *shape.gradients):
            both[part] = both.get(part, 0) + uses
    return both


def measure(shape: Shape, batch: int, threads: list[int], seconds: float) -> list[dict[str, Any]]:
    """A row per number of threads; the layer's result is compared with eager execution first."""
    layer = Layer(shape).eval()
    compiled = nw.compile(layer)
    inputs = [nw.randn(batch, *sizes) for sizes in shape.inputs]
    with nw.no_grad():
        expected, got = layer(*inputs).numpy(), compiled(*inputs).numpy()
        error = float(np.abs(got - expected).max() / np.abs(expected).max())
        if not error < 1e-4 or compiled.fallbacks:
            raise SystemExit(f"{shape.text}: error {error:.2g}, {compiled.fallbacks} fallbacks")
        gflop = flops(compiled.graph("traced"), batch) / 1e9
        rows = []
        for count in threads:
            with settings.threads(count):
                before = probe.peak_gflops(count)
                call: Callable[[], Any] = lambda: compiled(*inputs)  # noqa: E731
                times = interleave({"layer": call}, seconds)["layer"]
                after = probe.peak_gflops(count)
            rate = gflop / times.median * 1e3
            rows.append(
                {
                    "threads": count,
                    **times.as_json(),
                    "gflops": rate,
                    "peak_gflops": {"before": before, "after": after},
                    "of_peak": rate / statistics.mean((before, after)),
                    "scaling": rows[0]["median_ms"] / times.median if rows else 1.0,
                }
            )
    return [{"layer": shape.text, "gflop": gflop, "error": error, **row} for row in rows]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text; ``scaling`` is how many times faster than with the first thread count."""
    lines: list[tuple[str, ...]] = [_HEADER]
    for row in rows:
        lines.append(
            (
                row["layer"],
                str(row["uses"]),
                f"{row['gflop']:.3f}",
                str(row["threads"]),
                f"{row['median_ms']:.3f}",
                f"{row['gflops']:.1f}",
                f"{row['of_peak']:.0%}",
                f"{row['scaling']:.2f}x",
                f"{row['error']:.0e}",
            )
        )
    return aligned(lines, right=range(1, len(_HEADER)))


def total(rows: list[dict[str, Any]], threads: int) -> str:
    """What all layers of the model take together, each as often as it occurs."""
    group = [row for row in rows if row["threads"] == threads]
    work = sum(row["gflop"] * row["uses"] for row in group)
    ms = sum(row["median_ms"] * row["uses"] for row in group)
    peak = statistics.mean(p for row in group for p in row["peak_gflops"].values())
    rate = work / ms * 1e3
    return f"threads {threads}: {ms:.2f} ms, {rate:.1f} GFLOP/s, {rate / peak:.0%} of the peak"


def make_model(name: str) -> nn.Module:
    """A model of the zoo, or what FILE.py:NAME makes, in eval mode."""
    if ":" in name:
        return load_model(name)[0].eval()
    models = getattr(nw.vision, "models", None)
    if models is None or not hasattr(models, name):
        raise SystemExit(f"netwright.vision.models has no {name!r}")
    nw.manual_seed(0)
    made: nn.Module = getattr(models, name)()
    return made.eval()


def run(model: nn.Module, name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures every layer, prints it when it is done, and writes the JSON."""
    graph = trace(model, {"": model}, (nw.randn(1, *options.shape),)).graph
    rows: list[dict[str, Any]] = []
    result = {"model": name, "batch": options.batch, "environment": environment(), "rows": rows}
    found = layers_of(graph)
    if options.backward:
        found = with_gradients(found)
    for number, (shape, uses) in enumerate(found.items(), start=1):
        measured = measure(shape, options.batch, options.threads, options.seconds)
        rows += [{"uses": uses, **row} for row in measured]
        shares = ", ".join(f"{row['of_peak']:.0%}" for row in measured)
        print(f"{number}/{len(found)} {shape.text}: {shares} of the peak", file=sys.stderr)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    return rows


def main() -> None:
    """Prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="resnet50", help="a name in netwright.vision.models, or FILE.py:NAME"
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--shape", default="3x224x224", help="of one sample")
    parser.add_argument("--threads", type=counts, default=[1, 2], help="default: 1,2")
    parser.add_argument("--seconds", type=float, default=1.0, help="per layer and thread count")
    parser.add_argument("--backward", action="store_true", help="gradients of convolutions, too")
    parser.add_argument("--output", type=Path, help="default: results/layers_MODEL.json")
    options = parser.parse_args()
    options.shape = tuple(map(int, options.shape.split("x")))
    name = options.model.split(":")[-1].lower()
    options.output = options.output or RESULTS / f"layers_{name}.json"
    rows = run(make_model(options.model), options.model, options)
    print(table(rows))
    for threads in options.threads:
        print(total(rows, threads))


if __name__ == "__main__":
    main()
