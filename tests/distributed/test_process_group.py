"""Joining and leaving the group, and how a job ends when one of its ranks fails."""

from __future__ import annotations

import builtins
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from netwright import distributed
from netwright.errors import UnsupportedError


def _job(mpirun: Any, *lines: str) -> subprocess.CompletedProcess[str]:
    start = ["import sys", "import netwright.distributed as dist"]
    Path("program.py").write_text("\n".join([*start, *lines]) + "\n")
    found: subprocess.CompletedProcess[str] = mpirun("program.py")
    return found


def test_a_rank_that_raises_ends_the_job_and_says_why(mpirun: Any) -> None:
    done = _job(
        mpirun,
        "dist.init_process_group()",
        "if dist.get_rank() == 1:",
        "    raise ValueError('no such data')",
        "dist.barrier()",
    )
    assert done.returncode != 0
    assert "ValueError: no such data" in done.stderr
    assert "rank 1 of 2 has failed with ValueError; the job ends" in done.stderr


def test_a_rank_that_leaves_early_ends_the_job_when_the_time_is_over(mpirun: Any) -> None:
    done = _job(
        mpirun,
        "dist.init_process_group(timeout=1)",
        "if dist.get_rank() == 1:",
        "    sys.exit(0)",
        "dist.all_gather_object('here')",
    )
    assert done.returncode != 0
    assert re.search(r"rank [01] of 2 has waited \d+ s for the others in", done.stderr)


def test_before_it_is_initialised_there_is_no_rank() -> None:
    assert not distributed.is_initialized()
    with pytest.raises(RuntimeError, match="init_process_group"):
        distributed.get_rank()
    with pytest.raises(RuntimeError, match="init_process_group"):
        distributed.barrier()


def test_other_backends_are_unsupported() -> None:
    with pytest.raises(UnsupportedError, match=r"backend='nccl'.*only 'mpi'"):
        distributed.init_process_group("nccl")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("No module named 'mpi4py'"), "needs mpi4py, which cannot be imported"),
        (RuntimeError("cannot load MPI library\nlibmpi.so"), "has found no MPI library"),
    ],
)
def test_without_mpi_it_says_what_to_install(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def fail(name: str, *arguments: Any) -> Any:
        if name.startswith("mpi4py"):
            raise error
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(RuntimeError, match=said) as found:
        distributed.init_process_group()
    assert 'pip install "netwright[mpi]"' in str(found.value)
    assert not distributed.is_initialized()


def test_importing_netwright_distributed_starts_no_mpi() -> None:
    program = "import sys, netwright.distributed; print('mpi4py' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
