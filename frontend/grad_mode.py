"""Whether operations are recorded for backward: a switch per thread, as in PyTorch."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any


class _State(threading.local):
    enabled = True
    inference = False


_state = _State()


def is_grad_enabled() -> bool:
    """Whether operations of this thread are recorded."""
    return _state.enabled


def is_inference_mode_enabled() -> bool:
    """Whether this thread is inside ``inference_mode()``."""
    return _state.inference


class _Switch:
    """A context manager and decorator; decorated functions enter a fresh switch on each call."""

    def __init__(self) -> None:
        self._previous: list[tuple[bool, bool]] = []

    def _set(self) -> None:
        raise NotImplementedError

    def _fresh(self) -> _Switch:
        return type(self)()

    def __enter__(self) -> _Switch:
        self._previous.append((_state.enabled, _state.inference))
        self._set()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _state.enabled, _state.inference = self._previous.pop()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self._fresh():
                return function(*args, **kwargs)

        return wrapped


class _Bare(_Switch):
    """A switch without options, which may decorate without being called."""

    def __new__(cls, function: Callable[..., Any] | None = None) -> Any:
        made = super().__new__(cls)
        if function is None:
            return made
        made.__init__()  # type: ignore[misc]
        return made(function)


class no_grad(_Bare):  # noqa: N801, RUF100
    """Records nothing inside: ``with no_grad():``, ``@no_grad()`` or ``@no_grad``."""

    def _set(self) -> None:
        _state.enabled = False


class enable_grad(_Bare):  # noqa: N801, RUF100
    """Records inside, even within ``no_grad()``."""

    def _set(self) -> None:
        _state.enabled = True


class set_grad_enabled(_Switch):  # noqa: N801, RUF100
    """Switches recording at once; as a context manager it restores the old state at the end."""

    def __init__(self, mode: bool) -> None:
        super().__init__()
        self.mode = bool(mode)
        self._before = (_state.enabled, _state.inference)
        self._set()

    def _set(self) -> None:
        _state.enabled = self.mode

    def _fresh(self) -> _Switch:
        return type(self)(self.mode)

    def __enter__(self) -> _Switch:
        # The constructor has switched already: the state to restore is the one before it.
        self._previous.append(self._before)
        self._set()
        return self

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        _state.enabled, _state.inference = self._before
        return super().__call__(function)


class inference_mode(_Switch):  # noqa: N801, RUF100
    """Like ``no_grad``: results inside are never recorded. ``inference_mode(False)`` records."""

    def __new__(cls, mode: Any = True) -> Any:
        made = super().__new__(cls)
        if not callable(mode):
            return made
        made.__init__()  # type: ignore[misc]
        return made(mode)

    def __init__(self, mode: bool = True) -> None:
        super().__init__()
        self.mode = bool(mode)

    def _set(self) -> None:
        _state.inference = self.mode
        _state.enabled = not self.mode

    def _fresh(self) -> _Switch:
        return type(self)(self.mode)
