"""Loss and accuracy in eval mode, over the batches of a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import numpy as np

from ..errors import ShapeError, TraceError
from ..frontend import dispatch
from ..frontend.nn.module import Module
from ..frontend.tensor import Tensor
from .call import Call
from .step_program import Loss

LOSS, CORRECT, COUNTED = "loss", "correct", "counted"


def evaluation_program(model: Module, loss: Loss) -> Callable[..., dict[str, Tensor]]:
    """``f(*inputs, target)``: the loss and, where the target is of class indices, how many of them
    the model finds, of how many that count (``ignore_index`` does not)."""

    def evaluation(*args: Any) -> dict[str, Tensor]:
        target = args[-1]
        output = model(*args[:-1])
        found = {LOSS: _scalar(loss(output, target))}
        if _is_classification(output, target):
            right = output.argmax(1) == target
            ignored = getattr(loss, "ignore_index", None)
            if ignored is not None:
                counts = target != ignored
                right = right & counts
                found[COUNTED] = counts.sum()
            found[CORRECT] = right.sum()
        return found

    return evaluation


def _scalar(loss: Any) -> Tensor:
    if not dispatch.is_tensor(loss):
        raise TraceError(f"the loss must return one tensor, it returned {type(loss).__name__}")
    if tuple(loss.shape):
        raise ShapeError(
            f"the loss must be a scalar, its shape is {list(loss.shape)}; use reduction='mean' or "
            "'sum'"
        )
    return cast(Tensor, loss)


def _is_classification(output: Any, target: Any) -> bool:
    if not (dispatch.is_tensor(output) and dispatch.is_tensor(target)):
        return False
    shape = tuple(output.shape)
    kind = target.dtype
    return (
        len(shape) >= 2
        and output.dtype.is_float
        and not kind.is_float
        and kind.np != np.bool_
        and tuple(target.shape) == (shape[0], *shape[2:])
    )


def mean_over_samples(
    batches: Iterable[Any], run: Callable[[Call], dict[str, Any]], loss: Loss
) -> dict[str, float]:
    """The means of what ``run`` gives for each batch, over all samples (or targets that count).

    A batch is a tuple or list of the model's inputs and the target. ValueError without samples,
    TypeError for something else than a batch.
    """
    summed = getattr(loss, "reduction", "mean") == "sum"
    total = weights = correct = answers = 0.0
    classified = True
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise TypeError(
                "evaluate(): a batch must be a tuple (*inputs, target), as a DataLoader over "
                f"pairs gives it; got {type(batch).__name__}"
            )
        call = Call(tuple(batch), {})
        samples = call.batch or 0
        found = {name: float(value) for name, value in run(call).items()}
        weight = found.get(COUNTED, float(samples))
        if weight:
            total += found[LOSS] * (1.0 if summed else weight)
            weights += weight
        classified = classified and CORRECT in found
        if classified:
            correct += found[CORRECT]
            answers += found.get(COUNTED, _targets(call))
    if not weights:
        raise ValueError("evaluate(): there are no samples to take the mean over")
    means = {"loss": total / weights}
    if classified:
        means["accuracy"] = correct / answers
    return means


def _targets(call: Call) -> int:
    target = call.args[-1]
    return int(target._array.size) if isinstance(target, Tensor) else 0
