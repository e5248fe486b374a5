"""DataParallel on two processes: what it computes, and what it notices."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn, optim

BATCH = 8
STEPS = 6

# Runs on each rank; the functions are also imported by the tests, for one process.
PROGRAM = '''
import json
import sys

import numpy as np

import netwright as nw
from netwright import nn, optim


def plain(seed):
    nw.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 33), nn.Tanh(), nn.Linear(33, 3))


def normalised(seed):
    nw.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))


def compiled(model, **options):
    optimizer = optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-3)
    return nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=optimizer, **options)


def batches(rank, ranks, count, size):
    rng = np.random.default_rng(0)
    for _ in range(count):
        x = rng.normal(size=(size * 2, 5)).astype(np.float32)
        y = rng.integers(0, 3, size * 2)
        yield nw.from_numpy(x[rank::ranks].copy()), nw.from_numpy(y[rank::ranks].copy())


def weights(model):
    return {name: value.tolist() for name, value in model.state_dict().items()}


def refused(function):
    try:
        function()
    except RuntimeError as error:
        return str(error)


def fail_behind_the_second_bucket(step):
    """Every other call of the step raises in the middle of its backward pass."""
    calls, run = [], step.gradients_in_buckets

    def failing(size, ready, *args):
        def second(arrays, bucket):
            ready(arrays, bucket)
            if bucket == 1:
                raise RuntimeError("out of luck")

        calls.append(0)
        return run(size, second if len(calls) % 2 else ready, *args)

    step.gradients_in_buckets = failing


def main(steps, size):
    import netwright.distributed as dist

    dist.init_process_group()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    found = {"ranks": ranks, "threads": nw.get_num_threads()}
    found["objects"] = dist.all_gather_object({"rank": rank, "text": "x" * rank})
    found["from 1"] = dist.broadcast_object(f"rank {rank}", src=1)

    for name, options in {
        "plain": {},
        "tiny buckets": {"bucket_cap_mb": 1e-4},
        "overlap": {"bucket_cap_mb": 1e-4, "overlap": True},
    }.items():
        model = plain(seed=rank)
        parallel = dist.DataParallel(compiled(model), **options)
        losses = [parallel(x, y).item() for x, y in batches(rank, ranks, steps, size)]
        found[name] = {
            "weights": weights(model), "digest": parallel.verify(), "losses": losses,
            "overlaps": parallel.overlap,
        }

    model = plain(seed=rank)
    parallel = dist.DataParallel(compiled(model), bucket_cap_mb=1e-4, overlap=True)
    fail_behind_the_second_bucket(parallel.step)
    messages = []
    for x, y in batches(rank, ranks, steps, size):
        messages.append(refused(lambda: parallel(x, y)))
        parallel(x, y)
    found["given up"] = {"messages": messages, "digest": parallel.verify()}

    model = plain(seed=rank)
    parallel = dist.DataParallel(compiled(model, accumulate=2, clip_grad_norm=0.1))
    for x, y in batches(rank, ranks, steps, size):
        parallel(x, y)
    found["accumulated"] = {"weights": weights(model), "updates": parallel.updates}

    model = normalised(seed=rank)
    parallel = dist.DataParallel(compiled(model))
    for x, y in batches(rank, ranks, steps, size):
        parallel(x, y)
    own = weights(model)["1.running_mean"]
    parallel.sync_buffers()
    found["normalised"] = {
        "own": own, "weights": weights(model), "digest": parallel.verify(),
    }

    with nw.no_grad():
        model[3].bias += rank
    found["changed"] = refused(parallel.verify)
    other = plain(0) if rank else normalised(0)
    found["different"] = refused(lambda: dist.DataParallel(compiled(other)))
    found["twice"] = refused(dist.init_process_group)

    with open(f"rank{rank}.json", "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
'''


@pytest.fixture
def program() -> dict[str, Any]:
    """The program's functions."""
    found: dict[str, Any] = {"__name__": "program"}
    exec(PROGRAM, found)
    return found


def _trained_alone(program: dict[str, Any], **options: Any) -> tuple[dict[str, Any], list[float]]:
    """Weights and losses of one process with the double batch, from rank 0's weights."""
    model = program["plain"](seed=0)
    step = program["compiled"](model, **options)
    batches = program["batches"](0, 1, STEPS, BATCH)
    losses = [step(x, y).item() for x, y in batches]
    return program["weights"](model), losses


def _assert_close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_two_processes_train_like_one_with_the_double_batch(
    mpirun: Any, program: dict[str, Any]
) -> None:
    # One job for all assertions: starting one takes longer than what it does.
    Path("program.py").write_text(PROGRAM)
    done = mpirun("program.py", str(STEPS), str(BATCH))
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(Path(f"rank{r}.json").read_text()) for r in range(2))

    assert first["ranks"] == second["ranks"] == 2
    assert first["objects"] == [{"rank": 0, "text": ""}, {"rank": 1, "text": "x"}]
    assert first["objects"] == second["objects"]
    assert first["from 1"] == second["from 1"] == "rank 1"

    weights, losses = _trained_alone(program)
    _assert_close(first["plain"]["weights"], weights)
    # The loss is each rank's own; the mean of both is that of the double batch.
    assert first["plain"]["losses"] != second["plain"]["losses"]
    both = np.mean([first["plain"]["losses"], second["plain"]["losses"]], axis=0)
    np.testing.assert_allclose(both, losses, rtol=1e-5)
    # The same bits on both ranks, and for buckets that cut through every parameter.
    assert first["plain"]["digest"] == second["plain"]["digest"]
    assert first["plain"]["digest"] == first["tiny buckets"]["digest"]
    # Nor do bits depend on when the buckets travel.
    assert first["plain"]["digest"] == first["overlap"]["digest"] == second["overlap"]["digest"]
    assert len(first["plain"]["digest"]) == 64
    # Steps that raised after two buckets were on their way have left nothing behind.
    assert first["given up"]["messages"] == ["out of luck"] * STEPS
    assert first["plain"]["digest"] == first["given up"]["digest"] == second["given up"]["digest"]
    # Left to themselves, ranks of one machine do not overlap.
    assert (first["plain"]["overlaps"], first["overlap"]["overlaps"]) == (False, True)

    weights, _ = _trained_alone(program, accumulate=2, clip_grad_norm=0.1)
    _assert_close(first["accumulated"]["weights"], weights)
    assert first["accumulated"]["updates"] == STEPS // 2

    # Statistics are those of each rank's batch; buffers become those of rank 0.
    assert first["normalised"]["own"] != second["normalised"]["own"]
    assert first["normalised"]["own"] == first["normalised"]["weights"]["1.running_mean"]
    assert first["normalised"]["weights"] == second["normalised"]["weights"]
    assert first["normalised"]["digest"] == second["normalised"]["digest"]

    for found in (first, second):
        assert f"after {STEPS} updates the parameter '3.bias' of rank 1" in found["changed"]
        assert "ranks 0 and 1 have different models" in found["different"]
        assert "initialize the default process group twice" in found["twice"]


def test_the_program_of_the_docs_runs(mpirun: Any) -> None:
    page = Path(nw.__file__).parent / "docs" / "distributed.md"
    (block,) = re.findall(r"^```py\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    Path("program.py").write_text(block)
    done = mpirun("program.py")
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"epoch (\d): loss 0\.\d{4}, parameters [0-9a-f]{8}", done.stdout)
    assert lines == ["1", "2"]


def test_something_else_than_a_compiled_step_is_refused() -> None:
    with pytest.raises(TypeError, match=r"takes a compiled step, nw\.compile.*got Linear"):
        nw.distributed.DataParallel(nn.Linear(2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"bucket_cap_mb": 0}, "bucket_cap_mb=0: expected"), ({"verify_every": -1}, "verify_every"),
     ({"overlap": "always"}, "overlap='always': expected True, False or 'auto'")],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    model = nn.Linear(2, 2)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    step = nw.compile(model, loss=nn.MSELoss(), optimizer=optimizer)
    with pytest.raises(ValueError, match=said):
        nw.distributed.DataParallel(step, **options)
