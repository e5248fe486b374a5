"""Where pooling windows lie along one dimension, at compile time and in emitted code."""

from __future__ import annotations

from dataclasses import dataclass

from .sizes import (
    Size,
    greatest,
    least,
    minus,
    plus,
    quotient,
    times,
)
from .text import Function


def _ceil(fn: Function, a: Size, b: int) -> Size:
    """Ceiling of ``a / b`` for a >= 0."""
    return quotient(fn, plus(fn, a, b - 1), b)


@dataclass(frozen=True)
class Window:
    """Windows of ``kernel`` taps, ``dilation`` apart, every ``stride`` elements.

    ``size`` and ``out`` are the extents of input and output, ``low`` and ``high`` the padding.
    """

    size: int
    out: int
    kernel: int
    stride: int
    low: int = 0
    high: int = 0
    dilation: int = 1

    @property
    def reach(self) -> int:
        """Elements from the first to the last tap, inclusive."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def separate(self) -> bool:
        """Whether no input belongs to two windows."""
        return self.stride >= self.reach

    @property
    def exact(self) -> bool:
        """Whether every input belongs to exactly one window and no tap meets padding."""
        tiled = self.stride == self.kernel and self.dilation == 1
        return tiled and self.low == 0 and self.out * self.stride == self.size

    def interior(self) -> tuple[int, int]:
        """The outputs [first, last) whose windows lie inside the input."""
        first = -(-self.low // self.stride)
        last = (self.size - self.reach + self.low) // self.stride + 1
        first = min(first, self.out)
        return first, max(first, min(last, self.out))

    def start(self, fn: Function, o: Size) -> Size:
        """The input element of tap 0, negative in the padding."""
        return plus(fn, times(fn, o, self.stride), -self.low)

    def taps(self, fn: Function, o: Size) -> tuple[Size, Size]:
        """The taps [first, last) of output ``o`` that meet the input."""
        if self.interior() == (0, self.out):
            return 0, self.kernel
        start = self.start(fn, o)
        before = greatest(fn, minus(fn, 0, start), 0)
        after = greatest(fn, minus(fn, self.size, start), 0)
        last = least(fn, _ceil(fn, after, self.dilation), self.kernel)
        return _ceil(fn, before, self.dilation), last

    def covering(self, fn: Function, i: Size) -> tuple[Size, Size]:
        """The outputs [first, last) whose windows hold input ``i`` (dilation 1)."""
        place = plus(fn, i, self.low)
        first = greatest(fn, plus(fn, place, 1 - self.kernel), 0)
        last = least(fn, plus(fn, quotient(fn, place, self.stride), 1), self.out)
        return _ceil(fn, first, self.stride), last

    def count(self, fn: Function, o: Size, padded: bool) -> Size:
        """Elements of a window, with those in the padding (but not beyond it) if ``padded``."""
        beyond = (self.out - 1) * self.stride + self.kernel - self.low - self.size
        if self.interior() == (0, self.out) or (padded and beyond <= self.high):
            return self.kernel
        start = self.start(fn, o)
        stop = least(fn, plus(fn, start, self.kernel), self.size + (self.high if padded else 0))
        return minus(fn, stop, start if padded else greatest(fn, start, 0))

    def owned(self, fn: Function, o: Size) -> tuple[Size, Size]:
        """A partition of the input by output: [start of the window, start of the next one)."""
        first = self._bound(fn, o, o, 0)
        following = plus(fn, o, 1)
        return first, self._bound(fn, following, following, self.out)

    def _bound(self, fn: Function, o: Size, index: Size, edge: int) -> Size:
        """The start of window ``o``, or the end of the input where ``index`` is ``edge``."""
        start = least(fn, greatest(fn, self.start(fn, o), 0), self.size)
        at_edge = fn.emit(f"icmp eq i64 {index}, {edge}")
        return fn.emit(f"select i1 {at_edge}, i64 {self.size if edge else 0}, i64 {start}")


@dataclass(frozen=True)
class Adaptive:
    """Window o is [floor(o size / out), ceil((o + 1) size / out)), as in PyTorch."""

    size: int
    out: int
    kernel: int
    dilation: int = 1
    separate: bool = False
    exact: bool = False

    def interior(self) -> tuple[int, int]:
        """None: the windows differ in length, so none is unrolled."""
        return 0, 0

    def start(self, fn: Function, o: Size) -> Size:
        return quotient(fn, times(fn, o, self.size), self.out)

    def taps(self, fn: Function, o: Size) -> tuple[Size, Size]:
        end = _ceil(fn, times(fn, plus(fn, o, 1), self.size), self.out)
        return 0, minus(fn, end, self.start(fn, o))

    def covering(self, fn: Function, i: Size) -> tuple[Size, Size]:
        first = quotient(fn, times(fn, i, self.out), self.size)
        return first, _ceil(fn, times(fn, plus(fn, i, 1), self.out), self.size)

    def count(self, fn: Function, o: Size, padded: bool) -> Size:
        return self.taps(fn, o)[1]

    def owned(self, fn: Function, o: Size) -> tuple[Size, Size]:
        return self.start(fn, o), self.start(fn, plus(fn, o, 1))


Axis = Window | Adaptive
