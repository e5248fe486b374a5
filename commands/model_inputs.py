"""``--input 1x28x28:f32``: tensors to call a model with."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..ir.types import DTYPES, DType, float32

if TYPE_CHECKING:
    from ..frontend.tensor import Tensor

_MAX_ELEMENTS = 1 << 31


@dataclass(frozen=True)
class InputSpec:
    """Shape and dtype of one argument of a model."""

    shape: tuple[int, ...]
    dtype: DType = float32

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))}:{self.dtype.short}"


def parse_input(text: str) -> InputSpec:
    """Reads ``64x3x32x32`` or ``8x16:i64``; ArgumentTypeError for anything else."""
    sizes, colon, dtype = text.partition(":")
    expected = (
        f"expected sizes joined by x and, after a colon, a dtype if it is not f32, such as "
        f"1x28x28 or 8x16:i64; got {text!r}"
    )
    parts = sizes.split("x")
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(expected)
    names = {d.short: d for d in DTYPES} | {d.name: d for d in DTYPES}
    if colon and dtype not in names:
        raise argparse.ArgumentTypeError(
            f"unknown dtype {dtype!r} in {text!r}; expected one of "
            f"{', '.join(d.short for d in DTYPES)}"
        )
    shape = tuple(map(int, parts))
    if 0 in shape:
        raise argparse.ArgumentTypeError(f"sizes must be at least 1; got {text!r}")
    if int(np.prod(shape, dtype=object)) > _MAX_ELEMENTS:
        raise argparse.ArgumentTypeError(f"{text!r} has more than 2**31 elements")
    return InputSpec(shape, names[dtype] if colon else float32)


def add_argument(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """``--input``, once per argument of the model's ``forward``."""
    parser.add_argument(
        "--input",
        dest="inputs",
        metavar="SHAPE[:DTYPE]",
        type=parse_input,
        action="append",
        required=required,
        default=None if required else [],
        help="shape of an argument of forward(), such as 1x28x28 or 8x16:i64 (f32 if not said); "
        "once per argument, the batch first",
    )


def add_batches_argument(parser: argparse.ArgumentParser) -> None:
    """``--batch``, for commands that time."""
    parser.add_argument(
        "--batch",
        dest="batches",
        type=_batches,
        metavar="N[,N...]",
        help="batch sizes to time instead of that of --input, such as 1,64",
    )


def _batches(text: str) -> list[int]:
    parts = text.split(",")
    if not all(p.isascii() and p.isdecimal() and int(p) > 0 for p in parts):
        raise argparse.ArgumentTypeError(
            f"expected batch sizes of at least 1 joined by commas, such as 1,64; got {text!r}"
        )
    return [int(p) for p in parts]


def make_inputs(specs: Sequence[InputSpec], seed: int = 0) -> list[Tensor]:
    """Normally distributed floating-point numbers; zeros, which index anything, for integers."""
    from ..frontend.functions import from_numpy

    rng = np.random.default_rng(seed)
    made = []
    for spec in specs:
        if spec.dtype.is_float:
            array = rng.standard_normal(spec.shape).astype(spec.dtype.np)
        else:
            array = np.zeros(spec.shape, spec.dtype.np)
        made.append(from_numpy(array))
    return made


def with_batch(specs: Sequence[InputSpec], batch: int) -> list[InputSpec]:
    """The arguments at another batch size: every leading size that equals the first's is one."""
    lead = next((s.shape[0] for s in specs if s.shape), None)
    return [
        replace(s, shape=(batch, *s.shape[1:])) if s.shape and s.shape[0] == lead else s
        for s in specs
    ]


def batch_of(specs: Sequence[InputSpec]) -> int:
    """The batch size of a call with these arguments."""
    return next((s.shape[0] for s in specs if s.shape), 1)
