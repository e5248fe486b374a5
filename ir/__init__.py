"""The graph IR: graphs, operators, types, text form, verifier, interpreter, drawings, reports.

``docs/ir.md`` explains it. The names of this package are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# At once and not on first use: importing the module ``verify`` later would bind the module to this
# name.
from .verify import verify as verify

if TYPE_CHECKING:
    from .draw import to_dot as to_dot
    from .draw import to_svg as to_svg
    from .graph import Attrs as Attrs
    from .graph import Graph as Graph
    from .graph import Node as Node
    from .graph import Source as Source
    from .graph import Value as Value
    from .interpreter import evaluate as evaluate
    from .parser import parse as parse
    from .report import flops as flops
    from .report import summary as summary
    from .report import table as table
    from .text import format_graph as format_graph
    from .types import Dim as Dim
    from .types import TensorType as TensorType

_HOME = {
    "Attrs": "graph",
    "Dim": "types",
    "Graph": "graph",
    "Node": "graph",
    "Source": "graph",
    "TensorType": "types",
    "Value": "graph",
    "evaluate": "interpreter",
    "flops": "report",
    "format_graph": "text",
    "parse": "parser",
    "summary": "report",
    "table": "report",
    "to_dot": "draw",
    "to_svg": "draw",
}

__all__ = ["verify", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
