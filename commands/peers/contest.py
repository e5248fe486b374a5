"""One model, one input, one number of threads: every runtime's outputs, then every one's times."""

from __future__ import annotations

import gc
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..compare import TOLERANCE
from ..failure import Failure
from ..timing import interleave
from .peer import PEERS, Peer, Ready

if TYPE_CHECKING:
    from ...bridge.module import CompiledModule
    from ...frontend.tensor import Tensor
    from ...frontend.trace import Traced

NETWRIGHT = "netwright"
_REASON_LENGTH = 240


class Say(Protocol):
    """Is told what happens: step ``step`` of ``total``, and a text for it."""

    def __call__(self, step: int, total: int, text: str) -> None: ...


def contest(
    compiled: CompiledModule,
    inputs: Sequence[Tensor],
    peers: Sequence[str],
    threads: int,
    seconds: float,
    say: Say,
) -> dict[str, Any]:
    """Compares outputs with a reference, then times all that agree, interleaved for ``seconds``.

    Returns a row as docs/cli.md describes it. A peer that raises, or whose outputs are wrong, is
    ``failed`` with the reason; peers that are not installed are left out. Failure if netwright's
    own outputs are wrong: nothing is timed then.
    """
    from ...frontend import trace as tracing
    from ...ir.report import flops

    taking_part = [name for name in peers if PEERS[name].version() is not None]
    model = compiled._model.eval()
    # Traced for exactly this batch: the peers may use that it is fixed.
    traced = tracing.trace(model, {"": model}, tuple(inputs), {}, False, type(model).__name__)
    arrays = [np.ascontiguousarray(t.detach().numpy()) for t in inputs]
    say(0, len(taking_part) + 3, "reference")
    origin, expected = _reference(traced, arrays, compiled, inputs)

    def judge(got: Sequence[np.ndarray]) -> dict[str, float]:
        error = relative_error(expected, got)
        if not error <= TOLERANCE:
            raise Wrong(
                f"outputs differ from the reference by {error:.2g} of the largest "
                f"value (allowed: {TOLERANCE:g})"
            )
        return {"error": error}

    contenders: dict[str, Callable[[], Ready]] = {NETWRIGHT: lambda: _netwright(compiled, inputs)}
    for name in taking_part:
        contenders[name] = _peer(name, traced, arrays, threads)
    found = compete(contenders, judge, threads, seconds, say)
    return {
        "threads": threads,
        "gflop": flops(traced.graph) / 1e9,
        "reference": origin,
        **found,
    }


class Wrong(Exception):
    """The results of a contender are not those of the reference."""


def compete(
    contenders: Mapping[str, Callable[[], Ready]],
    judge: Callable[[Sequence[np.ndarray]], dict[str, float]],
    threads: int,
    seconds: float,
    say: Say,
    peers: Mapping[str, Peer] = PEERS,
) -> dict[str, Any]:
    """Makes contenders ready, netwright first, and times those that ``judge`` finds right,
    interleaved for ``seconds``.

    contenders: by name, what makes one ready (its time is the set-up time). judge: takes the
    result of a call as arrays, returns what is to be written down about its errors, or raises
    Wrong. A peer that raises or is wrong is ``failed`` with the reason. Failure if netwright is:
    nothing is timed then. Returns the part of a row that contenders and times make up.
    """
    from ...runtime import probe, settings

    total = len(contenders) + 2
    results: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], Any]] = {}
    with settings.threads(threads):
        for step, (name, prepare) in enumerate(contenders.items(), start=1):
            ours = name == NETWRIGHT
            say(step, total, name if ours else f"{peers[name].title} is made ready")
            ready, results[name] = _prepared(prepare, judge)
            if ready is not None:
                calls[name] = ready.call
            elif ours:
                raise Failure(f"netwright: {results[name]['failed']}, so nothing was timed")
        before = probe.peak_gflops(threads)
        times = interleave(
            calls, seconds, lambda share: say(total - 1, total, f"timing, {share:.0%}")
        )
        after = probe.peak_gflops(threads)
    for name, found_times in times.items():
        results[name].update(found_times.as_json())
    calls.clear()
    gc.collect()  # sessions hold threads and copies of the weights
    return {
        "peak_gflops": {"before": before, "after": after},
        NETWRIGHT: results.pop(NETWRIGHT),
        "peers": results,
        **_fastest({name: t.median for name, t in times.items()}),
    }


def _reference(
    traced: Traced, arrays: list[np.ndarray], compiled: CompiledModule, inputs: Sequence[Tensor]
) -> tuple[str, list[np.ndarray]]:
    """What the outputs are compared with, and what computed it."""
    from ...frontend.grad_mode import no_grad

    if PEERS["torch"].version() is not None:
        from .pytorch import reference

        return "PyTorch in float64", reference(traced, arrays)
    with no_grad():
        return "eager (numpy)", _leaves(compiled._model(*inputs))


def _leaves(result: Any) -> list[np.ndarray]:
    """The arrays in what a model returned, in order."""
    from ...frontend import tree
    from ...frontend.dispatch import is_tensor

    return [t.detach().numpy() for _, t in tree.flatten(result, is_tensor)]


def _netwright(compiled: CompiledModule, inputs: Sequence[Tensor]) -> Ready:
    from ...frontend.grad_mode import no_grad

    def call() -> Any:
        with no_grad():
            return compiled(*inputs)

    call()
    return Ready(call, _leaves)


def _peer(name: str, traced: Traced, arrays: list[np.ndarray], threads: int) -> Callable[[], Ready]:
    return lambda: PEERS[name].prepare()(traced, arrays, threads)


def _prepared(
    prepare: Callable[[], Ready], judge: Callable[[Sequence[np.ndarray]], dict[str, float]]
) -> tuple[Ready | None, dict[str, Any]]:
    """A runtime that is ready and right, its set-up time and errors; or why there is none."""
    start = time.perf_counter()
    try:
        ready = prepare()
        set_up = time.perf_counter() - start
        return ready, {"set_up_s": set_up, **judge(ready.arrays(ready.call()))}
    except Wrong as error:
        return None, {"failed": str(error)}
    except Exception as error:  # whatever a peer raises is what the row shows
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return None, {"failed": textwrap.shorten(text, _REASON_LENGTH, placeholder=" ...")}


def relative_error(expected: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> float:
    """The largest over the outputs of max |got - expected| / max |expected|; infinite for other
    shapes or counts, and where one of the two is not a number."""
    if len(expected) != len(got):
        return float("inf")
    largest = 0.0
    for a, b in zip(expected, got, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if not a.size:
            continue
        distance = float(np.abs(a.astype(np.float64) - b).max())
        scale = float(np.abs(a.astype(np.float64)).max())
        found = distance / scale if scale else distance
        largest = max(largest, found if np.isfinite(found) else float("inf"))
    return largest


def _fastest(medians: dict[str, float]) -> dict[str, Any]:
    """The fastest peer, and how many times longer it takes than netwright."""
    ours = medians.pop(NETWRIGHT)
    if not medians:
        return {"fastest_peer": None, "ratio": None}
    name = min(medians, key=medians.__getitem__)
    return {"fastest_peer": name, "ratio": medians[name] / ours}
