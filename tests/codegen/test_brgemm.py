import ctypes
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from netwright.codegen.brgemm import MicroKernels, micro_kernel
from netwright.codegen.epilogue import TileEpilogue
from netwright.codegen.image import (
    Axis,
    even_chunks,
    forward_axis,
    gradient_axis,
)
from netwright.codegen.llvm import assembly, module_text
from netwright.codegen.target import Target, host
from netwright.codegen.tile import LONGEST_SUM, Reduction, Tile, halving_rows, register_rows
from netwright.ir.types import DType, float32, float64

Link = Callable[..., int]


def tile_of(
    rows: int,
    vectors: int,
    k: int,
    dtype: DType = float32,
    target: Target | None = None,
    a_row: int | None = None,
    tail: int = 0,
    padded: bool = True,
) -> Tile:
    """A tile of a row-major product with ``k`` steps."""
    lanes = (target or host()).lanes(dtype)
    width = vectors * lanes
    return Tile(
        dtype,
        lanes,
        tuple(i * (a_row or k) for i in range(rows)),
        tuple(i * width for i in range(rows)),
        vectors,
        tail or lanes,
        (Reduction(k, 1, width),),
        padded,
        width,
    )


def call(link: Link, tile: Tile, epilogue: TileEpilogue, arrays: list[Any], *counts: int) -> None:
    """Runs a micro-kernel; ``arrays`` are A, B and what the epilogue wants."""
    names = tuple(f"n{i}" for i in range(len(counts)))
    f = micro_kernel("micro", tile, epilogue, names)
    address = link(module_text([f.render()], f.declarations), "micro")
    sums = np.zeros(tile.sums_bytes + 64, np.uint8)
    extra: list[Any] = [sums.ctypes.data] if tile.blocked else []
    extra += [0] if tile.overlap else []
    values = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in arrays]
    values += [*counts, *extra]
    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(values))(address)(*values)


@pytest.mark.parametrize("dtype", [float32, float64])
@pytest.mark.parametrize("k", [1, 3, 4, 37, 513, 784, 1031])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_tile_is_the_product_of_its_rows_and_panel(
    link: Link, rows: int, k: int, dtype: DType
) -> None:
    tile = tile_of(rows, 2, k, dtype)
    rng = np.random.default_rng(0)
    a = rng.standard_normal((rows, k)).astype(dtype.np)
    b = rng.standard_normal((k, 2 * tile.lanes)).astype(dtype.np)
    c = np.full((rows, 2 * tile.lanes), np.nan, dtype.np)
    call(link, tile, TileEpilogue((dtype,)), [a, b, c])
    exact = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(c, exact, atol=1e-4 if dtype is float32 else 1e-12)
    assert tile.blocked == (k > LONGEST_SUM)


@pytest.mark.parametrize("k", [1, 4, 37, 513, 784, 1031])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_tile_that_packs_copies_every_row_of_b_and_has_the_same_bits(
    link: Link, rows: int, k: int
) -> None:
    plain = tile_of(rows, 2, k)
    width, pitch = 2 * plain.lanes, 2 * plain.lanes + 7
    copying = replace(plain, loops=(Reduction(k, 1, pitch),), b_copy=width)
    rng = np.random.default_rng(0)
    a = rng.standard_normal((rows, k)).astype(np.float32)
    b = rng.standard_normal((k, pitch)).astype(np.float32)
    packed = np.ascontiguousarray(b[:, :width])
    copy = np.zeros((k + 1, width), np.float32)
    expected, found = (np.empty((rows, width), np.float32) for _ in range(2))
    call(link, plain, TileEpilogue((float32,)), [a, packed, expected])
    call(link, copying, TileEpilogue((float32,)), [a, b, found, copy])
    assert np.array_equal(found, expected)
    assert np.array_equal(copy[:k], packed)
    assert not copy[k].any()


def test_a_tile_copies_in_one_loop_of_a_known_length() -> None:
    tile = replace(tile_of(2, 1, 8), loops=(Reduction("%n", 1, 16),), b_copy=16)
    with pytest.raises(ValueError, match="one loop of a known length"):
        micro_kernel("micro", tile, TileEpilogue((float32,)), ("n",))


def test_a_nest_of_loops_with_a_runtime_count(link: Link) -> None:
    lanes = host().lanes(float32)
    loops = (Reduction("%n0", 40, 3 * lanes), Reduction(3, 5, lanes))
    tile = Tile(float32, lanes, (0, 1, 20), (0, lanes, 2 * lanes), 1, lanes, loops)
    rng = np.random.default_rng(1)
    a = rng.standard_normal(400).astype(np.float32)
    b = rng.standard_normal((7, 3, lanes)).astype(np.float32)
    for count in (0, 1, 7):
        c = np.empty((3, lanes), np.float32)
        call(link, tile, TileEpilogue((float32,)), [a, b, c], count)
        steps = [(i, j) for i in range(count) for j in range(3)]
        for row, offset in enumerate(tile.a_rows):
            terms = [a[offset + 40 * i + 5 * j] * b[i, j] for i, j in steps]
            exact = np.sum(np.array(terms, np.float64).reshape(-1, lanes), axis=0)
            np.testing.assert_allclose(c[row], exact, atol=1e-5)


def test_a_tail_touches_nothing_beyond_its_last_column(link: Link) -> None:
    lanes = host().lanes(float32)
    tile = tile_of(3, 2, 9, tail=1, padded=False)
    rng = np.random.default_rng(2)
    a = rng.standard_normal((3, 9)).astype(np.float32)
    b = rng.standard_normal((9, 2 * lanes)).astype(np.float32)
    b[:, lanes + 1 :] = np.nan
    c = np.full((3, 2 * lanes), 7, np.float32)
    call(link, tile, TileEpilogue((float32,)), [a, b, c])
    np.testing.assert_allclose(c[:, : lanes + 1], a @ b[:, : lanes + 1], atol=1e-5)
    assert (c[:, lanes + 1 :] == 7).all()


def test_accumulating_adds_to_what_is_there_or_begins_anew(link: Link) -> None:
    tile = tile_of(2, 1, 4)
    a, b = np.ones((2, 4), np.float32), np.ones((4, tile.lanes), np.float32)
    c = np.full((2, tile.lanes), np.nan, np.float32)
    epilogue = TileEpilogue((float32,), accumulate=True)
    call(link, tile, epilogue, [a, b, c, 0])
    assert (c == 4).all()
    call(link, tile, epilogue, [a, b, c, -1])
    assert (c == 8).all()


def test_equal_tiles_share_one_function() -> None:
    micro = MicroKernels("m")
    plain = TileEpilogue((float32,))
    first = micro.name(tile_of(2, 1, 4), plain)
    assert micro.name(tile_of(2, 1, 4), plain) == first
    assert micro.name(tile_of(3, 1, 4), plain) != first
    assert len(micro.functions) == 2


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("vectors", [1, 2, 3, 4])
@pytest.mark.parametrize("a_row", [64, 784])
@pytest.mark.parametrize("dtype", [float32, float64])
def test_the_largest_tiles_stay_in_registers(
    target: Target, vectors: int, a_row: int, dtype: DType, packs: bool
) -> None:
    rows = register_rows(target).get(vectors)
    if rows is None:
        return
    tile = tile_of(rows, vectors, 256, dtype, target, a_row)
    tile = replace(tile, b_copy=packs * vectors * tile.lanes)
    f = micro_kernel("micro", tile, TileEpilogue((dtype,)))
    asm = assembly(module_text([f.render("ret void")], f.declarations).replace(
        "define internal", "define"), target)  # fmt: skip
    spill = (
        r"\s(?:str|ldr|stp|ldp|stur|ldur)\s+q.*\[sp"
        if "aarch64" in target.triple
        else (r"\sv\w+\s.*\(%rsp\)")
    )
    assert len(re.findall(spill, asm)) == 0
    multiplies = len(re.findall(r"\s(?:vfn?m\w+|fmla)\s", asm))
    assert multiplies == f.render().count("call <") >= rows * vectors


@pytest.mark.parametrize("largest", range(1, 30))
def test_halved_heights_cover_any_number_of_rows(largest: int) -> None:
    sizes = halving_rows(largest)
    assert sizes[0] == largest
    assert sizes == sorted(set(sizes), reverse=True)
    for rows in range(100):
        left = rows
        for size in sizes:
            left %= size
        assert left == 0


def test_even_chunks_differ_by_at_most_one() -> None:
    for count in range(1, 60):
        for largest in range(1, 15):
            parts = even_chunks(count, largest)
            assert sum(parts) == count
            assert max(parts) <= largest
            assert max(parts) - min(parts) <= 1
            assert len(parts) == -(-count // largest)


def pairs_of(axis: Axis, kernel: int) -> set[tuple[int, int, int]]:
    """(output, source pixel, packed kernel element) of every product along an axis."""
    found = set()
    for p in axis.phases:
        for j in range(p.count):
            for t in range(p.taps):
                padded = p.at + p.advance * j + p.tap_advance * t
                assert 0 <= padded < axis.extent(axis.count)
                element = p.first_tap + p.tap_step * t
                assert 0 <= element < kernel
                pixel, between = divmod(padded - axis.low, axis.spread)
                if between == 0 and 0 <= pixel < axis.size:
                    found.add((p.first + p.step * j, pixel, element))
    return found


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 0), (0, 3), (5, 5)])
def test_axes_pair_outputs_inputs_and_kernel_elements(
    kernel: int, stride: int, dilation: int, padding: tuple[int, int]
) -> None:
    size = 11
    geometry = (kernel, stride, padding, dilation)
    forward = forward_axis(size, *geometry)
    out = forward.count
    expected = {
        (o, i, k)
        for o in range(out)
        for k in range(kernel)
        if 0 <= (i := o * stride - padding[0] + k * dilation) < size
    }
    assert pairs_of(forward, kernel) == expected
    backward = pairs_of(gradient_axis(size, out, *geometry), kernel)
    assert {(o, i, kernel - 1 - k) for i, o, k in backward} == expected
