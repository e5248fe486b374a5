"""netwright's own models on PyTorch: the same source files, with PyTorch's names in their imports.

Module names, arguments and ``state_dict`` keys are PyTorch's, so a file that imports nothing else
of netwright is a PyTorch program once its imports are. What comes out are ordinary
``torch.nn.Module``s with submodules, as a user of PyTorch writes them.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


def load(path: Path) -> ModuleType:
    """A program that writes ``import netwright as nw`` and ``from netwright import nn``, with
    ``torch`` in their place. Data sets and transforms, which PyTorch does not have, stay ours."""
    names: dict[str, ModuleType] = {
        "netwright": torch,
        "netwright.nn": torch.nn,
        "netwright.nn.functional": torch.nn.functional,
        "netwright.optim": torch.optim,
        "netwright.utils.data": torch.utils.data,
    }
    spec = util.spec_from_file_location(f"{path.stem}_on_torch", path)
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module  # torch.compile looks modules up by their names
    with _replaced(names):
        spec.loader.exec_module(module)
    return module


def models() -> ModuleType:
    """``netwright.vision.models``, whose files import from netwright's frontend by relative names:
    they are imported a second time, as part of a package whose frontend is PyTorch."""
    from netwright import errors  # not above: a process that loads an example needs no netwright

    root, frontend, vision = (
        types.ModuleType(name) for name in ("zoo", "zoo.frontend", "zoo.frontend.vision")
    )
    root.__path__, frontend.__path__ = [], []
    vision.__path__ = [str(ROOT / "frontend" / "vision")]
    frontend.nn = torch.nn  # type: ignore[attr-defined]
    names: dict[str, ModuleType] = {
        "zoo": root,
        "zoo.errors": errors,
        "zoo.frontend": frontend,
        "zoo.frontend.nn": torch.nn,
        **{
            f"zoo.frontend.{name}": torch for name in ("creation", "functions", "shaping", "tensor")
        },
        "zoo.frontend.vision": vision,
    }
    sys.modules.update(names)  # for good: torch.compile looks modules up by their names
    return importlib.import_module("zoo.frontend.vision.models")


@contextmanager
def _replaced(names: dict[str, ModuleType]) -> Iterator[None]:
    """Meanwhile an import of one of these names gives that module."""
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
