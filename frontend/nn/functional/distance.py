"""Distances of vectors, and the losses that are made of them."""

from __future__ import annotations

from ....errors import ShapeError
from ... import dispatch
from ...elementwise import minimum, where
from ...tensor import Tensor
from .checks import need_float, need_tensor, sizes
from .loss import reduced, reduction_of
from .norm import normalize


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """x1 . x2 / (max(|x1|, eps) max(|x2|, eps)) along ``dim``."""
    need_tensor("cosine_similarity", "x1", 1, x1)
    need_tensor("cosine_similarity", "x2", 2, x2)
    need_float("cosine_similarity", x1)
    return (normalize(x1, dim=dim, eps=eps) * normalize(x2, dim=dim, eps=eps)).sum(dim)


def pairwise_distance(
    x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Tensor:
    """The p-norm of x1 - x2 + eps along the last dimension."""
    need_tensor("pairwise_distance", "x1", 1, x1)
    need_tensor("pairwise_distance", "x2", 2, x2)
    return (x1 - x2 + eps).norm(p, dim=-1, keepdim=keepdim)


def cosine_embedding_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """1 - cos where the target is 1, max(0, cos - margin) where it is -1."""
    reduction = reduction_of(reduction, size_average, reduce)
    if input1.shape != input2.shape or target.ndim + 1 != input1.ndim:
        raise ShapeError(
            f"cosine_embedding_loss(): sizes {sizes(input1.shape)}, {sizes(input2.shape)} and "
            f"{sizes(target.shape)} do not fit: expected two inputs [N, D] and a target [N], or "
            "[D], [D] and []"
        )
    squares = ((input1**2).sum(-1) + 1e-12) * ((input2**2).sum(-1) + 1e-12)
    cosine = (input1 * input2).sum(-1) / squares.sqrt()
    zero = dispatch.constant(0.0, input1.dtype)
    alike = where(target == 1, 1.0 - cosine, zero)
    return reduced(alike + where(target == -1, (cosine - margin).clamp(min=0), zero), reduction)


def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2,
    eps: float = 1e-6,
    swap: bool = False,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """max(0, d(anchor, positive) - d(anchor, negative) + margin); swap: the smaller of the
    negative's distances from anchor and positive (Balntas et al. 2016)."""
    reduction = reduction_of(reduction, size_average, reduce)
    if margin <= 0:
        raise ValueError(f"margin must be greater than 0, got {margin}")
    near = pairwise_distance(anchor, positive, p, eps)
    far = pairwise_distance(anchor, negative, p, eps)
    if swap:
        far = minimum(far, pairwise_distance(positive, negative, p, eps))
    return reduced((margin + near - far).clamp(min=0), reduction)


def margin_ranking_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """max(0, -t (x1 - x2) + margin): x1 ranks higher where the target is 1, x2 where it is -1."""
    reduction = reduction_of(reduction, size_average, reduce)
    if input1.ndim != input2.ndim or input1.ndim != target.ndim:
        raise ShapeError(
            "margin_ranking_loss : All input tensors should have same dimension but got sizes: "
            f"input1: {sizes(input1.shape)}, input2: {sizes(input2.shape)}, target: "
            f"{sizes(target.shape)}"
        )
    return reduced((margin - target * (input1 - input2)).clamp(min=0), reduction)


def hinge_embedding_loss(
    input: Tensor,
    target: Tensor,
    margin: float = 1.0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The distance x where the target is 1, max(0, margin - x) where it is -1."""
    reduction = reduction_of(reduction, size_average, reduce)
    zero = dispatch.constant(0.0, input.dtype)
    alike = where(target == -1, zero, input)
    return reduced(alike + where(target == 1, zero, (margin - input).clamp(min=0)), reduction)
