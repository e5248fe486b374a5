"""``netwright lint``: likely mistakes in a model."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import losses, model_file, model_inputs
from .failure import FAILED, Misuse, user_code
from .model_inputs import InputSpec

if TYPE_CHECKING:
    from ..errors import LintWarning
    from ..frontend.nn.module import Module
    from ..frontend.tensor import Tensor

_GUESSED_BATCH = 4
_GUESSED_SIZES = (28, 32, 64, 224)


def add(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "lint",
        help="report likely mistakes in a model",
        description="Traces a model in training mode and reports likely mistakes, each with a "
        "stable code. Exit code 1 if there are any.",
    )
    model_file.add_argument(parser)
    model_inputs.add_argument(parser, required=False)
    losses.add_argument(parser, "also check the model together with this loss")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the warnings."""
    model, file = model_file.load_model(options.model)
    model.train()
    with user_code(options.model, file):
        specs = options.inputs or guess_inputs(model)
        found = lint_model(model, model_inputs.make_inputs(specs), options.loss)
    if options.json:
        result = {
            "model": options.model,
            "inputs": [str(spec) for spec in specs],
            "loss": options.loss,
            "warnings": [{"code": w.code, "message": w.message} for w in found],
        }
        print(json.dumps(result, indent=1))
    else:
        for warning in found:
            print(warning)
        if not found:
            print("no warnings" + ("" if options.loss else " (--loss checks the loss, too)"))
    return FAILED if found else 0


def lint_model(model: Module, inputs: list[Tensor], loss: str | None) -> list[LintWarning]:
    """All lints of a model's training program, with its loss if there is one."""
    from .. import compiler
    from ..passes.differentiate import GRAD, differentiate
    from ..passes.lint import lint, lint_gradients

    modules: dict[str, Module] = {"": model}
    arguments = list(inputs)
    program: Callable[..., Any] = model
    if loss is not None:
        criterion = modules["loss"] = losses.make_loss(loss)
        arguments.append(losses.make_target(loss, model(*inputs)))

        def with_loss(*args: Tensor) -> Any:
            return criterion(model(*args[:-1]), args[-1])

        program = with_loss

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reported below, in order
        made = compiler.capture(
            program, modules, tuple(arguments), {}, compiler.Options(), type(model).__name__, set()
        )
    graph = made.traced.graph
    trained = [path for path, p in model.named_parameters() if p.requires_grad]
    differentiated = differentiate(graph, trained, loss="out" if loss else None)
    reached = [name[len(GRAD) :] for name in differentiated.outputs if name.startswith(GRAD)]
    return [*lint(graph), *lint_gradients(graph, trained, reached)]


def guess_inputs(model: Module) -> list[InputSpec]:
    """One argument that fits the model's first layer; Misuse if the model does not accept it."""
    for spec in _guesses(model):
        try:
            model(*model_inputs.make_inputs([spec]))
        except (TypeError, ValueError, RuntimeError, IndexError):
            continue
        return [spec]
    raise Misuse(
        "the shape of the model's input is not clear from its first layer; say it with --input, "
        "such as --input 4x3x32x32"
    )


def _guesses(model: Module) -> list[InputSpec]:
    from ..frontend import nn
    from ..ir.types import int64

    for layer in model.modules():
        if isinstance(layer, nn.Embedding):
            return [InputSpec((_GUESSED_BATCH, 8), int64), InputSpec((_GUESSED_BATCH,), int64)]
        if isinstance(layer, nn.Linear):
            return [InputSpec((_GUESSED_BATCH, layer.in_features))]
        if isinstance(layer, nn.Conv1d):
            return [InputSpec((_GUESSED_BATCH, layer.in_channels, s)) for s in _GUESSED_SIZES]
        if isinstance(layer, nn.Conv2d):
            return [InputSpec((_GUESSED_BATCH, layer.in_channels, s, s)) for s in _GUESSED_SIZES]
    return []
