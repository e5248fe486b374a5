"""The Python blocks of the README and the docs run."""

import re
from pathlib import Path

import pytest

import netwright
from netwright.ir.ops import record

ROOT = Path(netwright.__file__).parent
PAGES = [p for p in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]


def _blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [p for p in PAGES if _blocks(p)], ids=lambda p: p.name)
def test_python_blocks_of_a_page_run_in_order(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record, "_OPS", dict(record._OPS))  # a page may add operators
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, block in enumerate(_blocks(page)):
        exec(compile(block, f"{page.name}, block {number + 1}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_a_page_has_no_marks_of_an_unfinished_merge(page: Path) -> None:
    assert not re.search(r"^(<{7} |={7}$|>{7} )", page.read_text(), re.MULTILINE)
