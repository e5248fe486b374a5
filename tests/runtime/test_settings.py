"""Environment variables and the number of threads."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from netwright.runtime import settings


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in (*settings.VARIABLES, "OMP_NUM_THREADS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    settings.set_num_threads(None)
    yield
    settings.set_num_threads(None)


def test_there_are_few_variables_and_the_docstring_lists_each():
    assert len(settings.VARIABLES) <= 8
    for name in settings.VARIABLES:
        assert name in settings.__doc__


def test_default_threads_do_not_exceed_the_cpus_of_the_process():
    assert settings.num_threads() == settings.available_cpus()
    if hasattr(os, "sched_getaffinity"):
        assert 1 <= settings.num_threads() <= len(os.sched_getaffinity(0))


def test_omp_num_threads_limits_and_our_variable_overrides(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1,4")
    assert settings.num_threads() == 1
    monkeypatch.setenv("NETWRIGHT_NUM_THREADS", "7")
    assert settings.num_threads() == 7
    settings.set_num_threads(3)
    assert settings.num_threads() == 3
    settings.set_num_threads(None)
    assert settings.num_threads() == 7


def test_threads_for_a_while_go_back_to_what_was_set_and_to_nothing(monkeypatch):
    with settings.threads(3):
        assert settings.num_threads() == 3
    monkeypatch.setenv("NETWRIGHT_NUM_THREADS", "7")
    assert settings.num_threads() == 7
    with settings.threads(3), settings.threads(2):
        assert settings.num_threads() == 2
    with pytest.raises(ValueError, match="1 to"), settings.threads(0):
        pass
    assert settings.num_threads() == 7


@pytest.mark.parametrize("text", ["", "many", "0", "-1"])
def test_nonsense_in_omp_num_threads_is_not_ours_to_report(monkeypatch, text):
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert settings.num_threads() == settings.available_cpus()


@pytest.mark.parametrize("text", ["many", "0", "-1", "1.5", "100000"])
def test_nonsense_in_our_variable_is_an_error_that_names_it(monkeypatch, text):
    monkeypatch.setenv("NETWRIGHT_NUM_THREADS", text)
    with pytest.raises(ValueError, match=r"NETWRIGHT_NUM_THREADS=.*1 to 1024"):
        settings.num_threads()


@pytest.mark.parametrize("n", [0, -3, 5000])
def test_set_num_threads_rejects_numbers_out_of_range(n):
    with pytest.raises(ValueError, match="from 1 to 1024"):
        settings.set_num_threads(n)


@pytest.mark.parametrize("n", [True, 2.0, "2"])
def test_set_num_threads_rejects_what_is_not_an_int(n):
    with pytest.raises(TypeError, match="expects an int"):
        settings.set_num_threads(n)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_a_process_pinned_to_one_cpu_uses_one_thread():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from netwright.runtime import settings; print(settings.num_threads())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "1"


def _files(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return str(root)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "150000 100000"}, 2),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, None),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000",
                "sys/fs/cgroup/a/cpu.max": "100000 100000",
            },
            1,
        ),
        # what a container sees: the host's path, and its own group as the mount
        ({"proc/self/cgroup": "0::/../host/x", "sys/fs/cgroup/cpu.max": "300000 100000"}, 3),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/job\n4:memory:/job",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            None,
        ),
        ({"proc/self/cgroup": "garbage"}, None),
        ({}, None),
    ],
    ids=["v2", "v2-max", "v2-parent", "v2-container", "v1", "v1-unlimited", "garbage", "absent"],
)
def test_cgroup_quota_is_the_smallest_on_the_path_rounded_up(tmp_path, files, cpus):
    assert settings.cgroup_cpus(_files(tmp_path, files)) == cpus


def test_a_cgroup_quota_limits_the_default(monkeypatch):
    monkeypatch.setattr(settings, "cgroup_cpus", lambda: 1)
    assert settings.num_threads() == 1
    monkeypatch.setattr(settings, "cgroup_cpus", lambda: 10**6)
    assert settings.available_cpus() < math.inf
    assert settings.num_threads() <= 1024


def test_cache_dir_follows_xdg_and_ignores_a_relative_path(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings.cache_dir() == tmp_path / ".cache" / "netwright"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert settings.cache_dir() == tmp_path / "xdg" / "netwright"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert settings.cache_dir() == tmp_path / ".cache" / "netwright"
    monkeypatch.setenv("NETWRIGHT_CACHE_DIR", str(tmp_path / "mine"))
    assert settings.cache_dir() == tmp_path / "mine"
    monkeypatch.setenv("NETWRIGHT_CACHE_DIR", "off")
    assert settings.cache_dir() is None


def test_without_a_home_directory_there_is_no_cache_directory(monkeypatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "home", no_home)
    assert settings.cache_dir() is None


def test_debug_level_comes_from_the_environment_or_a_with_block(monkeypatch):
    assert settings.debug() == 0
    monkeypatch.setenv("NETWRIGHT_DEBUG", "2")
    assert settings.debug() == 2
    with settings.debugging(4):
        assert settings.debug() == 4
    assert settings.debug() == 2
    with pytest.raises(ValueError, match="0 to 5"), settings.debugging(6):
        pass
    monkeypatch.setenv("NETWRIGHT_DEBUG", "loud")
    with pytest.raises(ValueError, match=r"NETWRIGHT_DEBUG='loud'"):
        settings.debug()


def test_dump_cpu_and_disable(monkeypatch, tmp_path):
    assert settings.dump() is None
    assert settings.cpu() is None
    assert not settings.disabled()
    monkeypatch.setenv("NETWRIGHT_DUMP", str(tmp_path))
    monkeypatch.setenv("NETWRIGHT_CPU", "haswell")
    monkeypatch.setenv("NETWRIGHT_DISABLE", "1")
    assert settings.dump() == tmp_path
    assert settings.cpu() == "haswell"
    assert settings.disabled()
    monkeypatch.setenv("NETWRIGHT_DISABLE", "perhaps")
    with pytest.raises(ValueError, match="NETWRIGHT_DISABLE"):
        settings.disabled()


def test_code_generation_reads_the_variable_that_is_documented_here():
    from netwright.codegen import target

    assert target.CPU_VARIABLE == settings.CPU
