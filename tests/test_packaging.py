"""The package list, the wheel, and what importing costs."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import netwright

ROOT = Path(netwright.__file__).parent
NO_PACKAGES = {"tests", "examples", "benchmarks", "docs", "build", "dist"}


def _listed() -> set[str]:
    lines = (ROOT / "pyproject.toml").read_text().split("packages = [")[1].split("]")[0]
    return {part.strip().strip('",') for part in lines.splitlines() if part.strip()}


def test_every_folder_with_code_is_in_the_package_list() -> None:
    folders = set()
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).parts[:-1]
        if parts and (parts[0] in NO_PACKAGES or parts[0].startswith(".")):
            continue
        folders.add(".".join(["netwright", *parts]))
    assert folders == _listed()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(folder)]
    made = subprocess.run([*build, str(ROOT)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return next(folder.glob("netwright-*.whl"))


def test_a_built_wheel_imports_and_finds_its_data(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        "import netwright as nw; print(nw.__file__); "
        "print(len(nw.vision.datasets.MNIST(train=False)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    place, count = done.stdout.split()
    assert place.startswith(str(tmp_path))
    assert count == "1000"


def test_a_wheel_holds_no_tests_and_no_examples(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        folders = {name.split("/")[1] for name in archive.namelist() if name.count("/") > 1}
    assert folders.isdisjoint(NO_PACKAGES)


def test_importing_loads_neither_networkx_nor_llvmlite() -> None:
    program = (
        "import sys, netwright; "
        "print([m for m in ('networkx', 'llvmlite', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
