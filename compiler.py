"""compile(): the whole pipeline. Read ``lower`` and ``build`` first; they list the passes in order.

Module --trace--> Graph --passes--> Graph --plan--> Plan --emit--> Program --link--> Executable
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from .codegen import conv_moments, updating_gemm, winograd, winograd_grad_weight
from .codegen.columns import accepts_columns
from .codegen.conv_grad_weight_parts import parts_for
from .codegen.matmul import linear_operator
from .codegen.packing import choose_panel
from .codegen.program import emit_program
from .codegen.target import Target, host
from .codegen.timed_program import emit_timed
from .compilation import Compilation, timed, without_collections
from .errors import LintWarning, NetwrightError
from .frontend import dispatch, tree
from .frontend import trace as tracing
from .frontend.nn.module import Module
from .frontend.tensor import Tensor
from .ir.graph import Graph, Node, Value
from .ir.types import Dim, DType, Extent, TensorType
from .ir.verify import verify
from .passes.absorb_flatten import absorb_flatten
from .passes.accumulate_gradients import accumulate_gradients, gradients_from_buffers
from .passes.apply_optimizer import Update, apply_optimizer
from .passes.assign_layout import assign_layout
from .passes.clip_gradients import clip_gradients
from .passes.differentiate import GRAD, differentiate
from .passes.eliminate_common_subexpressions import eliminate_common_subexpressions
from .passes.eliminate_dead_code import eliminate_dead_code
from .passes.eliminate_redundant_softmax import eliminate_redundant_softmax
from .passes.fold_constants import fold_constants
from .passes.fuse_conv_bn_relu import fuse_conv_bn_relu
from .passes.fuse_elementwise import fuse_elementwise
from .passes.fuse_elementwise_pooling import fuse_elementwise_pooling
from .passes.fuse_moments import fuse_moments
from .passes.fuse_pooling import fuse_pooling
from .passes.fuse_reductions import fuse_reductions
from .passes.fuse_row_means import fuse_row_means
from .passes.fuse_update import fuse_update
from .passes.lay_out_attention import lay_out_attention
from .passes.lint import lint
from .passes.lower_batch_norm import lower_batch_norm
from .passes.merge_cross_entropy import merge_cross_entropy
from .passes.pack_weights import pack_weights
from .passes.plan_memory import plan_memory
from .passes.recompute import recompute
from .passes.rewriting import Ledger
from .passes.save_pool_places import save_pool_places
from .passes.schedule_updates import schedule_updates
from .passes.simplify import simplify
from .passes.split_backward import split_backward
from .passes.split_batch_norm import split_batch_norm
from .runtime.executable import Executable
from .runtime.timed import Recorder

PASSES = (
    "eliminate_redundant_softmax",
    "lay_out_attention",
    "simplify",
    "fold_constants",
    "eliminate_common_subexpressions",
    "eliminate_dead_code",
    "assign_layout",
    "absorb_flatten",
    "merge_cross_entropy",
    "save_pool_places",
    "split_batch_norm",
    "fuse_conv_bn_relu",
    "lower_batch_norm",
    "fuse_elementwise",
    "fuse_elementwise_pooling",
    "fuse_reductions",
    "fuse_update",
    "fuse_pooling",
    "fuse_row_means",
    "pack_weights",
    "fuse_moments",
    "schedule_updates",
)


ACCURACIES = {"standard": (2,), "relaxed": (4, 2)}
"""The tiles of Winograd's algorithm that may be used, preferred first: those of 4 x 4 outputs have
errors some ten times those of the direct sum."""


@dataclass(frozen=True)
class Options:
    """What a user may choose; ``passes`` switches single passes off by name, ``checkpoint`` has the
    paths of the modules whose values the backward pass computes again."""

    strict: bool = False
    dynamic: bool = True
    tune: bool = False
    accuracy: str = "standard"
    passes: Mapping[str, bool] = field(default_factory=dict)
    checkpoint: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.accuracy not in ACCURACIES:
            raise ValueError(
                f"compile(): accuracy={self.accuracy!r} is not one of {', '.join(ACCURACIES)}"
            )
        unknown = sorted(set(self.passes) - set(PASSES))
        if unknown:
            raise ValueError(
                f"compile(): unknown pass {', '.join(map(repr, unknown))}; "
                f"the passes are {', '.join(PASSES)}"
            )

    def enabled(self, name: str) -> bool:
        """Whether a pass runs."""
        return self.passes.get(name, True)


SCALE = "opt.scale"
"""The number that multiplies the loss before it is differentiated, in programs for gradients."""


@dataclass(frozen=True)
class Clip:
    """Whether a step limits the gradients' global norm and their elements."""

    norm: bool = False
    value: bool = False


@without_collections
def capture(
    program: Callable[..., Any],
    modules: dict[str, Module],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: Options,
    name: str,
    warned: set[str],
) -> Compilation:
    """Traces a program; falls back to a fixed batch size if it needs the batch as a number.

    ``warned`` holds the lints that were issued for this program before, in another mode.
    """
    start = time.perf_counter()
    ledger = Ledger()
    try:
        traced = tracing.trace(program, modules, args, kwargs, options.dynamic, name)
    except NetwrightError as error:
        if not options.dynamic:
            raise
        # Sizes may fit for this batch only; if they never do, the error that counts has numbers.
        traced = tracing.trace(program, modules, args, kwargs, False, name)
        ledger.note("trace", "T001", False, f"compiled for one batch size: {error}")
    warn(lint(traced.graph), warned)
    made = Compilation(traced, {"traced": traced.graph}, ledger, batch=_batch((args, kwargs)))
    made.seconds["trace"] = time.perf_counter() - start
    return made


def _batch(nest: Any) -> int:
    """The leading extent of the first array in a nest of arguments."""
    shapes = (leaf.shape for _, leaf in tree.flatten(nest, lambda v: hasattr(v, "shape")))
    return next((int(shape[0]) for shape in shapes if len(shape)), 1)


def warn(found: list[LintWarning], warned: set[str]) -> None:
    """Issues warnings that are new, at the line of the user's program that runs now."""
    file, line = dispatch.caller()
    for warning in found:
        if str(warning) not in warned:
            warned.add(str(warning))
            warnings.warn_explicit(warning, LintWarning, file or "<netwright>", line)


@without_collections
def compile_inference(made: Compilation, options: Options, target: Target | None = None) -> None:
    """Forward only; what depends on parameters alone is computed when a parameter changes."""
    graph = clean(made.traced.graph, made, options)
    made.stages["optimized"] = lower(graph, made, options, inference=True)
    build(made, "optimized", target or host(), hoist=True)


@without_collections
def compile_training(
    made: Compilation, wrt: set[str], options: Options, target: Target | None = None
) -> None:
    """Forward and backward for autograd, as two executables that share saved values."""
    graph = clean(made.traced.graph, made, options)
    with timed(made, "passes", "differentiate"):
        graph = made.stages["differentiate"] = differentiate(graph, wrt)
    graph = clean(graph, made, options, "_backward")
    results = {v for k, v in graph.outputs.items() if not k.startswith(GRAD)}
    graph = _recompute(graph, results | set(graph.updates.values()), made, options)
    if options.enabled("assign_layout"):
        graph = _run("assign_layout", assign_layout, graph, made)
    if options.enabled("save_pool_places"):
        graph = _run("save_pool_places", save_pool_places, graph, made)
    with timed(made, "passes", "split_backward"):
        forward, backward = split_backward(graph)
    made.stages["optimized"] = lower(forward, made, options)
    made.stages["backward"] = lower(backward, made, options)
    build(made, "optimized", target or host(), hoist=True)
    build(made, "backward", target or host(), hoist=True)


@without_collections
def compile_step(
    made: Compilation,
    updates: list[Update],
    clip: Clip,
    options: Options,
    target: Target | None = None,
) -> None:
    """Forward, loss, backward and update as one executable."""
    graph = clean(made.traced.graph, made, options)
    wrt = {u.path for u in updates}
    with timed(made, "passes", "differentiate"):
        graph = made.stages["differentiate"] = differentiate(graph, wrt, loss="out")
    _finish_step(_with_optimizer(graph, updates, clip, made), made, options, target)


@without_collections
def compile_gradients(
    made: Compilation,
    wrt: set[str],
    add: bool,
    options: Options,
    target: Target | None = None,
    groups: Sequence[Collection[str]] = (),
) -> None:
    """Forward, loss and backward as one executable, whose gradients replace those in the buffers
    or, with ``add``, are added to them. The number SCALE multiplies the loss. groups: of paths of
    parameters, whose gradients somebody wants as soon as they are there."""
    graph = clean(made.traced.graph, made, options)
    with timed(made, "passes", "differentiate"):
        graph = differentiate(graph, wrt, loss="out", scale=SCALE)
        made.stages["differentiate"] = graph
    with timed(made, "passes", "accumulate_gradients"):
        graph = made.stages["accumulate_gradients"] = accumulate_gradients(graph, add)
    _finish_step(graph, made, options, target, [[GRAD + p for p in group] for group in groups])


@without_collections
def compile_update(
    name: str,
    parameters: Mapping[str, Tensor],
    updates: list[Update],
    clip: Clip,
    options: Options,
    target: Target | None = None,
) -> Compilation:
    """Clipping and update of parameters, by path, from the buffers that the programs of
    ``compile_gradients`` fill."""
    types = {path: TensorType(p.dtype, tuple(p.shape)) for path, p in parameters.items()}
    graph = gradients_from_buffers(types, name)
    traced = tracing.Traced(graph, [], None, dict(parameters))
    made = Compilation(traced, {"traced": graph}, Ledger())
    _finish_step(_with_optimizer(graph, updates, clip, made), made, options, target)
    return made


def _with_optimizer(graph: Graph, updates: list[Update], clip: Clip, made: Compilation) -> Graph:
    if clip.norm or clip.value:
        with timed(made, "passes", "clip_gradients"):
            graph = made.stages["clip_gradients"] = clip_gradients(graph, clip.norm, clip.value)
    with timed(made, "passes", "apply_optimizer"):
        graph = made.stages["apply_optimizer"] = apply_optimizer(graph, updates)
    return graph


def _finish_step(
    graph: Graph,
    made: Compilation,
    options: Options,
    target: Target | None,
    groups: Sequence[Collection[str]] = (),
) -> None:
    graph = clean(graph, made, options, "_backward")
    forward = {graph.outputs[k] for k in made.traced.graph.outputs if k in graph.outputs}
    forward |= {graph.updates[k] for k in made.traced.graph.updates}
    graph = _recompute(graph, forward, made, options)
    made.stages["optimized"] = lower(graph, made, options)
    build(made, "optimized", target or host(), hoist=False, groups=groups)


def clean(graph: Graph, made: Compilation, options: Options, suffix: str = "") -> Graph:
    """The passes that only remove work."""
    if not options.strict and not suffix and options.enabled("eliminate_redundant_softmax"):
        graph = _run("eliminate_redundant_softmax", eliminate_redundant_softmax, graph, made)
    for name, apply in (
        ("lay_out_attention", lay_out_attention),
        ("simplify", simplify),
        ("fold_constants", fold_constants),
        ("eliminate_common_subexpressions", eliminate_common_subexpressions),
        ("eliminate_dead_code", eliminate_dead_code),
    ):
        if options.enabled(name):
            graph = _run(name + suffix, apply, graph, made)
    return graph


def lower(graph: Graph, made: Compilation, options: Options, inference: bool = False) -> Graph:
    """The passes that choose layouts and form kernels.

    ``inference`` says that weights seldom change: what moves work to them pays.
    """
    passes: list[tuple[str, Callable[..., Graph]]] = [
        ("assign_layout", assign_layout),
        ("simplify", simplify),
        *([("absorb_flatten", absorb_flatten)] if inference else ()),
        ("merge_cross_entropy", merge_cross_entropy),
        ("save_pool_places", save_pool_places),
        ("split_batch_norm", split_batch_norm),
        ("fuse_conv_bn_relu", fuse_conv_bn_relu),
        ("lower_batch_norm", lower_batch_norm),
        ("fuse_elementwise", fuse_elementwise),
        ("fuse_elementwise_pooling", fuse_elementwise_pooling),
        ("fuse_reductions", fuse_reductions),
        ("fuse_update", partial(fuse_update, is_faster=updating_gemm.is_faster)),
        ("fuse_pooling", fuse_pooling),
        ("fuse_row_means", fuse_row_means),
        ("pack_weights", partial(_pack, made=made, options=options, target=host())),
        ("fuse_moments", partial(_fuse_moments, made=made, target=host())),
        ("eliminate_dead_code", eliminate_dead_code),
        ("schedule_updates", schedule_updates),
    ]
    prefix = "backward." if graph.name.endswith("_backward") else ""
    for name, apply in passes:
        if options.enabled(name):
            graph = _run(prefix + name, apply, graph, made)
    return graph


def build(
    made: Compilation,
    stage: str,
    target: Target,
    hoist: bool,
    groups: Sequence[Collection[str]] = (),
) -> None:
    """Plans memory, emits, compiles (or loads from the cache) and links the graph of a stage.
    groups: of updates, between which the program is cut (`emit_program`)."""
    graph = made.stages[stage]
    with timed(made, "passes", "verify"):
        verify(graph)
    with timed(made, "plan"):
        plan = made.plans[stage] = plan_memory(graph, hoist, accepts_columns)
    with timed(made, "emit"):
        program = emit_program(graph, plan, target, groups)
    with timed(made, "link"):
        constants = {n.name: n.attrs["value"] for n in graph.sources("constant")}
        executable = made.executables[stage] = Executable(program, target, constants)
    for what in ("llvm", "cache"):
        spent = executable.seconds.get(what, 0.0)
        made.seconds[what] += spent
        made.seconds["link"] -= spent


def recorder(made: Compilation, stage: str, target: Target | None = None) -> Recorder:
    """What times the kernels of a stage's executable; made when it is first asked for."""
    if stage not in made.recorders:
        executable = made.executables[stage]
        program = emit_timed(made.stages[stage], made.plans[stage], executable.program)
        made.recorders[stage] = Recorder(executable, program, target or host())
    return made.recorders[stage]


def _recompute(
    graph: Graph, results: Collection[Value], made: Compilation, options: Options
) -> Graph:
    if not options.checkpoint:
        return graph
    apply = partial(recompute, blocks=options.checkpoint, results=results)
    return _run("recompute", lambda g, ledger: apply(g, ledger=ledger), graph, made)


def _pack(
    graph: Graph, ledger: Ledger, made: Compilation, options: Options, target: Target
) -> Graph:
    tiles = ACCURACIES[options.accuracy]

    def first_fast(is_faster: Callable[..., bool]) -> Callable[..., int]:
        """The first of the tiles that beats the direct sum, or 0."""

        def tile(inputs: int, outputs: int, size: tuple[int, int], dtype: DType) -> int:
            fast = (t for t in tiles if is_faster(inputs, outputs, size, dtype, target, t))
            return next(fast, 0)

        return tile

    tile = first_fast(winograd.is_faster)

    def linear(rows: Extent, depth: int, outputs: int, dtype: DType) -> str:
        count = rows.at(made.batch) if isinstance(rows, Dim) else rows
        return linear_operator(count, depth, outputs, dtype, target)

    choices = None
    if options.tune:
        from .tuning import Rules, tune

        choices = tune(graph, made.batch, Rules(target, tile, tiles, linear), ledger)

    return pack_weights(
        graph,
        lambda n, dtype: choose_panel(n, target, dtype),
        ledger,
        tile,
        choices,
        first_fast(winograd_grad_weight.is_faster),
        parts_for,
        linear,
    )


def _fuse_moments(graph: Graph, ledger: Ledger, made: Compilation, target: Target) -> Graph:
    def rows(node: Node, graph: Graph) -> int:
        if not conv_moments.is_faster(node, target, made.batch):
            return 0
        return conv_moments.moments_rows(node, graph, target)

    return fuse_moments(graph, rows, ledger)


def _run(name: str, apply: Callable[..., Graph], graph: Graph, made: Compilation) -> Graph:
    stage = f"{name}_2" if name in made.stages else name
    with timed(made, "passes", stage):
        made.stages[stage] = apply(graph, made.ledger)
    return made.stages[stage]
