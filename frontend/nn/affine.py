"""What normalisation layers share: a learned scale and offset."""

from __future__ import annotations

from typing import Any

from . import init
from .module import Module
from .parameter import Parameter, empty_parameter


class Affine(Module):
    """A module with a ``weight`` and a ``bias``, either of which may be None."""

    weight: Parameter | None
    bias: Parameter | None

    def _register_affine(
        self, shape: tuple[int, ...], weight: bool, bias: bool, device: Any, dtype: Any
    ) -> None:
        """Registers the two; without a weight there is no bias."""
        for name, wanted in (("weight", weight), ("bias", weight and bias)):
            param = empty_parameter(shape, device, dtype) if wanted else None
            self.register_parameter(name, param)

    def reset_parameters(self) -> None:
        """Weight 1, bias 0."""
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)
