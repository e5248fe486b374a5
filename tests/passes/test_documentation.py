"""Every pass says what it does: in its file, and with all its codes in docs/passes.md."""

import re
from pathlib import Path

import pytest

import netwright
from netwright import compiler

ROOT = Path(netwright.__file__).parent
HELPERS = {
    "__init__", "arena", "commits", "in_place", "live_set", "number_inputs", "parts", "region",
    "rewriting", "rows", "state", "views",
}  # fmt: skip
PASSES = sorted(p for p in (ROOT / "passes").glob("*.py") if p.stem not in HELPERS)
PAGE = (ROOT / "docs" / "passes.md").read_text()
CODE = re.compile(r"\b[BDEFLMNPRSTWY]\d{3}\b")


@pytest.mark.parametrize("path", PASSES, ids=lambda p: p.stem)
def test_the_page_has_a_section_for_the_pass(path: Path) -> None:
    assert re.search(rf"^## {path.stem}$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("path", [p for p in PASSES if p.stem != "lint"], ids=lambda p: p.stem)
def test_the_docstring_shows_the_graph_before_and_after_and_what_is_skipped(path: Path) -> None:
    docstring = path.read_text().split('"""')[1]
    assert re.search(r"\bBefore\b", docstring) and re.search(r"\bAfter\b", docstring)
    assert re.search(r"^(Skips|Not saved)\b", docstring, re.MULTILINE)


@pytest.mark.parametrize("path", PASSES, ids=lambda p: p.stem)
def test_the_page_explains_the_codes_of_the_pass(path: Path) -> None:
    section = PAGE.split(f"## {path.stem}\n")[1].split("\n## ")[0]
    assert set(CODE.findall(path.read_text())) == set(CODE.findall(section))


def test_the_page_has_the_passes_in_the_order_in_which_they_run() -> None:
    sections = re.findall(r"^## (\w+)$", PAGE, re.MULTILINE)
    assert [name for name in sections if name in compiler.PASSES] == list(compiler.PASSES)


def test_a_code_is_noted_by_one_pass_only() -> None:
    noted = re.compile(r'"([A-Z]\d{3})"')
    found = [(code, p.stem) for p in PASSES for code in set(noted.findall(p.read_text()))]
    assert len({code for code, _ in found}) == len(found)
