"""``compile(model, tune=True)``: measures instead of estimating how products read their weights.

For every different product of a graph (a linear layer or convolution with its epilogue) there are a
few candidates: the width of the weight's panels, and Winograd's algorithm or the direct sum. Each
becomes a small program of its own; the candidates take turns, and one replaces the cost model's
choice only if it is clearly faster. Winners are kept in the cache on disk.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .codegen.packing import choose_panel
from .codegen.program import Program, emit_program
from .codegen.target import Target
from .ir.graph import Graph, Value
from .ir.types import DType, TensorType, shape_at
from .passes.pack_weights import (
    Choice,
    ChooseLinear,
    ChooseTile,
    Product,
    pack_weights,
    products,
)
from .passes.plan_memory import plan_memory
from .passes.rewriting import Ledger
from .runtime import cache, jit, settings
from .runtime.executable import Executable

NAME = "tune"
_ROUNDS = 7
_ROUND_SECONDS = 2e-3
# A candidate must be faster by this factor: less is within the noise of the measurement.
_CLEARLY = 1.03


@dataclass(frozen=True)
class Rules:
    """What the cost model chooses, and the tiles of Winograd's algorithm that may be used."""

    target: Target
    choose_tile: ChooseTile
    tiles: tuple[int, ...]
    choose_linear: ChooseLinear

    def panel(self, columns: int, dtype: DType) -> int:
        return choose_panel(columns, self.target, dtype)


def tune(graph: Graph, n: int, rules: Rules, ledger: Ledger) -> dict[str, Choice]:
    """The best choice for each product of ``graph`` at batch size ``n``, by the node's name.

    Code U101 in the ledger says what was chosen instead of the cost model's choice, U102 that the
    cost model's was best. Runs each new product for about a tenth of a second.
    """
    found: dict[str, Choice] = {}
    known: dict[str, Choice] = {}
    for product in products(graph, rules.choose_linear):
        alone = _alone(graph, product)
        default = _Candidate(alone, product, None, rules)
        key = _key(default.program, n, rules.target)
        if key not in known:
            known[key] = _remembered(key) or _measured(key, alone, product, default, n, rules)
        best = found[product.node.name] = known[key]
        if best == default.choice:
            ledger.declined(NAME, "U102", product.node, f"{best} was the fastest")
        else:
            ledger.did(NAME, "U101", product.node, f"{best} instead of {default.choice}")
    return found


def _alone(graph: Graph, product: Product) -> Graph:
    """A graph with this product only; its weight is a parameter, all other operands are inputs."""
    alone = Graph("tune")
    operands = []
    for k, value in enumerate(product.node.operands):
        kind = "parameter" if k == product.weight else "input"
        operands.append(alone.add(kind, path=str(k), type=graph.type(value)))
    node = product.node
    result = alone.add(node.op, *operands, name="product", **node.attrs)
    values = (result,) if isinstance(result, Value) else result
    alone.outputs = {str(k): v for k, v in enumerate(values)}
    return alone


class _Candidate:
    """One way to compute a product: its choice (None: the cost model's) and its program."""

    def __init__(self, alone: Graph, product: Product, choice: Choice | None, rules: Rules) -> None:
        choices = {} if choice is None else {"product": choice}
        packed = pack_weights(alone, rules.panel, None, rules.choose_tile, choices)
        self.graph = packed
        self.choice = _choice_in(packed) if choice is None else choice
        self.program: Program = emit_program(packed, plan_memory(packed, hoist=True), rules.target)

    def runner(self, n: int, rules: Rules) -> Callable[[], None]:
        """A function that runs the product once on random numbers."""
        constants = {c.name: c.attrs["value"] for c in self.graph.sources("constant")}
        executable = Executable(self.program, rules.target, constants)
        rng = np.random.default_rng(0)

        def array(kind: TensorType) -> np.ndarray:
            return rng.standard_normal(shape_at(kind.shape, n)).astype(kind.dtype.np)

        graph = self.graph
        executable.bind({s.attrs["path"]: array(s.type) for s in graph.sources("parameter")})
        inputs = {s.attrs["path"]: array(s.type) for s in graph.sources("input")}
        outputs = {name: array(graph.type(v)) for name, v in graph.outputs.items()}
        return lambda: executable.run(n, inputs, outputs, version=1)


def _choice_in(packed: Graph) -> Choice:
    """The choice that a packed graph was made with."""
    pack = next(n for n in packed.nodes if n.op.startswith("pack_"))
    return Choice(pack.attrs["panel"], pack.attrs.get("tile", 0))


def _candidates(product: Product, default: Choice, rules: Rules) -> list[Choice]:
    lanes = rules.target.lanes(product.node.type.dtype)
    widest = -(-product.columns // lanes)
    panels = sorted({default.panel, *(v * lanes for v in (2, 3, 4) if v <= widest)})
    tiles = (0, *rules.tiles) if product.winograd else (0,)
    return [Choice(panel, tile) for tile in tiles for panel in panels]


def _measured(
    key: str, alone: Graph, product: Product, default: _Candidate, n: int, rules: Rules
) -> Choice:
    """Times all candidates and remembers the winner."""
    runners = {default.choice: default.runner(n, rules)}
    for choice in _candidates(product, default.choice, rules):
        if choice not in runners:
            runners[choice] = _Candidate(alone, product, choice, rules).runner(n, rules)
    seconds = _take_turns(runners)
    best = min(seconds, key=lambda choice: seconds[choice])
    if seconds[best] * _CLEARLY > seconds[default.choice]:
        best = default.choice
    cache.default().put(key, json.dumps(list(best)).encode(), {"kind": "tuning"})
    return best


def _take_turns(runners: Mapping[Choice, Callable[[], None]]) -> dict[Choice, float]:
    """Median seconds of each runner; they alternate, so that a slow phase hits all of them."""
    repeats = {}
    for choice, run in runners.items():
        run()
        repeats[choice] = max(1, int(_ROUND_SECONDS / max(_seconds(run, 1), 1e-7)))
    samples: dict[Choice, list[float]] = {choice: [] for choice in runners}
    for _ in range(_ROUNDS):
        for choice, run in runners.items():
            samples[choice].append(_seconds(run, repeats[choice]))
    return {choice: statistics.median(found) for choice, found in samples.items()}


def _seconds(run: Callable[[], None], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def _key(program: Program, n: int, target: Target) -> str:
    """Names the product by the code that computes it, the batch size and the machine."""
    parts = {
        **jit.environment(target), "kind": "tuning", "ir": program.text, "batch": str(n),
        "threads": str(settings.num_threads()),
    }  # fmt: skip
    return cache.default().key(parts)


def _remembered(key: str) -> Choice | None:
    found = cache.default().get(key)
    if found is None:
        return None
    numbers: Sequence[int] = json.loads(found)
    return Choice(*numbers)
