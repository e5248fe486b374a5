"""Compiled forward and backward under eager autograd."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ..compilation import Compilation
from ..frontend.tensor import Tensor
from ..ir.types import shape_at
from ..passes.differentiate import GRAD
from ..passes.split_backward import SAVED
from ..runtime.memory import ALIGN, Blocks
from .call import Call
from .variant import State, Variant, empty

Wanted = dict[str | int, Tensor]
"""The tensors that need a gradient: parameters by path, inputs by position."""


class Watch:
    """Tensors that must not change between forward and backward."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._versions = [(t, t._storage.version) for t in tensors]

    def check(self) -> None:
        """RuntimeError, as eager autograd's, if one was modified."""
        for tensor, version in self._versions:
            if tensor._storage.version != version:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an "
                    f"inplace operation: a tensor of shape {tuple(tensor.shape)} of the compiled "
                    f"model is at version {tensor._storage.version}; expected version {version}. "
                    "Call backward() before changing inputs or parameters"
                )


class Backward:
    """The backward executable of a training variant and the memory that connects the two."""

    def __init__(self, variant: TrainingVariant, made: Compilation) -> None:
        self.executable = made.executables["backward"]
        self.graph = made.stages["backward"]
        forward = variant.graph
        self.saved = {
            name: forward.type(v) for name, v in forward.outputs.items() if name.startswith(SAVED)
        }
        used = {n.attrs["path"] for n in self.graph.nodes if n.op in ("parameter", "buffer")}
        tensors = {p: t for p, t in made.traced.state.items() if p in used}
        self.state = State(self.executable, tensors, self.graph)
        self.inputs = {n.attrs["path"]: n.type for n in self.graph.sources("input")}
        self.blocks = Blocks()
        self.grads = {
            name[len(GRAD) :]: self.graph.type(v) for name, v in self.graph.outputs.items()
        }

    def take(self, n: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Memory for the saved values of one forward run, and its views by name."""
        arrays = {name: kind.at(n) for name, kind in self.saved.items()}
        counts = {
            name: math.prod(shape_at(kind.shape, n)) * kind.dtype.itemsize
            for name, kind in arrays.items()
        }
        padded = {name: -(-count // ALIGN) * ALIGN for name, count in counts.items()}
        block = self.blocks.take(max(sum(padded.values()), ALIGN))
        views, offset = {}, 0
        for name, kind in arrays.items():
            part = block[offset : offset + counts[name]]
            views[name] = part.view(kind.dtype.np).reshape(shape_at(kind.shape, n))
            offset += padded[name]
        return block, views


class TrainingVariant(Variant):
    """A variant with a backward executable."""

    def __init__(self, made: Compilation) -> None:
        super().__init__(made)
        self.backward = Backward(self, made)


class BackwardCall:
    """The gradient function of one compiled forward call (see autograd.record)."""

    def __init__(
        self,
        variant: TrainingVariant,
        n: int,
        leaves: Sequence[Tensor],
        arrays: dict[str, np.ndarray],
        wanted: Wanted,
    ) -> None:
        self.variant, self.n, self.arrays = variant, n, arrays
        self.wanted = wanted
        self.inputs = list(wanted.values())
        self.block: np.ndarray | None
        self.block, self.views = variant.backward.take(n)
        backward = variant.backward
        self._watch = Watch([*leaves, *backward.state.tensors])

    def backward(self, *grads: np.ndarray | None) -> list[np.ndarray | None]:
        """Gradients of ``inputs``: one native call."""
        self._watch.check()
        backward = self.variant.backward
        feed = {**self.arrays, **self.views}
        for (name, kind), grad in zip(self.variant.results.items(), grads, strict=True):
            if GRAD + name in backward.inputs:
                if grad is None:
                    grad = np.zeros_like(empty(kind, self.n))
                feed[GRAD + name] = np.require(grad, kind.dtype.np, ["C", "A"])
        feed = {path: feed[path] for path in backward.inputs if path in feed}
        found = {path: empty(kind, self.n) for path, kind in backward.grads.items()}
        version = backward.state.sync()
        targets = {GRAD + path: array for path, array in found.items()}
        backward.executable.run(self.n, feed, targets, version)
        return [found.get(self.variant.path_of(key)) for key in self.wanted]

    def __del__(self) -> None:
        if self.block is not None:
            self.variant.backward.blocks.give(self.block)
            self.block = None


class LazyBackward:
    """Gradients of a call in eval mode: the forward ran without saving anything, so backward runs
    the training executables (made by ``training_variant``) from the inputs."""

    def __init__(
        self, training_variant: Callable[[], TrainingVariant], call: Call, wanted: Wanted
    ) -> None:
        self.training_variant, self.call, self.wanted = training_variant, call, wanted
        self.inputs = list(wanted.values())
        self._watch = Watch([*call.leaves, *wanted.values()])

    def backward(self, *grads: np.ndarray | None) -> list[np.ndarray | None]:
        """Runs forward and backward."""
        self._watch.check()
        variant = self.training_variant()
        n = variant.batch(self.call.leaves)
        function, _ = run_training(variant, n, self.call, self.wanted)
        return function.backward(*grads)


def run_training(
    variant: TrainingVariant, n: int, call: Call, wanted: Wanted
) -> tuple[BackwardCall, dict[str, np.ndarray]]:
    """The forward executable with saved values: the gradient function and the results."""
    found = run_saving(variant, n, call, wanted)
    variant.state.committed()
    return found


def run_saving(
    variant: TrainingVariant, n: int, call: Call, wanted: Wanted
) -> tuple[BackwardCall, dict[str, np.ndarray]]:
    """`run_training` that does not count its writes to state as modifications."""
    arrays = variant.inputs(call.leaves)
    version = variant.state.sync()
    results = variant.outputs(n)
    function = BackwardCall(variant, n, call.leaves, arrays, wanted)
    targets = {**results, **function.views}
    variant.executable.run(n, arrays, targets, version)
    return function, results
