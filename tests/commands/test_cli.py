"""What the command line refuses, how it fails, how the process behaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import netwright as nw
from netwright.cli import COMMANDS, main, make_parser


def _run_process(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "netwright", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **options,  # type: ignore[call-overload]
    )


# -- misuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("nowhere.py:Tiny", "nowhere.py does not exist; expected a Python file"),
        (".:Tiny", "expected FILE.py:Model"),
        ("models.py", "names no model; it has Tiny, Words"),
        ("models.py:Tyni", "no 'Tyni'; it has Tiny, Words"),
        ("models.py:number", "is an int; expected a Module class"),
        ("models.py:NeedsSizes", "needs arguments (inputs, outputs)"),
        ("models.py:nw", "is a module; expected a Module class"),
    ],
)
def test_a_model_that_is_none_is_misuse(
    models: str, spec: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", spec, "--input", "1x6"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1,28,28", "sizes joined by x"),
        ("1x-3", "sizes joined by x"),
        ("", "sizes joined by x"),
        ("1x28:f16", "unknown dtype 'f16'"),
        ("0x3", "at least 1"),
        ("99999999x99999999", "2**31"),
    ],
)
def test_bad_input_syntax_is_misuse_that_says_what_was_expected(
    models: str, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", f"{models}:Tiny", "--input", text]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "--input" in error


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["inspect", "models.py:Tiny"],
        ["inspect", "models.py:Tiny", "--input", "1x6", "--format", "png"],
        ["inspect", "models.py:Tiny", "--input", "1x6", "--stage", "nonsense"],
        ["bench", "models.py:Tiny", "--input", "1x6", "--batch", "1,a"],
        ["bench", "models.py:Tiny", "--input", "1x6", "--seconds", "0"],
        ["lint", "models.py:Tiny", "--loss", "Crossentropy"],
        ["demo", "--epochs", "0"],
        ["cache"],
    ],
    ids=" ".join,
)
def test_misuse_has_exit_code_2(
    models: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_an_environment_variable_that_makes_no_sense_is_misuse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NETWRIGHT_NUM_THREADS", "many")
    assert main(["cache", "info"]) == 2
    assert "NETWRIGHT_NUM_THREADS='many'" in capsys.readouterr().err


# -- failures of the user's code ------------------------------------------------------------------


def test_an_error_while_a_file_is_imported_shows_its_lines_and_none_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "wrong.py"
    file.write_text("def f():\n    return 1 / 0\n\n\nf()\n")
    assert main(["inspect", f"{file}:Model", "--input", "1"]) == 1
    error = capsys.readouterr().err
    assert "ZeroDivisionError" in error
    assert "line 5, in <module>" in error
    assert "line 2, in f" in error
    assert "commands" not in error


def test_a_file_that_does_not_parse_is_shown_with_the_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "wrong.py"
    file.write_text("def f(:\n")
    assert main(["lint", f"{file}:Model"]) == 1
    assert "def f(:" in capsys.readouterr().err


def test_a_file_that_exits_when_imported_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "program.py"
    file.write_text("raise SystemExit(0)\n")
    assert main(["lint", f"{file}:Model"]) == 1
    assert "__main__" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Broken", "Broken(): KeyError: 'no weights' (at models.py:32, in __init__)"),
        ("BrokenForward", "models.py:37, in forward"),
        ("DataDependent", "models.py:42"),
    ],
)
def test_an_error_in_a_model_is_one_line_with_its_place(
    models: str, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", f"{models}:{name}", "--input", "2x6"]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert error.count("\n") == 1


def test_a_wrong_input_shape_is_one_line(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", f"{models}:Tiny", "--input", "2x7"]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_debug_keeps_the_traceback(models: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETWRIGHT_DEBUG", "1")
    with pytest.raises(KeyError, match="no weights"):
        main(["inspect", f"{models}:Broken", "--input", "1x6"])


def test_commands_that_compile_say_so_where_compilation_is_disabled(
    models: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NETWRIGHT_DISABLE", "1")
    assert main(["inspect", f"{models}:Tiny", "--input", "1x6"]) == 1
    assert "NETWRIGHT_DISABLE is set" in capsys.readouterr().err


# -- the process ----------------------------------------------------------------------------------


def test_help_and_version_exit_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"netwright {nw.__version__}\n"
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert command.__name__.rpartition(".")[2] in text


def test_every_option_has_a_help_text() -> None:
    (subparsers,) = (a for a in make_parser()._actions if a.dest == "command")
    for name, parser in subparsers.choices.items():  # type: ignore[union-attr,attr-defined]
        for action in parser._actions:
            assert action.help or action.dest in ("format", "action"), (name, action.dest)


def test_a_reader_that_stops_reading_is_no_error(models: str) -> None:
    program = f"{sys.executable} -m netwright inspect {models}:Tiny --input 1x6 | true"
    script = f"set -o pipefail; {program}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stderr == ""
    assert done.returncode == 0


def test_help_loads_neither_the_compiler_nor_llvm() -> None:
    program = (
        "import sys; from netwright.cli import main; main(['--help']); "
        "sys.exit(any(m in sys.modules for m in ('llvmlite', 'networkx', 'netwright.compiler')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0


def test_lints_are_printed_once_as_lines_on_stderr(models: str) -> None:
    done = _run_process("bench", f"{models}:Images", "--input", "2x1x28x28", "--seconds", "0.01")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: L005: ")
    assert done.stderr.count("\n") == 1


def test_the_file_finds_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "layers_of_test.py").write_text("SIZE = 6\n")
    (tmp_path / "net.py").write_text(
        "from layers_of_test import SIZE\nfrom netwright import nn\nnet = nn.Linear(SIZE, 2)\n"
    )
    assert main(["inspect", f"{tmp_path / 'net.py'}:net", "--input", "1x6"]) == 0


def test_doctor_says_what_is_wrong_with_an_unknown_cpu(
    tmp_path: Path,
) -> None:
    done = _run_process("doctor", env={**os.environ, "NETWRIGHT_CPU": "z80"})
    assert done.returncode == 1
    assert "NETWRIGHT_CPU=z80" in done.stderr
    assert "Traceback" not in done.stderr
