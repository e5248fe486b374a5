"""A builtin function, made at run time, that is one call of a native program.

It takes arrays, looks whether they are of the expected types, makes the array of the result, fills
the program's argument table and runs the program without the GIL. From Python, through ctypes, that
takes some 4 us, about half of what the kernels of a small network take.

The code is LLVM IR that calls a few functions of Python's C API through their addresses. It reads
fields of array objects where numpy documents them (PyArrayObject); `supported` checks that they are
there. Each builtin has a *record* as its ``self``, a uint64 array::

    functions and objects that every builtin needs (_COMMON)
    entry, argument table, batch size, status word, tuple of np.empty's arguments, the result's
    slot, number of inputs, and for each input: slot, dtype object, number of dimensions, the
    dimensions
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import team
from .memory import address

if TYPE_CHECKING:
    from .jit import Library

_API = (
    "PyObject_Call", "PyEval_SaveThread", "PyEval_RestoreThread", "Py_IncRef", "Py_DecRef",
    "PyLong_AsVoidPtr",
)  # fmt: skip
_COMMON = (*_API, "nw_pool_run", "none", "false", "array type", "np.empty")
_OWN = ("entry", "table", "n", "status", "arguments of np.empty", "result slot", "inputs")
_AT = {name: 8 * i for i, name in enumerate(_COMMON + _OWN)}
_INPUTS = 8 * len(_AT)
_INPUT = ("slot", "dtype", "rank")

# Of an object and of numpy's array object (NPY_ARRAY_C_CONTIGUOUS, NPY_ARRAY_ALIGNED).
_TYPE = object.__basicsize__ - 8
_DATA, _RANK, _SHAPE, _DTYPE, _FLAGS = (object.__basicsize__ + o for o in (0, 8, 16, 40, 48))
_READABLE = 0x0001 | 0x0100

_METH_FASTCALL = 0x0080

_LINE = """\
  %{name}.at = getelementptr i8, ptr %{base}, i64 {offset}
  %{name} = load {type}, ptr %{name}.at, align 8
"""


def _load(name: str, base: str, offset: int, kind: str = "ptr") -> str:
    return _LINE.format(name=name, base=base, offset=offset, type=kind)


def _field(name: str, field: str, kind: str = "ptr") -> str:
    return _load(name, "record", _AT[field], kind)


_IR = f"""\
define ptr @nw_native_call(ptr %self, ptr %args, i64 %nargs) nounwind {{
start:
{_load("record", "self", _DATA)}{_field("count", "inputs", "i64")}\
{_field("table", "table")}{_field("array_type", "array type")}\
  %given = sub i64 %nargs, 2
  %first = getelementptr i8, ptr %record, i64 {_INPUTS}
  %fits = icmp eq i64 %given, %count
  br i1 %fits, label %inputs, label %other
inputs:
  %k = phi i64 [0, %start], [%k.next, %passed]
  %input = phi ptr [%first, %start], [%input.next, %passed]
  %all = icmp eq i64 %k, %count
  br i1 %all, label %result, label %kind
kind:
  %position = add i64 %k, 2
  %argument.at = getelementptr ptr, ptr %args, i64 %position
  %argument = load ptr, ptr %argument.at, align 8
{_load("type", "argument", _TYPE)}\
  %is_array = icmp eq ptr %type, %array_type
  br i1 %is_array, label %array, label %other
array:
{_load("slot", "input", 0, "i64")}{_load("wanted.dtype", "input", 8)}\
{_load("wanted.rank", "input", 16, "i64")}{_load("dtype", "argument", _DTYPE)}\
{_load("rank32", "argument", _RANK, "i32")}{_load("flags", "argument", _FLAGS, "i32")}\
{_load("shape", "argument", _SHAPE)}{_load("data", "argument", _DATA)}\
  %rank = sext i32 %rank32 to i64
  %readable = and i32 %flags, {_READABLE}
  %same.dtype = icmp eq ptr %dtype, %wanted.dtype
  %same.rank = icmp eq i64 %rank, %wanted.rank
  %plain = icmp eq i32 %readable, {_READABLE}
  %both = and i1 %same.dtype, %same.rank
  %same = and i1 %both, %plain
  %dims = getelementptr i8, ptr %input, i64 {8 * len(_INPUT)}
  br i1 %same, label %dimension, label %other
dimension:
  %d = phi i64 [0, %array], [%d.next, %compare]
  %ended = icmp eq i64 %d, %rank
  br i1 %ended, label %passed, label %compare
compare:
  %extent.at = getelementptr i64, ptr %shape, i64 %d
  %extent = load i64, ptr %extent.at, align 8
  %wanted.at = getelementptr i64, ptr %dims, i64 %d
  %wanted = load i64, ptr %wanted.at, align 8
  %d.next = add i64 %d, 1
  %equal = icmp eq i64 %extent, %wanted
  br i1 %equal, label %dimension, label %other
passed:
  %input.entry = getelementptr ptr, ptr %table, i64 %slot
  store ptr %data, ptr %input.entry, align 8
  %k.next = add i64 %k, 1
  %input.next = getelementptr i64, ptr %dims, i64 %rank
  br label %inputs
result:
{_field("call", "PyObject_Call")}{_field("empty", "np.empty")}\
{_field("empty.args", "arguments of np.empty")}\
  %made = call ptr %call(ptr %empty, ptr %empty.args, ptr null)
  %failed = icmp eq ptr %made, null
  br i1 %failed, label %error, label %run
run:
{_load("made.data", "made", _DATA)}{_field("result.slot", "result slot", "i64")}\
  %result.entry = getelementptr ptr, ptr %table, i64 %result.slot
  store ptr %made.data, ptr %result.entry, align 8
{_field("entry", "entry")}{_field("n", "n", "i64")}{_field("as_pointer", "PyLong_AsVoidPtr")}\
{_field("save", "PyEval_SaveThread")}{_field("restore", "PyEval_RestoreThread")}\
{_field("pool_run", "nw_pool_run")}\
  %state.object = load ptr, ptr %args, align 8
  %state = call ptr %as_pointer(ptr %state.object)
  %threads.at = getelementptr ptr, ptr %args, i64 1
  %threads.object = load ptr, ptr %threads.at, align 8
  %threads.pointer = call ptr %as_pointer(ptr %threads.object)
  %threads = ptrtoint ptr %threads.pointer to i64
{_field("status", "status")}\
  store i64 0, ptr %status, align 8
  %thread = call ptr %save()
  %alone = icmp eq ptr %state, null
  br i1 %alone, label %direct, label %shared
direct:
  call void %entry(ptr %table, i64 %n, i64 0, i64 1, ptr null)
  br label %done
shared:
  %ran = call i64 %pool_run(ptr %state, ptr %entry, ptr %table, i64 %n, i64 %threads)
  br label %done
done:
  call void %restore(ptr %thread)
  %code = load i64, ptr %status, align 8
  %good = icmp eq i64 %code, 0
  br i1 %good, label %give, label %bad
give:
  ret ptr %made
bad:
{_field("decref", "Py_DecRef")}{_field("false", "false")}{_field("hold", "Py_IncRef")}\
  call void %decref(ptr %made)
  call void %hold(ptr %false)
  ret ptr %false
error:
  ret ptr null
other:
{_field("none", "none")}{_field("incref", "Py_IncRef")}\
  call void %incref(ptr %none)
  ret ptr %none
}}
"""

NativeCall = Callable[..., Any]
"""``(team, threads, *arrays)`` -> the result as an array; None if the arrays are not of the
expected types, False if the run left another status than 0. ``team`` is the address of a team's
state, or 0 to run alone."""


def native_call(
    entry: int,
    table: int,
    n: int,
    status: int,
    inputs: Sequence[tuple[int, tuple[int, ...], np.dtype]],
    result: tuple[int, tuple[int, ...], np.dtype],
) -> NativeCall | None:
    """The builtin for ``entry`` with its argument table at an address and batch size ``n``.

    status is the address of an i64 that each call begins by setting to 0. inputs, result: slot in
    the table, shape and dtype. The caller keeps the code, the table and the status alive, and sees
    to it that one thread at a time calls. None where `supported` is false.
    """
    if not supported():
        return None
    arguments = result[1:]
    own = [entry, table, n, status, id(arguments), result[0], len(inputs)]
    for slot, shape, dtype in inputs:
        own += [slot, id(dtype), len(shape), *shape]
    new = ctypes.pythonapi.PyCFunction_NewEx
    new.restype = ctypes.py_object
    new.argtypes = [ctypes.c_void_p, ctypes.py_object, ctypes.py_object]
    # What the record has the addresses of lives as long as the builtin: it is its "module".
    kept = (arguments, inputs)
    record = np.array([*_common(), *own], np.uint64)
    builtin: NativeCall = new(ctypes.addressof(_definition()), record, kept)
    return builtin


@functools.lru_cache(maxsize=1)
def supported() -> bool:
    """Whether array objects are laid out as expected and this platform has a pool."""
    if sys.implementation.name != "cpython" or not team.available():
        return False
    for array in (np.zeros((3, 5), np.float32), np.zeros(7)[1::2], np.empty((0, 2, 4), np.int8)):
        at = id(array)
        shape = ctypes.c_void_p.from_address(at + _SHAPE).value
        found = (
            ctypes.c_void_p.from_address(at + _TYPE).value,
            ctypes.c_void_p.from_address(at + _DATA).value,
            ctypes.c_int32.from_address(at + _RANK).value,
            ctypes.c_void_p.from_address(at + _DTYPE).value,
            ctypes.c_int32.from_address(at + _FLAGS).value & _READABLE == _READABLE,
        )
        there = (
            id(np.ndarray), address(array), array.ndim, id(array.dtype),
            array.flags.c_contiguous and array.flags.aligned,
        )  # fmt: skip
        if found != there or not shape:
            return False
        if tuple((ctypes.c_int64 * array.ndim).from_address(shape)) != array.shape:
            return False
    return True


@functools.lru_cache(maxsize=1)
def _common() -> tuple[int, ...]:
    functions = [ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p) for name in _API]
    run = team.native().address("nw_pool_run")
    objects = (None, False, np.ndarray, np.empty)
    return (*[f.value or 0 for f in functions], run, *map(id, objects))


class _Definition(ctypes.Structure):
    """PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


@functools.lru_cache(maxsize=1)
def _definition() -> _Definition:
    return _Definition(b"native_call", _library().address("nw_native_call"), _METH_FASTCALL, None)


@functools.lru_cache(maxsize=1)
def _library() -> Library:
    from . import jit

    return jit.load(_IR, key_parts={"kind": "native call"})
