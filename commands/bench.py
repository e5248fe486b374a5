"""``netwright bench``: compiled against eager, for a user's model."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..ir.columns import aligned
from . import losses, model_file, model_inputs, timing
from .failure import Failure, Misuse, require_compiler, user_code
from .peers import command as peers
from .peers.train_contest import RECIPES

if TYPE_CHECKING:
    from ..frontend.nn.module import Module
    from ..frontend.tensor import Tensor
    from .compare import Comparison

_HEADER = (
    "mode", "batch", "eager ms", "p90", "compiled ms", "p90", "speed-up", "first call",
    "break-even",
)  # fmt: skip


def add(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "bench",
        help="time a model compiled and eager, or beside other runtimes",
        description="Compares the results of a compiled model with those of eager execution (one "
        "numpy call per operator), or with --peers those of other runtimes, and, if they agree, "
        "times them, interleaved.",
    )
    model_file.add_argument(parser)
    model_inputs.add_argument(parser)
    model_inputs.add_batches_argument(parser)
    parser.add_argument(
        "--train",
        action="store_true",
        help=f"time training steps, too, or with --peers instead; with --loss ({losses.DEFAULT})",
    )
    losses.add_argument(parser, "time training steps, too, with this loss")
    parser.add_argument(
        "--optimizer",
        choices=list(RECIPES),
        help="of training steps: sgd (with momentum), adam or adamw (sgd)",
    )
    peers.add_arguments(parser)
    timing.add_argument(parser, 3.0)
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compares, times and prints."""
    require_compiler()
    if options.optimizer and not (options.train or options.loss):
        raise Misuse("--optimizer goes with training steps: add --train")
    batches = options.batches or [model_inputs.batch_of(options.inputs)]
    if options.peers is not None:
        return peers.run(options, batches)
    if options.threads is not None:
        raise Misuse("--threads goes with --peers; NETWRIGHT_NUM_THREADS sets netwright's own")
    result = measure(options, batches)
    print(json.dumps(result, indent=1) if options.json else report(result))
    return 0


def measure(options: argparse.Namespace, batches: list[int]) -> dict[str, Any]:
    """Everything that ``--json`` prints."""
    from ..bridge.compile import compile as compile_model
    from ..codegen.target import host
    from ..runtime import jit, probe
    from .compare import compare_inference
    from .machine import isa_name, thread_facts

    model, file = model_file.load_model(options.model)
    compiled = compile_model(model.eval())
    rows: list[dict[str, Any]] = []
    first_calls: dict[str, float] = {}
    compilations = jit.counters.compilations
    phases: dict[str, float] = {}
    from_cache = False

    def add_row(mode: str, batch: int, found: Comparison) -> None:
        # Of several batch sizes, only the first compiles.
        first_call = first_calls.setdefault(mode, found.first_call)
        extra = max(0.0, first_call - found.compiled.median)
        rows.append(
            {
                "mode": mode,
                "batch": batch,
                **found.as_json(),
                "first_call_ms": first_call,
                "break_even_calls": found.break_even_calls(extra),
            }
        )

    with user_code(options.model, file):
        for batch in batches:
            inputs = model_inputs.make_inputs(model_inputs.with_batch(options.inputs, batch))
            add_row("inference", batch, compare_inference(model, compiled, inputs, options.seconds))
            if not phases:
                seconds = compiled._compilation(None).seconds
                phases = {name: value * 1e3 for name, value in seconds.items()}
                from_cache = jit.counters.compilations == compilations
            if options.train or options.loss:
                add_row("training", batch, _training(model, options, inputs))
    return {
        "model": options.model,
        "inputs": [str(spec) for spec in options.inputs],
        "cpu": probe.cpu_model(),
        "isa": isa_name(host()),
        "threads": thread_facts()["used"],
        "compile_ms": sum(phases.values()),
        "compile_phases_ms": phases,
        "from_cache": from_cache,
        "fallbacks": compiled.fallbacks,
        "rows": rows,
    }


def _training(model: Module, options: argparse.Namespace, inputs: Sequence[Tensor]) -> Comparison:
    """Training steps of two copies of a model."""
    from .. import frontend
    from ..bridge.compile import compile as compile_model
    from .compare import compare_training

    loss = options.loss or losses.DEFAULT
    recipe = RECIPES[options.optimizer or "sgd"]
    criterion = losses.make_loss(loss)
    target = losses.make_target(loss, model(*inputs))
    eager_model, compiled_model = (copy.deepcopy(model).train() for _ in range(2))
    if not list(model.parameters()):
        raise Failure("--train: the model has no parameters to train")
    optimizers = [recipe.make(frontend, m.parameters()) for m in (eager_model, compiled_model)]
    step = compile_model(compiled_model, loss=criterion, optimizer=optimizers[1])

    def eager() -> Tensor:
        optimizers[0].zero_grad()
        found: Tensor = criterion(eager_model(*inputs), target)
        found.backward()
        optimizers[0].step()
        return found

    return compare_training(eager, step, [*inputs, target], options.seconds)


def report(result: dict[str, Any]) -> str:
    """The result for people."""
    phases = ", ".join(f"{k} {v:.1f}" for k, v in result["compile_phases_ms"].items())
    origin = "object code from the cache" if result["from_cache"] else "compiled now"
    lines = [
        f"{result['model']}  input {', '.join(result['inputs'])}",
        f"{result['cpu']}, {result['isa']}, {result['threads']} threads",
        f"compilation {result['compile_ms']:.1f} ms ({phases}); {origin}",
    ]
    if result["fallbacks"]:
        lines.append(f"{result['fallbacks']} operators run through numpy (no native kernel yet)")
    rows: list[tuple[str, ...]] = [_HEADER]
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
                f"{row['first_call_ms']:.1f} ms",
                "never" if calls is None else f"{calls} calls",
            )
        )
    table = aligned(rows, right=range(1, len(_HEADER)))
    largest = max(row["difference"] for row in result["rows"])
    return "\n".join([*lines, "", table, "", f"largest relative difference {largest:.1e}"])
