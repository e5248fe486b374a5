"""The loop over epochs and steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..failure import Failure, Misuse, user_code
from ..progress import Progress
from . import checkpoint, history
from .data import Data
from .history import Epoch
from .interruption import Interruption
from .recipe import make_criterion, make_optimizer, make_schedule, matches
from .settings import Settings
from .team import Alone

if TYPE_CHECKING:
    from ...frontend.data import DataLoader
    from ...frontend.nn.module import Module
    from ...frontend.tensor import Tensor

_TEST_BATCH = 250


@dataclass
class _Sums:
    """Over the steps of an epoch on this process; ``timed`` leaves out a process's first step."""

    loss: float = 0.0
    samples: int = 0
    seconds: float = 0.0
    timed: float = 0.0
    timed_samples: int = 0
    timed_steps: int = 0

    def add(self, loss: float, samples: int, seconds: float, timed: bool) -> None:
        self.loss += loss * samples
        self.samples += samples
        self.seconds += seconds
        if timed:
            self.timed += seconds
            self.timed_samples += samples
            self.timed_steps += 1


class Training:
    """A run: its state between two steps is that of ``checkpoint.npz``.

    folder: where checkpoint and history go. files: the user's, for errors that name a line.
    """

    def __init__(
        self,
        model: Module,
        data: Data,
        settings: Settings,
        folder: Path,
        file: Path,
        team: Alone,
        saved: dict[str, Any] | None = None,
    ) -> None:
        from ...bridge.compile import compile as compile_model
        from ...frontend.data import DistributedSampler

        self.model, self.data, self.settings = model, data, settings
        self.folder, self.file, self.team = folder, file, team
        self.sampler = DistributedSampler(data.train, team.size, team.rank, seed=settings.seed)
        self.steps_per_epoch = self._steps_per_epoch()
        self.criterion = make_criterion(settings)
        self.optimizer = make_optimizer(model, settings)
        if saved is not None:
            self._check_fits(saved)
            checkpoint.load_weights(model, saved, folder)
        updates = math.ceil(self.steps_per_epoch / settings.accumulate)
        self.schedule = make_schedule(self.optimizer, settings, updates)
        self._compiled = compile_model(
            model.train(),
            loss=self.criterion,
            optimizer=self.optimizer,
            clip_grad_norm=settings.clip_grad_norm,
            clip_grad_value=settings.clip_grad_value,
        )
        self.step = team.shared(self._compiled)
        self.epochs: list[Epoch] = []
        self.losses: list[float] = []
        self.done = 0
        """Steps done in the present epoch, of which `_sums` are."""
        self._sums = _Sums()
        self._first_step = True
        if saved is not None:
            self._restore(saved)
        elif team.rank:  # weights and data are those of rank 0; dropout and augmentation are not
            checkpoint.seed(settings.seed + team.rank)

    @property
    def epoch(self) -> int:
        """Number of epochs that are finished, with their test."""
        return len(self.epochs)

    def run(self, interruption: Interruption) -> bool:
        """Trains to the end, or until it is interrupted; returns whether it got to the end.

        Either way, checkpoint and history are written.
        """
        while self.epoch < self.settings.epochs:
            label = f"epoch {self.epoch + 1}/{self.settings.epochs}"
            bar = Progress(label, self.steps_per_epoch, self.team.progress_stream())
            ended = self._train(interruption, bar)
            tested = self._test(interruption) if ended else None
            if tested is None:
                bar.done(f"interrupted after step {self.done}")
                self.save()
                return False
            self._finish_epoch(*tested)
            bar.done(self.epochs[-1].line())
            self.save()
        return True

    # -- one epoch -----------------------------------------------------------------------------

    def _train(self, interruption: Interruption, bar: Progress) -> bool:
        """The steps of the epoch that are left; whether all of them are done."""
        from ...frontend.data import DataLoader

        bar.update(self.done, "compiling" if self._first_step else "")
        loader = DataLoader(self.data.train, batch_sampler=self._batches()[self.done :])
        start = time.perf_counter()
        for batch in self._read(loader, lambda: self.team.largest(interruption.signal)):
            self._compiled.accumulate = self._batches_of_update()
            with user_code("a training step", self.file):
                loss = self.step(*batch).item()
            if not self._compiled.accumulated:
                self.schedule.step()
            self.done += 1
            start = self._count_step(loss, len(batch[-1]), start)
            bar.update(self.done, self._text(loss))
        return self.done == self.steps_per_epoch

    def _count_step(self, loss: float, samples: int, start: float) -> float:
        """Notes a step that began at ``start``; returns the present time."""
        if not math.isfinite(loss):
            raise Failure(
                f"the loss is {loss} in step {self.done} of epoch {self.epoch + 1}; try a smaller "
                f"--lr than {self.settings.lr:g}, or --warmup. "
                f"{checkpoint.CHECKPOINT}, if there is one, is older and sound"
            )
        now = time.perf_counter()
        self.losses.append(loss)
        self._sums.add(loss, samples, now - start, not self._first_step)
        self._first_step = False
        return now

    def _test(self, interruption: Interruption) -> tuple[float | None, float | None] | None:
        """Loss and accuracy on the test data, where there are such; None if interrupted."""
        from ...frontend import no_grad
        from ...frontend.data import DataLoader

        if self.data.test is None:
            return None, None
        assert self.settings.loss is not None
        mine = range(self.team.rank, len(self.data.test), self.team.size)
        batches = [list(mine[i : i + _TEST_BATCH]) for i in range(0, len(mine), _TEST_BATCH)]
        loader = DataLoader(self.data.test, batch_sampler=batches)
        loss = samples = right = judged = 0.0
        self.team.agree_on_buffers(self.step)
        # The ranks may have different numbers of batches, so they do not ask each other here.
        for batch in self._read(loader, lambda: interruption.signal):
            *inputs, target = batch
            with user_code("the test", self.file), no_grad():
                output = self.step.predict(*inputs)
                loss += self.criterion(output, target).item() * len(target)
                samples += len(target)
                found = matches(self.settings.loss, output, target)
            if found is not None:
                right += float(found.sum().item())
                judged += found.numel()
        if self.team.largest(interruption.signal):
            return None
        loss, samples, right, judged = self.team.total([loss, samples, right, judged])
        return loss / samples, right / judged if judged else None

    def _finish_epoch(self, test_loss: float | None, test_accuracy: float | None) -> None:
        sums = self._sums
        loss, samples, timed = self.team.total([sums.loss, sums.samples, sums.timed_samples])
        self.epochs.append(
            Epoch(
                epoch=self.epoch + 1,
                steps=len(self.losses),
                lr=self._last_rate(),
                train_loss=loss / samples,
                test_loss=test_loss,
                test_accuracy=test_accuracy,
                seconds=sums.seconds,
                samples_per_second=timed / sums.timed if sums.timed else None,
            )
        )
        self._sums = _Sums()
        self.done = 0

    # -- checkpoint ----------------------------------------------------------------------------

    def save(self) -> None:
        """Writes checkpoint and history (on rank 0; every rank takes part)."""
        random = self.team.gathered(checkpoint.random_state())
        waiting = self.team.gathered(checkpoint.waiting(self._compiled))
        if self.team.rank:
            return
        content = {
            "settings": self.settings.as_json(),
            "samples": len(self.data.train),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": random,
            "waiting": waiting,
            "done": self.done,
            "sums": asdict(self._sums),
            "losses": np.array(self.losses),
            "epochs": [asdict(epoch) for epoch in self.epochs],
        }
        checkpoint.save(self.folder, content)
        history.write_json(self.folder, self.epochs)

    def _check_fits(self, saved: dict[str, Any]) -> None:
        if saved["samples"] != len(self.data.train):
            raise Misuse(
                f"the training data has {len(self.data.train)} samples, that of the run to resume "
                f"had {saved['samples']}"
            )
        if len(saved["random"]) != self.team.size:
            raise Misuse(
                f"{self.team.size} process(es) cannot resume a run of {len(saved['random'])}: "
                "start as many"
            )

    def _restore(self, saved: dict[str, Any]) -> None:
        random, waiting = (saved[key][self.team.rank] for key in ("random", "waiting"))
        # The optimizer's state has the rate that the schedule set.
        parts = {"model": saved["model"], "optimizer": saved["optimizer"]}
        self._compiled.load_state_dict({**parts, "rng": random["netwright"], **waiting})
        self.schedule.load_state_dict(saved["schedule"])
        self.epochs = [Epoch(**row) for row in saved["epochs"]]
        self.losses = saved["losses"].tolist()
        self.done = saved["done"]
        self._sums = _Sums(**saved["sums"])
        checkpoint.restore_random_state(random)

    # -- details -------------------------------------------------------------------------------

    def _batches(self) -> list[list[int]]:
        """The indices of the present epoch's batches: they depend on seed and epoch alone."""
        self.sampler.set_epoch(self.epoch)
        order, size = list(self.sampler), self.settings.batch_size
        return [order[i * size : (i + 1) * size] for i in range(self.steps_per_epoch)]

    def _batches_of_update(self) -> int:
        """How many batches the update has that the present one belongs to: those that an epoch
        has left over make an update of their own, so that it never crosses the epoch's end."""
        size = self.settings.accumulate
        return min(size, self.steps_per_epoch - self.done // size * size)

    def _steps_per_epoch(self) -> int:
        steps = self._batches_per_epoch()
        if self.settings.accumulate > steps:
            raise Misuse(
                f"--accumulate {self.settings.accumulate}: an epoch has {steps} batch(es) "
                f"({len(self.sampler)} samples, --batch-size {self.settings.batch_size}), and the "
                "last update of an epoch takes what is left; use at most as many"
            )
        return steps

    def _batches_per_epoch(self) -> int:
        from ...frontend.nn import BatchNorm1d

        samples, size = len(self.sampler), self.settings.batch_size
        full, rest = divmod(samples, size)
        if self.settings.drop_last:
            if not full:
                raise Misuse(
                    f"--drop-last leaves nothing: {samples} samples and --batch-size {size}"
                )
            return full
        # Those of images have more than one value per channel in a batch of one, too.
        if (rest or size) == 1 and any(isinstance(m, BatchNorm1d) for m in self.model.modules()):
            raise Misuse(
                f"the last batch would have one sample ({samples} samples, --batch-size {size}), "
                "which BatchNorm1d cannot train on: use --drop-last or another --batch-size"
            )
        return full + (rest > 0)

    def _last_rate(self) -> float:
        """Of the step that was last: the schedule has gone on since."""
        factor = self.schedule.lr_lambdas[0](max(self.schedule.last_epoch - 1, 0))
        return float(self.schedule.base_lrs[0] * factor)

    def _text(self, loss: float) -> str:
        sums = self._sums
        if not sums.timed:
            return f"loss {loss:.4f}"
        rate = sums.timed_samples / sums.timed
        left = self.settings.epochs * self.steps_per_epoch - len(self.losses)
        seconds = left * sums.timed / max(sums.timed_steps, 1)
        rate *= self.team.size
        return f"loss {loss:.4f}  {rate:,.0f} samples/s  ETA {_clock(seconds)}"

    def _read(self, loader: DataLoader, stop: Callable[[], int]) -> Iterator[list[Tensor]]:
        """The loader's batches until ``stop()``; no further one is read then, since that may draw
        random numbers."""
        batches = iter(loader)
        for _ in range(len(loader)):
            if stop():
                return
            with user_code("reading the data", self.data.file or self.file):
                batch = next(batches)
            yield batch


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
