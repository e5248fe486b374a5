"""Normalisation layers that look at one sample at a time: groups, instances, root mean squares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import ShapeError, UnsupportedError
from ..tensor import Tensor
from . import functional as F
from . import init
from .affine import Affine
from .module import Module
from .parameter import Parameter, empty_parameter


class GroupNorm(Affine):
    """Normalises each of ``num_groups`` groups of channels of each sample."""

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if num_channels % num_groups:
            raise ValueError(
                f"num_channels ({num_channels}) must be divisible by num_groups ({num_groups})"
            )
        self.num_groups = num_groups
        self.num_channels = num_channels
        self.eps = eps
        self.affine = affine
        self._register_affine((num_channels,), affine, bias, device, dtype)
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, "
            f"bias={self.bias is not None}"
        )


class _InstanceNorm(Affine):
    """Normalises each channel of each sample over its ``n`` spatial dimensions."""

    n: int

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if track_running_stats:
            raise UnsupportedError(
                f"{type(self).__name__}: track_running_stats=True is not supported; the statistics "
                "of the instance itself are used in both modes"
            )
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self._register_affine((num_features,), affine, bias, device, dtype)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, None)
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        n = self.n
        if input.ndim not in (n + 1, n + 2):
            raise ShapeError(f"expected {n + 1}D or {n + 2}D input (got {input.ndim}D input)")
        if input.shape[-n - 1] != self.num_features:
            raise ShapeError(
                f"expected input's size at dim={input.ndim - n - 1} to match num_features "
                f"({self.num_features}), but got: {input.shape[-n - 1]}."
            )
        x = input if input.ndim == n + 2 else input.unsqueeze(0)
        y = F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        return y if input.ndim == n + 2 else y.squeeze(0)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )


class InstanceNorm1d(_InstanceNorm):
    """Instance normalisation of (N, C, L) or (C, L)."""

    n = 1


class InstanceNorm2d(_InstanceNorm):
    """Instance normalisation of (N, C, H, W) or (C, H, W)."""

    n = 2


class InstanceNorm3d(_InstanceNorm):
    """Instance normalisation of (N, C, D, H, W) or (C, D, H, W)."""

    n = 3


class RMSNorm(Module):
    """Divides by the root mean square over the last dimensions; ``eps`` None is the dtype's own."""

    weight: Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if isinstance(normalized_shape, int):
            normalized_shape = (normalized_shape,)
        self.normalized_shape: tuple[int, ...] = tuple(normalized_shape)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        there = elementwise_affine
        param = empty_parameter(self.normalized_shape, device, dtype) if there else None
        self.register_parameter("weight", param)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1."""
        if self.weight is not None:
            init.ones_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        return F.rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        )
