"""The random generator: published answers, and independence of the tensor's extent."""

from __future__ import annotations

import numpy as np
import pytest

from netwright.errors import ShapeError
from netwright.ir.ops import random
from netwright.ir.ops.record import get, infer_types
from netwright.ir.types import Dim, TensorType, float32, int64

# kat_vectors of Random123, the reference implementation by the authors: counter, key, words.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def draw(seed: int, offset: int, shape: tuple[int, ...], stream: int = 0) -> np.ndarray:
    return get("uniform").numpy(np.array([seed, offset]), shape=shape, stream=stream)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = (np.array([c], np.uint64) for c in counter)
    assert tuple(int(w[0]) for w in random.philox4x32((c0, c1, c2, c3), key)) == words


def test_element_is_word_zero_of_its_linear_index() -> None:
    """counter = (index, 0, offset + stream, 0), key = (seed low, seed high), upper 24 bits."""
    seed, offset, stream = (5 << 32) + 9, 2**32 - 1, 3
    got = draw(seed, offset, (4, 6), stream)
    counter = tuple(np.array([c], np.uint64) for c in (2 * 6 + 5, 0, 2, 0))
    word = random.philox4x32(counter, (9, 5))[0]
    assert got[2, 5] == np.float32(int(word[0]) >> 8) * np.float32(2.0**-24)


def test_prefix_does_not_depend_on_the_batch() -> None:
    """Also across the internal blocks of 2**14 elements."""
    whole = draw(3, 1, (300, 100))
    np.testing.assert_array_equal(draw(3, 1, (180, 100)), whole[:180])


def test_key_offset_and_stream_each_change_the_numbers() -> None:
    draws = [draw(1, 0, (50,)), draw(2, 0, (50,)), draw(1, 1, (50,)), draw(1, 0, (50,), 7)]
    draws.append(draw(1 + 2**32, 0, (50,)))
    for i, a in enumerate(draws):
        for b in draws[i + 1 :]:
            assert np.mean(a == b) < 0.1


def test_numbers_are_uniform_and_below_one() -> None:
    u = draw(11, 0, (100_000,))
    assert u.dtype == np.float32
    assert u.min() >= 0
    assert u.max() < 1
    # Six standard errors of the mean, and of the share of each tenth.
    assert abs(u.mean() - 0.5) < 6 * (1 / 12 / u.size) ** 0.5
    shares = np.histogram(u, 10, (0, 1))[0] / u.size
    assert np.all(np.abs(shares - 0.1) < 6 * (0.09 / u.size) ** 0.5)


def test_shape_may_be_symbolic_and_the_key_is_checked() -> None:
    attrs = {"shape": (Dim(1), 8), "stream": 0}
    key = TensorType(int64, (2,))
    assert infer_types("uniform", [key], attrs) == (TensorType(float32, (Dim(1), 8)),)
    with pytest.raises(ShapeError, match=r"expected i64\[2\] = \(seed, offset\)"):
        infer_types("uniform", [TensorType(int64, (3,))], attrs)
