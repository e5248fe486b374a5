"""Timing of alternatives: interleaved, so that a slow phase of the machine hits all of them."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_MIN_ROUNDS = 5
_WARM_UP_CALLS = 3
_ROUND_SECONDS = 0.1
# numpy's BLAS threads keep spinning for some 30 ms after a product; without a pause the next call
# to be timed would share its cores with them.
_PAUSE_SECONDS = 0.06
_MAX_SECONDS = 3600


def add_argument(
    parser: argparse.ArgumentParser, default: float, each: str = "each comparison"
) -> None:
    """``--seconds``."""
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=default,
        help=f"time spent on {each} (default: {default:g})",
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= _MAX_SECONDS:
        raise argparse.ArgumentTypeError(
            f"expected a number of seconds above 0 and up to {_MAX_SECONDS}; got {text!r}"
        )
    return value


@dataclass(frozen=True)
class Times:
    """Milliseconds per call: quartiles, 90th percentile and minimum of ``calls`` calls."""

    median: float
    q1: float
    q3: float
    p90: float
    minimum: float
    calls: int

    def as_json(self) -> dict[str, float]:
        """The keys that ``--json`` documents."""
        return {
            "median_ms": self.median,
            "q1_ms": self.q1,
            "q3_ms": self.q3,
            "p90_ms": self.p90,
            "min_ms": self.minimum,
            "calls": self.calls,
        }


def interleave(calls: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, Times]:
    """Times several calls in turn for about ``seconds`` together, each at least five times.

    A turn repeats a call for about a tenth of a second, but not longer than its share.
    """
    turn = min(_ROUND_SECONDS, seconds / len(calls) / _MIN_ROUNDS)
    repeats = {}
    for name, call in calls.items():
        for _ in range(_WARM_UP_CALLS):
            call()
        repeats[name] = max(1, int(turn / max(_once(call), 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < _MIN_ROUNDS or time.perf_counter() < end:
        rounds += 1
        for name, call in calls.items():
            time.sleep(_PAUSE_SECONDS)
            call()
            samples[name] += [_once(call) for _ in range(repeats[name])]
    return {name: _summary(found) for name, found in samples.items()}


def _once(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _summary(seconds: list[float]) -> Times:
    ms = [s * 1e3 for s in seconds]
    p90 = statistics.quantiles(ms, n=10, method="inclusive")[-1]
    q1, median, q3 = statistics.quantiles(ms, n=4, method="inclusive")
    return Times(median, q1, q3, p90, min(ms), len(ms))
