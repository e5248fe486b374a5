"""Module: the base class of layers and models."""

from __future__ import annotations

import textwrap
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from ...errors import NetwrightError
from ...ir.types import float32, float64
from .. import dispatch
from ..changes import structure
from ..tensor import Tensor
from . import conversion, state, traversal
from .hooks import RemovableHandle, add_hook, call_with_hooks
from .parameter import Buffer, Parameter

Self = TypeVar("Self", bound="Module")

# What Module.__init__ creates; reading one of these on a half-built module means that the
# subclass forgot super().__init__().
_INTERNAL = (
    "training",
    "_parameters",
    "_buffers",
    "_non_persistent_buffers_set",
    "_modules",
    "_forward_pre_hooks",
    "_forward_hooks",
)
_FIX = "; make super().__init__() the first line of {}.__init__"


def _forward_missing(self: Module, *args: Any, **kwargs: Any) -> Any:
    """Default ``forward``: there is none."""
    name = type(self).__name__
    raise NotImplementedError(
        f'Module [{name}] is missing the required "forward" function; define '
        f"{name}.forward(self, ...) (a container such as ModuleList is indexed or iterated instead)"
    )


class Module:
    """Base class of layers and models: holds parameters, buffers and submodules by name.

    A subclass calls ``super().__init__()`` first, assigns submodules and Parameters as
    attributes, and defines ``forward``. Semantics, names and messages are those of
    ``torch.nn.Module``.
    """

    training: bool
    _version = 1
    forward: Callable[..., Any] = _forward_missing

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if args or kwargs:
            got = f"{len(args)} positional" if args else f"{next(iter(kwargs))!r} as keyword"
            raise TypeError(
                f"{type(self).__name__}.__init__() got unexpected arguments ({got}); "
                "Module.__init__() takes none"
            )
        values: tuple[Any, ...] = (True, {}, {}, set(), {}, OrderedDict(), OrderedDict())
        self.__dict__.update(zip(_INTERNAL, values, strict=True))
        # Diagnostics name the line that made a layer when its forward has no line of the user's.
        self.__dict__["_created_at"] = dispatch.caller()

    # -- attributes ------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        for store in ("_parameters", "_buffers", "_modules"):
            members = self.__dict__.get(store)
            if members is not None and name in members:
                return members[name]
        cls = type(self).__name__
        fix = _FIX.format(cls) if name in _INTERNAL else ""
        raise AttributeError(f"{cls!r} object has no attribute {name!r}{fix}", name=name, obj=self)

    def __setattr__(self, name: str, value: Any) -> None:
        structure.bump()
        if isinstance(value, Parameter):
            self._require_init("parameters")
            self._forget(name, but="_parameters")
            self.register_parameter(name, value)
        elif isinstance(value, Module):
            self._require_init("module")
            self._forget(name, but="_modules")
            self._modules[name] = value
        elif name in self.__dict__.get("_parameters", ()):
            self._require_none(value, "parameter", name, "nn.Parameter or None expected")
            self._parameters[name] = None
        elif name in self.__dict__.get("_modules", ()):
            self._require_none(value, "child module", name, "nn.Module or None expected")
            self._modules[name] = None
        elif isinstance(value, Buffer):
            self._require_init("buffer")
            self._forget(name, but="_buffers")
            self.register_buffer(name, value, value.persistent)
        elif name in self.__dict__.get("_buffers", ()):
            self._assign_buffer(name, value)
        else:
            object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        structure.bump()
        for store in ("_parameters", "_buffers", "_modules"):
            if name in self.__dict__.get(store, ()):
                del self.__dict__[store][name]
                self._non_persistent_buffers_set.discard(name)
                return
        object.__delattr__(self, name)

    def __dir__(self) -> list[str]:
        names = {*super().__dir__(), *self._parameters, *self._buffers, *self._modules}
        return sorted(n for n in names if not n[:1].isdigit())

    def _require_init(self, what: str) -> None:
        if "_modules" not in self.__dict__:
            raise AttributeError(
                f"cannot assign {what} before Module.__init__() call"
                + _FIX.format(type(self).__name__)
            )

    @staticmethod
    def _require_none(value: Any, role: str, name: str, expected: str) -> None:
        if value is not None:
            raise TypeError(f"cannot assign '{_typename(value)}' as {role} '{name}' ({expected})")

    def _forget(self, name: str, but: str) -> None:
        """Drops ``name`` from everything except ``but``, in which it keeps its position."""
        self.__dict__.pop(name, None)
        for store in ("_parameters", "_buffers", "_modules"):
            if store != but:
                self.__dict__[store].pop(name, None)
        self._non_persistent_buffers_set.discard(name)

    def _assign_buffer(self, name: str, value: Any) -> None:
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(
                f"cannot assign '{_typename(value)}' as buffer '{name}' "
                "(nn.Buffer, Tensor or None expected)"
            )
        old = self._buffers[name]
        if dispatch.current.tracer is not None and old is not None and value is not None:
            # A traced value must not outlive the trace: the assignment becomes a state update.
            dispatch.current.tracer.update_buffer(old, value)
        else:
            self._buffers[name] = value

    # -- registration ----------------------------------------------------------------------

    def _check_name(self, role: str, name: Any, members: Mapping[str, Any]) -> None:
        if not isinstance(name, str):
            raise TypeError(f"{role} name should be a string. Got {_typename(name)}")
        if "." in name:
            got = f", got: {name}" if role == "module" else ""
            raise KeyError(f'{role} name can\'t contain "."{got}')
        if name == "":
            raise KeyError(f'{role} name can\'t be empty string ""')
        if hasattr(self, name) and name not in members:
            raise KeyError(f"attribute '{name}' already exists")

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Adds a parameter, read as an attribute; None reserves the name (absent in state_dict)."""
        self._require_init("parameter")
        self._check_name("parameter", name, self._parameters)
        if param is not None and not isinstance(param, Parameter):
            raise TypeError(
                f"cannot assign '{_typename(param)}' object to parameter '{name}' "
                "(nn.Parameter or None required)"
            )
        structure.bump()
        self._parameters[name] = param

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Adds state that is not trained; a non-persistent one is left out of state_dict."""
        self._require_init("buffer")
        self._check_name("buffer", name, self._buffers)
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(
                f"cannot assign '{_typename(tensor)}' object to buffer '{name}' "
                "(Tensor or None required)"
            )
        structure.bump()
        self._buffers[name] = tensor
        if persistent:
            self._non_persistent_buffers_set.discard(name)
        else:
            self._non_persistent_buffers_set.add(name)

    def add_module(self, name: str, module: Module | None) -> None:
        """Adds a submodule, read as an attribute."""
        self._require_init("module")
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"{_typename(module)} is not a Module subclass")
        self._check_name("module", name, self._modules)
        structure.bump()
        self._modules[name] = module

    def register_module(self, name: str, module: Module | None) -> None:
        """Alias of add_module."""
        self.add_module(name, module)

    def register_forward_pre_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """``hook(module, args)`` runs before forward; what it returns (not None) replaces args.

        ``with_kwargs``: ``hook(module, args, kwargs)`` returns None or ``(args, kwargs)``.
        """
        return add_hook(self._forward_pre_hooks, hook, prepend=prepend, with_kwargs=with_kwargs)

    def register_forward_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """``hook(module, args, output)`` runs after forward; a result (not None) replaces output.

        ``with_kwargs``: ``hook(module, args, kwargs, output)``.
        """
        return add_hook(self._forward_hooks, hook, prepend=prepend, with_kwargs=with_kwargs)

    # -- calling ---------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tracer = dispatch.current.tracer
        if tracer is None:
            return self._call(args, kwargs)
        tracer.enter_module(self)
        try:
            return self._call(args, kwargs)
        except NetwrightError as error:
            tracer.failed(error)
            raise
        finally:
            tracer.exit_module(self)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._forward_pre_hooks or self._forward_hooks:
            return call_with_hooks(self, args, kwargs)
        return self.forward(*args, **kwargs)

    # -- traversal -------------------------------------------------------------------------

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Paths and parameters; a shared one is given once."""
        return traversal.named_members(self, "_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """The parameters, each once."""
        for _, param in self.named_parameters(recurse=recurse):
            yield param

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Paths and buffers; a shared one is given once."""
        return traversal.named_members(self, "_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """The buffers, each once."""
        for _, buffer in self.named_buffers(recurse=recurse):
            yield buffer

    def named_modules(
        self,
        memo: set[Module] | None = None,
        prefix: str = "",
        remove_duplicate: bool = True,
    ) -> Iterator[tuple[str, Module]]:
        """This module ('' or ``prefix``) and all below it, each once, parents first."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, module in self._modules.items():
            if module is not None:
                path = f"{prefix}.{name}" if prefix else name
                yield from module.named_modules(memo, path, remove_duplicate)

    def modules(self, remove_duplicate: bool = True) -> Iterator[Module]:
        """This module and all below it."""
        for _, module in self.named_modules(remove_duplicate=remove_duplicate):
            yield module

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Names and direct submodules, each once."""
        seen: set[int] = set()
        for name, module in self._modules.items():
            if module is not None and id(module) not in seen:
                seen.add(id(module))
                yield name, module

    def children(self) -> Iterator[Module]:
        """Direct submodules, each once."""
        for _, module in self.named_children():
            yield module

    def get_submodule(self, target: str) -> Module:
        """The module at a dotted path; '' is this one. AttributeError names what is missing."""
        return traversal.submodule(self, target)

    def get_parameter(self, target: str) -> Parameter:
        """The parameter at a dotted path."""
        return traversal.member(self, target, "an nn.Parameter", "_parameters")

    def get_buffer(self, target: str) -> Tensor:
        """The buffer at a dotted path."""
        return traversal.member(self, target, "a buffer", "_buffers")

    def apply(self: Self, fn: Callable[[Module], None]) -> Self:
        """Calls ``fn`` on every module below, then on this one (e.g. to initialise weights)."""
        for module in self.children():
            module.apply(fn)
        fn(self)
        return self

    # -- state -----------------------------------------------------------------------------

    def state_dict(
        self,
        *,
        destination: OrderedDict[str, Any] | None = None,
        prefix: str = "",
        keep_vars: bool = False,
    ) -> OrderedDict[str, Any]:
        """Path -> parameter or persistent buffer, detached but sharing memory with the model."""
        return state.collect(self, destination, prefix, keep_vars)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> state.IncompatibleKeys:
        """Copies values (Tensors, numpy arrays, torch tensors) into the parameters and buffers.

        Raises RuntimeError listing missing and unexpected keys (with ``strict``) and size
        mismatches. Optimizers and compiled models keep working: the copy is in place.
        """
        return state.load(self, state_dict, strict, assign)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Loads this module's own entries; layers override it to accept old formats."""
        state.load_own(self, state_dict, prefix, missing_keys, unexpected_keys, error_msgs)

    # -- modes and dtypes ------------------------------------------------------------------

    def train(self: Self, mode: bool = True) -> Self:
        """Training mode (dropout on, BatchNorm uses the batch) for this and all submodules."""
        if not isinstance(mode, bool):
            raise ValueError("training mode is expected to be boolean")
        self.training = mode
        for module in self.children():
            module.train(mode)
        return self

    def eval(self: Self) -> Self:
        """Evaluation mode: ``train(False)``."""
        return self.train(False)

    def requires_grad_(self: Self, requires_grad: bool = True) -> Self:
        """Sets ``requires_grad`` of every parameter."""
        for param in self.parameters():
            param.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets (or zeroes) the gradients of every parameter."""
        for param in self.parameters():
            if param.grad is not None:
                param.grad = None if set_to_none else param.grad.detach() * 0.0

    def to(self: Self, *args: Any, **kwargs: Any) -> Self:
        """``to(dtype)``, ``to('cpu')``, ``to('cpu', dtype)``, ``to(tensor)``: converts in place.

        Only floating parameters and buffers change dtype. A device other than the CPU is an
        error: netwright compiles for CPUs.
        """
        conversion.convert(self, conversion.parse_to(args, kwargs))
        return self

    def float(self: Self) -> Self:
        """Casts floating parameters and buffers to float32."""
        return self.to(dtype=float32)

    def double(self: Self) -> Self:
        """Casts floating parameters and buffers to float64."""
        return self.to(dtype=float64)

    def half(self: Self) -> Self:
        """DTypeError: there is no float16."""
        return self.to("float16")

    def bfloat16(self: Self) -> Self:
        """DTypeError: there is no bfloat16."""
        return self.to("bfloat16")

    def cpu(self: Self) -> Self:
        """Returns the module: everything lives on the CPU."""
        return self

    def cuda(self: Self, device: Any = None) -> Self:
        """Raises: there is no GPU support."""
        return self.to("cuda")

    # -- printing --------------------------------------------------------------------------

    def _get_name(self) -> str:
        return type(self).__name__

    def extra_repr(self) -> str:
        """What a layer prints inside its parentheses."""
        return ""

    def __repr__(self) -> str:
        extra = self.extra_repr()
        if not self._modules:
            body = extra if "\n" not in extra else f"\n{textwrap.indent(extra, '  ')}\n"
            return f"{self._get_name()}({body})"
        lines = extra.splitlines() + [f"({k}): {v!r}" for k, v in self._modules.items()]
        return f"{self._get_name()}(\n" + "\n".join(_indent(line) for line in lines) + "\n)"


def _indent(text: str) -> str:
    return textwrap.indent(text, "  ")


def _typename(value: Any) -> str:
    return type(value).__name__
