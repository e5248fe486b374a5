"""The kernel of a depthwise convolution's gradient with respect to its weight.

A vector holds neighbouring channels and every kernel element has one vector of sums. A thread has
some vectors of channels and goes over all images, block by block of rows.
"""

from __future__ import annotations

from .emitter import Lane, VectorEmitter
from .image import PaddedCopy, WeightGradient
from .kernel import Kernel, TaskCount, assembled, kernel_params, symbol_for
from .sizes import Size, extent, least, minus, plus, times
from .target import Target
from .text import Function
from .tile import tail_mask

# Pixels per block of partial sums.
_PIXELS = 192


def depthwise_grad_weight(spec: WeightGradient, target: Target) -> Kernel:
    """The kernel of ``conv2d_grad_weight(g, x)`` where every group has one channel."""
    return _Writer(spec, target).kernel()


class _Writer:
    """Writes a kernel; a task is a vector of channels."""

    def __init__(self, spec: WeightGradient, target: Target) -> None:
        self.spec = spec
        self.symbol = symbol_for("depthwise_grad_weight", spec, target)
        self.f = Function(self.symbol, kernel_params(1, 2))
        self.lanes = target.lanes(spec.dtype)
        self.scalar = "float" if spec.dtype.itemsize == 4 else "double"
        self.taps = spec.kernel[0] * spec.kernel[1]
        # Kernel rows whose sums fit the registers, beside the gradient and one input.
        fitting = max(1, (target.registers - 3) // spec.kernel[1])
        self.kernel_rows = min(fitting, spec.kernel[0])
        self.block_rows = max(1, min(spec.out[0], _PIXELS // spec.out[1]))
        self.copied = not (spec.rows.plain and spec.columns.plain)
        height = spec.rows.extent(self.block_rows)
        self.copy = PaddedCopy(spec.dtype, spec.rows, spec.columns, spec.inputs, height)
        self.pitch = (self.copy.width if self.copied else spec.columns.size) * spec.inputs
        self.micro: dict[tuple[int, int], Function] = {}

    def kernel(self) -> Kernel:
        f, spec = self.f, self.spec
        vectors = -(-spec.outputs // self.lanes)
        rest = spec.outputs - (vectors - 1) * self.lanes
        size = spec.dtype.itemsize
        block_bytes = -(-self.copy.bytes // 64) * 64 if self.copied else 0
        sums = f.element("%scratch", "i8", block_bytes)
        per_vector = self.taps * self.lanes
        mine = minus(f, "%end", "%begin")
        pixels = spec.rows.size * spec.columns.size
        with f.when(f.emit(f"icmp sgt i64 {mine}, 0")):
            f.call(
                "void", "llvm.memset.p0.i64", ("ptr", sums), ("i8", "0"),
                ("i64", str(times(f, mine, per_vector * size))), ("i1", "false"),
            )  # fmt: skip
            if self.copied:
                self.copy.clear(f, "%scratch")
            with (
                f.loop(extent(f, spec.batch)) as image,
                f.loop(spec.out[0], step=self.block_rows) as line,
            ):
                start = times(f, image.index, pixels * spec.inputs)
                x = f.element("%in1", self.scalar, start)
                row = times(f, line.index, spec.rows.advance)
                if self.copied:
                    self.copy.fill(f, "%scratch", x, row)
                    x = "%scratch"
                else:
                    x = f.element(x, self.scalar, times(f, row, self.pitch))
                y = plus(f, times(f, image.index, spec.out[0]), line.index)
                g = f.element("%in0", self.scalar, times(f, y, spec.out[1] * spec.outputs))
                rows = least(f, minus(f, spec.out[0], line.index), self.block_rows)
                with f.loop("%end", start="%begin") as task:
                    self._vector(task.index, vectors, rest, x, g, sums, rows)
            self._write(sums)
        functions = [*self.micro.values(), f]
        return assembled(
            functions,
            TaskCount(vectors),
            block_bytes + vectors * per_vector * size,
            spec.flops,
            cuts=1,  # every range goes over all images
        )

    def _vector(
        self, task: str, vectors: int, rest: int, x: str, g: str, sums: str, rows: Size
    ) -> None:
        """Adds a block of pixels to the sums of one vector of channels."""
        f, spec = self.f, self.spec
        column = times(f, task, self.lanes)
        a, b = (f.element(p, self.scalar, column) for p in (x, g))
        into = f.element(sums, self.scalar, times(f, minus(f, task, "%begin"),
                                                  self.taps * self.lanes))  # fmt: skip
        last = f.emit(f"icmp eq i64 {task}, {vectors - 1}")
        widths = {rest: last, self.lanes: f.emit(f"xor i1 {last}, true")}
        if rest == self.lanes or vectors == 1:
            widths = {rest: "true"}
        for width, condition in widths.items():
            with f.when(condition):
                for first in range(0, spec.kernel[0], self.kernel_rows):
                    count = min(self.kernel_rows, spec.kernel[0] - first)
                    down = first * spec.dilation[0] * self.pitch
                    here = f.element(a, self.scalar, down)
                    to = f.element(into, self.scalar, first * spec.kernel[1] * self.lanes)
                    if (width, count) not in self.micro:
                        name = f"{self.symbol}_tile_{len(self.micro)}"
                        self.micro[width, count] = self._micro(name, width, count)
                    name = self.micro[width, count].name
                    f.do(f"call void @{name}(ptr {here}, ptr {b}, ptr {to}, i64 {rows})")

    def _micro(self, symbol: str, width: int, kernel_rows: int) -> Function:
        """``void @symbol(ptr x, ptr g, ptr sums, i64 rows)``: sums of ``kernel_rows`` rows."""
        spec = self.spec
        params = [("ptr noalias readonly", "x"), ("ptr noalias readonly", "g")]
        params += [("ptr noalias", "sums"), ("i64", "rows")]
        f = Function(symbol, params, attributes="noinline nounwind")
        e = VectorEmitter(f, self.lanes, spec.dtype)
        active = None if width == self.lanes else tail_mask(self.lanes, width)

        def load(address: str) -> Lane:
            if active is None:
                return e.load(address, spec.dtype)
            return e.load_masked(address, spec.dtype, active)

        kind, zero = e.type(spec.dtype), e.constant(0.0, spec.dtype).text
        offsets = [
            kh * spec.dilation[0] * self.pitch + kw * spec.dilation[1] * spec.inputs
            for kh in range(kernel_rows)
            for kw in range(spec.kernel[1])
        ]
        start = [("ptr", "%x"), ("ptr", "%g"), *((kind, zero) for _ in offsets)]
        with f.loop("%rows", carry=start) as line:
            x, g, *texts = line.carried
            carry = [("ptr", x), ("ptr", g), *((kind, t) for t in texts)]
            with f.loop(spec.out[1], carry=carry) as pixel:
                here, gradient, *texts = pixel.carried
                factor = load(gradient)
                added = [
                    e.fma(load(f.element(here, self.scalar, o)), factor, Lane(t, spec.dtype)).text
                    for o, t in zip(offsets, texts, strict=True)
                ]
                step = f.element(here, self.scalar, spec.columns.advance * spec.inputs)
                pixel.next = [step, f.element(gradient, self.scalar, spec.outputs), *added]
            below = f.element(x, self.scalar, spec.rows.advance * self.pitch)
            line.next = [below, *pixel.results[1:]]
        for t, text in enumerate(line.results[2:]):
            at = f.element("%sums", self.scalar, t * self.lanes)
            e.store(e.add(e.load(at, spec.dtype), Lane(text, spec.dtype)), at)
        return f

    def _write(self, sums: str) -> None:
        """Writes the sums as (channels, 1, KH, KW)."""
        f, spec = self.f, self.spec
        size = spec.dtype.itemsize
        with f.loop("%end", start="%begin") as task:
            number = times(f, minus(f, task.index, "%begin"), self.taps * self.lanes)
            source = f.element(sums, self.scalar, number)
            column = times(f, task.index, self.lanes)
            count = least(f, minus(f, spec.outputs, column), self.lanes)
            with f.loop(count) as channel, f.loop(self.taps) as tap:
                at = plus(f, times(f, tap.index, self.lanes), channel.index)
                value = f.load(self.scalar, f.element(source, self.scalar, at), size)
                to = plus(f, times(f, plus(f, column, channel.index), self.taps), tap.index)
                f.store(self.scalar, value, f.element("%out0", self.scalar, to), size)
