"""Compiled against eager: the results first, then the times."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .failure import Failure
from .timing import Times, interleave

if TYPE_CHECKING:
    from ..bridge.module import CompiledModule
    from ..bridge.step import CompiledStep
    from ..frontend.nn.module import Module
    from ..frontend.tensor import Tensor

TOLERANCE = 1e-4
"""Largest difference, relative to the largest magnitude of the eager result, that float32 sums of
another order explain in networks of the usual depth."""


@dataclass(frozen=True)
class Comparison:
    """Times of the two, the largest relative difference of their results, and the milliseconds of
    the first compiled call, which compiles."""

    eager: Times
    compiled: Times
    difference: float
    first_call: float

    @property
    def speedup(self) -> float:
        """How many times faster compiled is, of medians."""
        return self.eager.median / self.compiled.median

    def break_even_calls(self, extra_ms: float) -> int | None:
        """Calls after which ``extra_ms`` of compilation are regained; None if never."""
        gain = self.eager.median - self.compiled.median
        return math.ceil(extra_ms / gain) if gain > 0 else None

    def as_json(self) -> dict[str, Any]:
        """The keys that ``--json`` documents."""
        return {
            "eager": self.eager.as_json(),
            "compiled": self.compiled.as_json(),
            "speedup": self.speedup,
            "difference": self.difference,
        }


def compare_inference(
    model: Module, compiled: CompiledModule, inputs: Sequence[Tensor], seconds: float
) -> Comparison:
    """The forward pass in eval mode without gradients. Failure if the results differ."""
    from ..frontend.grad_mode import no_grad

    model.eval()
    with no_grad():
        expected = model(*inputs)
        start = time.perf_counter()
        got = compiled(*inputs)
        first_call = (time.perf_counter() - start) * 1e3
        difference = check_equal("outputs", expected, got)
        times = interleave(
            {"eager": lambda: model(*inputs), "compiled": lambda: compiled(*inputs)}, seconds
        )
    return Comparison(times["eager"], times["compiled"], difference, first_call)


def compare_training(
    eager: Callable[[], Tensor],
    step: CompiledStep,
    batch: Sequence[Tensor],
    seconds: float,
) -> Comparison:
    """Whole training steps of two equal models, ``eager()`` and ``step(*batch)``, each with its
    own optimizer. Failure if the losses of the first three steps differ."""
    from ..frontend.random import manual_seed

    difference = first_call = 0.0
    for seed in range(3):  # the same dropout masks for both
        manual_seed(seed)
        expected = eager()
        manual_seed(seed)
        start = time.perf_counter()
        got = step(*batch)
        first_call = first_call or (time.perf_counter() - start) * 1e3
        difference = max(difference, check_equal(f"losses of step {seed + 1}", expected, got))
    times = interleave({"eager": eager, "compiled": lambda: step(*batch)}, seconds)
    return Comparison(times["eager"], times["compiled"], difference, first_call)


def check_equal(what: str, expected: Any, got: Any) -> float:
    """The largest relative difference of two nests of tensors; Failure above TOLERANCE."""
    from ..frontend import tree
    from ..frontend.dispatch import is_tensor

    pairs = [tree.flatten(nest, is_tensor) for nest in (expected, got)]
    largest = 0.0
    for (path, a), (_, b) in zip(*pairs, strict=True):
        difference = relative_difference(a.detach().numpy(), b.detach().numpy())
        if not difference <= TOLERANCE:
            at = f" {path!r}" if path else ""
            raise Failure(
                f"compiled and eager {what}{at} differ by {difference:.2g} of their largest value "
                f"(allowed: {TOLERANCE:g}), so nothing was timed. Please report this as a bug; "
                "compile(passes={...: False}) narrows it down"
            )
        largest = max(largest, difference)
    return largest


def relative_difference(expected: np.ndarray, got: np.ndarray) -> float:
    """max |got - expected| / max(|expected|, 1); infinite if non-finite values disagree."""
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return math.inf
    if not expected.size:
        return 0.0
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(expected, got) else math.inf
    finite = np.isfinite(expected)
    if not np.array_equal(expected[~finite], got[~finite], equal_nan=True):
        return math.inf
    if not finite.any():
        return 0.0
    a, b = (array[finite].astype(np.float64) for array in (expected, got))
    return float(np.abs(a - b).max() / max(np.abs(a).max(), 1.0))
