"""What a peer is, and which there are."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from ...frontend.trace import Traced


@dataclass(frozen=True)
class Ready:
    """A model that a peer is ready to run: ``call()`` runs it on inputs that the peer already
    holds in its own form, ``arrays(result)`` are the outputs in the order of the graph's."""

    call: Callable[[], Any]
    arrays: Callable[[Any], list[np.ndarray]]


class Prepare(Protocol):
    """How a peer makes a traced program ready."""

    def __call__(self, traced: Traced, inputs: Sequence[np.ndarray], threads: int) -> Ready: ...


@dataclass(frozen=True)
class Peer:
    """A runtime: the name for options and JSON, the title for people, the distribution whose
    presence decides whether it takes part, and the place of its ``prepare``."""

    name: str
    title: str
    distribution: str
    place: str

    def version(self) -> str | None:
        """The installed version, None if it is not installed."""
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return None

    def prepare(self) -> Prepare:
        """The function that makes a program ready; imports the peer."""
        module, _, name = self.place.partition(":")
        found: Prepare = getattr(importlib.import_module(f".{module}", __package__), name)
        return found


PEERS = {
    peer.name: peer
    for peer in (
        Peer("torch", "PyTorch", "torch", "pytorch:prepare_eager"),
        Peer("compile", "torch.compile", "torch", "pytorch:prepare_compiled"),
        Peer("ort", "ONNX Runtime", "onnxruntime", "onnx_runtime:prepare"),
        Peer("openvino", "OpenVINO", "openvino", "openvino:prepare"),
    )
}


def versions() -> dict[str, str]:
    """The installed peers' distributions and what they read, with versions."""
    found = {p.distribution: p.version() for p in PEERS.values()}
    found["onnx"] = Peer("onnx", "ONNX", "onnx", "").version()
    return {name: version for name, version in found.items() if version is not None}
