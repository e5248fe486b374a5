"""einsum: sums of products by the letters of dimensions, as one batched matrix product per step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ShapeError, UnsupportedError
from ..ir.types import numel
from .linalg import matmul

if TYPE_CHECKING:
    from .tensor import Tensor


def einsum(equation: str, *operands: Any) -> Tensor:
    """``einsum('bij,bjk->bik', a, b)``: letters that the result lacks are summed over.

    Operands are multiplied from left to right. Letters that repeat within one operand and
    ellipses are an UnsupportedError.
    """
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    terms, result = _parse(equation, operands)
    value, letters = operands[0], terms[0]
    for i, (other, theirs) in enumerate(zip(operands[1:], terms[1:], strict=True), start=1):
        needed = set(result).union(*terms[i + 1 :])
        value, letters = _product(value, letters, other, theirs, needed)
    value, letters = _summed(value, letters, set(result))
    return value.permute(*(letters.index(c) for c in result)) if letters != result else value


def _parse(equation: str, operands: tuple[Any, ...]) -> tuple[list[str], str]:
    text = equation.replace(" ", "")
    if "." in text:
        raise UnsupportedError(f"einsum(): {equation!r} has an ellipsis; name the dimensions")
    left, arrow, result = text.partition("->")
    terms = left.split(",")
    if not arrow:
        every = "".join(terms)
        result = "".join(sorted(c for c in set(every) if every.count(c) == 1))
    if len(terms) != len(operands):
        raise ValueError(
            f"einsum(): {equation!r} has {len(terms)} operands, but {len(operands)} were given"
        )
    sizes: dict[str, Any] = {}
    for term, operand in zip(terms, operands, strict=True):
        if len(term) != operand.dim():
            raise ShapeError(
                f"einsum(): the subscripts {term!r} do not fit an operand of shape "
                f"{list(operand.shape)}"
            )
        if len(set(term)) != len(term):
            raise UnsupportedError(
                f"einsum(): {term!r} repeats a letter; take the diagonal() first"
            )
        for letter, size in zip(term, operand.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ShapeError(
                    f"einsum(): dimension {letter!r} of {equation!r} is {sizes[letter]} in one "
                    f"operand and {size} in another"
                )
    if len(set(result)) != len(result) or not set(result) <= set(sizes):
        raise ValueError(f"einsum(): the result {result!r} of {equation!r} has unknown letters")
    return terms, result


def _summed(x: Tensor, letters: str, kept: set[str]) -> tuple[Tensor, str]:
    gone = tuple(i for i, c in enumerate(letters) if c not in kept)
    return (x.sum(gone), "".join(c for c in letters if c in kept)) if gone else (x, letters)


def _product(x: Tensor, a: str, y: Tensor, b: str, needed: set[str]) -> tuple[Tensor, str]:
    """The product of two operands, summed over the letters that nobody needs."""
    x, a = _summed(x, a, needed | set(b))
    y, b = _summed(y, b, needed | set(a))
    batch = "".join(c for c in a if c in b and c in needed)
    inner = "".join(c for c in a if c in b and c not in needed)
    rows = "".join(c for c in a if c not in b)
    columns = "".join(c for c in b if c not in a)
    sizes = {**dict(zip(a, x.shape, strict=True)), **dict(zip(b, y.shape, strict=True))}
    shared = [sizes[c] for c in batch]
    m, k, n = (_size(sizes, part) for part in (rows, inner, columns))
    p = x.permute(*(a.index(c) for c in batch + rows + inner)).reshape(*shared, m, k)
    q = y.permute(*(b.index(c) for c in batch + inner + columns)).reshape(*shared, k, n)
    letters = batch + rows + columns
    found = matmul(p, q) if inner else p * q
    return found.reshape(*(sizes[c] for c in letters)), letters


def _size(sizes: dict[str, Any], letters: str) -> Any:
    return numel(tuple(sizes[c] for c in letters))
