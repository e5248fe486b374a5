"""What a step does with gradients, as attributes that may change between calls."""

from __future__ import annotations

import numpy as np

from ..compiler import Clip
from ..passes.clip_gradients import MAX_NORM, MAX_VALUE


class StepSettings:
    """accumulate: an update follows every so many calls; gradients are those of the mean of their
    losses. clip_grad_norm, clip_grad_value: limits of the gradients' global norm and of their
    elements, None for no limit. gradient_scale: a further factor of the loss, for those who sum
    the gradients of several processes.

    Another number compiles nothing; turning a limit on or off does. Raises ValueError for an
    ``accumulate`` below 1, negative limits and NaN.
    """

    def __init__(
        self, accumulate: int, clip_grad_norm: float | None, clip_grad_value: float | None
    ) -> None:
        self.gradient_scale = 1.0
        self.accumulate = accumulate
        self.clip_grad_norm = clip_grad_norm
        self.clip_grad_value = clip_grad_value

    @property
    def accumulate(self) -> int:
        """Calls per update."""
        return self._accumulate

    @accumulate.setter
    def accumulate(self, calls: int) -> None:
        whole = isinstance(calls, (int, np.integer)) and not isinstance(calls, bool)
        if not whole or calls < 1:
            raise ValueError(
                f"accumulate={calls!r}: expected the number of calls per update, at least 1"
            )
        self._accumulate = int(calls)

    @property
    def clip_grad_norm(self) -> float | None:
        """The largest global norm, or None."""
        return self._clip_grad_norm

    @clip_grad_norm.setter
    def clip_grad_norm(self, limit: float | None) -> None:
        self._clip_grad_norm = _limit("clip_grad_norm", limit)
        self._describe()

    @property
    def clip_grad_value(self) -> float | None:
        """The largest magnitude of an element, or None."""
        return self._clip_grad_value

    @clip_grad_value.setter
    def clip_grad_value(self, limit: float | None) -> None:
        self._clip_grad_value = _limit("clip_grad_value", limit)
        self._describe()

    @property
    def in_halves(self) -> bool:
        """Whether a call is more or less than one pass and its update."""
        return self._accumulate != 1 or self.gradient_scale != 1.0

    _clip_grad_norm: float | None = None
    _clip_grad_value: float | None = None

    def _describe(self) -> None:
        limits = {MAX_NORM: self._clip_grad_norm, MAX_VALUE: self._clip_grad_value}
        self.limits = {path: limit for path, limit in limits.items() if limit is not None}
        self.clip = Clip(MAX_NORM in self.limits, MAX_VALUE in self.limits)


def _limit(name: str, limit: float | None) -> float | None:
    if limit is None:
        return None
    message = f"{name}={limit!r}: expected a number that is not negative, or None"
    try:
        number = float(limit)
    except (TypeError, ValueError) as error:
        raise ValueError(message) from error
    if not number >= 0:
        raise ValueError(message)
    return number
