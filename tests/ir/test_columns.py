"""Text for people: columns and sizes."""

import pytest

from netwright.ir.columns import aligned, size_text


def test_columns_are_aligned_and_lines_end_without_blanks() -> None:
    rows = [("name", "ms"), ("a", "10.5"), ("longer", "1.25")]
    assert aligned(rows) == "name    ms\na       10.5\nlonger  1.25"
    assert aligned(rows, right=(1,)) == "name      ms\na       10.5\nlonger  1.25"
    assert aligned([("a", ""), ("b", "")]) == "a\nb"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 30, "3.0 GiB")],
)
def test_sizes_have_a_unit(count: int, text: str) -> None:
    assert size_text(count) == text
