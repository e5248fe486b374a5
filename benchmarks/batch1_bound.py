"""How fast one sample can be: a call of a small network beside the least that it must take.

    python benchmarks/batch1_bound.py                     # both models, 1 and 2 threads
    python benchmarks/batch1_bound.py --threads 2 --seconds 10

A sample uses each weight of a linear layer once, so the least is the time of

- reading these weights once, from where they are when the same ones were read in the call before:
  a loop of nothing but vector loads, each thread over its own part, in the faster of two orders
  (always from the front; back and forth, which finds the last part in the cache again);
- the multiply-adds of the convolutions at the FMA peak probed in the same row;
- a call of a compiled model that computes next to nothing.

Nothing in it is for handing out work, for waiting between layers, or for the other operators.
Beside it stand netwright's call and those of the peers, interleaved. Writes
results/batch1_bound.json.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import netwright as nw
from netwright import nn
from netwright.codegen.llvm import module_text
from netwright.codegen.sharing import close_entry, entry_function, shared
from netwright.codegen.spmd import declarations, sharing_ir
from netwright.codegen.target import Target, host
from netwright.commands.peers.command import parse_peers
from netwright.commands.peers.contest import Say, contest
from netwright.commands.peers.peer import versions
from netwright.commands.text import counts
from netwright.commands.timing import interleave
from netwright.runtime import jit, pool, settings
from netwright.runtime.memory import address, allocate

sys.path.insert(0, str(Path(__file__).resolve().parent))

from environment import environment
from peers import MODELS, RESULTS, Model, prepared
from rows import Rows, label, measure_row

NAMES = ("MLP 784-392-196-10, BatchNorm", "CNN, BatchNorm")
LOADS, SUMS = 16, 8
"""Loads in a row, and the independent sums that hide the latency of an addition."""
REPEATS = 100
"""Passes over the weights in a native call, beside which the call itself is nothing."""
ORDERS = ("from the front", "back and forth")


def reading_ir(target: Target) -> str:
    """An entry per order that reads each thread's part N times; args = {buffer, blocks a part}."""
    vector, texts, needed = f"<{target.vector_bytes // 4} x float>", [], declarations(target.triple)
    for number in range(len(ORDERS)):
        f = entry_function(f"read{number}")
        with shared(f, "%nthreads") as (begin, end), f.loop(end, start=begin) as part:
            buffer = f.load("ptr", "%args", 8)
            blocks = f.load("i64", f.element("%args", "i64", 1), 8)
            first = f.emit(f"mul i64 {part.index}, {blocks}")
            last = f.emit(f"sub i64 {blocks}, 1")
            start = [(vector, f.splat(vector, str(float(k)))) for k in range(SUMS)]
            with f.loop("%N", carry=start) as turn:
                back = f.emit(f"trunc i64 {turn.index} to i1")
                with f.loop(blocks, carry=[(vector, s) for s in turn.carried]) as loop:
                    place = loop.index
                    if number:
                        reverse = f.emit(f"sub i64 {last}, {place}")
                        place = f.emit(f"select i1 {back}, i64 {reverse}, i64 {place}")
                    block = f.emit(f"mul i64 {f.emit(f'add i64 {first}, {place}')}, {LOADS}")
                    here, sums = f.element(buffer, vector, block), list(loop.carried)
                    for k in range(LOADS):
                        value = f.load(vector, f.element(here, vector, k), 4)
                        sums[k % SUMS] = f.emit(f"fadd {vector} {sums[k % SUMS]}, {value}")
                    loop.next = sums
                turn.next = loop.results
            total = turn.results[0]
            for other in turn.results[1:]:
                total = f.emit(f"fadd {vector} {total}, {other}")
            line = f.emit(f"add i64 {part.index}, 1")  # the sum must be used
            result = f.emit(f"extractelement {vector} {total}, i64 0")
            f.store("float", result, f.element("%args", "[16 x float]", line), 4)
        texts.append(close_entry(f))
        needed |= f.declarations
    return module_text([sharing_ir(target.triple), *texts], needed)


def readers(size: int, threads: int) -> dict[str, Callable[[], object]]:
    """By order, a call that reads ``size`` bytes REPEATS times with so many threads."""
    target = host()
    library = jit.load(reading_ir(target), target, {"kind": "reading"})
    unit = LOADS * target.vector_bytes
    blocks = -(-size // (unit * threads))
    weights = allocate(max(blocks * threads * unit, 2 << 20))  # in huge pages, as a program's are
    weights.fill(0)
    args = allocate(64 * (threads + 1))
    ctypes.c_void_p.from_address(address(args)).value = address(weights)
    ctypes.c_int64.from_address(address(args) + 8).value = blocks

    def read(number: int, kept: object = (library, weights)) -> None:
        pool.run(library.address(f"read{number}"), address(args), REPEATS, threads)

    return {order: partial(read, k) for k, order in enumerate(ORDERS)}


def least(model: nn.Module, gflop: float, peak: float, threads: int, seconds: float) -> Any:
    """The parts of the least time, in microseconds, and what they were computed from."""
    linear = [m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)]
    empty = nw.compile(nn.Linear(1, 1).eval())
    x = nw.ones(1, 1)
    with settings.threads(threads), nw.no_grad():
        calls = {"empty": lambda: empty(x), **readers(4 * sum(linear), threads)}
        times = interleave(calls, seconds)
    reading = {order: times[order].median * 1e3 / REPEATS for order in ORDERS}
    convolutions = gflop * 1e9 - 2 * sum(linear)
    parts = {
        "reading": min(reading.values()),
        "convolutions": convolutions / (peak * 1e3),
        "empty_call": times["empty"].median * 1e3,
    }
    return {
        "us": sum(parts.values()),
        "parts_us": parts,
        "reading_us": reading,
        "weight_bytes": 4 * sum(linear),
        "convolution_flop": convolutions,
    }


def measure(entry: Model, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row: that of peers.py, and ``least``."""
    nw.manual_seed(0)
    model = prepared(entry.make(), entry.shape)
    compiled, x = nw.compile(model), nw.randn(1, *entry.shape)

    def go(say: Say) -> dict[str, Any]:
        row = contest(compiled, [x], options.peers, threads, options.seconds, say)
        peak = max(row["peak_gflops"].values())
        say(0, 1, "the least time")
        row["least"] = least(model, row["gflop"], peak, threads, options.seconds / 2)
        return row

    return measure_row(label(entry.name, 1), threads, go)


def report(row: dict[str, Any]) -> str:
    """A line of text: netwright's call, the least, and what is left for a factor of two."""
    ours, bound = row["netwright"]["median_ms"] * 1e3, row["least"]
    parts = ", ".join(f"{name} {us:.1f}" for name, us in bound["parts_us"].items())
    text = f"  netwright {ours:.1f} us, least {bound['us']:.1f} us ({parts})"
    if row["fastest_peer"] is None:
        return text
    peer = ours * row["ratio"]
    possible = f"{peer / bound['us']:.2f}x at the least time"
    return f"{text}; fastest peer {peer:.1f} us: {row['ratio']:.2f}x, {possible}"


def main() -> int:
    """Measures what is missing; 1 if netwright failed in a row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=counts, default=[1, 2], help="default: 1,2")
    parser.add_argument("--seconds", type=float, default=6.0, help="time per row (default: 6)")
    parser.add_argument("--peers", type=parse_peers, default=["ort"], help="default: ort")
    parser.add_argument("--output", type=Path, default=RESULTS / "batch1_bound.json")
    options = parser.parse_args()
    facts = {**environment(), "peers": versions()}
    same = {key: facts[key] for key in ("commit", "cpu")}
    same |= {"seconds": options.seconds, "peers": options.peers}
    rows = Rows(options.output, facts, same, NAMES)
    complete = True
    for entry in MODELS:
        for threads in options.threads if entry.name in NAMES else []:
            if rows.is_missing(entry.name, 1, threads):
                row = measure(entry, threads, options)
                complete = complete and "failed" not in row
                rows.add(entry.name, 1, threads, row)
                print(report(row) if "failed" not in row else "", flush=True)
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
