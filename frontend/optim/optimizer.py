"""Optimizer: parameter groups, state, and one update rule for eager and compiled steps.

A subclass writes its arithmetic once, with the IR builder (``update_rule``). ``step()`` runs it on
numpy arrays; a compiled step puts it into the graph. The numbers that change while training
(learning rate, bias corrections, ...) come from ``hyper`` at every step, so a scheduler never
causes a compilation; ``structure`` names what does.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import UnsupportedError
from ...ir.builder import ArrayBuilder
from .. import dispatch
from ..grad_mode import enable_grad, no_grad
from ..nn.state import as_array
from ..tensor import Tensor

Rule = Callable[..., tuple[Any, dict[str, Any]]]
"""``(b, param, grad, state, hyper) -> (new param, new state)``, values of builder ``b``."""


def _noting_the_call(step: Callable[..., Any]) -> Callable[..., Any]:
    """``step``, leaving the mark by which a scheduler sees that the optimizer went first."""

    @functools.wraps(step)
    def marked(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        self._opt_called = True
        return step(self, *args, **kwargs)

    return marked


class Optimizer:
    """Base class. ``params``: tensors, ``(name, tensor)`` pairs, or dicts of options per group.

    param_groups: dicts with ``params`` and the options of the group. state: per parameter, a dict
    from PyTorch's names to tensors; a parameter has an entry from its first step on.
    """

    counts_steps = False  # whether the state has PyTorch's ``step`` (float32, 0-d)
    _opt_called = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "step" in cls.__dict__:
            cls.step = _noting_the_call(cls.__dict__["step"])  # type: ignore[method-assign]

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self.state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        self.param_groups: list[dict[str, Any]] = []
        # Buffers made for a compiled step that has not run yet; not yet part of the state.
        self._unused: dict[Tensor, dict[str, Tensor]] = {}
        groups = _listed(params)
        if not groups:
            raise ValueError("optimizer got an empty parameter list")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for i, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {i}")
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key != "params"]
        return "\n".join([*lines, ")"])

    # -- the update, to be written by subclasses -----------------------------------------------

    def update_rule(self, index: int) -> Rule:
        """The arithmetic of one step for parameters of group ``index``."""
        raise UnsupportedError(
            f"{type(self).__name__} has no update_rule, so it cannot be compiled into a step; "
            "write update_rule(), state_names() and hyper(), or call its step() yourself"
        )

    def state_names(self, index: int) -> tuple[str, ...]:
        """Names of the buffers, of the parameter's shape and dtype, that the rule reads."""
        return ()

    def hyper(self, index: int, param: Tensor) -> dict[str, float]:
        """The numbers that the rule takes in the coming step of ``param``."""
        return {}

    def flags(self, group: dict[str, Any]) -> Hashable:
        """The options of a group that change the rule itself, not only its numbers."""
        return ()

    # -- what a compiled step uses -------------------------------------------------------------

    def structure(self) -> Hashable:
        """Changes when a compiled step must be compiled again: options, groups, parameters."""
        return tuple([(self.flags(g), *map(id, g["params"])) for g in self.param_groups])

    def state_tensor(self, param: Tensor, name: str) -> Tensor:
        """A buffer of ``param``; zeros before its first step."""
        state = self.state.get(param)
        if state is not None and state.get(name) is not None:
            found: Tensor = state[name]
            return found
        unused = self._unused.setdefault(param, {})
        made, array = unused.get(name), param._array
        if made is None or (made._array.shape, made._array.dtype) != (array.shape, array.dtype):
            unused[name] = dispatch.wrap(np.zeros(array.shape, array.dtype))
        return unused[name]

    def steps_taken(self, param: Tensor) -> float:
        """Number of steps that ``param`` has seen, where the optimizer counts them."""
        state = self.state.get(param)
        count = None if state is None else state.get("step")
        if count is None:
            return 0.0
        return float(count._array if isinstance(count, Tensor) else count)

    def step_counts(self, params: Sequence[Tensor]) -> Tensor:
        """The counts of ``params`` in one float32 tensor, of which their ``step`` are elements.

        A compiled step counts in the same call that updates: weights and counts always agree.
        """
        holders = [self._holder_of_count(p) for p in params]
        counts = [holder["step"]._array for holder in holders]
        shared = counts[0].base
        if not (
            isinstance(shared, np.ndarray)
            and shared.shape == (len(params),)
            and shared.dtype == np.float32
            and all(c.base is shared for c in counts)
            and [c.ctypes.data - shared.ctypes.data for c in counts]
            == [i * shared.itemsize for i in range(len(counts))]
        ):
            shared = np.array([float(c) for c in counts], np.float32)
            for i, holder in enumerate(holders):
                holder["step"] = dispatch.wrap(shared[i : i + 1].reshape(()))
        return dispatch.wrap(shared)

    def _holder_of_count(self, param: Tensor) -> dict[str, Any]:
        """The dict that holds the count of ``param`` as a tensor."""
        state = self.state.get(param)
        counted = state is not None and "step" in state
        holder = state if state is not None and counted else self._unused.setdefault(param, {})
        count = holder.get("step", 0.0)
        if not isinstance(count, Tensor) or count._array.dtype != np.float32:
            number = float(count._array if isinstance(count, Tensor) else count)
            holder["step"] = dispatch.wrap(np.array(number, np.float32))
        return holder

    def check_equal_steps(self, params: Iterable[Tensor]) -> None:
        """UnsupportedError unless the parameters of each group are at the same step.

        A compiled step has one set of numbers per group, so bias corrections of parameters that
        joined later would be wrong; eager steps count per parameter.
        """
        used = {id(p) for p in params}
        for i, group in enumerate(self.param_groups):
            seen = {self._progress(p) for p in group["params"] if id(p) in used}
            if len(seen) > 1:
                raise UnsupportedError(
                    f"parameters of group {i} of {type(self).__name__} have taken different "
                    f"numbers of steps ({', '.join(f'{s:g}' for s in sorted(seen))}), and a "
                    "compiled step has one count per group; put those that joined later into a "
                    "group of their own, or train with optimizer.step()"
                )

    def _progress(self, param: Tensor) -> float:
        """What ``hyper`` depends on besides the group's options."""
        return self.steps_taken(param)

    def advance(self, params: Iterable[Tensor], counted: bool = False) -> None:
        """Notes that ``params`` have been updated: counts their step, unless that is ``counted``
        already, and makes the buffers that were made for it part of the state."""
        self._opt_called = True
        for param in params:
            unused = self._unused.pop(param, {})
            count = unused.pop("step", None)
            if self.counts_steps:
                state = self.state[param]
                if "step" not in state:
                    fresh = count is None
                    state["step"] = dispatch.wrap(np.zeros((), np.float32)) if fresh else count
                count = state["step"]
                if isinstance(count, Tensor) and not counted:
                    np.add(count._array, 1, out=count._array)
                elif not counted:
                    state["step"] = count + 1
            if unused:
                self.state[param].update(unused)

    # -- eager -----------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient; returns what ``closure()`` returned."""
        self._opt_called = True
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        builder = ArrayBuilder()
        with np.errstate(all="ignore"):
            for index, group in enumerate(self.param_groups):
                rule, names = self.update_rule(index), self.state_names(index)
                for param in group["params"]:
                    if param._grad is not None:
                        self._update(builder, index, param, rule, names)
        return loss

    def _update(
        self, b: ArrayBuilder, index: int, param: Tensor, rule: Rule, names: tuple[str, ...]
    ) -> None:
        array, gradient = param._array, param._grad
        if gradient is None:
            return
        hyper = {
            name: np.asarray(number, array.dtype)
            for name, number in self.hyper(index, param).items()
        }
        tensors = {name: self.state_tensor(param, name) for name in names}
        arrays = {name: t._array for name, t in tensors.items()}
        value, state = rule(b, array, gradient._array, arrays, hyper)
        for target, result in ((param, value), *((tensors[n], r) for n, r in state.items())):
            np.copyto(target._array, result)
            target._storage.wrote()
        self.advance((param,))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients, or fills them with zeros where they are."""
        for param in self._parameters():
            grad = param._grad
            if grad is None:
                continue
            if set_to_none:
                param._grad = None
                continue
            if grad._grad_fn is not None:
                grad.detach_()
            with no_grad():
                grad.requires_grad_(False).zero_()

    # -- groups ----------------------------------------------------------------------------------

    def _parameters(self) -> Iterator[Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters with options of their own: ``{"params": [...], "lr": 0.1}``."""
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        if "params" not in param_group:
            raise KeyError(
                f"a parameter group needs the key 'params'; it has {', '.join(param_group)}"
            )
        params = param_group["params"]
        param_group["params"] = [params] if isinstance(params, Tensor) else _listed(params)
        _split_names(param_group)
        for param in param_group["params"]:
            _check_parameter(param)
        for name, default in self.defaults.items():
            param_group.setdefault(name, default)
        own = {id(p) for p in param_group["params"]}
        if len(own) < len(param_group["params"]):
            raise ValueError(
                "a parameter group contains the same parameter twice; PyTorch would update it "
                "twice per step. Give every parameter once"
            )
        for group in self.param_groups:
            if ("param_names" in param_group) != ("param_names" in group):
                how = "with names" if "param_names" in param_group else "without names"
                raise ValueError(
                    "all optimizer param groups should be with/without names. cannot add param "
                    f"group {how} to the optimizer"
                )
        if any(id(p) in own for p in self._parameters()):
            raise ValueError("some parameters appear in more than one parameter group")
        self.param_groups.append(param_group)

    # -- checkpoints -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """PyTorch's layout: ``state`` by parameter number, ``param_groups`` with those numbers.

        The tensors are the optimizer's own, as in PyTorch: copy or save them to keep a moment.
        """
        numbers = {id(p): i for i, p in enumerate(self._parameters())}
        groups = [
            {
                **{k: v for k, v in group.items() if k != "params"},
                "params": [numbers[id(p)] for p in group["params"]],
            }
            for group in self.param_groups
        ]
        state = {numbers[id(p)]: dict(s) for p, s in self.state.items() if id(p) in numbers}
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes the options and copies the state of a checkpoint (also a torch optimizer's).

        Parameters correspond by position. ValueError if groups, their sizes or shapes differ.
        """
        if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
            raise ValueError(
                "an optimizer's state_dict has the keys 'state' and 'param_groups'; this is "
                + (f"{list(state_dict)}" if isinstance(state_dict, Mapping) else repr(state_dict))
            )
        saved = state_dict["param_groups"]
        if len(saved) != len(self.param_groups):
            raise ValueError(
                "loaded state dict has a different number of parameter groups: "
                f"{len(saved)} for {len(self.param_groups)}"
            )
        groups = [_merged(old, new) for old, new in zip(self.param_groups, saved, strict=True)]
        numbers = [n for g in saved for n in g["params"]]
        params = dict(zip(numbers, self._parameters(), strict=True))
        state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        for number, values in state_dict["state"].items():
            if number not in params:
                raise ValueError(f"loaded state dict has state of an unknown parameter {number}")
            for name, value in values.items():
                state[params[number]][name] = _loaded(name, value, params[number], number)
        self.state = state
        self.param_groups = groups
        self._unused = {}


def _listed(params: Any) -> list[Any]:
    """The elements of ``params``; TypeError for what people pass by mistake."""
    if isinstance(params, Tensor):
        raise TypeError(
            "params argument given to the optimizer should be an iterable of Tensors or dicts, "
            "but got a Tensor; put it into a list"
        )
    if hasattr(params, "named_parameters"):
        raise TypeError(
            "params argument given to the optimizer should be an iterable of Tensors or dicts, "
            f"but got the module {type(params).__name__}; pass its .parameters()"
        )
    if isinstance(params, (set, frozenset)):
        raise TypeError(
            "optimizer parameters need to be organized in ordered collections, but the ordering "
            "of tensors in sets will change between runs. Please use a list instead."
        )
    if isinstance(params, Mapping) or not isinstance(params, Iterable):
        hint = "; call it: model.parameters()" if callable(params) else ""
        raise TypeError(
            "params argument given to the optimizer should be an iterable of Tensors or dicts, "
            f"but got {type(params).__name__}{hint}"
        )
    return list(params)


def _split_names(group: dict[str, Any]) -> None:
    """Moves the names of ``(name, tensor)`` pairs into ``param_names``."""
    pairs = [p for p in group["params"] if isinstance(p, tuple)]
    if not pairs:
        return
    if len(pairs) != len(group["params"]):
        raise ValueError(
            "all optimizer params should be with/without names. Some param names are missing"
        )
    group["param_names"] = [name for name, _ in pairs]
    group["params"] = [param for _, param in pairs]


def _check_parameter(param: Any) -> None:
    if not isinstance(param, Tensor):
        raise TypeError(
            "optimizer can only optimize Tensors, but one of the params is "
            f"{type(param).__module__}.{type(param).__name__}"
        )
    if not (param.is_leaf or param.retains_grad):
        raise ValueError("can't optimize a non-leaf Tensor")


def _merged(own: dict[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """A group with the saved options and this optimizer's parameters."""
    if len(saved["params"]) != len(own["params"]):
        raise ValueError(
            "loaded state dict contains a parameter group that doesn't match the size of "
            f"optimizer's group: {len(saved['params'])} parameters for {len(own['params'])}"
        )
    merged = {k: v for k, v in saved.items() if k != "params"}
    for key, value in own.items():
        merged.setdefault(key, value)
    if "param_names" in own:
        merged["param_names"] = own["param_names"]
    merged["params"] = own["params"]
    return merged


def _loaded(name: str, value: Any, param: Tensor, number: Any) -> Any:
    """A copy of a saved value; buffers in the parameter's dtype."""
    array = as_array(value)
    if name == "step":
        return dispatch.wrap(np.array(value if array is None else array, np.float32).reshape(()))
    if array is None:
        return value
    if array.shape != param._array.shape:
        raise ValueError(
            f"loaded state dict has {name} of shape {list(array.shape)} for parameter {number}, "
            f"whose shape is {list(param._array.shape)}"
        )
    return dispatch.wrap(np.array(array, param._array.dtype, order="C"))
