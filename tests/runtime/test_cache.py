"""The object cache: never a wrong hit, never a broken program."""

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from netwright.runtime import cache
from netwright.runtime.cache import ObjectCache

PARTS = {"ir": "define void @f()", "cpu": "haswell"}
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")


def test_what_was_stored_is_found_by_another_instance(tmp_path):
    writer, reader = ObjectCache(tmp_path), ObjectCache(tmp_path)
    key = writer.key(PARTS)
    assert writer.get(key) is None
    assert writer.put(key, b"code", PARTS)
    assert reader.get(key) == b"code"
    assert (writer.hits, writer.misses) == (0, 1)
    assert (reader.hits, reader.misses) == (1, 0)


def test_key_depends_on_every_part_and_not_on_their_order():
    store = ObjectCache(None)
    key = store.key(PARTS)
    assert key == store.key(dict(reversed(PARTS.items())))
    assert key != store.key(PARTS | {"cpu": "znver3"})
    assert key != store.key(PARTS | {"extra": ""})
    assert store.key({"a": "bc"}) != store.key({"ab": "c"})
    assert store.key({"a": "1:b"}) != store.key({"a": "1", "b": ""})


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:10],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: b"X" + data[1:],
    ],
    ids=["empty", "header only", "truncated", "longer", "bit flip", "wrong magic"],
)
def test_a_damaged_entry_is_a_miss_and_is_removed(tmp_path, damage):
    store = ObjectCache(tmp_path)
    key = store.key(PARTS)
    store.put(key, b"machine code", PARTS)
    path = store.directory / f"{key}.o"
    path.write_bytes(damage(path.read_bytes()))
    assert store.get(key) is None
    assert not path.exists()
    store.put(key, b"machine code", PARTS)
    assert store.get(key) == b"machine code"


def test_a_renamed_entry_is_not_taken_for_another(tmp_path):
    store = ObjectCache(tmp_path)
    one, two = store.key({"x": "1"}), store.key({"x": "2"})
    store.put(one, b"one")
    os.rename(store.directory / f"{one}.o", store.directory / f"{two}.o")
    assert store.get(two) is None


def test_concurrent_writers_and_readers_see_whole_entries(tmp_path):
    content = os.urandom(200_000)
    start = threading.Barrier(4)

    def work(_: int) -> set[bytes | None]:
        store = ObjectCache(tmp_path)
        key = store.key(PARTS)
        start.wait()
        seen: set[bytes | None] = set()
        for _ in range(20):
            assert store.put(key, content, PARTS)
            seen.add(store.get(key))
        return seen

    with ThreadPoolExecutor(4) as threads:
        assert set().union(*threads.map(work, range(4))) == {content}
    assert ObjectCache(tmp_path).info()["entries"] == 1
    assert not list(tmp_path.rglob("*.tmp"))


def test_switched_off_cache_never_has_anything():
    store = ObjectCache(None)
    assert not store.put("k", b"code", PARTS)
    assert store.get("k") is None
    assert store.clear() == 0
    assert store.info()["problem"] == "caching is switched off"
    assert store.explain(PARTS) == ["caching is switched off"]


def test_a_directory_that_cannot_be_made_leaves_the_program_uncached(tmp_path):
    (tmp_path / "file").write_text("in the way")
    store = ObjectCache(tmp_path / "file" / "cache")
    key = store.key(PARTS)
    assert store.get(key) is None
    assert not store.put(key, b"code", PARTS)
    assert "cannot" in store.info()["problem"]
    assert store.get(key) is None


@posix
def test_a_read_only_cache_is_still_read(tmp_path, monkeypatch):
    store = ObjectCache(tmp_path)
    key, other = store.key(PARTS), store.key({})
    store.put(key, b"code", PARTS)

    def read_only(*args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system")

    # root may write to any directory, so the file system's answer is simulated
    monkeypatch.setattr("tempfile.mkstemp", read_only)
    monkeypatch.setattr("os.utime", read_only)
    reader = ObjectCache(tmp_path)
    assert reader.get(key) == b"code"
    assert not reader.put(other, b"more", {})
    assert "Read-only file system" in reader.info()["problem"]


@posix
def test_code_that_others_could_have_written_is_not_executed(tmp_path):
    store = ObjectCache(tmp_path)
    key = store.key(PARTS)
    store.put(key, b"code", PARTS)
    assert store.directory.stat().st_mode & 0o777 == 0o700
    store.directory.chmod(0o777)
    reader = ObjectCache(tmp_path)
    assert reader.get(key) is None
    assert not reader.put(key, b"code", PARTS)
    assert "chmod go-w" in reader.info()["problem"]
    store.directory.chmod(0o755)
    assert ObjectCache(tmp_path).get(key) == b"code"


@posix
def test_a_directory_of_another_user_is_not_trusted(tmp_path, monkeypatch):
    store = ObjectCache(tmp_path)
    key = store.key(PARTS)
    store.put(key, b"code", PARTS)
    owner = store.directory.stat().st_uid
    if owner == 0:
        os.chown(store.directory, 12345, -1)
    else:
        monkeypatch.setattr("os.geteuid", lambda: owner + 1)
    reader = ObjectCache(tmp_path)
    assert reader.get(key) is None
    assert "another user" in reader.info()["problem"]


def test_explain_names_the_parts_that_differ_from_the_most_similar_entry(tmp_path):
    store = ObjectCache(tmp_path)
    assert store.explain(PARTS) == ["the cache is empty"]
    far = {"ir": "other", "cpu": "skylake", "options": "fast"}
    for parts in (PARTS, far):
        store.put(store.key(parts), b"code", parts)
    assert store.explain(PARTS) == []
    assert store.explain(PARTS | {"cpu": "znver3"}) == [
        "cpu: 'znver3' here, 'haswell' in the most similar entry"
    ]
    long = PARTS | {"ir": "x" * 5000}
    (line,) = store.explain(long)
    assert line.startswith("ir: sha256 ") and "5000 characters" in line


def test_explain_survives_a_damaged_note(tmp_path):
    store = ObjectCache(tmp_path)
    for number, text in enumerate([b"", b"[1]", b"\xff", b"{"]):
        parts = {"number": str(number)}
        store.put(store.key(parts), b"code", parts)
        (store.directory / f"{store.key(parts)}.json").write_bytes(text)
    assert store.explain(PARTS) == ["the cache is empty"]


def test_clear_and_info_count_entries(tmp_path):
    store = ObjectCache(tmp_path)
    for number in range(3):
        store.put(store.key({"n": str(number)}), b"code", {"n": str(number)})
    info = store.info()
    assert info["entries"] == 3 and info["bytes"] > 12 and info["problem"] is None
    assert Path(info["directory"]) == store.directory
    assert store.clear() == 3
    assert store.info()["entries"] == 0
    assert not list(store.directory.iterdir())


def test_the_oldest_entries_go_first_and_what_is_used_stays(tmp_path, monkeypatch):
    store = ObjectCache(tmp_path)
    keys = [store.key({"n": str(number)}) for number in range(3)]
    hour_ago = time.time() - 3600
    for age, key in enumerate(keys):
        store.put(key, b"x" * 100)
        os.utime(store.directory / f"{key}.o", (hour_ago + age, hour_ago + age))
    assert store.get(keys[0]) is not None  # now the newest
    (store.directory / "left.tmp").write_text("")
    os.utime(store.directory / "left.tmp", (hour_ago - 9, hour_ago - 9))
    monkeypatch.setattr(cache, "MAX_BYTES", 500)
    later = ObjectCache(tmp_path)
    extra = later.key({"n": "new"})
    assert later.put(extra, b"x" * 100)
    assert [later.get(key) is not None for key in [*keys, extra]] == [True, False, True, True]
    assert not list(tmp_path.rglob("*.tmp"))


def test_source_hash_is_stable_and_changes_with_an_edit(tmp_path, monkeypatch):
    assert cache.source_hash() == cache.source_hash()
    for layer in ("codegen", "ir", "passes", "runtime"):
        (tmp_path / layer).mkdir()
    (tmp_path / "codegen" / "a.py").write_text("x = 1")
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "runtime" / "cache.py"))
    before = cache.source_hash.__wrapped__()
    (tmp_path / "codegen" / "a.py").write_text("x = 2")
    assert cache.source_hash.__wrapped__() != before


def test_default_cache_follows_the_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("NETWRIGHT_CACHE_DIR", str(tmp_path))
    store = cache.default()
    assert store.directory.parent == tmp_path
    assert cache.default() is store
    monkeypatch.setenv("NETWRIGHT_CACHE_DIR", "off")
    assert cache.default().directory is None
