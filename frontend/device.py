"""The one device there is. ``nw.device('cuda')`` exists so that programs can name it."""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedError


class device:  # noqa: N801, RUF100
    """``device('cpu')``; equal by type and index."""

    type: str
    index: int | None

    def __init__(self, spec: Any = "cpu", index: int | None = None) -> None:
        if isinstance(spec, device):
            spec, index = spec.type, spec.index
        if not isinstance(spec, str):
            raise TypeError(f"device(): expected a string such as 'cpu', got {spec!r}")
        name, _, number = spec.partition(":")
        if number:
            if index is not None:
                raise RuntimeError(f"device(): {spec!r} has an index already; drop index={index}")
            if not number.isdigit():
                raise RuntimeError(f"Invalid device string: '{spec}'")
            index = int(number)
        if not name.isidentifier():
            raise RuntimeError(f"Invalid device string: '{spec}'")
        self.type = name
        self.index = index

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, device):
            return NotImplemented
        return (self.type, self.index) == (other.type, other.index)

    def __hash__(self) -> int:
        return hash((self.type, self.index))

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        index = "" if self.index is None else f", index={self.index}"
        return f"device(type='{self.type}'{index})"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


CPU = device("cpu")


def check_device(spec: Any) -> None:
    """Accepts None and the CPU in any spelling; anything else is an UnsupportedError."""
    if spec is None:
        return
    found = device(spec)
    if found.type != "cpu":
        raise UnsupportedError(
            f"device '{found}' is not available: netwright runs on the CPU only; "
            "use device='cpu', or choose with nw.cuda.is_available()"
        )
