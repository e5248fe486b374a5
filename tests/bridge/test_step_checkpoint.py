"""A checkpoint of a step resumes bit by bit; Ctrl-C leaves weights and counts that agree."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn, optim
from netwright.bridge.interrupts import uninterrupted

Make = Callable[[Any], optim.Optimizer]
CASES: dict[str, tuple[Make, dict[str, Any]]] = {
    "adam": (lambda p: optim.Adam(p, lr=1e-2, weight_decay=1e-2), {}),
    "momentum": (lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1), {}),
    "accumulated": (lambda p: optim.AdamW(p, lr=1e-2), {"accumulate": 3, "clip_grad_norm": 0.5}),
}


@pytest.fixture(autouse=True)
def keyboard_interrupts() -> Iterator[None]:
    """SIGINT as Python handles it, also where the tests run in a shell's background, which ignores
    it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def make(case: str, seed: int = 0) -> Any:
    nw.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.25),
        nn.Linear(16, 4),
    )  # fmt: skip
    optimizer, options = CASES[case]
    return nw.compile(
        model, loss=nn.CrossEntropyLoss(), optimizer=optimizer(model.parameters()), **options
    )


def batch(i: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(i)
    return rng.standard_normal((8, 6), np.float32), rng.integers(0, 4, 8)


def bits(step: Any) -> list[bytes]:
    state = [t.numpy() for s in step.optimizer.state.values() for t in s.values()]
    weights = [v.numpy() for v in step.model.state_dict().values()]
    return [a.tobytes() for a in (*weights, *state, *step.grads.values())]


def train(step: Any, numbers: range) -> list[bytes]:
    losses = [step(*batch(i)).numpy().tobytes() for i in numbers]
    return [*losses, *bits(step)]


@pytest.mark.parametrize("case", list(CASES))
def test_a_saved_step_resumes_bit_by_bit_in_new_objects(case: str, tmp_path: Path) -> None:
    step = make(case)
    train(step, range(5))
    nw.save(step.state_dict(), tmp_path / "checkpoint.nw")
    expected = train(step, range(5, 10))
    fresh = make(case, seed=7)
    assert fresh.model[0].weight.numpy(force=True).tobytes() != expected[5]
    fresh.load_state_dict(nw.load(tmp_path / "checkpoint.nw"))
    assert fresh.accumulated == (2 if case == "accumulated" else 0)
    assert train(fresh, range(5, 10)) == expected
    other = make(case, seed=8)  # one that has trained already
    train(other, range(4))
    other.load_state_dict(nw.load(tmp_path / "checkpoint.nw"))
    assert train(other, range(5, 10)) == expected


def test_a_saved_step_resumes_bit_by_bit_in_another_process(tmp_path: Path) -> None:
    step = make("accumulated")
    train(step, range(5))
    nw.save(step.state_dict(), tmp_path / "checkpoint.nw")
    expected = train(step, range(5, 10))
    program = f"""
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("this", {str(Path(__file__))!r})
this = importlib.util.module_from_spec(spec)
spec.loader.exec_module(this)
step = this.make("accumulated", seed=7)
step.load_state_dict(this.nw.load({str(tmp_path / "checkpoint.nw")!r}))
pathlib.Path({str(tmp_path / "found")!r}).write_text(repr(this.train(step, range(5, 10))))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert (tmp_path / "found").read_text() == repr(expected)


def test_a_loss_with_parameters_is_part_of_the_checkpoint() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(nw.ones(4))

        def forward(self, output: nw.Tensor, target: nw.Tensor) -> nw.Tensor:
            return ((output * self.scale - target) ** 2).mean()

    steps = []
    for _ in range(2):
        model, loss = nn.Linear(6, 4), Scaled()
        optimizer = optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1)
        steps.append(nw.compile(model, loss=loss, optimizer=optimizer))
    x, y = batch(0)[0], np.ones((8, 4), np.float32)
    steps[0](x, y)
    steps[1].load_state_dict(steps[0].state_dict())
    assert steps[0](x, y).item() == steps[1](x, y).item()
    without = {k: v for k, v in steps[0].state_dict().items() if k != "loss"}
    with pytest.raises(RuntimeError, match="scale"):
        steps[1].load_state_dict(without)


def test_what_is_no_checkpoint_of_this_step_is_refused_and_changes_nothing() -> None:
    step = make("accumulated")
    train(step, range(2))
    before, state = bits(step), step.state_dict()
    with pytest.raises(ValueError, match="no 'optimizer', 'rng', 'accumulated', 'gradients'"):
        step.load_state_dict({"model": step.model.state_dict()})
    wrong = {**state, "gradients": {"4.weight": np.zeros((2, 2), np.float32)}}
    with pytest.raises(ValueError, match=r"gradient of '4.weight' is \[2, 2\], expected \[4, 16\]"):
        step.load_state_dict(wrong)
    wrong = {**state, "gradients": {"other": np.zeros(2, np.float32)}}
    with pytest.raises(ValueError, match=r"gradient of 'other'.*expected no gradient"):
        step.load_state_dict(wrong)
    with pytest.raises(ValueError, match=r"expected what a step's state_dict\(\) gives, got list"):
        step.load_state_dict([])
    other = make("accumulated", seed=1)
    train(other, range(1))
    with pytest.raises(RuntimeError):
        step.load_state_dict({**other.state_dict(), "model": {}})
    assert bits(step) == before
    assert step.accumulated == 2


def test_gradients_that_wait_are_those_of_the_checkpoint_alone() -> None:
    step = make("accumulated")
    start = step.state_dict()
    train(step, range(2))
    step.load_state_dict(start)
    assert step.accumulated == 0
    step(*batch(0))
    assert step.accumulated == 1


def test_gradients_may_be_saved_in_another_order_than_that_of_the_buffers() -> None:
    step, other = make("accumulated"), make("accumulated")
    train(step, range(1))
    state = step.state_dict()
    state["gradients"] = dict(reversed(state["gradients"].items()))
    train(other, range(1))
    other.load_state_dict(state)
    found = train(other, range(1, 3))
    nw.set_rng_state(state["rng"])
    assert found == train(step, range(1, 3))


# -- Ctrl-C ---------------------------------------------------------------------------------------


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """SIGINT for this thread after some time, as Ctrl-C sends it."""
    main = threading.get_ident()

    def alarm(number: int, frame: FrameType | None) -> None:
        signal.pthread_kill(main, signal.SIGINT)

    old = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def states(case: str, limit: int) -> list[list[bytes]]:
    """The state after each number of calls."""
    step = make(case)
    nw.manual_seed(1)
    found = [bits(step)]
    for i in range(limit):
        step(*batch(i % 4))
        found.append(bits(step))
    return found


@pytest.mark.parametrize("case", list(CASES))
def test_an_interrupt_leaves_the_state_after_a_whole_number_of_calls(case: str) -> None:
    limit = 40
    expected = states(case, limit)
    rng = np.random.default_rng(0)
    stopped = 0
    for attempt in range(12):
        step = make(case)
        nw.manual_seed(1)
        for i in range(4):
            step(*batch(i))  # compiled, and on the short way
        calls = 4
        try:
            with interrupted_after(float(rng.uniform(1e-5, 2e-3))):
                while calls < limit:
                    step(*batch(calls % 4))
                    calls += 1
                time.sleep(0.01)
        except KeyboardInterrupt:
            stopped += 1
        found = bits(step)
        assert found in (expected[calls], expected[min(calls + 1, limit)]), attempt
    assert stopped == 12


def test_an_interrupt_during_a_block_comes_at_its_end() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append(1)
        done.append(2)
    assert done == [1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_block_without_an_interrupt_and_one_in_another_thread_change_nothing() -> None:
    found: list[Any] = []

    def work() -> None:
        with uninterrupted():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    with uninterrupted():
        pass
    assert found == [signal.default_int_handler]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
