"""Products of vectors and matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import DTypeError, ShapeError
from ..ir.types import bool_
from .dispatch import apply
from .elementwise import add, mul
from .shaping import transpose, unsqueeze

if TYPE_CHECKING:
    from .tensor import Tensor


def matmul(input: Any, other: Any) -> Tensor:
    """Matrix product with broadcast batch dimensions; 1-d operands are vectors, as in PyTorch."""
    if not input.dim() or not other.dim():
        raise ShapeError(
            "both arguments to matmul need to be at least 1D, but they are "
            f"{input.dim()}D and {other.dim()}D"
        )
    if input.dtype is not other.dtype:
        raise DTypeError(
            f"expected m1 and m2 to have the same dtype, but got: {input.dtype.name} != "
            f"{other.dtype.name}; cast one with .to()"
        )
    if input.dtype is bool_:
        raise DTypeError("matmul: not implemented for bool; cast it with .float()")
    a = unsqueeze(input, 0) if input.dim() == 1 else input
    b = unsqueeze(other, 1) if other.dim() == 1 else other
    if a.shape[-1] != b.shape[-2]:
        raise ShapeError(
            f"mat1 and mat2 shapes cannot be multiplied ({_shape(input)} and {_shape(other)})"
        )
    product: Tensor = apply("matmul", a, b)
    shape = list(product.shape)
    if other.dim() == 1:
        del shape[-1]
    if input.dim() == 1:
        del shape[-1 if other.dim() == 1 else -2]
    return product if len(shape) == product.dim() else product.reshape(shape)


def _shape(tensor: Tensor) -> str:
    return "x".join(str(d) for d in tensor.shape)


def _require_rank(name: str, rank: int, **tensors: Tensor) -> None:
    for argument, tensor in tensors.items():
        if tensor.dim() != rank:
            raise ShapeError(
                f"{name}: {argument} must be a {rank}D tensor, got {tensor.dim()}D of shape "
                f"{list(tensor.shape)}"
            )


def mm(input: Any, mat2: Any) -> Tensor:
    """Product of two matrices."""
    _require_rank("mm", 2, input=input, mat2=mat2)
    return matmul(input, mat2)


def bmm(input: Any, mat2: Any) -> Tensor:
    """Products of the matrices of two batches of one size."""
    _require_rank("bmm", 3, input=input, mat2=mat2)
    if input.shape[0] != mat2.shape[0]:
        raise ShapeError(f"bmm: expected equal batch sizes, got {_shape(input)} and {_shape(mat2)}")
    return matmul(input, mat2)


def mv(input: Any, vec: Any) -> Tensor:
    """Product of a matrix and a vector."""
    _require_rank("mv", 2, input=input)
    _require_rank("mv", 1, vec=vec)
    return matmul(input, vec)


def dot(input: Any, tensor: Any) -> Tensor:
    """Inner product of two vectors."""
    _require_rank("dot", 1, input=input, tensor=tensor)
    if input.shape != tensor.shape:
        raise ShapeError(
            "inconsistent tensor size, expected tensor "
            f"{list(input.shape)} and src {list(tensor.shape)} to have the same number of elements"
        )
    return matmul(input, tensor)


def outer(input: Any, vec2: Any) -> Tensor:
    """``input[i] * vec2[j]``."""
    _require_rank("outer", 1, input=input, vec2=vec2)
    return mul(unsqueeze(input, 1), unsqueeze(vec2, 0))


def addmm(input: Any, mat1: Any, mat2: Any, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """``beta * input + alpha * (mat1 @ mat2)``."""
    product = mm(mat1, mat2)
    scaled = product if alpha == 1 else mul(product, alpha)
    return add(input if beta == 1 else mul(input, beta), scaled)


def matrix_transpose(input: Any) -> Tensor:
    """Swaps the last two dimensions (``mT``)."""
    if input.dim() < 2:
        raise ShapeError(
            "tensor.mT is only supported on matrices or batches of matrices. Got "
            f"{input.dim()}-D tensor."
        )
    return transpose(input, -2, -1)
