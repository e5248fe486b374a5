"""``FILE.py:Model``: a module, or what a function returns, from a user's file."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .failure import Misuse, imported, user_code

if TYPE_CHECKING:
    from ..frontend.nn.module import Module

_MODULE_NAME = "model_file_of_cli"


def add_argument(parser: argparse.ArgumentParser) -> None:
    """The positional argument of every command that works on a model."""
    parser.add_argument(
        "model",
        metavar="FILE.py:Model",
        help="a Python file and, in it, a Module class, a function that makes one, or a Module",
    )


def load_model(spec: str, seed: int = 0) -> tuple[Module, Path]:
    """The model that ``FILE.py:Model`` names, with weights from ``seed``, and its file.

    A class or function is called without arguments. Misuse if there is no such file or name, or if
    the call needs arguments; Failure if the file or the constructor raises.
    """
    from ..frontend import manual_seed
    from ..frontend.nn.module import Module

    file, name = _split(spec, "Model")
    manual_seed(seed)
    module = _imported_module(file)
    if not hasattr(module, name):
        raise Misuse(f"{file} has no {name!r}; it has {_candidates_text(module)}")
    found: Any = getattr(module, name)
    if not isinstance(found, Module):
        if not callable(found):
            raise Misuse(
                f"{spec} is {_a(type(found).__name__)}; expected a Module class, a function that "
                f"makes a Module, or a Module. {file} has {_candidates_text(module)}"
            )
        _check_takes_no_arguments(found, name, file, "model")
        with user_code(f"{name}()", file):
            found = found()
    if not isinstance(found, Module):
        raise Misuse(f"{name}() of {file} returned {_a(type(found).__name__)}; expected a Module")
    return found, file


def call_function(spec: str, what: str) -> tuple[Any, Path]:
    """What the function that ``FILE.py:function`` names returns, and the file.

    ``what`` is that it makes, for the errors, which are those of `load_model`.
    """
    file, name = _split(spec, "function")
    module = _imported_module(file)
    function = getattr(module, name, None)
    if not callable(function):
        has = "has no" if function is None else "has no function"
        raise Misuse(f"{file} {has} {name!r}; expected a function that makes {what}")
    _check_takes_no_arguments(function, name, file, what)
    with user_code(f"{name}()", file):
        return function(), file


def _split(spec: str, kind: str) -> tuple[Path, str]:
    path, colon, name = spec.rpartition(":")
    if not colon and spec.endswith(".py"):
        path, name = spec, ""
    if not path.endswith(".py") or (name and not name.isidentifier()):
        example = "model.py:Net" if kind == "Model" else "data.py:digits"
        raise Misuse(f"expected FILE.py:{kind}, for example {example}; got {spec!r}")
    file = Path(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise Misuse(f"{file} {what}; expected a Python file in FILE.py:{kind}")
    if not name and kind != "Model":
        raise Misuse(f"{spec} names no {kind}; expected FILE.py:{kind}")
    if not name:
        raise Misuse(f"{spec} names no model; it has {_candidates_text(_imported_module(file))}")
    return file, name


def _imported_module(file: Path) -> ModuleType:
    """The file as a module; it finds its neighbours as if it were run as a program."""
    spec = importlib.util.spec_from_file_location(_MODULE_NAME, file)
    if spec is None or spec.loader is None:
        raise Misuse(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE_NAME] = module  # dataclasses look their module up there
    sys.path.insert(0, str(file.resolve().parent))
    with imported(file):
        spec.loader.exec_module(module)
    return module


def _candidates_text(module: ModuleType) -> str:
    from ..frontend.nn.module import Module

    found = [
        name
        for name, value in vars(module).items()
        if isinstance(value, Module)
        or (
            isinstance(value, type)
            and issubclass(value, Module)
            and value.__module__ == module.__name__
        )
    ]
    return ", ".join(found) or "no modules"


def _check_takes_no_arguments(factory: Any, name: str, file: Path, what: str) -> None:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # a builtin without a signature
        return
    needed = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if needed:
        raise Misuse(
            f"{name}() of {file} needs arguments ({', '.join(needed)}); expected something to "
            f"call without. Add a function: def make_{what}(): return {name}(...), and name it "
            f"instead: {file}:make_{what}"
        )


def _a(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"
