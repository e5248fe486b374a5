"""From LLVM IR text to callable machine code, through the object cache.

All code of a process lives in one LLJIT linker, made when first needed. Importing this module does
not import LLVM.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import CompileError
from . import cache, pool
from .compile_workers import Compiled, compile_parts

if TYPE_CHECKING:
    from ..codegen.target import Target


@dataclass
class Counters:
    """What this process did so far: modules compiled by LLVM (and the seconds that took), and
    object files linked. A second process with a warm cache has zero compilations."""

    compilations: int = 0
    compile_seconds: float = 0.0
    loads: int = 0


counters = Counters()

_lock = threading.RLock()
_names = itertools.count()
_linker: Any = None
_libraries: weakref.WeakValueDictionary[str, Library] = weakref.WeakValueDictionary()

if hasattr(os, "register_at_fork"):
    # A fork in the middle of a compilation would leave the child with LLVM's lock held by nobody.
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


class Library:
    """Linked machine code. It is unloaded when the last reference to this object is dropped, so
    whoever keeps an address keeps the library too. (Threads of the pool that are still inside of
    the code leave it first, see `pool.retire`.)"""

    def __init__(
        self,
        tracker: Any,
        symbols: Iterable[str],
        made: Compiled | None = None,
        object_bytes: int = 0,
    ) -> None:
        self._tracker = tracker  # the linker unloads the code when it is dropped
        weakref.finalize(self, pool.retire, tracker).atexit = False
        self.symbols: dict[str, int] = {name: int(tracker[name]) for name in symbols}
        self.made = made
        """How LLVM compiled it; None if the code came from the cache."""
        self.object_bytes = object_bytes
        """Size of the object files."""

    @property
    def compiled(self) -> bool:
        """True if LLVM compiled it now, False if it came from the cache."""
        return self.made is not None

    def address(self, symbol: str) -> int:
        """Address of a function; raises KeyError naming what there is."""
        try:
            return self.symbols[symbol]
        except KeyError:
            there = ", ".join(sorted(self.symbols))
            raise KeyError(f"the library has no symbol {symbol!r}; it has {there}") from None

    def function(self, symbol: str, result: Any, *arguments: Any) -> Callable[..., Any]:
        """A ctypes function; it releases the GIL while it runs and keeps the library loaded."""
        function: Any = ctypes.CFUNCTYPE(result, *arguments)(self.address(symbol))
        function.library = self
        return function


def load(
    text: str,
    target: Target | None = None,
    key_parts: Mapping[str, str] | None = None,
    *,
    exports: Iterable[str] | None = None,
    imports: Mapping[str, int] | None = None,
    optimize: bool = True,
    seconds: dict[str, float] | None = None,
) -> Library:
    """Compiles a module, or takes its object code from the cache, and links it.

    ``key_parts`` name what else the code depends on, for people who read `ObjectCache.explain`.
    ``exports`` defaults to every function that is not internal. Undefined symbols are looked up
    in the process (libc), unless ``imports`` has their addresses; whoever gives these keeps what
    is there. Loading the same module again gives the same library while it lives, but for one with
    imports.
    ``seconds`` receives where the time went: ``llvm`` (parsing, optimising, emitting the object
    file), ``cache`` (making the key, reading, writing), ``link``.
    Raises CompileError if LLVM rejects the text or a symbol is missing. Threads may call this.
    """
    from ..codegen.target import host

    target = target or host()
    parts = environment(target) | dict(key_parts or {})
    parts |= {"ir": text, "optimize": str(optimize)}
    names = sorted(exported_symbols(text) if exports is None else exports)
    store = cache.default()
    spent = _Stopwatch({} if seconds is None else seconds)
    with _lock:
        with spent.on("cache"):
            key = store.key(parts)
        alive = None if imports else _libraries.get(key)
        if alive is not None and alive.symbols.keys() >= set(names):
            return alive
        with spent.on("cache"):
            found = store.get(key)
        with spent.on("link"):
            library = _load_cached(found, names, imports or {})
        if library is None:
            with spent.on("llvm"):
                made = compile_text(text, target, optimize)
            with spent.on("link"):
                library = _link(made.objects, names, imports or {}, made)
            with spent.on("cache"):
                store.put(key, _joined(made.objects), parts)
        if not imports:
            _libraries[key] = library
        return library


class _Stopwatch:
    """Adds up the time spent in blocks, by name."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start


def compile_text(text: str, target: Target, optimize: bool = True) -> Compiled:
    """Object code of a module, compiled now; counted in ``counters``.

    A large module is compiled in parts, by several processes if the settings allow that.
    """
    from ..codegen.llvm import compile_ir
    from ..codegen.partition import partition

    def compile_here(part: str) -> bytes:
        return compile_ir(part, target, optimize)

    with _lock:
        start = time.perf_counter()
        parts = partition(text)
        made = (
            Compiled([compile_here(text)])
            if len(parts) == 1
            else compile_parts(parts, target, optimize, compile_here)
        )
        counters.compilations += 1
        counters.compile_seconds += time.perf_counter() - start
        return made


def environment(target: Target) -> dict[str, str]:
    """The parts of a cache key that describe the machine and the compiler."""
    import llvmlite
    import llvmlite.binding as llvm

    return {
        "llvmlite": llvmlite.__version__,
        "llvm": ".".join(map(str, llvm.llvm_version_info)),
        "triple": target.triple,
        "cpu": target.cpu,
        "features": target.features,
        "compiler": cache.source_hash(),
    }


_DEFINE = re.compile(r"^define\s+([^@\n]*)@(?:\"([^\"]+)\"|([\w.$-]+))\s*\(", re.MULTILINE)


def exported_symbols(text: str) -> list[str]:
    """Names of the functions that a module defines for others to call."""
    return [
        quoted or plain
        for linkage, quoted, plain in _DEFINE.findall(text)
        if not {"internal", "private"} & set(linkage.split())
    ]


def _load_cached(
    content: bytes | None, names: list[str], imports: Mapping[str, int]
) -> Library | None:
    if content is None:
        return None
    try:
        return _link(_separated(content), names, imports)
    except CompileError:  # intact but not linkable here: as good as absent
        return None


_SIZE = struct.Struct("<Q")


def _joined(objects: Sequence[bytes]) -> bytes:
    """Object files as one cache entry: each with its size before it."""
    return b"".join(_SIZE.pack(len(content)) + content for content in objects)


def _separated(content: bytes) -> list[bytes]:
    """The object files of a cache entry; raises CompileError if it is not one."""
    objects, at = [], 0
    while at < len(content):
        if len(content) - at < _SIZE.size:
            raise CompileError("the cache entry is cut off")
        start = at + _SIZE.size
        at = start + _SIZE.unpack_from(content, at)[0]
        objects.append(content[start:at])
    if at != len(content) or not objects:
        raise CompileError("the cache entry does not hold object files")
    return objects


def _link(
    objects: Sequence[bytes],
    names: list[str],
    imports: Mapping[str, int],
    made: Compiled | None = None,
) -> Library:
    import llvmlite.binding as llvm

    builder = llvm.JITLibraryBuilder().add_current_process()
    for content in objects:
        builder.add_object_img(content)
    for name in names:
        builder.export_symbol(name)
    for name, place in imports.items():
        builder.import_symbol(name, place)
    try:
        # A name can never be used again, not even after the library was unloaded.
        tracker = builder.link(_process_linker(), f"netwright_{next(_names)}")
    except RuntimeError as error:
        raise CompileError(f"cannot link the generated code: {error}") from error
    counters.loads += 1
    return Library(tracker, names, made, sum(map(len, objects)))


def _process_linker() -> Any:
    """The LLJIT of this process. It is never disposed: libraries may outlive module teardown."""
    global _linker
    if _linker is None:
        import llvmlite.binding as llvm

        from ..codegen.target import host, target_machine

        _linker = llvm.create_lljit_compiler(target_machine(host()), use_jit_link=True)
    return _linker
