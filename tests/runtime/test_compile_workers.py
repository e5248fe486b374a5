"""Compiling in several processes: the same code as in one, whatever happens to the others."""

import copy
import ctypes
import gc
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator

import pytest

import netwright as nw
from netwright import nn
from netwright.codegen import llvm, partition
from netwright.codegen.llvm import compile_ir
from netwright.codegen.target import host
from netwright.errors import CompileError
from netwright.runtime import compile_workers, jit, settings
from netwright.runtime.compile_workers import compile_parts

COUNT = 8
MAX_WORKERS = compile_workers.MAX_WORKERS  # without tests/conftest.py, which changes it later


def numbered(k: int) -> str:
    return f"define i64 @f{k}(i64 %x) {{\n  %y = add i64 %x, {k}\n  ret i64 %y\n}}\n"


PARTS = [numbered(k) for k in range(COUNT)]


def here(part: str) -> bytes:
    return compile_ir(part, host())


@pytest.fixture(autouse=True)
def two_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Which compile: the session's store of what is compiled already does not count here."""
    monkeypatch.setattr(compile_workers, "MAX_WORKERS", MAX_WORKERS)
    monkeypatch.setattr(llvm, "compile_ir", compile_ir)
    monkeypatch.setattr(settings, "num_threads", lambda: 2)
    monkeypatch.setattr(settings, "available_cpus", lambda: 2)
    yield


def until(condition: Callable[[], bool]) -> None:
    """Waits, but not for ever."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def patient(part: str) -> bytes:
    """Leaves work for the worker: this process does its first part only once the worker has."""
    until(lambda: sum(w.done for w in _workers) > 0)
    return here(part)


_workers: list[compile_workers._Worker] = []


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the workers that are made, so that a test can wait for them."""
    _workers.clear()

    class Watched(compile_workers._Worker):
        def __init__(self, *args: object) -> None:
            _workers.append(self)
            super().__init__(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(compile_workers, "_Worker", Watched)


def test_workers_make_the_same_object_files_as_this_process(watched: None) -> None:
    made = compile_parts(PARTS, host(), True, patient)
    assert made.processes == 2 and made.problem == ""
    assert made.objects == [here(p) for p in PARTS]


def test_one_thread_means_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "num_threads", lambda: 1)
    monkeypatch.setattr(subprocess, "Popen", None)
    made = compile_parts(PARTS, host(), True, here)
    assert (made.processes, made.problem) == (1, "")
    assert made.objects == [here(p) for p in PARTS]


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("raise SystemExit", "a worker failed"),
        ("print('hello, world, this is something else entirely')", "it is not a worker"),
        ("import sys; sys.stdout.write('netwright worker\\n')", "a worker failed"),
    ],
)
def test_a_worker_that_fails_costs_time_only(
    code: str, problem: str, monkeypatch: pytest.MonkeyPatch, watched: None
) -> None:
    monkeypatch.setattr(
        compile_workers, "worker_command", lambda: ([sys.executable, "-I", "-S", "-c", code], "")
    )

    def wait_for_the_failure(part: str) -> bytes:
        _workers[0]._thread.join()
        return here(part)

    made = compile_parts(PARTS, host(), True, wait_for_the_failure)
    assert made.processes == 1 and problem in made.problem
    assert made.objects == [here(p) for p in PARTS]


def test_a_worker_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, watched: None) -> None:
    monkeypatch.setattr(compile_workers, "PATIENCE_SECONDS", 0.2)
    code = "import sys, time; print('netwright worker', flush=True); time.sleep(600)"
    monkeypatch.setattr(
        compile_workers, "worker_command", lambda: ([sys.executable, "-I", "-S", "-c", code], "")
    )

    def wait_until_one_is_taken(part: str) -> bytes:
        until(lambda: _workers[0]._taken is not None)
        return here(part)

    made = compile_parts(PARTS, host(), True, wait_until_one_is_taken)
    assert "gave no answer" in made.problem
    assert made.objects == [here(p) for p in PARTS]


@pytest.mark.parametrize("executable", ["", "/opt/app/blender"])
def test_without_an_interpreter_this_process_compiles_alone(
    executable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    made = compile_parts(PARTS, host(), True, here)
    assert made.processes == 1 and "is not a Python interpreter" in made.problem
    assert made.objects == [here(p) for p in PARTS]


def test_an_executable_that_cannot_be_started_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python3")
    made = compile_parts(PARTS, host(), True, here)
    assert made.processes == 1
    assert made.objects == [here(p) for p in PARTS]


def test_bad_ir_is_the_error_that_one_process_gives(watched: None) -> None:
    bad = [p.replace("add i64", "add i32") if k == 3 else p for k, p in enumerate(PARTS)]
    with pytest.raises(CompileError, match="LLVM rejected"):
        compile_parts(bad, host(), True, patient)
    _workers[0]._thread.join()
    assert _workers[0]._process is not None and _workers[0]._process.poll() is not None


MODULE = """\
define internal i64 @shared(i64 %x) {{
  %y = mul i64 %x, 3
  ret i64 %y
}}
{parts}
define i64 @run(i64 %x) {{
{calls}
  ret i64 %x{last}
}}
"""


def module() -> str:
    """Functions that call a shared one, and one that calls them all, in several parts."""
    parts, calls = [], []
    for k in range(COUNT):
        parts.append(
            f"define i64 @f{k}(i64 %x) {{\n  %y = call i64 @shared(i64 %x)\n"
            f"  %z = add i64 %y, {k}\n  ret i64 %z\n}}"
        )
        before = f"%x{k - 1}" if k else "%x"
        calls.append(f"  %x{k} = call i64 @f{k}(i64 {before})")
    return MODULE.format(parts="\n".join(parts), calls="\n".join(calls), last=COUNT - 1)


def test_a_module_in_parts_is_linked_cached_and_computes_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("NETWRIGHT_CACHE_DIR", str(tmp_path))
    expected = 5
    for k in range(COUNT):
        expected = 3 * expected + k
    results, sizes = [], []

    def load() -> None:
        library = jit.load(module())
        results.append(library.function("run", ctypes.c_int64, ctypes.c_int64)(5))
        sizes.append(library.object_bytes)

    monkeypatch.setattr(partition, "WORTH_CUTTING", 0)
    monkeypatch.setattr(partition, "PART", 1)
    before = jit.counters.compilations
    load()
    assert jit.counters.compilations == before + 1
    load()
    assert jit.counters.compilations == before + 1  # all parts came from one entry of the cache
    monkeypatch.setattr(partition, "WORTH_CUTTING", 1 << 30)
    monkeypatch.setenv("NETWRIGHT_CACHE_DIR", "off")
    load()
    assert jit.counters.compilations == before + 2
    assert results == [expected] * 3
    assert sizes[0] == sizes[1] != sizes[2]


def test_a_damaged_entry_of_the_cache_is_compiled_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("NETWRIGHT_CACHE_DIR", str(tmp_path))
    for content in (b"", b"1234567", b"\xff" * 8 + b"object", b"\x03" + bytes(7) + b"abc"):
        monkeypatch.setattr("netwright.runtime.cache.ObjectCache.get", lambda *_, c=content: c)
        assert jit.load(numbered(1)).compiled


def test_the_users_script_is_not_run_again_by_a_worker(tmp_path: object) -> None:
    script = textwrap.dedent(
        """
        print("script runs")
        from netwright.codegen.llvm import compile_ir
        from netwright.codegen.target import host
        from netwright.runtime import compile_workers, settings
        settings.num_threads = settings.available_cpus = lambda: 2
        parts = [f"define i64 @f{k}() {{\\n  ret i64 {k}\\n}}\\n" for k in range(6)]
        def wait(part):
            import time
            time.sleep(0.3)
            return compile_ir(part, host())
        made = compile_workers.compile_parts(parts, host(), True, wait)
        print(made.processes, made.problem)
        """
    )
    path = f"{tmp_path}/script.py"
    with open(path, "w") as file:
        file.write(script)
    found = subprocess.run([sys.executable, path], check=True, capture_output=True, text=True)
    assert found.stdout.splitlines() == ["script runs", "2 "]


def test_a_model_compiled_in_parts_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETWRIGHT_CACHE_DIR", "off")
    nw.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.GELU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(144, 10),
        nn.Softmax(1),
    )  # fmt: skip
    x = nw.randn(3, 3, 8, 8)
    for mode in (model.eval, model.train):
        mode()
        results, reports = [], []
        for size in (1 << 30, 0):
            monkeypatch.setattr(partition, "WORTH_CUTTING", size)
            monkeypatch.setattr(partition, "PART", 1)
            twin = copy.deepcopy(model)
            fast = nw.compile(twin)
            y = fast(x)
            (y * y).sum().backward()
            grads = [p.grad.numpy().tobytes() for p in twin.parameters()]
            results.append([y.detach().numpy().tobytes(), *grads])
            reports.append(fast.compile_report().programs)
            del fast, y  # or the second would find the first one's code
            gc.collect()
        assert results[0] == results[1]
        assert [p.origin for r in reports for p in r].count("compiled") == sum(map(len, reports))
