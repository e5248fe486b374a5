"""Every exception and warning that netwright raises on purpose."""

from __future__ import annotations


class NetwrightError(Exception):
    """Base of the errors that are netwright's own."""


class ShapeError(NetwrightError, ValueError, RuntimeError):
    """Shapes do not fit. PyTorch raises RuntimeError or ValueError here: both are caught."""


class DTypeError(NetwrightError, TypeError, RuntimeError):
    """Dtypes do not fit an operator. PyTorch raises RuntimeError or TypeError here."""


class UnsupportedError(NetwrightError, NotImplementedError):
    """The feature exists in PyTorch but not (yet) here."""


class TraceError(NetwrightError, RuntimeError):
    """The program cannot be captured as one graph."""


class BatchSpecializationError(TraceError):
    """The program needs the batch size as a number, so it cannot be traced with a symbolic one."""


class VerifyError(NetwrightError, AssertionError):
    """A graph breaks an invariant of the IR: a bug in a pass."""


class ParseError(NetwrightError, ValueError):
    """The text is not valid IR."""


class CompileError(NetwrightError, RuntimeError):
    """Code generation or linking failed."""


class LintWarning(UserWarning):
    """A likely mistake in the model; ``code`` is stable (``L001``...)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
