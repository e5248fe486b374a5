"""Which convolutions take the moments of their result for BatchNorm, and of how many rows each.

The moments of a part of the rows belong to one piece of the kernel's work, so that they do not
depend on threads: parts divide the rows of every image evenly.
"""

from __future__ import annotations

from ..ir.graph import Graph, Node
from . import winograd
from .contraction import contraction_of
from .conv_blocking import Blocking
from .convolution import convolution_of, is_matrix_product
from .gemm_blocking import LONGEST_REDUCTION
from .image import Convolution
from .target import Target

# Fewer rows are not worth the statistics' reading of their moments.
_FEWEST_ROWS = 64
# Parts of an image, more or less: what the statistics read grows with them.
_PARTS = 16


def moments_rows(node: Node, graph: Graph, target: Target) -> int:
    """Of how many neighbouring rows of its result the kernel of a convolution should take the
    moments; 0 if it should not."""
    found = contraction_of(node, [graph.type(v) for v in node.operands])
    if found is None or found.attrs.get("layout") != "NHWC" or found.op.startswith("conv2d_grad"):
        return 0
    if found.epilogue.pool is not None or found.epilogue.sums:
        return 0
    spec = convolution_of(found, target)
    if spec is None or not spec.size[0] * spec.size[1]:
        return 0
    if spec.depthwise:
        return 0
    if found.op == "conv2d_winograd":
        return _winograd_lines(spec, found.attrs["tile"]) * spec.size[1]
    if is_matrix_product(spec):
        if spec.weight is not None or spec.inputs > LONGEST_REDUCTION:
            return 0
        return _rows(spec.size[0] * spec.size[1])
    cut = Blocking(spec, found.epilogue, target)
    return _lines(spec.size, cut.lines, cut.block_rows) * spec.size[1]


def _winograd_lines(spec: Convolution, tile: int) -> int:
    """Lines of an image per part: as many as a block of tiles has, or 0."""
    height, width = spec.size
    across, most = -(-width // tile), winograd.block_tiles(spec, tile)
    divisors = [n for n in range(1, height + 1) if not height % n]
    fits = [n for n in divisors if (n == height or not n % tile) and -(-n // tile) * across <= most]
    even = [n for n in fits if not most % (-(-n // tile) * across)]
    return max(even or fits, default=0)


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
