"""Loading IR text: cached, linked, callable."""

import ctypes
import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from netwright.codegen.target import host
from netwright.errors import CompileError
from netwright.runtime import cache, jit

ADD = """\
define i64 @add(i64 %a, i64 %b) {
  %sum = call i64 @hidden(i64 %a, i64 %b)
  ret i64 %sum
}
define internal i64 @hidden(i64 %a, i64 %b) {
  %sum = add i64 %a, %b
  ret i64 %sum
}
"""


def constant(number: int) -> str:
    return f"define i64 @number() {{\n  ret i64 {number}\n}}\n"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("NETWRIGHT_CACHE_DIR", str(tmp_path))


def forget() -> None:
    """Makes the next load of the same text go to the cache."""
    gc.collect()
    assert not [lib for lib in jit._libraries.values() if "add" in lib.symbols]


def test_loaded_code_computes():
    library = jit.load(ADD)
    add = library.function("add", ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    assert add(40, 2) == 42
    assert library.compiled


def test_a_function_keeps_its_library_loaded():
    add = jit.load(ADD).function("add", ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    gc.collect()
    assert add(1, 2) == 3
    del add
    forget()


def test_the_second_load_compiles_nothing():
    jit.load(ADD)
    forget()
    before = jit.counters.compilations, jit.counters.loads
    library = jit.load(ADD)
    assert (jit.counters.compilations, jit.counters.loads) == (before[0], before[1] + 1)
    assert not library.compiled
    assert library.function("add", ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(2, 3) == 5


def test_a_library_that_is_alive_is_shared():
    library = jit.load(ADD)
    before = jit.counters.loads
    assert jit.load(ADD) is library
    assert jit.load(ADD, key_parts={"option": "x"}) is not library
    assert jit.counters.loads == before + 1


def test_a_second_process_compiles_nothing():
    code = (
        "import sys; from netwright.runtime import jit\n"
        "jit.load(sys.argv[1]); print(jit.counters.compilations)"
    )
    command = [sys.executable, "-c", code, ADD]
    runs = [
        subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ.copy())
        for _ in range(2)
    ]
    assert [run.stdout.strip() for run in runs] == ["1", "0"]


def test_two_processes_that_race_for_an_empty_cache_both_work():
    code = (
        "import sys, ctypes; from netwright.runtime import jit\n"
        "f = jit.load(sys.argv[1]).function('number', ctypes.c_int64); print(f())"
    )
    command = [sys.executable, "-c", code, constant(11)]
    racing = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ.copy())
        for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in racing] == ["11", "11"]
    assert [process.returncode for process in racing] == [0, 0]


def test_a_corrupt_entry_is_compiled_again():
    jit.load(ADD)
    forget()
    (path,) = cache.default().directory.glob("*.o")
    path.write_bytes(path.read_bytes()[:-5])
    before = jit.counters.compilations
    assert jit.load(ADD).compiled
    assert jit.counters.compilations == before + 1


def test_an_entry_that_does_not_link_is_compiled_again():
    parts = jit.environment(host()) | {"ir": ADD, "optimize": "True"}
    store = cache.default()
    store.put(store.key(parts), b"not an object file", parts)
    assert jit.load(ADD).compiled


def test_the_key_covers_machine_options_and_compiler():
    jit.load(ADD)
    parts = jit.environment(host()) | {"ir": ADD, "optimize": "True"}
    assert set(parts) == {
        *("llvmlite", "llvm", "triple", "cpu", "features", "compiler", "ir", "optimize")
    }
    store = cache.default()
    assert store.explain(parts) == []
    for name in parts:
        (line,) = store.explain(parts | {name: "changed"})
        assert line.startswith(f"{name}: 'changed' here")


def test_it_works_without_a_cache(monkeypatch):
    monkeypatch.setenv("NETWRIGHT_CACHE_DIR", "off")
    assert jit.load(constant(7)).function("number", ctypes.c_int64)() == 7


def test_llvm_errors_and_missing_symbols_are_compile_errors():
    with pytest.raises(CompileError, match="LLVM rejected"):
        jit.load("define void @f( {")
    missing = (
        "declare void @nowhere_to_be_found()\n"
        "define void @f() {\n  call void @nowhere_to_be_found()\n  ret void\n}\n"
    )
    with pytest.raises(CompileError, match="cannot link"):
        jit.load(missing)


def test_an_unknown_symbol_is_an_error_that_lists_the_known_ones():
    with pytest.raises(KeyError, match=r"no symbol 'sub'; it has add"):
        jit.load(ADD).address("sub")


def test_exported_symbols_are_those_that_are_not_internal():
    text = (
        "define internal void @a() {\n}\ndefine dso_local void @b.c() {\n}\n"
        'define private i32 @d() {\n}\ndefine noalias ptr @"e f"(i32 %x) {\n}\n'
        "declare void @g()\n"
    )
    assert jit.exported_symbols(text) == ["b.c", "e f"]


def test_imports_call_code_of_another_library_and_are_linked_each_time():
    text = """
declare i64 @add(i64, i64)
define i64 @twice(i64 %a) {
  %sum = call i64 @add(i64 %a, i64 %a)
  ret i64 %sum
}
"""
    base = jit.load(ADD)
    first, second = (jit.load(text, imports={"add": base.address("add")}) for _ in range(2))
    assert first is not second
    assert first.compiled and not second.compiled
    for library in (first, second):
        assert library.function("twice", ctypes.c_int64, ctypes.c_int64)(21) == 42
    with pytest.raises(CompileError, match="link"):
        jit.load(text)


def test_seconds_say_what_was_done():
    spent: list[dict[str, float]] = [{}, {}, {}]
    library = jit.load(ADD, seconds=spent[0])
    assert library.object_bytes > 0
    assert jit.load(ADD, seconds=spent[1]) is library
    size = library.object_bytes
    del library
    forget()
    assert jit.load(ADD, seconds=spent[2]).object_bytes == size
    assert [set(s) for s in spent] == [
        {"cache", "link", "llvm"}, {"cache"}, {"cache", "link"},
    ]  # fmt: skip
    assert all(value >= 0 for s in spent for value in s.values())


def test_symbols_of_the_c_library_are_found():
    text = (
        "declare i32 @abs(i32)\n"
        "define i32 @magnitude(i32 %x) {\n  %y = call i32 @abs(i32 %x)\n  ret i32 %y\n}\n"
    )
    magnitude = jit.load(text).function("magnitude", ctypes.c_int32, ctypes.c_int32)
    assert magnitude(-5) == 5


def test_many_threads_may_load():
    def value(number: int) -> int:
        return jit.load(constant(number % 5)).function("number", ctypes.c_int64)()

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(value, range(40))) == [number % 5 for number in range(40)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_of_a_fork_can_compile():
    code = (
        "import ctypes, os, sys; from netwright.runtime import jit\n"
        "jit.load(sys.argv[1])\n"
        "child = os.fork()\n"
        "f = jit.load(sys.argv[2]).function('number', ctypes.c_int64)\n"
        "if child == 0: os._exit(f())\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) - f())\n"
    )
    command = [sys.executable, "-c", code, constant(1), constant(2)]
    assert subprocess.run(command, env=os.environ.copy(), timeout=60).returncode == 0


def test_importing_the_module_does_not_import_llvm():
    code = (
        "import sys; from netwright.runtime import cache, jit, pool, settings\n"
        "sys.exit('llvmlite' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
