"""OpenVINO on the exported model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino

from ...bridge.onnx import convert
from ...frontend.trace import Traced
from .peer import Ready


def prepare(traced: Traced, inputs: Sequence[np.ndarray], threads: int) -> Ready:
    """One stream that is tuned for latency, in float32; arrays are shared, not copied."""
    core = openvino.Core()
    model = core.read_model(convert(traced).SerializeToString())
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    arguments = dict(enumerate(inputs))

    def call() -> Any:
        return request.infer(arguments, share_inputs=True, share_outputs=True)

    def arrays(result: Any) -> list[np.ndarray]:
        return [np.array(result[port]) for port in compiled.outputs]

    call()
    return Ready(call, arrays)
