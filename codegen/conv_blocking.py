"""How a convolution that copies and blocks images is cut into blocks and tiles."""

from __future__ import annotations

from ..ir.types import Dim
from .epilogue import TileEpilogue
from .image import Convolution, PaddedCopy, even_chunks
from .sharing import Cost
from .target import Target
from .tile import register_rows

# Images are cut into blocks of rows until one image has this many independent parts.
_PARTS = 8
# Multiply-adds of the innermost loops of all tiles of one kernel, unrolled four times.
_TILES = 400


class Blocking:
    """Blocks are rows of one image; ``lines`` of these rows are cut into tiles together.

    ``copied`` images are read from a copy with zeros around it, ``copy``: of a block or, with
    ``keeps_image``, of the whole image. ``pixel`` and ``pitch`` are the elements from pixel to
    pixel and from row to row of what tiles read. ``tallest`` are the rows of the largest tile by
    its vectors per row, ``window`` the pixels that tiles pool, ``stored`` the size of the images
    that are stored. ``splits`` says whether a block is summed by kernel rows.
    """

    def __init__(
        self, spec: Convolution, epilogue: TileEpilogue, target: Target, lines: int = 1
    ) -> None:
        """``lines``: blocks are multiples of so many rows, which divide the image."""
        self.spec, self.epilogue, self.target = spec, epilogue, target
        group_outputs = spec.outputs // spec.groups
        self.vectors = -(-min(spec.panel, group_outputs) // target.lanes(spec.dtype))
        self.tallest = register_rows(target)
        self.copied = not (spec.rows.plain and spec.columns.plain)
        # Elements from pixel to pixel of what the tiles read.
        self.pixel = spec.inputs if self.copied else spec.x_pitch
        step = spec.columns.advance * self.pixel * spec.dtype.itemsize
        if step % 4096 == 0:
            # All pixels fall into one set of the first level cache, which has 8 ways.
            self.tallest = {v: min(r, 6) for v, r in self.tallest.items()}
        # Pixels of a window that tiles pool, and the size of what is stored.
        pool = epilogue.pool
        self.window = pool.kernel if pool is not None else (1, 1)
        self.stored = pool.pooled(spec.size) if pool is not None else spec.size
        self.lines = self._lines_per_tile() if pool is None else self.window[0]
        self.block_rows = max(lines, self._block_rows() // lines * lines)
        whole = self._copy(spec.rows.count)
        self.keeps_image = self.copied and whole.bytes <= target.l1 // 2
        self.copy = whole if self.keeps_image else self._copy(self.block_rows)
        self.pitch = (self.copy.width if self.copied else spec.columns.size) * self.pixel
        self.splits = self._splits()

    def _copy(self, rows: int) -> PaddedCopy:
        spec = self.spec
        height = spec.rows.extent(rows)
        pitch = spec.x_pitch
        return PaddedCopy(
            spec.dtype, spec.rows, spec.columns, spec.inputs, height, source_pitch=pitch
        )

    def _lines_per_tile(self) -> int:
        """How many image rows are cut into tiles together, where one row makes poor tiles.

        A tile needs eight accumulators to hide the latency of multiply-add.
        """
        spec = self.spec
        if len(spec.rows.phases) * len(spec.columns.phases) > 1:
            return 1
        width, height = spec.columns.count, spec.rows.count
        best, best_cost = 1, float("inf")
        for lines in range(1, min(height, 8) + 1):
            tiles = even_chunks(lines * width, self.tallest[self.vectors])
            work = 4 * lines * width * self.vectors
            if height % lines or (lines > 1 and work > _TILES):
                continue
            cost = sum(max(t * self.vectors, 8) + 2 for t in tiles) / (lines * width)
            if cost < 0.95 * best_cost:
                best, best_cost = lines, cost
        return best

    def _block_rows(self) -> int:
        """Output rows (of each phase) per block: few enough for the second level cache, and so many
        that two threads have about as much to do with one image."""
        spec = self.spec
        total = spec.rows.count
        wanted = -(-_PARTS // (spec.groups * spec.panels))
        if isinstance(spec.batch, int):
            wanted = -(-wanted // max(1, spec.batch))

        def height(blocks: int) -> int:
            rows = -(-total // max(1, blocks))
            return max(1, -(-rows // self.lines) * self.lines)

        blocks, most = max(1, min(total, wanted)), self.target.l2 // 2
        while height(blocks) > self.lines and self._bytes_read(height(blocks)) > most:
            blocks += 1
        more = range(blocks, max(blocks, min(total, 2 * blocks)) + 1)
        return min((height(n) for n in more), key=lambda rows: (self._slower_half(rows), -rows))

    def _slower_half(self, rows: int) -> int:
        """Estimated nanoseconds for one image of the slower of two threads, if blocks have so many
        rows. Ranges of tasks count units of a block and a panel of weights."""
        spec = self.spec
        parts = spec.groups * spec.panels
        heights = [min(rows, spec.rows.count - at) for at in range(0, spec.rows.count, rows)]
        per_image = spec.flops.coef if isinstance(spec.flops, Dim) else spec.flops
        images = spec.batch if isinstance(spec.batch, int) else 1
        per_row = per_image // max(1, images * spec.rows.count * parts)
        units = [(k, h * per_row) for k, h in enumerate(heights) for _ in range(parts)]
        copied = self._copy(rows).bytes if self.copied else 0
        panel = spec.panel_elements * spec.dtype.itemsize
        middle = len(units) // 2

        def cost(half: list[tuple[int, int]]) -> int:
            read = copied * len({k for k, _ in half}) + panel * len(half)
            return Cost.of(sum(work for _, work in half), read).fixed

        return max(cost(units[:middle]), cost(units[middle:]))

    def _bytes_read(self, rows: int) -> int:
        """Bytes of the input, or of its copy, that a block of so many output rows reads."""
        spec = self.spec
        if self.copied:
            return self._copy(rows).bytes
        pixels = 1
        for axis, count in ((spec.rows, rows), (spec.columns, spec.columns.count)):
            taps = max(phase.taps for phase in axis.phases)
            pixels *= min(axis.extent(count), count * taps)
        return pixels * spec.inputs * spec.dtype.itemsize

    def _splits(self) -> bool:
        """Whether all tiles of a block are summed over one kernel row after the other.

        Each tile reads the weights of a whole panel. Where these do not stay in the second level
        cache beside the block, those of one kernel row do, for all tiles of the block.
        """
        spec = self.spec
        rows = spec.rows.phases
        # The image keeps the sums.
        keeps = self.epilogue.outputs[0] is spec.dtype and self.epilogue.pool is None
        if len(rows) > 1 or rows[0].taps < 2 or not keeps:
            return False
        panel = spec.panel_elements * spec.dtype.itemsize
        return panel + self._bytes_read(self.block_rows) > self.target.l2
