"""compile(): the public entry, in its three forms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
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
    checkpoint: Sequence[str] = (),
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
    checkpoint: Sequence[str] = (),
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
    checkpoint: Sequence[str] = (),
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
    checkpoint: modules, by path or pattern (``["layers.*"]``), of which training keeps only what
    goes in and what comes out; the backward pass computes what is inside again, in less memory.
    Raises TypeError for something else than a module, and for options of a step without a loss;
    ValueError for unknown passes, accuracies or modules, and for numbers out of range.
    """
    if not isinstance(model, Module):
        raise TypeError(f"compile(): expected an nn.Module, got {_instead_of_a_module(model)}")
    if passes is not None and not isinstance(passes, Mapping):
        raise TypeError(
            "compile(): passes must be a dict of names and switches, such as "
            f'{{"fuse_conv_bn_relu": False}}; got {type(passes).__name__}'
        )
    if isinstance(model, CompiledModule):
        model = model._model
    blocks = _modules(model, checkpoint)
    options = Options(strict, dynamic, tune, accuracy, dict(passes or {}), blocks)
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
    return CompiledStep(
        model,
        _checked_loss(loss),
        _checked_optimizer(optimizer),
        options,
        accumulate,
        clip_grad_norm,
        clip_grad_value,
    )


def _checked_loss(loss: object) -> Callable[..., Any]:
    if isinstance(loss, type):
        raise TypeError(
            f"compile(): loss is the class {loss.__name__}; make one: loss={loss.__name__}()"
        )
    if not callable(loss):
        hint = "; for several losses, write a function that adds them"
        several = isinstance(loss, (list, tuple, dict))
        raise TypeError(
            "compile(): loss must be a module or a function f(output, target), got "
            f"{type(loss).__name__}{hint if several else ''}"
        )
    return loss


def _checked_optimizer(optimizer: object) -> Optimizer:
    if not isinstance(optimizer, Optimizer):
        if isinstance(optimizer, type):
            name = optimizer.__name__
            got = f"the class {name}; make one: optimizer={name}(model.parameters())"
        else:
            got = type(optimizer).__name__
        raise TypeError(f"compile(): optimizer must be a netwright.optim.Optimizer, got {got}")
    return optimizer


def _instead_of_a_module(value: object) -> str:
    """What somebody gave to ``compile`` in the place of a module, and the fix."""
    if isinstance(value, type):
        return f"the class {value.__name__}; make one: {value.__name__}(...)"
    name = type(value).__name__
    if any(kind.__module__.split(".")[0] == "torch" for kind in type(value).__mro__):
        return f"{name} of PyTorch; build the model with netwright.nn and load its state_dict"
    return f"{name}; wrap a function in a module whose forward() calls it"


def _modules(model: Module, checkpoint: Sequence[str]) -> tuple[str, ...]:
    """The paths of the modules that ``checkpoint`` names."""
    several = isinstance(checkpoint, Iterable) and not isinstance(checkpoint, str)
    if not several or not all(isinstance(c, str) for c in checkpoint):
        raise TypeError(
            "compile(): checkpoint must be a list of module paths or patterns, such as "
            f"['layers.*']; got {checkpoint!r}"
        )
    paths = [path for path, _ in model.named_modules() if path]
    chosen: list[str] = []
    for pattern in checkpoint:
        found = [path for path in paths if fnmatchcase(path, pattern)]
        if not found:
            near = get_close_matches(pattern, paths, 1)
            hint = f"did you mean {near[0]!r}?" if near else "named_modules() lists the paths"
            raise ValueError(
                f"compile(): checkpoint={pattern!r} fits no module of "
                f"{type(model).__name__}; {hint}"
            )
        chosen += found
    return tuple(dict.fromkeys(chosen))
