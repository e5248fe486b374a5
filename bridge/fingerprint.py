"""What compiled code depends on besides its inputs: modes, attributes, frozen parameters."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import LintWarning
from ..frontend.changes import structure
from ..frontend.nn.module import Module
from ..frontend.tensor import Tensor
from ..ir.types import DType

_PLAIN = (int, float, bool, str, type(None), DType)
_STORES = ("_parameters", "_buffers")


class _Same:
    """Compares by identity; keeps its object, so that no other one takes its address."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)


class Fingerprint:
    """Follows some modules: a hashable summary of their attributes, and their parameters.

    A number or string attribute (``dropout.p``, ``training``, the user's own ``scale``) is a
    constant of the traced program, so a changed one needs another program; so does an exchanged
    parameter, buffer or tensor. Nothing is computed again while no module and no
    ``requires_grad`` flag changes.
    """

    def __init__(self, *roots: Module) -> None:
        self._roots = roots
        self._seen = -1
        self._value: Any = None
        self._trained: dict[str, Tensor] = {}
        self._modes: list[tuple[Module, bool]] = []
        self._hooked: list[str] = []
        self._changed_by_trace: set[str] = set()

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
    def hooked(self) -> list[str]:
        """Paths of the parameters with hooks on their gradients."""
        self._refresh()
        return self._hooked

    @property
    def modes(self) -> list[tuple[Module, bool]]:
        """Every module and whether it is in training mode."""
        self._refresh()
        return self._modes

    def lint(self, before: Any) -> list[LintWarning]:
        """T002, if attributes were changed by a trace that began at ``before`` and by an earlier
        one: a cache is filled once, but a counter makes every call another program."""
        self._refresh()
        changed = {
            f"{path}.{new[0]}" if path else new[0]
            for (path, *old), (_, *now) in zip(before, self._value, strict=False)
            for new in now
            if new[:1] and isinstance(new[0], str) and new not in old
        }
        again = sorted(changed & self._changed_by_trace)
        self._changed_by_trace |= changed
        if not again:
            return []
        return [
            LintWarning(
                "T002",
                f"forward() changes the attribute {', '.join(again)} in every call, so every call "
                "is compiled anew; count outside of forward(), or in a buffer (register_buffer)",
            )
        ]

    def _refresh(self) -> None:
        if self._seen == structure.count:
            return
        self._seen = structure.count
        self._trained = {p: t for p, t in self._roots[0].named_parameters() if t.requires_grad}
        self._modes = [(m, m.training) for root in self._roots for m in root.modules()]
        self._hooked = [
            path for root in self._roots for path, t in root.named_parameters() if t._hooks
        ]
        self._value = tuple(
            (path, *_attributes(module))
            for root in self._roots
            for path, module in root.named_modules()
        )


def _attributes(module: Module) -> list[Any]:
    inner = module.__dict__.get("_model")
    if isinstance(inner, Module):  # a compiled module, whose attributes are its model's
        module = inner
    found: list[Any] = [tuple(module._forward_hooks), tuple(module._forward_pre_hooks)]
    for name, value in module.__dict__.items():
        if isinstance(value, _PLAIN):
            # 1, 1.0 and True are equal but make different programs.
            found.append((name, type(value).__name__, value))
        elif isinstance(value, (tuple, list)) and all(isinstance(v, _PLAIN) for v in value):
            found.append((name, *((type(v).__name__, v) for v in value)))
        elif isinstance(value, (Tensor, np.ndarray)) and not getattr(value, "_traced", False):
            found.append((name, _Same(value)))
    for store in _STORES:
        for name, tensor in module.__dict__[store].items():
            if tensor is not None:
                found.append((name, _Same(tensor), tensor._array.shape, tensor._array.dtype.char))
    return found
