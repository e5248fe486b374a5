"""``netwright.onnx``: models as ONNX files.

Importing this needs nothing; exporting needs the package onnx, netwright's extra of that name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import NetwrightError

if TYPE_CHECKING:
    import onnx

    from ..frontend.nn.module import Module
    from ..frontend.trace import Traced

__all__ = ["convert", "export"]


def export(
    model: Module,
    args: Any,
    f: str | os.PathLike[str] | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic: bool = True,
) -> onnx.ModelProto:
    """The model in eval mode as an ONNX model, which is also written to the file ``f``.

    args: an example argument of ``forward``, or a tuple of them; shapes and dtypes count, not the
    values. Inputs are named as the parameters of ``forward``, outputs ``out`` or by their place in
    what it returns, initialisers by their ``state_dict`` keys. dynamic: the leading dimension is
    the parameter ``N`` of the ONNX model instead of that of the example.
    Raises UnsupportedError for an operator that has no ONNX form here, BatchSpecializationError if
    the program needs the batch size as a number (``dynamic=False`` gives it one), and
    NetwrightError if the package onnx is missing.
    """
    from ..frontend import dispatch, tree
    from ..frontend import trace as tracing
    from ..frontend.nn.module import Module
    from .module import CompiledModule

    if isinstance(model, CompiledModule):
        model = model._model
    if not isinstance(model, Module):
        raise TypeError(f"onnx.export(): expected an nn.Module, got {type(model).__name__}")
    examples = tree.map_leaves(
        args if isinstance(args, tuple) else (args,),
        lambda value: isinstance(value, np.ndarray),
        dispatch.as_operand,
    )
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        traced = tracing.trace(
            model, {"": model}, examples, dict(kwargs or {}), dynamic, type(model).__name__
        )
    finally:
        for module, mode in modes:
            module.training = mode
    made = convert(traced)
    if f is not None:
        import onnx

        onnx.save(made, os.fspath(f))
    return made


def convert(traced: Traced) -> onnx.ModelProto:
    """The ONNX model of a traced program, with the state's present values.

    Raises UnsupportedError for an operator that has no ONNX form, NetwrightError without onnx.
    """
    try:
        from ..export.onnx.model import build
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise NetwrightError(
            'ONNX export needs the package onnx; install it with: pip install "netwright[onnx]"'
        ) from None
    return build(traced)
