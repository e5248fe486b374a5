"""ONNX Runtime on the exported model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime

from ...bridge.onnx import convert
from ...frontend.trace import Traced
from .peer import Ready

_ERRORS_ONLY = 3


def prepare(traced: Traced, inputs: Sequence[np.ndarray], threads: int) -> Ready:
    """A session of the CPU provider with all optimisations and spinning threads, its defaults."""
    model = convert(traced)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in model.graph.input]
    feed = dict(zip(names, inputs, strict=True))
    outputs = [value.name for value in model.graph.output]

    def call() -> Any:
        return session.run(outputs, feed)

    call()
    return Ready(call, list)
