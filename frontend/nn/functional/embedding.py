"""embedding and one_hot: turning indices into vectors."""

from __future__ import annotations

import numpy as np

from ....errors import DTypeError
from ....ir.types import int32, int64
from ...dispatch import apply, as_operand, cast
from ...tensor import Tensor
from .checks import need_tensor, unsupported


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Rows of ``weight`` (num, features) by index; row ``padding_idx`` gets no gradient."""
    need_tensor("embedding", "input", 1, input)
    need_tensor("embedding", "weight", 2, weight)
    check_embedding_options(max_norm, scale_grad_by_freq, sparse)
    if input.dtype not in (int64, int32):
        raise DTypeError(
            "Expected tensor for argument #1 'indices' to have one of the following scalar "
            f"types: Long, Int; but got {input.dtype} instead (while checking arguments for "
            "embedding); convert it with .long()"
        )
    if padding_idx is not None:
        padding_idx = check_padding_idx(padding_idx, weight.shape[0])
    return apply("embedding", cast(input, int64), weight, padding_idx=padding_idx)


def check_embedding_options(max_norm: float | None, scale_grad_by_freq: bool, sparse: bool) -> None:
    """UnsupportedError for the options that netwright lacks."""
    if max_norm is not None:
        fix = "normalise the rows with nn.functional.normalize"
        raise unsupported("embedding", "max_norm", fix)
    if scale_grad_by_freq:
        raise unsupported("embedding", "scale_grad_by_freq", "leave it out")
    if sparse:
        raise unsupported("embedding", "sparse=True", "gradients are dense; leave it out")


def check_padding_idx(padding_idx: int, num: int) -> int:
    """The index counted from the front; AssertionError, as in PyTorch, if it does not exist."""
    if not -num <= padding_idx < num:
        raise AssertionError(
            f"Padding_idx must be within num_embeddings: got {padding_idx} for {num} embeddings"
        )
    return padding_idx % num


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """int64 tensor (..., num_classes) with 1 at each index; -1 takes the largest index + 1."""
    need_tensor("one_hot", "tensor", 1, tensor)
    if tensor.dtype is not int64:
        raise DTypeError(
            "one_hot is only applicable to index tensor of type LongTensor, "
            f"but got {tensor.dtype}; convert it with .long()"
        )
    if num_classes < 0 or not tensor._traced:
        num_classes = _checked_classes(tensor.numpy(), num_classes)
    classes = as_operand(np.arange(num_classes, dtype=np.int64))
    return cast(apply("eq", tensor.unsqueeze(-1), classes), int64)


def _checked_classes(labels: np.ndarray, num_classes: int) -> int:
    if labels.size == 0:
        if num_classes <= 0:
            raise RuntimeError("Can not infer total number of classes from empty tensor.")
        return num_classes
    if labels.min() < 0:
        raise RuntimeError("Class values must be non-negative.")
    if num_classes == -1:
        return int(labels.max()) + 1
    if num_classes < 1:
        raise RuntimeError("num_classes should be positive")
    if labels.max() >= num_classes:
        raise RuntimeError(
            f"Class values must be smaller than num_classes: got {labels.max()} for "
            f"num_classes={num_classes}"
        )
    return num_classes
