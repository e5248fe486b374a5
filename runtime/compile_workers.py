"""Compiling the parts of a large module in several processes at once.

LLVM work holds one lock per process, so more cores help only in more processes. A worker is a bare
interpreter that runs `codegen/object_code.py` and talks over pipes: nothing of the user's program
is imported or run again, and there is nothing to configure. This process compiles as well; if
workers cannot be started, or fail, it does all the work and `Compiled.problem` says why.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import settings

if TYPE_CHECKING:
    from ..codegen.target import Target

MAX_WORKERS = 7
PARTS_PER_WORKER = 3
PATIENCE_SECONDS = 30.0
"""How long a worker may take for its last part after this process has done its own."""

_START = """\
import runpy, sys
sys.path.insert(0, sys.argv[2])
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@dataclass(frozen=True)
class Compiled:
    """The object files of the parts, in order; how many processes made them; and what kept others
    from helping, if anything did."""

    objects: list[bytes]
    processes: int = 1
    problem: str = ""


def compile_parts(
    parts: Sequence[str],
    target: Target,
    optimize: bool,
    compile_here: Callable[[str], bytes],
) -> Compiled:
    """The object files of modules, made by this process with ``compile_here`` and by workers.

    There is one process per thread that the settings allow. Raises what ``compile_here`` raises.
    """
    job = _Job(parts)
    count = min(settings.num_threads(), settings.available_cpus(), MAX_WORKERS + 1) - 1
    count = min(count, len(parts) // PARTS_PER_WORKER)
    command, problem = worker_command() if count > 0 else ([], "")
    workers = [_Worker(command, job, target, optimize) for _ in range(count if command else 0)]
    try:
        _help(job, compile_here)
        for worker in workers:
            worker.finish()
        _help(job, compile_here)  # what workers have given back
    finally:
        for worker in workers:
            worker.stop()
    problems = [w.problem for w in workers if w.problem]
    helped = sum(w.done > 0 for w in workers)
    return Compiled(job.finished(), 1 + helped, problem or next(iter(problems), ""))


def worker_command() -> tuple[list[str], str]:
    """The command that starts a worker; else an empty one, and why there is none."""
    import llvmlite

    from ..codegen import object_code

    script = Path(object_code.__file__)
    if not sys.executable or not Path(sys.executable).stem.lower().startswith(("python", "pypy")):
        return [], f"{sys.executable or 'this program'} is not a Python interpreter"
    if not script.is_file() or script.suffix != ".py":
        return [], f"{script} is not a file"
    # -I -S: nothing from the environment or from site-packages runs; LLVM is the one used here.
    packages = str(Path(llvmlite.__file__).parent.parent)
    return [sys.executable, "-I", "-S", "-c", _START, str(script), packages], ""


class _Job:
    """What is left to compile (the largest first) and what is done; threads share it."""

    def __init__(self, parts: Sequence[str]) -> None:
        self.parts = parts
        self.objects: list[bytes | None] = [None] * len(parts)
        self.open = deque(sorted(range(len(parts)), key=lambda i: -len(parts[i])))
        self.returned: deque[int] = deque()

    def finished(self) -> list[bytes]:
        return [content for content in self.objects if content is not None]


def _help(job: _Job, compile_here: Callable[[str], bytes]) -> None:
    """Compiles in this process until nothing is left that nobody has begun."""
    for queue in (job.returned, job.open):
        while True:
            try:
                number = queue.popleft()
            except IndexError:
                break
            job.objects[number] = compile_here(job.parts[number])


class _Worker:
    """A process and the thread that feeds it."""

    def __init__(self, command: list[str], job: _Job, target: Target, optimize: bool) -> None:
        self.done = 0
        self.problem = ""
        self._command, self._job, self._target, self._optimize = command, job, target, optimize
        self._process: subprocess.Popen[bytes] | None = None
        self._taken: int | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="netwright-compile", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Returns when this worker holds no part any more."""
        if self._taken is not None:
            self._thread.join(PATIENCE_SECONDS)
            if self._thread.is_alive():
                self.problem = f"a worker gave no answer in {PATIENCE_SECONDS:.0f} s"
        self.stop()

    def stop(self) -> None:
        """Ends the process and the thread; a part that is not done is given back."""
        self._stopped = True
        process = self._process
        if process is not None:
            process.kill()
        self._thread.join()

    def _run(self) -> None:
        from ..codegen import object_code as protocol

        try:
            with subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            ) as process:
                self._process = process
                try:
                    if not self._stopped:
                        self._serve(process, protocol)
                finally:
                    process.kill()
        except (OSError, EOFError) as error:
            if not self._stopped:
                self.problem = self.problem or f"a worker failed: {error}"
        if self._taken is not None:
            self._job.returned.append(self._taken)

    def _serve(self, process: subprocess.Popen[bytes], protocol: Any) -> None:
        requests, answers = process.stdin, process.stdout
        assert requests is not None and answers is not None
        for text in (self._target.triple, self._target.cpu, self._target.features):
            requests.write(protocol.sized(text))
        requests.flush()
        if protocol.exactly(answers, len(protocol.READY)) != protocol.READY:
            raise EOFError("it is not a worker")
        optimize = protocol.sized("1" if self._optimize else "")
        while not self._stopped:
            try:
                number = self._taken = self._job.open.popleft()
            except IndexError:
                return
            requests.write(optimize + protocol.sized(self._job.parts[number]))
            requests.flush()
            size = protocol.read_size(answers)
            if size == protocol.FAILED:  # this process will find the error and can report it
                self._job.returned.append(number)
            else:
                self._job.objects[number] = protocol.exactly(answers, size)
                self.done += 1
            self._taken = None
