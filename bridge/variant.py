"""One compilation bound to a model: its state, its arguments, its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import is_
from typing import Any

import numpy as np

from .. import compiler
from ..compilation import Compilation
from ..errors import DTypeError, LintWarning, ShapeError
from ..frontend import tree
from ..frontend.changes import writes
from ..frontend.random import default_generator
from ..frontend.tensor import Tensor
from ..frontend.trace import OutputRef
from ..ir.graph import Graph
from ..ir.types import Dim, TensorType, numel, shape_text
from ..passes.split_backward import SAVED
from ..runtime.executable import Executable
from .call import Call

MANY = 10
"""So many programs of one model are a sign that something changes in every call."""


class State:
    """The tensors of parameters and buffers behind an executable's ``state:`` slots."""

    def __init__(self, executable: Executable, tensors: dict[str, Tensor], graph: Graph) -> None:
        self.executable = executable
        self.paths = list(tensors)
        self.tensors = list(tensors.values())
        self.updated = [tensors[p] for p in graph.updates if p in tensors]
        sources = [*graph.sources("parameter"), *graph.sources("buffer")]
        kinds = {node.attrs["path"]: node.type for node in sources}
        self._kinds = [kinds.get(path) for path in self.paths]
        self._positions = {path: i for i, path in enumerate(self.paths)}
        self._arrays: list[Any] = [None] * len(self.tensors)

    def sync(self) -> object:
        """Binds arrays that were exchanged; the state's version, None if it cannot be known.

        DTypeError or ShapeError if an array is not what the native code expects.
        """
        if not self.bound():
            self._bind()
        if any(t._storage.exported for t in self.tensors):
            return None
        return tuple([t._storage.version for t in self.tensors])

    def _bind(self) -> None:
        changed = {}
        with self.executable.lock:  # another thread that runs meanwhile waits for all of it
            for i, tensor in enumerate(self.tensors):
                array = tensor._array
                if array is not self._arrays[i]:
                    _check_kind(self.paths[i], array, self._kinds[i])
                    if not array.flags.c_contiguous or not array.flags.aligned:
                        array = np.require(array, requirements=["C", "A", "W", "O"])
                        tensor._array = array
                    changed[i] = array
            self.executable.bind({self.paths[i]: array for i, array in changed.items()})
            for i, array in changed.items():
                self._arrays[i] = array

    def bound(self) -> bool:
        """Whether every tensor still has the array that the executable reads and writes."""
        return all(map(is_, [t._array for t in self.tensors], self._arrays))

    def exchange(self, path: str, tensor: Tensor) -> None:
        """Uses another tensor of the same type for ``path``."""
        index = self._positions.get(path)
        if index is not None and self.tensors[index] is not tensor:
            old = self.tensors[index]
            self.tensors[index] = tensor
            self.updated = [tensor if t is old else t for t in self.updated]

    def committed(self) -> None:
        """Counts the run's writes as in-place modifications."""
        for tensor in self.updated:
            tensor._storage.version += 1
        if self.updated:
            writes.bump()


def find(variants: dict[Any, Any], general: Any, call: Call, warned: set[str]) -> Any:
    """The program for a call: that for every batch size, else that for these shapes, or None.

    A program is dropped, with a warning (T003), if a tensor that it has as a constant was changed.
    """
    key = general
    found = variants.get(key)
    if found is None or (found.traced.needs_many and call.batch == 1):
        key = (general, call.shapes())
        found = variants.get(key)
    if found is None:
        return None
    place = found.traced.captured.changed()
    if place is None:
        return found
    variants.pop(key, None)
    text = (
        f"a tensor that is used in {place} was changed since the program was compiled; it belongs "
        "to no module, so it is a constant of the program, which is compiled anew. What changes "
        "belongs into a buffer (register_buffer) or an argument"
    )
    compiler.warn([LintWarning("T003", text)], warned)
    return None


def keep(
    variants: dict[Any, Any], general: Any, call: Call, variant: Variant, warned: set[str]
) -> None:
    """Files a new program for ``find``; a warning (T004) if there are many."""
    variants[(general, call.shapes()) if variant.fixed_batch else general] = variant
    if len(variants) == MANY:
        shapes = ", ".join(shape_text(s) for s in call.shapes())
        text = (
            f"this is the {MANY}th program compiled here, for arguments of shapes {shapes}: "
            "one serves every batch size, but each other combination of sizes, dtypes, modes "
            "and attributes has one of its own. Pad sequences and images to a few sizes"
        )
        compiler.warn([LintWarning("T004", text)], warned)


class Variant:
    """One compilation bound to the state it was traced with."""

    mode = "eval"

    def __init__(self, made: Compilation, extra_state: dict[str, Tensor] | None = None) -> None:
        self.made = made
        self.traced = made.traced
        self.executable = made.executables["optimized"]
        self.graph = made.stages["optimized"]
        tensors = {**made.traced.state, **(extra_state or {})}
        self.state = State(self.executable, tensors, self.graph)
        self.results = {
            name: self.graph.type(v)
            for name, v in self.graph.outputs.items()
            if not name.startswith(SAVED)
        }
        self.repeatable = not (self.graph.updates or self.traced.random_streams)
        """Whether a second run gives the same results and changes nothing."""
        self._inputs = {n.attrs["path"]: n.type for n in self.graph.sources("input")}
        self._checked: set[int] = set()
        self.fixed_batch = not any(
            isinstance(d, Dim) for kind in self._inputs.values() for d in kind.shape
        )

    def path_of(self, key: str | int) -> str:
        """The graph path of a gradient's target: a parameter's own, or that of input ``key``."""
        return self.traced.inputs[key] if isinstance(key, int) else key

    def batch(self, leaves: Sequence[Tensor]) -> int:
        """The batch size of a call, after checking that the program accepts it."""
        n = 1
        for path, tensor in zip(self.traced.inputs, leaves, strict=True):
            kind = self._inputs.get(path)
            if kind is not None and kind.shape and isinstance(kind.shape[0], Dim):
                n = tensor._array.shape[0]
                break
        if n not in self._checked:
            _check_batch_norm(self.traced.graph, n)
            self._checked.add(n)
        return n

    def inputs(self, leaves: Sequence[Tensor]) -> dict[str, np.ndarray]:
        """Contiguous arrays of the inputs that the graph reads."""
        arrays = {
            path: array if array.flags.carray else np.require(array, requirements=["C", "A"])
            for path, array in zip(self.traced.inputs, [t._array for t in leaves], strict=True)
        }
        if self.traced.random_streams:
            arrays["rng"] = default_generator.next_key(self.traced.random_streams)
        return arrays

    def outputs(self, n: int) -> dict[str, np.ndarray]:
        """New arrays for the results."""
        return {name: empty(kind, n) for name, kind in self.results.items()}

    def run(
        self,
        leaves: Sequence[Tensor],
        numbers: Mapping[str, np.ndarray] | None = None,
        ready: Callable[[int], None] | None = None,
    ) -> dict[str, np.ndarray]:
        """One run; the results by name. ``numbers`` are further inputs, ``ready`` is told about
        groups of updates (`Executable.run`). What it wrote to state is
        not counted as a modification yet (`State.committed`)."""
        n = self.batch(leaves)
        inputs = self.inputs(leaves)
        if numbers:
            inputs.update(numbers)
        results = self.outputs(n)
        version = self.state.sync()
        self.executable.run(n, inputs, results, version, ready)
        return results

    def assemble(self, tensors: dict[str, Tensor], n: int) -> Any:
        """The results in the nest that the program returned, at batch size ``n``."""
        result = self.traced.result
        if isinstance(result, OutputRef):
            return tensors[result]
        return tree.map_leaves(
            result,
            lambda v: isinstance(v, (OutputRef, Dim)),
            lambda v: tensors[v] if isinstance(v, OutputRef) else v.coef * n,
        )


def _check_kind(path: str, array: np.ndarray, kind: TensorType | None) -> None:
    """An error unless the array is of the type that native code reads and writes it with."""
    if kind is None or (array.shape == kind.shape and array.dtype == kind.dtype.np):
        return
    wrong = DTypeError if array.dtype != kind.dtype.np else ShapeError
    found = f"{array.dtype} of shape {list(array.shape)}"
    needed = f"{kind.dtype.np} of shape {list(kind.shape)}"
    if path.startswith("opt."):
        raise wrong(
            f"the optimizer's state {path.removeprefix('opt.')!r} is {found}, but its parameter is "
            f"{needed}; if the model was converted (model.double(), model.to()), convert the state "
            "too: optimizer.load_state_dict(optimizer.state_dict())"
        )
    raise wrong(f"{path!r} is {found}, but the compiled program was made for {needed}")


def empty(kind: TensorType, n: int) -> np.ndarray:
    """An uninitialised array of a type at batch size ``n``."""
    shape = tuple([d.coef * n if isinstance(d, Dim) else d for d in kind.shape])
    return np.empty(shape, kind.dtype.np)


def _check_batch_norm(graph: Graph, n: int) -> None:
    for node in graph.nodes:
        if node.op != "batch_norm_train":
            continue
        kind = graph.type(node.operands[0])
        shape = list(kind.at(n).shape)
        channels = shape.pop(node.attrs["channel_dim"])
        if numel(shape) == 1:
            shape.insert(node.attrs["channel_dim"], channels)
            raise ShapeError(
                "Expected more than 1 value per channel when training, got input size "
                f"netwright.Size({shape}) in {node.source}; a last batch of one sample can be left "
                "out with DataLoader(..., drop_last=True)"
            )
