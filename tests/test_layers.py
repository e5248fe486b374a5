"""The layers and their import direction, as DESIGN decides them."""

import ast
import re
from pathlib import Path

import pytest

import netwright

ROOT = Path(netwright.__file__).parent
# What a file of each layer may import from the package.
ALLOWED = {
    "ir": {"ir", "errors"},
    "frontend": {"frontend", "ir", "errors"},
    "passes": {"passes", "ir", "errors"},
    "export": {"export", "frontend", "passes", "ir", "errors"},
    "codegen": {"codegen", "ir", "errors"},
    "runtime": {"runtime", "codegen", "ir", "errors"},
    "distributed": {"distributed", "bridge", "frontend", "runtime", "errors"},
}
# Third-party packages that only some places may import.
CONFINED = {
    "networkx": {"ir/graph.py"},
    "llvmlite": {"codegen", "runtime"},
    "mpi4py": {"distributed"},
}


def _files() -> list[Path]:
    skipped = ("tests", "examples", "benchmarks", "build", "docs")
    return [
        path
        for path in sorted(ROOT.rglob("*.py"))
        if path.relative_to(ROOT).parts[0] not in skipped
        and not path.relative_to(ROOT).parts[0].startswith(".")
    ]


def _imports(path: Path) -> list[str]:
    """Absolute names of everything that a file imports."""
    package = ["netwright", *path.relative_to(ROOT).parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [node.module] if node.module else []
            prefix = ".".join([*base, *module])
            found += [prefix, *(f"{prefix}.{alias.name}" for alias in node.names)]
    return found


@pytest.mark.parametrize("layer", ALLOWED)
def test_a_layer_imports_only_the_layers_below_it(layer: str) -> None:
    wrong = []
    for path in _files():
        parts = path.relative_to(ROOT).parts
        if parts[0] != layer:
            continue
        for name in _imports(path):
            pieces = name.split(".")
            if pieces[0] != "netwright" or len(pieces) < 2:
                continue
            if pieces[1] not in ALLOWED[layer]:
                wrong.append(f"{'/'.join(parts)} imports {name}")
    assert wrong == []


@pytest.mark.parametrize("package", CONFINED)
def test_a_confined_dependency_is_imported_only_where_it_belongs(package: str) -> None:
    wrong = []
    for path in _files():
        where = path.relative_to(ROOT).as_posix()
        if any(where.startswith(place) for place in CONFINED[package]):
            continue
        if any(name.split(".")[0] == package for name in _imports(path)):
            wrong.append(where)
    assert wrong == []


@pytest.mark.parametrize("folder", ["codegen", "passes", "runtime", "bridge"])
def test_the_map_of_a_folder_names_each_of_its_files(folder: str) -> None:
    """The docstring of ``__init__.py`` is where a newcomer looks; docs/passes.md lists passes."""
    docstring = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text())) or ""
    named = re.findall(r"``(\w+)``", docstring)
    files = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"}
    if folder == "passes":
        page = (ROOT / "docs" / "passes.md").read_text()
        files -= set(re.findall(r"^## (\w+)$", page, re.MULTILINE))
    where = f"the map in {folder}/__init__.py"
    assert not files - set(named), f"{where} lacks these files; add each where it belongs"
    assert len(named) == len(set(named)), f"{where} names a file twice"
    known = files | {"Program", "Executable"}
    assert set(named) <= known, f"{where} names files that are not there"
