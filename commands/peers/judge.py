"""Whether a framework's first training step is right: compared with a float64 reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .contest import Wrong
from .training import Training

EPS = float(np.finfo(np.float32).eps)
ROUNDING = 1e-4
"""Relative error of loss, running statistics and updates that float32 explains: some hundred
roundings."""
TIMES_YARDSTICK = 4.0
"""How far gradients may be from float64, in errors of the yardstick. More than rounding is at work:
where a ReLU's input rounds to the other side of 0, a share of a gradient comes or goes, and which
of them do differs between two right programs. Over the parameters of a network that averages out,
but for a factor of about this size."""
SMALL = 1e-3
"""A gradient that is 0 but for rounding, as that of a bias in front of BatchNorm, is measured by
this share of the network's root mean square gradient in place of its own size. So are running
statistics: behind a BatchNorm, a convolution's results have the mean 0."""

TINY = 1e-12
"""In place of a size that is 0."""


class Judge:
    """Compares the arrays of ``training.results`` with float64.

    make: the training of the reference, new at each call, in float64 or, as the yardstick, in
    float32; origin: what the reference is. The error of the gradients is the root mean square over
    the parameters of the norm of the error relative to the norm of the gradient. The update is
    judged by itself: the new weights are compared with what the reference's optimizer makes of the
    contender's own gradients. (Adam's first update is the learning rate with the gradient's sign:
    where that is rounding, the weights of two right programs differ by twice the learning rate.)
    """

    def __init__(self, make: Callable[[bool], Training], origin: str) -> None:
        self._make, self.origin = make, origin
        wide = make(True)
        named = dict(wide.model.named_parameters())
        self._parameters = [name for name in wide.start.state if name in named]
        self._exact = wide.found(wide.eager_step())
        narrow = make(False)
        self.yardstick = self._gradient_error(narrow.found(narrow.eager_step()))

    def __call__(self, got: Sequence[np.ndarray]) -> dict[str, float]:
        """Errors to be written down; Wrong if one is too large."""
        if [a.shape for a in got] != [a.shape for a in self._exact]:
            raise Wrong("the shapes of weights or buffers differ from those of the reference")
        count = 2 * len(self._parameters) + 1
        errors = {
            "error": self._gradient_error(got),
            "loss_error": _relative(got[0], self._exact[0]),
            "update_error": self._update_error(got),
            "buffer_error": self._buffer_error(got[count:], self._exact[count:]),
        }
        limits = dict.fromkeys(errors, ROUNDING)
        limits["error"] = max(ROUNDING, TIMES_YARDSTICK * self.yardstick)
        what = {"error": "gradients", "loss_error": "loss", "update_error": "new weights"}
        for name, error in errors.items():
            if not error <= limits[name]:
                raise Wrong(
                    f"{what.get(name, 'running statistics')} differ from the reference by "
                    f"{error:.2g} (allowed: {limits[name]:.2g})"
                )
        return errors

    def _gradient_error(self, got: Sequence[np.ndarray]) -> float:
        pairs = [(got[2 * i + 1], self._exact[2 * i + 1]) for i in range(len(self._parameters))]
        mean = np.sqrt(sum((g**2).sum() for _, g in pairs) / sum(g.size for _, g in pairs))
        shares = [
            np.linalg.norm(a - g) / max(np.linalg.norm(g), SMALL * mean * np.sqrt(g.size))
            for a, g in pairs
        ]
        return float(np.sqrt(np.mean(np.square(shares))))

    def _buffer_error(self, got: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> float:
        """The largest over the buffers of the norm of the error relative to the norm."""
        size = sum(b.size for b in exact)
        mean = np.sqrt(sum(float((b**2).sum()) for b in exact) / max(size, 1))
        errors = []
        for a, b in zip(got, exact, strict=True):
            unit = max(np.linalg.norm(b), SMALL * mean * np.sqrt(b.size), TINY)
            errors.append(float(np.linalg.norm(a - b) / unit))
        return max((e if np.isfinite(e) else np.inf for e in errors), default=0.0)

    def _update_error(self, got: Sequence[np.ndarray]) -> float:
        """The largest over the parameters of the norm of the error of a weight's change, less
        what rounding the weight itself explains, relative to the norm of the change."""
        wide = self._make(True)
        named = dict(wide.model.named_parameters())
        parameters = [named[name] for name in self._parameters]
        for i, parameter in enumerate(parameters):
            if parameter.requires_grad:
                parameter.grad = wide.library.from_numpy(got[2 * i + 1].copy())
        wide.optimizer.step()
        largest = 0.0
        for i, (name, parameter) in enumerate(zip(self._parameters, parameters, strict=True)):
            before = wide.start.state[name].astype(np.float64)
            expected, found = parameter.detach().numpy(), got[2 * i + 2]
            rounding = EPS * np.linalg.norm(np.maximum(abs(before), abs(expected)))
            error = np.linalg.norm(found - expected) - rounding
            change = np.linalg.norm(expected - before)
            if not error <= 0:  # also where it is not a number
                largest = max(largest, float(error / change) if change else np.inf)
        return largest


def _relative(got: np.ndarray, exact: np.ndarray) -> float:
    found = float(np.linalg.norm(got - exact) / max(float(np.linalg.norm(exact)), TINY))
    return found if np.isfinite(found) else float("inf")
