"""What a user writes: tensors, autograd, nn, optim, data; and the tracing that captures it."""

from __future__ import annotations

from . import autograd, cuda, dtypes, functions, utils, vision
from .device import device
from .dims import Size
from .dispatch import result_type
from .dtypes import *  # noqa: F403
from .functions import *  # noqa: F403
from .grad_mode import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    is_inference_mode_enabled,
    no_grad,
    set_grad_enabled,
)
from .promotion import get_default_dtype, promote_types, set_default_dtype
from .random import (
    Generator,
    default_generator,
    get_rng_state,
    initial_seed,
    manual_seed,
    seed,
    set_rng_state,
)
from .serialization import load, save
from .tensor import Tensor

# The import of the submodule of that name has hidden the function.
tensor = functions.tensor

__all__ = [
    *dtypes.__all__,
    *functions.__all__,
    "Generator",
    "Size",
    "Tensor",
    "autograd",
    "cuda",
    "default_generator",
    "device",
    "enable_grad",
    "get_default_dtype",
    "get_rng_state",
    "inference_mode",
    "initial_seed",
    "is_grad_enabled",
    "is_inference_mode_enabled",
    "load",
    "manual_seed",
    "no_grad",
    "promote_types",
    "result_type",
    "save",
    "seed",
    "set_default_dtype",
    "set_grad_enabled",
    "set_rng_state",
    "utils",
    "vision",
]
