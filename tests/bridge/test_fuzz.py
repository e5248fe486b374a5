"""Random programs in a process of their own, so that a crash is a failure that names its seed."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "fuzz_programs.py"


@pytest.mark.parametrize("first", [0, 18], ids=lambda first: f"seeds_{first}")
def test_random_programs_equal_eager_and_never_crash(first: int) -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAMS), str(first), str(first + 18)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    last = [line for line in done.stdout.splitlines() if line.startswith("seed ")][-1:]
    assert done.returncode == 0, f"exit code {done.returncode} at {last}\n" + "\n".join(
        line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("seed ")
    )
