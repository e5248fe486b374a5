"""``netwright bench``: compiled against eager, for a user's model."""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import losses, model_file, model_inputs
from .failure import Failure, user_code
from .text import aligned

if TYPE_CHECKING:
    from ..frontend.nn.module import Module
    from ..frontend.tensor import Tensor
    from .compare import Comparison

_LEARNING_RATE = 1e-3


def add(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "bench",
        help="time a model compiled and eager",
        description="Compares the results of a compiled model with those of eager execution (one "
        "numpy call per operator) and, if they agree, times both, interleaved.",
    )
    model_file.add_argument(parser)
    model_inputs.add_argument(parser)
    parser.add_argument(
        "--batch",
        dest="batches",
        type=_batches,
        metavar="N[,N...]",
        help="batch sizes to time instead of that of --input, such as 1,64",
    )
    losses.add_argument(parser, "time training steps (SGD with momentum), too, with this loss")
    parser.add_argument(
        "--seconds", type=_seconds, default=3.0, help="time spent on each row (default: 3)"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(run=run)


def _batches(text: str) -> list[int]:
    parts = text.split(",")
    if not all(p.isascii() and p.isdecimal() and int(p) > 0 for p in parts):
        raise argparse.ArgumentTypeError(
            f"expected batch sizes of at least 1 joined by commas, such as 1,64; got {text!r}"
        )
    return [int(p) for p in parts]


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"expected seconds from 0 to 3600; got {text!r}")
    return value


def run(options: argparse.Namespace) -> int:
    """Compares, times and prints."""
    result = measure(options)
    print(json.dumps(result, indent=1) if options.json else report(result))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that ``--json`` prints."""
    from ..bridge.compile import compile as compile_model
    from ..codegen.target import host
    from ..frontend.grad_mode import no_grad
    from ..runtime import jit, probe
    from .compare import compare_inference
    from .machine import isa_name, thread_facts

    model, file = model_file.load_model(options.model)
    specs = options.inputs
    batches = options.batches or [model_inputs.batch_of(specs)]
    compiled = compile_model(model.eval())
    first = model_inputs.make_inputs(model_inputs.with_batch(specs, batches[0]))
    rows: list[dict[str, Any]] = []
    with user_code(options.model, file):
        with no_grad():
            model(*first)  # a model that does not work should not fail in the compiler
            compiled_before = jit.counters.compilations
            start = time.perf_counter()
            compiled(*first)
            first_call = (time.perf_counter() - start) * 1e3
        compilation = compiled._compilation(None)
        phases = {name: seconds * 1e3 for name, seconds in compilation.seconds.items()}
        for batch in batches:
            inputs = model_inputs.make_inputs(model_inputs.with_batch(specs, batch))
            found = compare_inference(model, compiled, inputs, options.seconds)
            rows.append(_row("inference", batch, found, first_call))
            if options.loss:
                rows.append(_training_row(model, options.loss, inputs, batch, options.seconds))
    return {
        "model": options.model,
        "inputs": [str(spec) for spec in specs],
        "cpu": probe.cpu_model(),
        "isa": isa_name(host()),
        "threads": thread_facts()["used"],
        "first_call_ms": first_call,
        "compile_ms": sum(phases.values()),
        "compile_phases_ms": phases,
        "from_cache": jit.counters.compilations == compiled_before,
        "fallbacks": compiled.fallbacks,
        "rows": rows,
    }


def _row(mode: str, batch: int, found: Comparison, first_call: float) -> dict[str, Any]:
    return {
        "mode": mode,
        "batch": batch,
        **found.as_json(),
        "break_even_calls": found.break_even_calls(max(0.0, first_call - found.compiled.median)),
    }


def _training_row(
    model: Module, loss: str, inputs: Sequence[Tensor], batch: int, seconds: float
) -> dict[str, Any]:
    from ..bridge.compile import compile as compile_model
    from ..frontend import optim
    from .compare import compare_training

    criterion = losses.make_loss(loss)
    target = losses.make_target(loss, model(*inputs))
    eager_model, compiled_model = (copy.deepcopy(model).train() for _ in range(2))
    parameters = list(eager_model.parameters())
    if not parameters:
        raise Failure("--loss: the model has no parameters to train")
    optimizer = optim.SGD(parameters, lr=_LEARNING_RATE, momentum=0.9)
    twin_optimizer = optim.SGD(compiled_model.parameters(), lr=_LEARNING_RATE, momentum=0.9)
    step = compile_model(compiled_model, loss=criterion, optimizer=twin_optimizer)
    start = time.perf_counter()
    copy_of_state = copy.deepcopy(compiled_model.state_dict())
    step(*inputs, target)
    first_call = (time.perf_counter() - start) * 1e3
    compiled_model.load_state_dict(copy_of_state)
    twin_optimizer.state.clear()

    def eager() -> Tensor:
        optimizer.zero_grad()
        found: Tensor = criterion(eager_model(*inputs), target)
        found.backward()
        optimizer.step()
        return found

    found = compare_training(eager, step, [*inputs, target], seconds)
    return _row("training", batch, found, first_call)


def report(result: dict[str, Any]) -> str:
    """The result for people."""
    phases = ", ".join(f"{k} {v:.1f}" for k, v in result["compile_phases_ms"].items())
    origin = "object code from the cache" if result["from_cache"] else "compiled now"
    lines = [
        f"{result['model']}  input {', '.join(result['inputs'])}",
        f"{result['cpu']}, {result['isa']}, {result['threads']} threads",
        f"first call {result['first_call_ms']:.1f} ms, of which {result['compile_ms']:.1f} ms "
        f"compilation ({phases}); {origin}",
    ]
    if result["fallbacks"]:
        lines.append(f"{result['fallbacks']} operators run through numpy (no native kernel yet)")
    rows = [("mode", "batch", "eager ms", "p90", "compiled ms", "p90", "speed-up", "break-even")]
    for row in result["rows"]:
        calls = row["break_even_calls"]
        rows.append(
            (
                row["mode"],
                str(row["batch"]),
                f"{row['eager']['median_ms']:.3f}",
                f"{row['eager']['p90_ms']:.3f}",
                f"{row['compiled']['median_ms']:.3f}",
                f"{row['compiled']['p90_ms']:.3f}",
                f"{row['speedup']:.2f}x",
                "never" if calls is None else f"{calls} calls",
            )
        )
    largest = max(row["difference"] for row in result["rows"])
    return "\n".join(
        [*lines, "", aligned(rows, right=range(1, 8)), "", f"largest difference {largest:.1e}"]
    )
