"""Copies that interleave a few planes: an image with 2 to 4 channels becomes channels-last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ir.types import Dim, DType, numel
from .emitter import memory_type
from .iteration import Axis, times
from .kernel import Kernel, TaskCount, kernel_params, symbol_for
from .sizes import Size, extent, least, minus, plus, quotient, remainder
from .sizes import times as product
from .target import Target
from .text import Function

_MOST_PLANES = 4
_PIXELS = 2048  # per task


@dataclass(frozen=True)
class Interleave:
    """out[.., p, c] = in[.., c, p] for ``planes`` values of c; ``plane_step`` elements lie between
    planes. Strides of ``others`` are (output, input) elements."""

    pixels: int
    planes: int
    plane_step: int
    others: tuple[Axis, ...]


def interleave_plan(axes: Sequence[Axis], dtype: DType) -> Interleave | None:
    """The plan for a copy over ``axes`` (strides: output, input); None if it is another one."""
    if len(axes) < 2 or dtype.itemsize not in (4, 8):
        return None
    *others, pixel, plane = axes
    if not isinstance(plane.extent, int) or not 2 <= plane.extent <= _MOST_PLANES:
        return None
    if plane.strides[0] != 1 or pixel.strides != (plane.extent, 1):
        return None
    step = plane.strides[1]
    if isinstance(pixel.extent, Dim) or isinstance(step, Dim) or step < pixel.extent:
        return None
    return Interleave(pixel.extent, plane.extent, step, tuple(others))


def emit_interleave(plan: Interleave, dtype: DType, target: Target) -> Kernel:
    """The copy kernel; a task is a run of pixels of one image."""
    pieces = -(-plan.pixels // _PIXELS)
    images = numel(x.extent for x in plan.others)
    f = Function(symbol_for("interleave", plan, dtype, target), kernel_params(1, 1))
    kind, lanes = memory_type(dtype), target.lanes(dtype)
    with f.loop("%end", start="%begin") as task:
        image, piece = quotient(f, task.index, pieces), remainder(f, task.index, pieces)
        out, source = _bases(f, plan, image, kind)
        first = product(f, piece, _PIXELS)
        stop = least(f, plus(f, first, _PIXELS), plan.pixels)
        with f.loop(minus(f, stop, lanes - 1), start=first, step=lanes) as loop:
            _block(f, plan, dtype, lanes, out, source, loop.index)
        with f.loop(stop, start=loop.index) as pixel:
            for c in range(plan.planes):
                at = plus(f, pixel.index, c * plan.plane_step)
                value = f.load(kind, f.element(source, kind, at), dtype.itemsize)
                into = plus(f, product(f, pixel.index, plan.planes), c)
                f.store(kind, value, f.element(out, kind, into), dtype.itemsize)
    moved = times(images, 2 * plan.pixels * plan.planes * dtype.itemsize)
    tasks = TaskCount(times(images, pieces))
    return Kernel(f.name, f.render(), frozenset(f.declarations), tasks, bytes=moved)


def _bases(f: Function, plan: Interleave, image: Size, kind: str) -> tuple[str, str]:
    """Addresses of the first pixel of an image in the output and in the input."""
    offsets: list[Size] = [0, 0]
    for axis in reversed(plan.others):
        size = extent(f, axis.extent)
        at, image = remainder(f, image, size), quotient(f, image, size)
        for side in (0, 1):
            step = extent(f, axis.strides[side])
            offsets[side] = plus(f, offsets[side], product(f, at, step))
    return f.element("%out0", kind, offsets[0]), f.element("%in0", kind, offsets[1])


def _block(
    f: Function, plan: Interleave, dtype: DType, lanes: int, out: str, source: str, pixel: str
) -> None:
    """``lanes`` pixels: a register of every plane, and as many registers of the output."""
    kind, planes = memory_type(dtype), plan.planes
    vector = f"<{lanes} x {kind}>"
    rows = [
        f.load(vector, f.element(source, kind, plus(f, pixel, c * plan.plane_step)), dtype.itemsize)
        for c in range(planes)
    ]
    start = f.element(out, kind, product(f, pixel, planes))
    for k in range(planes):
        places = [divmod(k * lanes + lane, planes) for lane in range(lanes)]  # (pixel, plane)
        value = rows[0]
        for c in range(1, planes):
            # Lanes of planes that are in keep what they have; the others take plane c.
            picks = []
            for lane, (p, plane) in enumerate(places):
                own = p if c == 1 else lane
                picks.append(lanes + p if plane == c else own if plane < c else 0)
            mask = ", ".join(f"i32 {pick}" for pick in picks)
            both = f"{vector} {value}, {vector} {rows[c]}"
            value = f.emit(f"shufflevector {both}, <{lanes} x i32> <{mask}>")
        f.store(vector, value, f.element(start, kind, k * lanes), dtype.itemsize)
