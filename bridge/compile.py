"""compile(): the public entry, in its three forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, overload

from ..compiler import Options
from ..frontend.nn.module import Module
from ..frontend.optim.optimizer import Optimizer
from .module import CompiledModule
from .step import CompiledStep


@overload
def compile(
    model: Module,
    *,
    strict: bool = False,
    dynamic: bool = True,
    tune: bool = False,
    accuracy: str = "standard",
    passes: Mapping[str, bool] | None = None,
) -> CompiledModule: ...


@overload
def compile(
    model: Module,
    *,
    loss: Callable[..., Any],
    optimizer: Optimizer,
    accumulate: int = 1,
    clip_grad_norm: float | None = None,
    clip_grad_value: float | None = None,
    strict: bool = False,
    dynamic: bool = True,
    tune: bool = False,
    accuracy: str = "standard",
    passes: Mapping[str, bool] | None = None,
) -> CompiledStep: ...


def compile(
    model: Module,
    *,
    loss: Callable[..., Any] | None = None,
    optimizer: Optimizer | None = None,
    accumulate: int = 1,
    clip_grad_norm: float | None = None,
    clip_grad_value: float | None = None,
    strict: bool = False,
    dynamic: bool = True,
    tune: bool = False,
    accuracy: str = "standard",
    passes: Mapping[str, bool] | None = None,
) -> CompiledModule | CompiledStep:
    """A compiled form of ``model``; compilation happens at the first call of each kind.

    Without ``loss``: a module with the same parameters and state_dict, for inference and for
    training under autograd. With ``loss`` (a module or ``f(output, target)``) and ``optimizer``:
    ``step(x, target)``, one native call for forward, backward and update.

    accumulate: an update follows every so many calls of a step, from the gradients of the mean of
    their losses. clip_grad_norm, clip_grad_value: limits of the gradients' norm (over all that the
    step trains) and of their elements, applied before the update. These three are attributes of
    the step as well and may change between calls.
    strict: never change the program's meaning (keeps a softmax before CrossEntropyLoss).
    dynamic: the leading dimension is symbolic, so another batch size compiles nothing.
    tune: times the few ways to compute each layer on this machine, at the first call's batch size,
    and remembers the winners on disk; the first call takes seconds.
    accuracy: ``"relaxed"`` allows algorithms whose rounding errors are some ten times larger
    (Winograd's F(4x4, 3x3)); the relative error of a network stays around 1e-5.
    passes: switches passes off by name, ``{"fuse_conv_bn_relu": False}``.
    Raises TypeError for something else than a module, and for options of a step without a loss;
    ValueError for unknown passes or accuracies, and for numbers out of range.
    """
    if not isinstance(model, Module):
        raise TypeError(
            f"compile(): expected an nn.Module, got {type(model).__name__}; wrap a function in a "
            "module whose forward() calls it"
        )
    if isinstance(model, CompiledModule):
        model = model._model
    options = Options(strict, dynamic, tune, accuracy, dict(passes or {}))
    if (loss is None) != (optimizer is None):
        missing = "optimizer" if optimizer is None else "loss"
        raise TypeError(
            f"compile(): a training step needs loss and optimizer; {missing} is missing"
        )
    if loss is None or optimizer is None:
        if (accumulate, clip_grad_norm, clip_grad_value) != (1, None, None):
            raise TypeError(
                "compile(): accumulate, clip_grad_norm and clip_grad_value are options of a "
                "training step; give loss and optimizer, too"
            )
        return CompiledModule(model, options)
    if not callable(loss):
        raise TypeError(f"compile(): loss must be callable, got {type(loss).__name__}")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"compile(): optimizer must be a netwright.optim.Optimizer, got "
            f"{type(optimizer).__name__}"
        )
    return CompiledStep(
        model, loss, optimizer, options, accumulate, clip_grad_norm, clip_grad_value
    )
