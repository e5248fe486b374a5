"""The builtin that runs a program: what it accepts, what it gives back, that it leaks nothing."""

from __future__ import annotations

import gc
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

from netwright.runtime import jit, native_call, pool
from netwright.runtime.memory import address

pytestmark = pytest.mark.skipif(not native_call.supported(), reason="no CPython on 64-bit Linux")

F32 = np.dtype(np.float32)

_COPY = """\
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
define void @entry(ptr %args, i64 %N, i64 %tid, i64 %threads, ptr %ticket) {
  %from = load ptr, ptr %args
  %into.at = getelementptr ptr, ptr %args, i64 1
  %into = load ptr, ptr %into.at
  %bytes = mul i64 %N, 12
  call void @llvm.memcpy.p0.p0.i64(ptr %into, ptr %from, i64 %bytes, i1 false)
  ret void
}
"""

_SPIN = """\
define void @entry(ptr %args, i64 %N, i64 %tid, i64 %threads, ptr %ticket) {
  %flag = load ptr, ptr %args
  br label %look
look:
  %seen = load atomic i32, ptr %flag acquire, align 4
  %set = icmp ne i32 %seen, 0
  br i1 %set, label %done, label %look
done:
  ret void
}
"""


def builtin(text: str, rows: int = 2) -> tuple[Any, Any]:
    """The call of a program ``f32[rows,3] -> f32[rows,3]``, and what must outlive it."""
    library = jit.load(text, key_parts={"kind": "test"})
    table, status = np.zeros(3, np.uint64), np.ones(1, np.int64)
    table[2] = address(status)
    kind = ((rows, 3), F32)
    call = native_call.native_call(
        library.address("entry"), address(table), rows, address(status), [(0, *kind)], (1, *kind)
    )
    assert call is not None
    return call, (library, table, status)


def test_the_result_is_a_new_array_of_the_given_kind() -> None:
    call, _keep = builtin(_COPY)
    x = np.arange(6, dtype=F32).reshape(2, 3)
    first, second = call(0, 1, x), call(0, 1, x + 1)
    assert first.dtype == F32 and first.shape == (2, 3)
    assert np.array_equal(first, x) and np.array_equal(second, x + 1)


def test_a_team_is_passed_on() -> None:
    call, _keep = builtin(_COPY)
    x = np.arange(6, dtype=F32).reshape(2, 3)
    assert np.array_equal(pool.shared.lend(2, call, [x]), x)


def test_a_read_only_array_may_be_read() -> None:
    call, _keep = builtin(_COPY)
    x = np.ones((2, 3), F32)
    x.flags.writeable = False
    assert np.array_equal(call(0, 1, x), x)


_STATUS = """\
define void @entry(ptr %args, i64 %N, i64 %tid, i64 %threads, ptr %ticket) {
  %from = load ptr, ptr %args
  %first = load float, ptr %from
  %code = fptosi float %first to i64
  %status.at = getelementptr ptr, ptr %args, i64 2
  %status = load ptr, ptr %status.at
  %before = load i64, ptr %status
  %both = add i64 %before, %code
  store i64 %both, ptr %status
  ret void
}
"""


def test_a_status_gives_false_and_is_gone_in_the_next_call() -> None:
    call, keep = builtin(_STATUS)
    status = keep[-1]
    bad = np.full((2, 3), 7.0, F32)
    count = sys.getrefcount(False)
    assert call(0, 1, bad) is False and status[0] == 7
    assert call(0, 1, bad) is False and status[0] == 7
    assert isinstance(call(0, 1, bad * 0), np.ndarray) and status[0] == 0
    assert sys.getrefcount(False) <= count + 2


class Kind(np.ndarray):
    """A subclass may give its elements another meaning."""


OTHERS = {
    "dtype": np.ones((2, 3)),
    "byte order": np.ones((2, 3), F32.newbyteorder()),
    "rank": np.ones((2, 3, 1), F32),
    "extent": np.ones((3, 3), F32),
    "strides": np.ones((3, 2), F32).T,
    "alignment": np.zeros(25, np.uint8)[1:].view(F32).reshape(2, 3),
    "subclass": np.ones((2, 3), F32).view(Kind),
    "list": [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]],
    "none": None,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_arguments_are_declined(name: str) -> None:
    call, _keep = builtin(_COPY)
    assert call(0, 1, OTHERS[name]) is None


@pytest.mark.parametrize("count", [0, 2])
def test_another_number_of_arguments_is_declined(count: int) -> None:
    call, _keep = builtin(_COPY)
    assert call(0, 1, *[np.ones((2, 3), F32)] * count) is None


def test_calls_leave_no_references_behind() -> None:
    call, _keep = builtin(_COPY)
    x, wrong = np.ones((2, 3), F32), np.ones(3)
    call(0, 1, x)
    counts = [sys.getrefcount(o) for o in (x, wrong, F32, np.ndarray)]
    results = [call(0, 1, x) for _ in range(100)]
    ordinary = [np.empty(3) for _ in results]
    assert [sys.getrefcount(r) for r in results] == [sys.getrefcount(r) for r in ordinary]
    del results
    assert all(call(0, 1, wrong) is None for _ in range(100))
    gc.collect()
    assert [sys.getrefcount(o) for o in (x, wrong, F32, np.ndarray)] == counts


def test_other_python_threads_run_meanwhile() -> None:
    call, _keep = builtin(_SPIN)
    flag = np.zeros((2, 3), F32)

    def later() -> None:
        time.sleep(0.01)
        flag[0, 0] = 1.0

    thread = threading.Thread(target=later)
    thread.start()
    call(0, 1, flag)
    thread.join()
