"""The command line: ``netwright COMMAND ...`` or ``python -m netwright COMMAND ...``.

``docs/cli.md`` describes the commands, their JSON and the exit codes: 0 good, 1 failed, 2 misuse,
130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .commands import bench, cache, demo, doctor, inspect, lint, profile, train
from .commands.failure import FAILED, INTERRUPTED, Failure, Misuse
from .commands.text import warnings_as_lines
from .errors import NetwrightError
from .runtime import settings

COMMANDS = (demo, inspect, train, bench, profile, lint, doctor, cache)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    try:
        options = make_parser().parse_args(argv)
    except SystemExit as end:  # argparse has printed help, the version, or what is wrong
        return end.code if isinstance(end.code, int) else 0
    try:
        _check_environment()
        with warnings_as_lines():
            code: int = options.run(options)
        sys.stdout.flush()
    except Failure as failure:
        print(f"netwright {options.command}: error: {failure}", file=sys.stderr)
        return failure.code
    except NetwrightError as error:
        if settings.debug():
            raise
        print(f"netwright {options.command}: error: {error}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Python flushes stdout once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return code


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="netwright",
        description="A graph compiler for neural networks on CPUs.",
        epilog="'netwright COMMAND --help' explains a command. Exit codes: 0 good, 1 failed, "
        "2 misuse.",
    )
    parser.add_argument("--version", action=_Version)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(subparsers)
    return parser


class _Version(argparse.Action):
    """Prints the version, which is looked up only then."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from . import __version__

        print(f"netwright {__version__}")
        parser.exit()


def _check_environment() -> None:
    """Misuse if one of netwright's environment variables has a value that makes no sense."""
    try:
        settings.num_threads()
        settings.debug()
        settings.disabled()
    except ValueError as error:
        raise Misuse(str(error)) from error
