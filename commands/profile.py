"""``netwright profile``: how long each kernel of a model takes."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from . import model_file, model_inputs, timing
from .failure import require_compiler, user_code

if TYPE_CHECKING:
    from ..bridge.profile import Profile

SORTS = ("order", "ms", "gflops", "gbs", "of_limit", "kernel")


def add(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "profile",
        help="time every kernel of a compiled model",
        description="Compiles a model and prints a row for each kernel of its program: time, rates "
        "and how close it comes to what this machine can do.",
    )
    model_file.add_argument(parser)
    model_inputs.add_argument(parser)
    model_inputs.add_batches_argument(parser)
    parser.add_argument(
        "--train", action="store_true", help="the model in train mode: forward and backward"
    )
    parser.add_argument(
        "--sort", choices=SORTS, default="order", help="order of the rows (default: as they run)"
    )
    timing.add_argument(parser, 2.0, "each batch size")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measures and prints."""
    from ..codegen.target import host
    from ..runtime import probe
    from .machine import isa_name

    require_compiler()
    profiles = [p.sorted(options.sort) for p in measure(options)]
    cpu, isa = probe.cpu_model(), isa_name(host())
    if options.json:
        found = {
            "model": options.model,
            "inputs": [str(spec) for spec in options.inputs],
            "cpu": cpu,
            "isa": isa,
            "profiles": [p.as_json() for p in profiles],
        }
        print(json.dumps(found, indent=1))
    else:
        print("\n\n".join([f"{cpu}, {isa}", *map(str, profiles)]))
    return 0


def measure(options: argparse.Namespace) -> list[Profile]:
    """A profile for each batch size."""
    from ..bridge.compile import compile as compile_model
    from ..frontend.grad_mode import set_grad_enabled

    model, file = model_file.load_model(options.model)
    compiled = compile_model(model.train(options.train))
    profiles = []
    with user_code(options.model, file), set_grad_enabled(options.train):
        for batch in options.batches or [model_inputs.batch_of(options.inputs)]:
            inputs = model_inputs.make_inputs(model_inputs.with_batch(options.inputs, batch))
            profiles.append(compiled.profile(*inputs, seconds=options.seconds))
    return profiles
