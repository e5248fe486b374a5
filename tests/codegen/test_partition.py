"""Cutting modules into parts: nothing is lost, and small or unknown text stays whole."""

import re

import pytest

from netwright.codegen import partition as module
from netwright.codegen.llvm import compile_ir
from netwright.codegen.partition import partition
from netwright.codegen.target import AVX512

TEXT = """\
@table = internal constant [2 x i64] [i64 3, i64 5]
define internal i64 @both(i64 noundef %x) nounwind {
  %y = call i64 @llvm.smax.i64(i64 %x, i64 1)
  ret i64 %y
}
define internal i64 @own(i64 %x) {
entry:
  %p = getelementptr i64, ptr @table, i64 1
  %y = load i64, ptr %p
  %z = add i64 %x, %y
  ret i64 %z
}

define void @first(ptr %out, i64 %n) nounwind {
  %a = call i64 @both(i64 %n)
  %b = call i64 @own(i64 %a)
  store i64 %b, ptr %out
  ret void
}
define void @second(ptr %out, i64 %n) {
  %a = call i64 @both(i64 %n)
  %p = getelementptr i64, ptr @table, i64 0
  %b = load i64, ptr %p
  %c = add i64 %a, %b
  store i64 %c, ptr %out
  ret void
}
define void @run(ptr %out, i64 %n) {
  call void @first(ptr %out, i64 %n)
  call void @second(ptr %out, i64 %n)
  ret void
}
declare i64 @llvm.smax.i64(i64, i64)
"""


@pytest.fixture(autouse=True)
def everything_is_worth_cutting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORTH_CUTTING", 0)
    monkeypatch.setattr(module, "PART", 1)


def _defined(text: str) -> list[str]:
    return re.findall(r"^define.*@(\w+)\(", text, re.MULTILINE)


def test_each_function_is_in_one_part_with_the_helpers_that_only_it_uses() -> None:
    parts = partition(TEXT)
    assert [_defined(p) for p in parts] == [["both"], ["own", "first"], ["second"], ["run"]]
    for part in parts:
        compile_ir(part, AVX512)


def test_what_several_parts_use_is_hidden_and_what_one_uses_internal() -> None:
    both, first, second, run = partition(TEXT)
    assert "define hidden i64 @both(i64 noundef %x) nounwind {" in both
    assert "declare hidden i64 @both(i64 noundef) nounwind\n" in first
    assert "define internal i64 @own(" in first
    assert "declare void @first(ptr, i64) nounwind\ndeclare void @second(ptr, i64)\n" in run
    assert "@llvm.smax" in both and "@llvm.smax" not in second


def test_tables_are_copied_to_where_they_are_read() -> None:
    assert ["@table = internal" in p for p in partition(TEXT)] == [False, True, True, False]


def test_a_helper_of_one_part_stays_internal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 600)
    parts = partition(TEXT)
    assert [_defined(p) for p in parts] == [["both", "own", "first", "second"], ["run"]]
    assert "define internal i64 @both(" in parts[0]


def test_small_modules_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORTH_CUTTING", len(TEXT) + 1)
    assert partition(TEXT) == [TEXT]


@pytest.mark.parametrize(
    "unknown",
    ['target triple = "x"\n', "@shared = global i64 0\n", "; a remark\n", TEXT],
)
def test_text_that_holds_something_else_stays_as_it_is(unknown: str) -> None:
    assert partition(TEXT + unknown) == [TEXT + unknown]
