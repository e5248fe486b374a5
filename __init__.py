"""netwright: a graph compiler for neural networks on CPUs.

Models are written as in PyTorch; ``compile(model)`` traces them into a graph, optimises it and runs
native kernels, forward and backward. See README.md and docs/.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from . import errors
from .bridge import onnx
from .errors import LintWarning
from .frontend import *  # noqa: F403
from .frontend import __all__ as _frontend_names
from .frontend import nn, optim, utils, vision
from .frontend.serialization import load, save
from .runtime.settings import num_threads as get_num_threads
from .runtime.settings import set_num_threads

if TYPE_CHECKING:
    from . import distributed, ir
    from .bridge.compile import compile

__version__ = "0.1.0"
__all__ = [
    *_frontend_names,
    "LintWarning",
    "compile",
    "distributed",
    "errors",
    "get_num_threads",
    "ir",
    "load",
    "nn",
    "onnx",
    "optim",
    "save",
    "set_num_threads",
    "utils",
    "vision",
]

# `import netwright.nn as nn` finds the frontend's packages under the names that PyTorch uses.
for _name, _module in list(sys.modules.items()):
    for _public in ("nn", "optim", "utils", "vision", "autograd"):
        _private = f"{__name__}.frontend.{_public}"
        if _name == _private or _name.startswith(_private + "."):
            sys.modules.setdefault(f"{__name__}.{_public}{_name[len(_private) :]}", _module)
sys.modules.setdefault(f"{__name__}.onnx", onnx)


def __getattr__(name: str) -> Any:
    """The compiler, the IR and what they import load when they are first used."""
    import importlib

    if name == "compile":
        return importlib.import_module(".bridge.compile", __name__).compile
    if name in ("ir", "distributed"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
