"""state_dict and load_state_dict: collecting values by path and copying them back."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...errors import UnsupportedError
from ..dispatch import wrap
from ..grad_mode import no_grad
from ..tensor import Tensor

if TYPE_CHECKING:
    from .module import Module


class StateDict(OrderedDict[str, Any]):
    """What ``Module.state_dict()`` returns; ``_metadata`` holds each module's format version."""

    _metadata: OrderedDict[str, dict[str, Any]]


class IncompatibleKeys(NamedTuple):
    """Result of load_state_dict: keys that the model or the checkpoint lacks."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return (
            f"IncompatibleKeys(missing_keys={self.missing_keys}, "
            f"unexpected_keys={self.unexpected_keys})"
        )


def own_state(module: Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers of this module alone."""
    for name, param in module._parameters.items():
        if param is not None:
            yield name, param
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            yield name, buffer


def collect(
    module: Module,
    destination: OrderedDict[str, Any] | None,
    prefix: str,
    keep_vars: bool,
) -> OrderedDict[str, Any]:
    """Adds the state of ``module`` and of all below it to ``destination``."""
    if destination is None:
        destination = StateDict()
        destination._metadata = OrderedDict()
    metadata = getattr(destination, "_metadata", None)
    if metadata is not None:
        metadata[prefix[:-1]] = {"version": module._version}
    for name, value in own_state(module):
        destination[prefix + name] = value if keep_vars else value.detach()
    for name, child in module._modules.items():
        if child is not None:
            path = f"{prefix}{name}."
            child.state_dict(destination=destination, prefix=path, keep_vars=keep_vars)
    return destination


def load(
    module: Module, state_dict: Mapping[str, Any], strict: bool, assign: bool
) -> IncompatibleKeys:
    """Copies every matching value into ``module``, then raises for what did not match."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"Expected state_dict to be dict-like, got {type(state_dict)}.")
    if assign:
        raise UnsupportedError(
            "load_state_dict(assign=True) is not supported: parameters keep their identity so that "
            "optimizers and compiled models follow them; use assign=False, which copies"
        )
    missing: list[str] = []
    unexpected: list[str] = []
    errors: list[str] = []
    metadata = getattr(state_dict, "_metadata", {})
    # A copy: modules that accept old formats rename entries.
    _load_tree(module, dict(state_dict), "", metadata, missing, unexpected, errors)
    if strict:
        for title, keys in (("Unexpected", unexpected), ("Missing", missing)):
            if keys:
                names = ", ".join(f'"{k}"' for k in keys)
                errors.insert(0, f"{title} key(s) in state_dict: {names}. ")
    if errors:
        text = "\n\t".join(errors)
        raise RuntimeError(f"Error(s) in loading state_dict for {module._get_name()}:\n\t{text}")
    return IncompatibleKeys(missing, unexpected)


def _load_tree(
    module: Module,
    state_dict: Mapping[str, Any],
    prefix: str,
    metadata: Mapping[str, Any],
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    local = metadata.get(prefix[:-1], {})
    module._load_from_state_dict(state_dict, prefix, local, True, missing, unexpected, errors)
    for name, child in module._modules.items():
        if child is not None:
            below = f"{prefix}{name}."
            part = {k: v for k, v in state_dict.items() if k.startswith(below)}
            _load_tree(child, part, below, metadata, missing, unexpected, errors)


def load_own(
    module: Module,
    state_dict: Mapping[str, Any],
    prefix: str,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """Copies the entries of ``module`` itself and notes what is missing, unexpected or wrong."""
    own = dict(own_state(module))
    for name, target in own.items():
        key = prefix + name
        if key in state_dict:
            problem = _copy_into(target, key, state_dict[key])
            if problem:
                errors.append(problem)
        else:
            missing.append(key)
    for key in state_dict:
        if key.startswith(prefix):
            first, dot, _ = key[len(prefix) :].partition(".")
            if first not in (module._modules if dot else own):
                unexpected.append(key)


def _copy_into(target: Tensor, key: str, value: Any) -> str | None:
    array = as_array(value)
    if array is None:
        return (
            f'While copying the parameter named "{key}", expected a Tensor, a numpy array or a '
            f"torch.Tensor from checkpoint but received {type(value)}"
        )
    shape = tuple(target.shape)
    if shape == () and array.shape == (1,):
        array = array[0]  # scalars were saved with one dimension before PyTorch 0.4
    if array.shape != shape:
        return (
            f"size mismatch for {key}: copying a param with shape {list(array.shape)} from "
            f"checkpoint, the shape in current model is {list(shape)}."
        )
    with no_grad():
        target.copy_(wrap(np.asarray(array, dtype=target.dtype.np)))
    return None


def as_array(value: Any) -> np.ndarray | None:
    """The numbers of a Tensor, an array or a torch tensor; None for anything else.

    torch is looked up, never imported: whoever passes a torch tensor has imported it.
    """
    if isinstance(value, Tensor):
        return value._eager_array("load_state_dict()")
    if isinstance(value, (np.ndarray, np.number, np.bool_)):
        return np.asarray(value)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype is torch.bfloat16 else value).numpy()
    return None
