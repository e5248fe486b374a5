"""DataParallel: a compiled step whose gradients are averaged over all processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ..bridge.interrupts import uninterrupted
from ..frontend.tensor import Tensor
from .agreement import check_equal, check_same_model
from .averaging import Averaging
from .collectives import broadcast_tensors
from .process_group import current, init_process_group, is_initialized

if TYPE_CHECKING:
    from ..bridge.step import CompiledStep

_MIB = 2**20


class DataParallel:
    """``loss = parallel(x, target)``: a training step of which every process has its own batch.

    After ``torch.nn.parallel.DistributedDataParallel``, for ``nw.compile(model, loss=...,
    optimizer=...)``. Parameters and buffers become those of rank 0 at construction. Each call
    computes the gradients of this rank's batch, replaces them by their mean over the ranks, and
    updates; with ``accumulate`` only the calls that update communicate. Clipping is that of the
    mean. The result is the loss of this rank's own batch, as in PyTorch.

    All ranks make the same number of calls. A call that raises may be caught and training go on if
    it raises on all ranks: no update has been made. Batches of equal size on n ranks train like one
    process with n times the batch, up to rounding; BatchNorm normalises each rank's batch by
    itself.

    bucket_cap_mb: gradients travel in buckets of so many MiB. broadcast_buffers: before each call
    running statistics become those of rank 0. verify_every: after so many updates, and the first,
    ``verify()`` runs; 0: never. overlap: whether buckets are sent during the backward pass, as soon
    as it has finished them, which changes no bit; "auto": if the ranks run on several machines.

    ``init_process_group()`` is called if that has not been done. Raises RuntimeError if the models
    of the ranks differ.
    """

    def __init__(
        self,
        step: CompiledStep,
        bucket_cap_mb: float = 25,
        broadcast_buffers: bool = True,
        verify_every: int = 1000,
        overlap: bool | Literal["auto"] = "auto",
    ) -> None:
        from ..bridge.step import CompiledStep

        if not isinstance(step, CompiledStep):
            raise TypeError(
                "DataParallel takes a compiled step, nw.compile(model, loss=..., optimizer=...); "
                f"got {type(step).__name__}"
            )
        if not bucket_cap_mb > 0:
            raise ValueError(f"bucket_cap_mb={bucket_cap_mb!r}: expected a size above 0")
        if verify_every < 0:
            raise ValueError(f"verify_every={verify_every!r}: expected a number of updates, or 0")
        if overlap not in (True, False, "auto"):
            raise ValueError(f"overlap={overlap!r}: expected True, False or 'auto'")
        if not is_initialized():
            init_process_group()
        self.step = step
        self.broadcast_buffers = broadcast_buffers
        self.verify_every = verify_every
        self.updates = 0
        self._group = current()
        self._averaging = Averaging(self._group, max(1, int(bucket_cap_mb * _MIB)))
        if overlap == "auto":
            overlap = self._group.spans_machines()
        self.overlap = bool(overlap)
        if self._group.size > 1:
            check_same_model(self._group, {**self._parameters(), **self._buffers()})
            broadcast_tensors(self._group, self._parameters().values(), "DataParallel()")
            self.sync_buffers()

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """A step; the arguments are those of the compiled step. A KeyboardInterrupt takes effect
        after it."""
        with uninterrupted():
            if self.broadcast_buffers:
                self.sync_buffers()
            if self.overlap and self.step.accumulated + 1 >= self.step.accumulate:
                size, start = self._averaging.bucket_bytes, self._averaging.start
                try:
                    loss = self.step.gradients_in_buckets(size, start, *args, **kwargs)
                except BaseException:
                    self._averaging.give_up()
                    raise
            else:
                loss = self.step.gradients(*args, **kwargs)
            if self.step.accumulated >= self.step.accumulate:
                self.update()
        return loss

    def update(self) -> None:
        """Averages the gradients that wait and applies them: after the last batches of an epoch
        that are fewer than ``accumulate``. Does nothing if none wait."""
        if not self.step.accumulated:
            return
        with uninterrupted():
            self._averaging(self.step.flat_grads)
            self.step.update()
            self.updates += 1
        every = self.verify_every
        if every and (self.updates == 1 or self.updates % every == 0):
            self.verify()

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """The model's result in eval mode, of this rank alone."""
        return self.step.predict(*args, **kwargs)

    def sync_buffers(self) -> None:
        """Gives running statistics and other buffers of rank 0 to all ranks."""
        if self._group.size > 1:
            broadcast_tensors(self._group, self._buffers().values(), "the exchange of buffers")

    def verify(self) -> str:
        """Compares the parameters of all ranks; returns their SHA-256 in hexadecimal.

        RuntimeError that names the first parameter that is not the same everywhere.
        """
        return check_equal(self._group, self._parameters(), f"after {self.updates} updates")

    def _parameters(self) -> dict[str, Tensor]:
        return {n: p for prefix, root in self._roots() for n, p in root.named_parameters(prefix)}

    def _buffers(self) -> dict[str, Tensor]:
        return {n: b for prefix, root in self._roots() for n, b in root.named_buffers(prefix)}

    def _roots(self) -> list[tuple[str, Any]]:
        from ..frontend.nn.module import Module

        roots = (("", self.step.model), ("loss", self.step.loss))
        return [(prefix, root) for prefix, root in roots if isinstance(root, Module)]
