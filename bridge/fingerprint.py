"""What compiled code depends on besides its inputs: modes, attributes, frozen parameters."""

from __future__ import annotations

from typing import Any

from ..frontend.changes import structure
from ..frontend.nn.module import Module
from ..frontend.tensor import Tensor
from ..ir.types import DType

_PLAIN = (int, float, bool, str, type(None), DType)


class Fingerprint:
    """Follows some modules: a hashable summary of their attributes, and their parameters.

    A number or string attribute (``dropout.p``, ``training``, the user's own ``scale``) is a
    constant of the traced program, so a changed one needs another program. Nothing is computed
    again while no module and no ``requires_grad`` flag changes.
    """

    def __init__(self, *roots: Module) -> None:
        self._roots = roots
        self._seen = -1
        self._value: Any = None
        self._trained: dict[str, Tensor] = {}
        self._modes: list[tuple[Module, bool]] = []

    @property
    def value(self) -> Any:
        """The summary."""
        self._refresh()
        return self._value

    @property
    def trained(self) -> dict[str, Tensor]:
        """The parameters of the first module that require a gradient, by path."""
        self._refresh()
        return self._trained

    @property
    def modes(self) -> list[tuple[Module, bool]]:
        """Every module and whether it is in training mode."""
        self._refresh()
        return self._modes

    def _refresh(self) -> None:
        if self._seen == structure.count:
            return
        self._seen = structure.count
        self._trained = {p: t for p, t in self._roots[0].named_parameters() if t.requires_grad}
        self._modes = [(m, m.training) for root in self._roots for m in root.modules()]
        self._value = tuple(
            (path, *_attributes(module))
            for root in self._roots
            for path, module in root.named_modules()
        )


def _attributes(module: Module) -> list[Any]:
    found: list[Any] = [tuple(module._forward_hooks), tuple(module._forward_pre_hooks)]
    for name, value in module.__dict__.items():
        if isinstance(value, _PLAIN):
            # 1, 1.0 and True are equal but make different programs.
            found.append((name, type(value).__name__, value))
        elif isinstance(value, (tuple, list)) and all(isinstance(v, _PLAIN) for v in value):
            found.append((name, *((type(v).__name__, v) for v in value)))
    return found
