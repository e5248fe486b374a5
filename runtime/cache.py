"""Object code on disk, so that a second process compiles nothing.

An entry is named by the sha256 of everything it depends on (`ObjectCache.key`), so that a change
of any part is a miss and never a wrong hit. The file starts with a checksum of its content: what a
crash or a full disk truncated is removed and compiled again. Beside it lies a small JSON file with
the parts, from which `ObjectCache.explain` says why something was not found.

Object code is executed, so only a directory that no other user can write to is used. Whatever goes
wrong with the disk, the program runs uncached; `info()` tells why.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from . import settings

MAX_BYTES = 1 << 30
"""The oldest entries are removed when a process that adds some finds more than this."""

_FORMAT = "objects-1"
_MAGIC = b"netwright object 1\n"
_LONG = 200  # parts longer than this are kept in the JSON file as their hash
_ABANDONED_SECONDS = 3600.0


class ObjectCache:
    """A directory of object files. ``directory`` None is a cache that never has anything.

    ``hits`` and ``misses`` count what `get` found and did not find.
    """

    def __init__(self, directory: Path | None) -> None:
        self.directory = None if directory is None else directory / _FORMAT
        self.hits = 0
        self.misses = 0
        self.problem: str | None = None if directory else "caching is switched off"
        self._trusted = False
        self._trimmed = False

    def key(self, parts: Mapping[str, str]) -> str:
        """The name of the entry for ``parts`` (part name -> text); 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for name in sorted(parts):
            for text in (name, parts[name]):
                data = text.encode()
                digest.update(b"%d:" % len(data))  # lengths keep ("ab","c") and ("a","bc") apart
                digest.update(data)
        return digest.hexdigest()

    def get(self, key: str) -> bytes | None:
        """The object code of an entry; None if there is none, or none that is intact."""
        found = self._read(key)
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
        return found

    def _read(self, key: str) -> bytes | None:
        if not self._usable(create=False):
            return None
        path = self._path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.problem = f"cannot read {path}: {error.strerror}"
            return None
        start = len(_MAGIC) + hashlib.sha256().digest_size
        content = data[start:]
        if data[:start] != _MAGIC + _checksum(key, content):
            self.remove(key)
            return None
        with suppress(OSError):
            os.utime(path)  # what is used stays, see `_trim`
        return content

    def put(self, key: str, content: bytes, parts: Mapping[str, str] | None = None) -> bool:
        """Stores an entry; True if that worked. Several processes may store the same one."""
        if not self._usable(create=True):
            return False
        short = {name: _shorten(text) for name, text in (parts or {}).items()}
        try:
            note = json.dumps(short, indent=1, sort_keys=True).encode()
            self._write(self._path(key, ".json"), note)
            self._write(self._path(key), _MAGIC + _checksum(key, content) + content)
        except OSError as error:
            self.problem = f"cannot write to {self.directory}: {error.strerror}"
            return False
        self._trim()
        return True

    def remove(self, key: str) -> None:
        """Removes an entry, if it exists and that is allowed."""
        for suffix in (".o", ".json"):
            with suppress(OSError):
                self._path(key, suffix).unlink()

    def explain(self, parts: Mapping[str, str]) -> list[str]:
        """Why there is no entry for ``parts``: how they differ from the most similar entry.

        One line per differing part; empty if the entry exists.
        """
        if not self._usable(create=False):
            return [self.problem or "the cache is empty"]
        wanted = {name: _shorten(text) for name, text in parts.items()}
        if self._path(self.key(parts)).exists():
            return []
        nearest: dict[str, str] | None = None
        score = (-1, 0.0)
        for path in self._entries(".json"):
            try:
                have = json.loads(path.read_text())
                same = sum(have.get(name) == text for name, text in wanted.items())
                rank = (same, path.stat().st_mtime)
            except (OSError, ValueError, AttributeError):
                continue
            if rank > score:
                nearest, score = have, rank
        if nearest is None:
            return ["the cache is empty"]
        names = sorted(wanted.keys() | nearest.keys())
        return [
            f"{name}: {wanted.get(name, 'absent')} here, {nearest.get(name, 'absent')} in the "
            "most similar entry"
            for name in names
            if wanted.get(name) != nearest.get(name)
        ]

    def info(self) -> dict[str, Any]:
        """Directory, number and bytes of entries, hits and misses, and the problem if any."""
        usable = self._usable(create=False)
        sizes = []
        for path in self._entries(".o") if usable else []:
            with suppress(OSError):
                sizes.append(path.stat().st_size)
        return {
            "directory": None if self.directory is None else str(self.directory),
            "entries": len(sizes),
            "bytes": sum(sizes),
            "hits": self.hits,
            "misses": self.misses,
            "problem": self.problem,
        }

    def clear(self) -> int:
        """Removes all entries; returns how many. Raises OSError if one cannot be removed."""
        if not self._usable(create=False):
            return 0
        entries = self._entries(".o")
        for path in [*entries, *self._entries(".json"), *self._entries(".tmp")]:
            path.unlink(missing_ok=True)
        return len(entries)

    def _path(self, key: str, suffix: str = ".o") -> Path:
        if self.directory is None:
            raise ValueError("this cache has no directory")
        return self.directory / (key + suffix)

    def _entries(self, suffix: str) -> list[Path]:
        if self.directory is None:
            return []
        try:
            return sorted(p for p in self.directory.iterdir() if p.suffix == suffix)
        except OSError:
            return []

    def _usable(self, create: bool) -> bool:
        """Whether the directory exists (or could be made) and only its owner can write to it."""
        if self.directory is None:
            return False
        try:
            if create:
                self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            elif self._trusted and self.directory.exists():
                return True
            self.problem = _distrust(self.directory)
        except (FileNotFoundError, NotADirectoryError):
            if create:
                self.problem = f"cannot create {self.directory}"
            return False
        except OSError as error:
            self.problem = f"cannot use {self.directory}: {error.strerror}"
            return False
        self._trusted = self.problem is None
        return self._trusted

    def _write(self, path: Path, data: bytes) -> None:
        """Writes a file that other processes see complete or not at all."""
        handle, temporary = tempfile.mkstemp(suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def _trim(self) -> None:
        """Once per process: removes what crashed writers left, and the oldest beyond MAX_BYTES."""
        if self._trimmed:
            return
        self._trimmed = True
        abandoned = time.time() - _ABANDONED_SECONDS
        for path in self._entries(".tmp"):
            with suppress(OSError):
                if path.stat().st_mtime < abandoned:
                    path.unlink()
        entries = []
        for path in self._entries(".o"):
            with suppress(OSError):
                status = path.stat()
                entries.append((status.st_mtime, status.st_size, path.stem))
        excess = sum(size for _, size, _ in entries) - MAX_BYTES
        for _, size, key in sorted(entries):
            if excess <= 0:
                break
            self.remove(key)
            excess -= size


def default() -> ObjectCache:
    """The cache in the directory that the settings name now."""
    return _cache_in(settings.cache_dir())


@lru_cache(maxsize=16)
def _cache_in(directory: Path | None) -> ObjectCache:
    return ObjectCache(directory)


@lru_cache(maxsize=1)
def source_hash() -> str:
    """sha256 of the compiler's own source: a developer's edit must not hit stale code.

    Covers the layers that decide what is generated: operators, passes and code generation.
    """
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for layer in ("codegen", "ir", "passes"):
        # .pyc outside of __pycache__: an installation without sources
        files = [p for p in (package / layer).rglob("*.py*") if p.parent.name != "__pycache__"]
        for path in sorted(files):
            digest.update(path.relative_to(package).as_posix().encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _checksum(key: str, content: bytes) -> bytes:
    """Covers the key too: a file that was renamed is not the entry that it claims to be."""
    return hashlib.sha256(key.encode() + content).digest()


def _shorten(text: str) -> str:
    if len(text) <= _LONG:
        return repr(text)
    return f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]} ({len(text)} characters)"


def _distrust(directory: Path) -> str | None:
    """Why code in ``directory`` must not be executed; None if only its owner can write there."""
    status = directory.stat()
    if not stat.S_ISDIR(status.st_mode):
        return f"{directory} is not a directory"
    if not hasattr(os, "geteuid"):  # Windows: the user's profile is private by default
        return None
    if status.st_uid not in (os.geteuid(), 0):
        return f"{directory} belongs to another user (uid {status.st_uid})"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{directory} can be written by other users; run: chmod go-w {directory}"
    return None
