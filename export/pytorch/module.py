"""A traced program as a ``torch.nn.Module`` of straight-line code.

torch.fx writes the code: one assignment per operator, as in a ``forward`` without submodules. So
eager PyTorch pays what it pays for a user's own program (without the calls of submodules), and
torch.compile sees nothing but tensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx

from ...errors import UnsupportedError
from ...frontend.trace import Traced
from ...ir.graph import SOURCE_OPS, Graph, Node, Value
from ...ir.types import Dim, float32
from ...passes.eliminate_dead_code import eliminate_dead_code
from .functions import FUNCTIONS, TYPED
from .updates import BufferUpdates, number_of

_TAKE_NUMBERS = ("add", "sub", "mul", "div", "pow", "eq", "ne", "lt", "le", "gt", "ge")
"""Operators in which a user would write a constant as a number."""


def build(traced: Traced, double: bool = False, training: bool = False) -> torch.nn.Module:
    """A module with copies of the present values of the state that the program reads, under the
    same ``state_dict`` keys.

    ``forward`` takes the graph's inputs in order and returns its outputs: a tensor, or a tuple of
    several. double: float64 in place of float32 everywhere, as a reference. training: parameters
    require a gradient where the model's do, and a program in training mode updates the running
    statistics of BatchNorm; otherwise the module is in eval mode and for inference.
    Raises UnsupportedError for an operator that the table does not have, and for a program that
    changes its state in another way.
    """
    graph = eliminate_dead_code(traced.graph)
    if graph.updates and not training:
        changed = ", ".join(sorted(graph.updates))
        raise UnsupportedError(f"{graph.name} changes its state when it runs ({changed})")
    return _Converter(graph, traced, double, training).run()


class _Converter:
    """Runs the table's functions on fx proxies, which write down the calls."""

    def __init__(self, graph: Graph, traced: Traced, double: bool, training: bool) -> None:
        self.graph, self.traced, self.double, self.training = graph, traced, double, training
        self.updates = BufferUpdates(graph)
        self.root = torch.nn.Module()
        self.code = fx.Graph()
        self.tracer = fx.proxy.GraphAppendingTracer(self.code)
        self.values: dict[Value, Any] = {}
        self._batch: Any = None

    def run(self) -> torch.nn.Module:
        """The module of the whole graph."""
        for node in self.graph.sources("input"):
            self.values[node.value] = self._proxy(self.code.placeholder(node.name))
        for node in self.graph.nodes:
            if node.op in SOURCE_OPS or node.name in self.updates.inside:
                continue
            if node.op == "batch_norm_train":
                self.values[node.value] = self._batch_norm(node)
            else:
                self.values[node.value] = self._convert(node)
        for counter, step in self.updates.counters.items():
            self._operand(counter).add_(step)
        results = [self._operand(v) for v in self.graph.outputs.values()]
        result = results[0] if len(results) == 1 else tuple(results)
        self.code.output(fx.node.map_aggregate(result, _plain_node))
        self.code.lint()
        return fx.GraphModule(self.root, self.code, self.graph.name).train(self.training)

    def _convert(self, node: Node) -> Any:
        """The value of a node's first result."""
        if node.op not in FUNCTIONS:
            raise UnsupportedError(f"{node.op} at {node.source} has no PyTorch form")
        numbers = [self._number(v) for v in node.operands]
        if node.op not in _TAKE_NUMBERS or None not in numbers:  # numbers alone are no tensor
            numbers = [None] * len(numbers)
        operands = [
            self._operand(v) if n is None else n
            for v, n in zip(node.operands, numbers, strict=True)
        ]
        attrs = {k: self._attribute(node, k, v) for k, v in node.attrs.items()}
        if node.op in TYPED:
            attrs["types"] = tuple(self.graph.type(v) for v in node.operands)
        try:
            return FUNCTIONS[node.op](*operands, **attrs)
        except UnsupportedError as error:
            raise UnsupportedError(f"{error} ({node.source})") from None

    def _batch_norm(self, node: Node) -> Any:
        """The call that also updates the running statistics, as that of ``nn.BatchNorm2d``."""
        found = self.updates.of_batch_norm(node)
        if node.attrs["channel_dim"] != 1:
            raise UnsupportedError(f"{node.op} of channels-last rows at {node.source}")
        x, gamma, beta = (self._operand(v) for v in node.operands)
        mean, var = (None if v is None else self._operand(v) for v in (found.mean, found.var))
        eps = node.attrs["eps"]
        return F.batch_norm(x, mean, var, gamma, beta, True, found.momentum, eps)

    def _operand(self, value: Value) -> Any:
        node = self.graph.node(value)
        if value not in self.values and node.op in SOURCE_OPS:
            self.values[value] = self._state(node)
        if value not in self.values:
            raise UnsupportedError(
                f"{value}, result {value.index} of {node.op}, has no PyTorch form"
            )
        return self.values[value]

    def _number(self, value: Value) -> Any:
        return number_of(self.graph, value)

    def _state(self, node: Node) -> Any:
        array: np.ndarray
        if node.op == "constant":
            array, path = node.attrs["value"], f"constants.{node.name}"
        else:
            path = node.attrs["path"]
            array = self.traced.state[path]._array
        tensor = torch.tensor(array, dtype=torch.float64 if self._widens(node) else None)
        *modules, name = path.split(".")
        owner = self.root
        for module in modules:
            if not hasattr(owner, module):
                owner.add_module(module, torch.nn.Module())
            owner = getattr(owner, module)
        if node.op == "parameter":
            trained = self.training and self.traced.state[path].requires_grad
            owner.register_parameter(name, torch.nn.Parameter(tensor, trained))
        else:
            owner.register_buffer(name, tensor, persistent=node.op != "constant")
        return self._proxy(self.code.get_attr(path))

    def _widens(self, node: Node) -> bool:
        return self.double and node.type.dtype is float32

    def _attribute(self, node: Node, name: str, value: Any) -> Any:
        """An attribute with numbers for symbolic extents."""
        if name == "dtype" and self._widens(node):
            return "f64"
        if isinstance(value, Dim):
            return self._extent(value)
        if not isinstance(value, tuple) or not any(isinstance(v, Dim) for v in value):
            return value
        if node.op == "reshape" and sum(isinstance(v, Dim) for v in value) == 1 and 0 not in value:
            return tuple(-1 if isinstance(v, Dim) else v for v in value)
        return tuple(self._extent(v) if isinstance(v, Dim) else v for v in value)

    def _extent(self, extent: Dim) -> Any:
        """A multiple of the batch size, as a number that the module's call computes."""
        if self._batch is None:
            name, axis, given = next(
                (n.value, axis, d)
                for n in self.graph.sources("input")
                for axis, d in enumerate(n.type.shape)
                if isinstance(d, Dim)
            )
            size = self.values[name].shape[axis]
            self._batch = size if given.coef == 1 else size // given.coef
        return self._batch if extent.coef == 1 else self._batch * extent.coef

    def _proxy(self, node: fx.Node) -> fx.Proxy:
        return fx.Proxy(node, self.tracer)


def _plain_node(value: Any) -> Any:
    return value.node if isinstance(value, fx.Proxy) else value
