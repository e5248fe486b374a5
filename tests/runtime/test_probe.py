"""The machine probes run, count what they do, and survive unknown systems."""

import ctypes
import re

import numpy as np
import pytest

from netwright.codegen.llvm import assembly
from netwright.codegen.target import AVX2, AVX512, NEON, host
from netwright.runtime import jit, pool, probe


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("NETWRIGHT_CACHE_DIR", str(tmp_path))


def test_peak_is_a_positive_number():
    assert probe.peak_gflops(1, seconds=0.01) > 0
    assert probe.peak_gflops(2, seconds=0.01) > 0


@pytest.mark.parametrize("kind", probe.BANDWIDTH_KINDS)
def test_bandwidth_is_a_positive_number(monkeypatch, kind):
    monkeypatch.setattr(probe, "_MAX_BUFFER", 1 << 20)
    assert probe.bandwidth_gbs(2, kind, seconds=0.01) > 0


def test_an_unknown_kind_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="'read' is not one of copy, triad"):
        probe.bandwidth_gbs(1, "read")


@pytest.mark.parametrize("target", [AVX2, AVX512, NEON], ids=lambda t: t.name)
def test_the_peak_loop_has_every_multiply_add_and_nothing_in_memory(target):
    lines = assembly(probe._fma_ir(target), target).split("\n")
    at = [k for k, line in enumerate(lines) if "vfmadd" in line or "fmla" in line]
    assert len(at) == probe._accumulators(target) * probe._UNROLL
    begin = max(k for k in range(at[0]) if lines[k].endswith(":") or lines[k].startswith(".LBB"))
    end = next(k for k in range(at[-1], len(lines)) if re.match(r"\t(j|b)", lines[k]))
    loop = lines[begin : end + 1]
    assert lines[begin].split(":")[0] in lines[end]  # it is one block that repeats itself
    assert not [line for line in loop if re.search(r"\(%|\[[xs]|call|\tbl", line)]


def test_the_stream_loops_do_every_element_of_every_buffer():
    library = jit.load(probe._stream_ir(host()))
    a, b, c = (np.full(16 * 37, value, np.float32) for value in (0, 2, 3))
    args = (ctypes.c_int64 * 4)(a.ctypes.data, b.ctypes.data, c.ctypes.data, a.size)
    pool.run(library.address("nw_probe_copy"), ctypes.addressof(args), 1, 2)
    assert (a == 2).all()
    pool.run(library.address("nw_probe_triad"), ctypes.addressof(args), 2, 3)
    assert (a == 8).all()


def test_measure_reports_all_rates_once(monkeypatch):
    monkeypatch.setattr(probe, "peak_gflops", lambda threads: 10.0 * threads)
    monkeypatch.setattr(probe, "bandwidth_gbs", lambda threads: 5.0)
    probe.measure.cache_clear()
    try:
        assert probe.measure(2) == probe.Machine(2, 10.0, 20.0, 5.0)
        assert probe.measure(2) is probe.measure(2)
    finally:
        probe.measure.cache_clear()


def test_caches_are_read_from_sysfs_and_what_is_missing_is_left_out(tmp_path):
    entries = {
        "index0": ("Data", "1", "32K", "0"),
        "index1": ("Instruction", "1", "32K", "0"),
        "index2": ("Unified", "2", "1M", "0-1"),
        "index3": ("Unified", "3", "strange", "0"),
    }
    for name, values in entries.items():
        folder = tmp_path / "cpu0" / "cache" / name
        folder.mkdir(parents=True)
        for file, value in zip(("type", "level", "size", "shared_cpu_list"), values, strict=True):
            (folder / file).write_text(value + "\n")
    (tmp_path / "cpu0" / "cache" / "index4").mkdir()
    assert probe.caches(str(tmp_path)) == [
        probe.CacheLevel(1, 32 << 10, 1),
        probe.CacheLevel(2, 1 << 20, 2),
    ]
    assert probe.caches(str(tmp_path / "none")) == []


def test_cpu_model_comes_from_cpuinfo_or_the_platform(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nmodel name\t: Some  CPU @ 3 GHz\n")
    assert probe.cpu_model(str(info)) == "Some CPU @ 3 GHz"
    info.write_text("processor : 0\n")
    assert probe.cpu_model(str(info))
    assert probe.cpu_model(str(tmp_path / "none"))
    assert probe.cpu_model()
