"""PyTorch, eager and compiled, and the float64 reference that it computes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...export.pytorch.module import build
from ...frontend.trace import Traced
from .peer import Ready


def prepare_eager(traced: Traced, inputs: Sequence[np.ndarray], threads: int) -> Ready:
    """One call of PyTorch per operator, as in a user's program, in inference mode."""
    return _ready(build(traced), inputs, threads)


def prepare_compiled(traced: Traced, inputs: Sequence[np.ndarray], threads: int) -> Ready:
    """torch.compile with frozen weights, which lets it fold and pack them ahead of the run.

    Takes half a minute or more for a large model, and needs a C++ compiler.
    """
    torch._dynamo.reset()  # another thread count is another program
    torch.set_num_threads(threads)
    return _ready(torch.compile(build(traced), options={"freezing": True}), inputs, threads)


def reference(traced: Traced, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs computed in float64."""
    module = build(traced, double=True)
    wide = [a.astype(np.float64) if a.dtype == np.float32 else a for a in inputs]
    with torch.inference_mode():
        return _arrays(module(*map(torch.tensor, wide)))


def _ready(module: Any, inputs: Sequence[np.ndarray], threads: int) -> Ready:
    tensors = [torch.tensor(a) for a in inputs]

    def call() -> Any:
        with torch.inference_mode():
            return module(*tensors)

    torch.set_num_threads(threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own deprecated parts
        call()
    return Ready(call, _arrays)


def _arrays(result: Any) -> list[np.ndarray]:
    tensors = result if isinstance(result, tuple) else (result,)
    return [t.numpy() for t in tensors]
