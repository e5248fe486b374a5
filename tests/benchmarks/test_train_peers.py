"""benchmarks/train_peers.py: what is timed was right first; the twins are the same models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from netwright.commands.peers.contest import Wrong

# The example keeps biases in front of BatchNorm.
pytestmark = pytest.mark.filterwarnings("ignore:L005")

Load = Callable[[str], ModuleType]


@pytest.fixture
def peers(program: Load) -> ModuleType:
    return program("train_peers")


def small(peers: ModuleType, recipe: Any) -> Any:
    """A row that takes no time: the example with BatchNorm at batch 8."""
    tasks = {task.jax: task for task in peers.TASKS}
    found = tasks["mlp_batchnorm"]
    return peers.Task(found.model, found.build, found.shape, 8, recipe, 2.0, jax="mlp_batchnorm")


@pytest.mark.parametrize("recipe", ["SGD", "MOMENTUM", "ADAM", "ADAMW"])
def test_the_first_step_of_netwright_is_right(peers: ModuleType, recipe: str) -> None:
    task = small(peers, getattr(peers, recipe))
    start = peers.start_of(task)
    ready, step = peers.prepare_netwright(task, start)
    errors = peers.judge_of(task, start)(ready.arrays(None))
    assert errors["loss_error"] < 1e-6
    assert step.fallbacks == 0


@pytest.mark.parametrize(
    ("place", "what"),
    [(0, "loss"), (1, "gradients"), (2, "new weights"), (-1, "running statistics")],
)
def test_a_wrong_number_is_found(peers: ModuleType, place: int, what: str) -> None:
    task = small(peers, peers.ADAM)
    start = peers.start_of(task)
    got = peers.prepare_netwright(task, start)[0].arrays(None)
    judge = peers.judge_of(task, start)
    got[place] = got[place] + 0.01 * np.abs(got[place]).max()
    with pytest.raises(Wrong, match=what):
        judge(got)


@pytest.mark.parametrize("place", ["train_pytorch:prepare_eager", "train_jax:prepare"])
def test_a_peers_first_step_is_right(
    peers: ModuleType, program: Load, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, function = place.partition(":")
    pytest.importorskip("torch" if "torch" in module else "jax")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    # Every model and every recipe once: the update of a weight does not depend on its model.
    recipes = {"mlp": peers.SGD, "mlp_batchnorm": peers.MOMENTUM, "cnn": peers.ADAM}
    for name, recipe in recipes.items():
        found = next(task for task in peers.TASKS if task.jax == name)
        task = peers.Task(found.model, found.build, found.shape, 8, recipe, 2.0, jax=name)
        start = peers.start_of(task)
        ready = getattr(program(module), function)(task, start, 1)
        peers.judge_of(task, start)(ready.arrays(None))


def test_rows_name_models_that_exist(peers: ModuleType) -> None:
    assert len({task.name for task in peers.TASKS}) == 10
    for task in peers.TASKS:
        if task.model.startswith(("MLP", "CNN")):
            start = peers.start_of(task)
            assert start.inputs[0].shape == (task.batch, *task.shape)
            assert all(t.max() < task.classes for t in start.targets)


def test_a_missed_target_is_called_so(peers: ModuleType) -> None:
    def row(model: str, ratio: float, target: float, note: str = "") -> dict[str, Any]:
        half_of_peak = {"gflop": 1.0, "netwright": {"median_ms": 20.0}, "peak_gflops": {"1": 100.0}}
        result = {"ratio": ratio, "target": target, "note": note}
        return {"model": model, "batch": 2, **half_of_peak, **result}

    text = peers.summary([row("a", 4.0, 2.0, "dropout 0"), row("b", 1.0, 1.3)])
    assert "a, batch 2: 4.00x of the fastest peer, target 2x reached (dropout 0)" in text
    missed = "b, batch 2: 1.00x of the fastest peer, target 1.3x MISSED"
    assert f"{missed}; its products alone, at the FMA peak, 2.00x" in text
    assert "geometric mean: 2.00x of the fastest peer, target 2x reached" in text
    assert "least: 1.00x of the fastest peer, target 1.2x MISSED" in text


def test_a_run_measures_what_is_missing(
    peers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "environment", lambda: {"commit": "abc", "cpu": "a CPU"})
    asked: list[str] = []

    def contest(task: Any, *_: Any) -> dict[str, Any]:
        asked.append(task.name)
        return {"netwright": {"median_ms": 1.0}, "peers": {}, "fastest_peer": None}

    monkeypatch.setattr(peers, "train_contest", contest)
    tasks = (small(peers, peers.SGD), small(peers, peers.ADAM))
    arguments = ["--output", str(tmp_path / "rows.json")]
    options = peers.make_parser().parse_args([*arguments, "--rows", "adam"])
    assert peers.run(options, tasks)
    assert peers.run(peers.make_parser().parse_args(arguments), tasks)
    assert asked == [tasks[1].name, tasks[0].name]
    assert [row["model"] for row in peers.load(options.output)] == [t.name for t in tasks]


def test_curves_that_cross_once_differ_there(program: Load) -> None:
    pytest.importorskip("torch")
    curves = program("loss_curves")
    a, b = [1.0] * 120, [1.0] * 120
    b[60] = 1.5
    assert curves.differences(a, b) == [0.0, 0.5, 0.0]


def test_both_frameworks_see_the_same_batches(program: Load) -> None:
    pytest.importorskip("torch")
    curves = program("loss_curves")
    task = SimpleNamespace(batch=1500, shape=(1, 28, 28))
    first, again = (list(curves.batches(task, 3)) for _ in range(2))
    for (x, labels), (y, others) in zip(first, again, strict=True):
        assert (x == y).all() and (labels == others).all()
    assert not (first[0][0] == first[1][0]).all()
