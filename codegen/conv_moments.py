"""Which convolutions take the moments of their result for BatchNorm, and of how many rows each.

The moments of a part of the rows belong to one piece of the kernel's work, so that they do not
depend on threads: parts divide the rows of every image evenly.

Measured on Zen 4 with two threads (``benchmarks/one_pass.py``): a sweep for the moments reads what
is in a cache about as fast as a kernel adds it up, and leaves it there for the sweep that
normalises. So small results are left out, and so is Winograd's kernel, whose results of 8 MB at
32 x 32 were no faster in a step of ResNet-18: the next sweep took as much longer as this one had
taken. Depthwise convolutions have no such kernel.
"""

from __future__ import annotations

from ..ir.graph import Graph, Node
from ..ir.types import Dim
from .contraction import contraction_of
from .conv_blocking import Blocking
from .convolution import convolution_of, is_matrix_product, takes_moments
from .gemm_blocking import LONGEST_REDUCTION
from .target import Target

# Fewer rows are not worth the statistics' reading of their moments.
_FEWEST_ROWS = 64
# Parts of an image, more or less: what the statistics read grows with them.
_PARTS = 16


def is_faster(node: Node, target: Target, batch: int) -> bool:
    """Whether a convolution should take the moments of its first result, of ``batch`` samples.

    In steps of MobileNetV2 it gained from 4.8 MB on, and neither gained nor lost at 2.4 and 3.2 MB.
    """
    size = node.types[0].size
    count = size.at(batch) if isinstance(size, Dim) else size
    return count * node.types[0].dtype.itemsize >= 4 * target.l2


def moments_rows(node: Node, graph: Graph, target: Target) -> int:
    """Of how many neighbouring rows of its first result the kernel of a convolution takes the
    moments; 0 if it takes none."""
    found = contraction_of(node, [graph.type(v) for v in node.operands])
    if found is None or not takes_moments(found):
        return 0
    spec = convolution_of(found, target) if found.attrs["layout"] == "NHWC" else None
    if spec is None or spec.depthwise or 0 in spec.size:
        return 0
    if not is_matrix_product(spec):
        cut = Blocking(spec, found.epilogue, target)
        return _lines(spec.size, cut.lines, cut.block_rows) * spec.size[1]
    if spec.weight is not None or spec.inputs > LONGEST_REDUCTION:
        return 0
    return _rows(spec.size[0] * spec.size[1])


def _rows(pixels: int) -> int:
    """Pixels of an image per part: a divisor, the smallest that is large enough, or 0."""
    wanted = max(_FEWEST_ROWS, pixels // _PARTS)
    found = next(n for n in range(min(wanted, pixels), pixels + 1) if not pixels % n)
    return found if found <= 4 * wanted else 0


def _lines(size: tuple[int, int], multiple: int, most: int) -> int:
    """Lines of an image per part: a divisor, the smallest with rows enough, or 0."""
    height, width = size
    divisors = [n for n in range(multiple, most + 1, multiple) if not height % n]
    rows = max(_FEWEST_ROWS, height * width // _PARTS)
    return next((n for n in divisors if n * width >= rows), max(divisors, default=0))
