"""The gradient of a convolution's weight in parts of the batch (``conv2d_grad_weight_parts``).

Where input channels are few, threads that divide the result would all read all of the output's
gradient, which is most of the data, and would divide a result of few tiles unevenly. Here a thread
computes the whole gradient for a run of image rows: it reads what it probably has written itself,
and nobody else does. The parts are added by an operator of its own.
"""

from __future__ import annotations

from ..ir.types import numel
from .grad_weight_writer import FEW_INPUTS, PIXELS, Block, GradWeightWriter
from .kernel import Kernel
from .sizes import extent, greatest, least, minus, plus, quotient, remainder, times

# Rows of an image per part, at batch size 1: with less, most of a part is what parts share.
_ROWS = 4
# Parts: enough for the threads of small machines, and for more where there are many rows; but each
# part writes a whole gradient, and more of one of so many elements would cost too much.
_FEWEST, _MOST = 8, 16
_LARGE = 4096


def parts_for(inputs: int, outputs: int, kernel: tuple[int, int], size: tuple[int, int]) -> int:
    """Into how many parts the gradient of a weight is cut; 0 if it is better not.

    ``size`` is that of the gradient's images. Small images are summed several at a time, which
    parts are not.
    """
    if inputs > FEW_INPUTS or kernel == (1, 1) or 2 * size[0] * size[1] < PIXELS:
        return 0
    if inputs * outputs * kernel[0] * kernel[1] > _LARGE:
        return _FEWEST
    return max(_FEWEST, min(_MOST, size[0] // _ROWS))


class PartsWriter(GradWeightWriter):
    """Writes a kernel whose tasks are the parts."""

    def kernel(self) -> Kernel:
        f, spec, parts = self.f, self.spec, self.parts
        height = spec.out[0]
        rows = extent(f, numel((spec.batch, height)))
        elements = spec.outputs * spec.group_inputs * spec.kernel[0] * spec.kernel[1]
        with f.when(f.emit("icmp slt i64 %begin, %end")):
            self.prepare()
            with f.loop("%end", start="%begin") as part:
                low = quotient(f, times(f, rows, part.index), parts)
                high = quotient(f, times(f, rows, plus(f, part.index, 1)), parts)
                self.out = f.element("%out0", self.scalar, times(f, part.index, elements))
                # Without rows there is one empty block: it makes the sums zero.
                stop = greatest(f, high, plus(f, low, 1))
                with f.loop(stop, start=low, step="%step") as row:
                    line = remainder(f, row.index, height)
                    left = least(f, minus(f, height, line), minus(f, high, row.index))
                    count = least(f, left, self.block_rows)
                    f.emit(f"add nsw i64 {greatest(f, count, 1)}, 0", "%step")
                    begins = f.emit(f"icmp eq i64 {row.index}, {low}")
                    complete = f.emit(f"icmp sge i64 {plus(f, row.index, count)}, {high}")
                    images = least(f, count, 1)
                    image = quotient(f, row.index, height)
                    self.add_block(
                        Block(image, line, images, count, begins, complete), 0, self.unit_count
                    )
        return self.assembled(parts)
