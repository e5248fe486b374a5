"""``netwright train``: what it trains, writes, refuses; interruption and resumption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright.cli import main, make_parser
from netwright.commands.failure import Misuse
from netwright.commands.training import history, recipe, settings
from netwright.commands.training.interruption import watched

# A network with everything that a checkpoint has to restore: weights, BatchNorm's statistics,
# dropout masks; and data that draws from netwright's, Python's and numpy's random numbers.
PROGRAM = """
import os
import random
import signal

import numpy as np

import netwright as nw
from netwright import nn
from netwright.utils.data import Dataset, TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3),
            nn.Linear(16, 3),
        )

    def forward(self, x):
        return self.layers(x)


class Other(nn.Linear):
    def __init__(self):
        super().__init__(6, 3)


class Points(Dataset):
    '''The label is the largest of the first three numbers.'''

    reads = 0

    def __init__(self, count, noise, stop):
        self.points = np.random.default_rng(count).normal(size=(count, 6)).astype(np.float32)
        self.noise, self.stop = noise, stop

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        Points.reads += self.stop
        if self.stop and Points.reads == int(os.environ.get("STOP_AT", 0)):
            os.kill(os.getpid(), signal.SIGINT)
        x = self.points[index]
        if self.noise:
            noise = random.gauss(0, 0.1) + np.random.normal() * 0.1 + nw.rand(1).item() * 0.1
            x = x + np.float32(noise)
        return x, int(self.points[index, :3].argmax())


def data():
    place = os.environ.get("STOP_IN")
    return Points(50, True, place == "train"), Points(20, False, place == "test")


def empty():
    return TensorDataset(nw.zeros(0, 6), nw.zeros(0))


def three():
    return 1, 2, 3


def numbers():
    return [1.0, 2.0], None


class Unreadable(Points):
    def __getitem__(self, index):
        raise KeyError("lost")


def unreadable():
    return Unreadable(50, False, False)


class Image(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(12, 3)
        )

    def forward(self, x):
        return self.layers(x.reshape(-1, 1, 2, 3))
"""


_draw = history.draw


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the program."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(history, "draw", lambda *_: None)  # costs more than the training
    (tmp_path / "net.py").write_text(PROGRAM)
    return tmp_path


def _train(*arguments: str, model: str = "net.py:Net", data: str = "net.py:data") -> int:
    return main(["train", model, "--data", data, "--batch-size", "8", *arguments])


def _train_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "netwright", "train", "net.py:Net", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """The arrays and numbers of a checkpoint by path, without times."""
    if isinstance(value, dict):
        items = [(str(k), v) for k, v in value.items() if k not in ("seconds", "sums")]
    elif isinstance(value, (list, tuple)):
        items = [(str(i), v) for i, v in enumerate(value)]
    else:
        array = value.numpy() if isinstance(value, nw.Tensor) else value
        return {path: array.tobytes() if isinstance(array, np.ndarray) else array}
    found: dict[str, Any] = {}
    for key, v in items:
        if key != "samples_per_second":
            found.update(_leaves(v, f"{path}/{key}"))
    return found


# -- training -------------------------------------------------------------------------------------


def test_it_trains_tests_and_writes_checkpoint_and_history(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train("--epochs", "3", "--lr", "0.01", "--json") == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    rows = json.loads((folder / "runs/Net/history.json").read_text())
    assert printed["epochs"] == rows
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["steps"] for row in rows] == [7, 14, 21]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert 0 <= rows[-1]["test_accuracy"] <= 1
    assert printed["settings"]["loss"] == "CrossEntropyLoss"
    # Without a terminal there is one line for each epoch, and no bar.
    lines = [line for line in captured.err.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 3
    assert "\r" not in captured.err


def test_the_checkpoint_has_the_weights_that_the_test_accuracy_belongs_to(folder: Path) -> None:
    assert _train("--epochs", "2") == 0
    saved = nw.load("runs/Net/checkpoint.npz")
    program: dict[str, Any] = {"__name__": "net"}
    exec((folder / "net.py").read_text(), program)
    model = program["Net"]()
    model.load_state_dict(saved["model"])
    test = program["data"]()[1]
    x = nw.tensor(np.stack([test[i][0] for i in range(len(test))]))
    y = np.array([test[i][1] for i in range(len(test))])
    right = (model.eval()(x).detach().numpy().argmax(1) == y).mean()
    assert saved["epochs"][-1]["test_accuracy"] == pytest.approx(right)


def test_the_shipped_digits_are_the_default_and_can_be_varied(folder: Path) -> None:
    (folder / "linear.py").write_text(
        "from netwright import nn\n"
        "def make(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    base = ["train", "linear.py:make", "--epochs", "1", "--batch-size", "100"]
    assert main([*base, "--out", "plain"]) == 0
    assert main([*base, "--out", "varied", "--augment"]) == 0
    plain, varied = (nw.load(f"{name}/checkpoint.npz") for name in ("plain", "varied"))
    assert plain["epochs"][0]["steps"] == 40
    assert plain["epochs"][0]["test_accuracy"] > 0.5
    assert plain["losses"][0] != varied["losses"][0]


def test_the_weights_do_not_depend_on_the_number_of_threads(folder: Path) -> None:
    for threads in ("1", "2"):
        out = ["--out", threads, "--threads", threads]
        assert _train("--epochs", "1", "--optimizer", "adamw", *out) == 0
    nw.set_num_threads(None)
    one, two = (_leaves(nw.load(f"{n}/checkpoint.npz")["model"]) for n in (1, 2))
    assert one == two


def _trained(out: str, *arguments: str) -> dict[str, Any]:
    """The weights of a linear model after epochs with one learning rate, in float64."""
    options = ["--optimizer", "sgd", "--schedule", "none", "--momentum", "0", *arguments]
    assert _train(*options, "--out", out, model="net.py:Other") == 0
    weights = nw.load(f"{out}/checkpoint.npz")["model"]
    return {name: value.numpy().astype(np.float64) for name, value in weights.items()}


def test_accumulated_batches_train_like_one_large_batch(folder: Path) -> None:
    """Also the batches that are left at the end of an epoch: 4 + 4 + 2 of 5 are 20 + 20 + 10."""
    large = _trained("large", "--batch-size", "20", "--epochs", "2", "--warmup", "1.5")
    small = _trained("small", "--batch-size", "5", "--epochs", "2", "--warmup", "1.5",
                     "--accumulate", "4")  # fmt: skip
    for name, value in large.items():
        np.testing.assert_allclose(small[name], value, rtol=1e-5, atol=1e-6)
    assert len(nw.load("small/checkpoint.npz")["losses"]) == 20


@pytest.mark.parametrize("clip", [["--clip-grad-norm", "0.02"], ["--clip-grad-value", "0.02"]])
def test_gradients_are_clipped_once_per_update(folder: Path, clip: list[str]) -> None:
    one_update = ["--batch-size", "5", "--accumulate", "10", "--epochs", "1", "--lr", "0.5"]
    free, clipped = _trained("free", *one_update), _trained("clipped", *one_update, *clip)
    nw.manual_seed(0)
    start = {k: v.numpy() for k, v in nw.nn.Linear(6, 3).state_dict().items()}
    steps = [np.concatenate([(w[k] - start[k]).ravel() for k in start]) for w in (free, clipped)]
    wide, narrow = (np.linalg.norm(s) if "norm" in clip[0] else np.abs(s).max() for s in steps)
    assert wide > 0.02
    assert narrow == pytest.approx(0.5 * 0.02, rel=1e-3)


def test_arrays_in_an_archive(folder: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (20, 6), np.uint8)
    np.savez("digits.npz", x_train=x, y_train=rng.random((20, 3)))
    assert _train("--epochs", "1", data="digits.npz") == 0
    saved = nw.load("runs/Net/checkpoint.npz")
    assert saved["settings"]["loss"] == "MSELoss"
    assert saved["epochs"][0]["test_loss"] is None


def test_curves_are_a_picture(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'plot' is not installed")
    monkeypatch.setattr(history, "draw", _draw)
    assert _train("--epochs", "2") == 0
    assert (folder / "runs/Net/curves.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_it_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(history, "draw", _draw)
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    assert _train("--epochs", "1") == 0
    assert 'pip install "netwright[plot]"' in capsys.readouterr().out
    assert (folder / "runs/Net/history.json").exists()
    assert not (folder / "runs/Net/curves.png").exists()


def test_the_points_of_the_loss_curve_lie_where_their_steps_are() -> None:
    x, y = history._smooth(np.arange(1000.0), per_epoch=100.0)
    assert len(x) == 200
    assert y[0] == 2.0  # mean of the first five steps
    assert x[0] == pytest.approx(0.025)
    assert x[-1] == pytest.approx(9.975)


# -- interruption and resumption ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "read", "further", "waiting"),
    [
        ("train", "77", [], 0),
        ("train", "77", ["--accumulate", "3", "--clip-grad-norm", "0.5"], 1),
        ("test", "25", ["--accumulate", "3", "--clip-grad-value", "0.01"], 0),
    ],
)
def test_a_run_that_was_interrupted_and_resumed_is_bitwise_the_uninterrupted_one(
    folder: Path, place: str, read: str, further: list[str], waiting: int
) -> None:
    options = ["--data", "net.py:data", "--batch-size", "8", "--epochs", "3", "--warmup", "0.5"]
    options += further
    assert main(["train", "net.py:Net", *options, "--out", "whole"]) == 0
    done = _train_process(*options, "--out", "halves", STOP_IN=place, STOP_AT=read)
    assert done.returncode == 130, done.stderr
    assert "netwright train net.py:Net --out halves --resume" in done.stdout
    half = nw.load("halves/checkpoint.npz")
    # Sample 77 is in the fourth batch of the second epoch of 50; test sample 25 in its test.
    assert (len(half["epochs"]), half["done"]) == (1, 4 if place == "train" else 7)
    assert half["waiting"][0]["accumulated"] == waiting
    assert len(half["waiting"][0]["gradients"]) == 5 * waiting
    assert main(["train", "net.py:Net", "--out", "halves", "--resume"]) == 0
    whole, halves = (_leaves(nw.load(f"{n}/checkpoint.npz")) for n in ("whole", "halves"))
    assert len(whole) > 50
    assert whole == halves


def test_the_second_signal_ends_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with watched() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.signal == signal.SIGINT
        assert "the checkpoint is written after this step" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_without_a_falling_rate_can_be_prolonged(folder: Path) -> None:
    options = ["--schedule", "none", "--optimizer", "sgd"]
    assert _train(*options, "--epochs", "3", "--out", "long") == 0
    assert _train(*options, "--epochs", "2", "--out", "short") == 0
    assert main(["train", "net.py:Net", "--epochs", "3", "--out", "short", "--resume"]) == 0
    long, short = (_leaves(nw.load(f"{n}/checkpoint.npz")) for n in ("long", "short"))
    assert long == short


def test_resuming_a_finished_run_reports_it_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train("--epochs", "1") == 0
    first = capsys.readouterr().out
    assert main(["train", "net.py:Net", "--resume"]) == 0
    assert capsys.readouterr().out == first


# -- what it refuses ------------------------------------------------------------------------------


def _error(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["train", *arguments]) == code
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if not line.startswith(("epoch ", "warning: "))]
    assert len(lines) == 1, error
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "cifar"], "expected mnist, FILE.npz or FILE.py:function"),
        (["--data", "no.npz"], "no.npz: there is no such file"),
        (["--data", "half.npz"], "has the arrays x_train, y; expected x_train and y_train"),
        (["--data", "uneven.npz"], "x_train has 3 samples, y_train has 2"),
        (["--data", "text.npz"], "elements of <U1; expected floats or integers"),
        (["--data", "net.py"], "names no function; expected FILE.py:function"),
        (["--data", "net.py:nothing"], "net.py has no 'nothing'; expected a function"),
        (["--data", "net.py:empty"], "the training data set is empty"),
        (["--data", "net.py:three"], "returned 3 values"),
        (["--data", "net.py:numbers"], "has to be a tuple (input, ..., target); it is float"),
        (["--data", "net.py:data", "--augment"], "--augment is for --data mnist"),
        (["--momentum", "0.5"], "--momentum goes with --optimizer sgd, not with adam"),
        (["--gamma", "0.5"], "--gamma goes with --schedule step, not with cosine"),
        (["--epochs", "2", "--warmup", "2"], "--warmup 2 has to be shorter than --epochs 2"),
        (["--resume"], "so there is nothing to resume; leave --resume out"),
        (["--data", "net.py:data", "--loss", "MSELoss", "--label-smoothing", "0.1"],
         "--label-smoothing goes with CrossEntropyLoss, not with MSELoss"),
        (["--data", "net.py:data", "--batch-size", "7"], "use --drop-last or another --batch-size"),
        (["--data", "net.py:data", "--drop-last"], "--drop-last leaves nothing"),
        (["--data", "net.py:data", "--batch-size", "10", "--accumulate", "6"],
         "--accumulate 6: an epoch has 5 batch(es) (50 samples, --batch-size 10)"),
    ],
)  # fmt: skip
def test_misuse_is_one_line_that_names_the_fix(
    folder: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez("half.npz", x_train=np.zeros((2, 6)), y=np.zeros(2))
    np.savez("uneven.npz", x_train=np.zeros((3, 6)), y_train=np.zeros(2))
    np.savez("text.npz", x_train=np.array(["a", "b"]), y_train=np.zeros(2))
    assert said in _error(["net.py:Net", *arguments], 2, capsys)
    assert not (folder / "runs").exists()


def test_a_data_set_that_raises_is_one_line_with_its_place(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = _error(["net.py:Net", "--data", "net.py:unreadable"], 1, capsys)
    assert "reading the data: KeyError: 'lost' (at net.py:" in error


def test_a_history_that_cannot_be_written_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "runs" / "Other" / "history.json").mkdir(parents=True)
    options = ["net.py:Other", "--data", "net.py:data", "--batch-size", "25", "--epochs", "1"]
    assert "history.json cannot be written" in _error(options, 1, capsys)
    left = sorted(path.name for path in Path("runs/Other").iterdir())
    assert left == ["checkpoint.npz", "history.json"]


def test_a_last_batch_of_one_image_is_enough_for_batch_norm(folder: Path) -> None:
    assert main(["train", "net.py:Image", "--data", "net.py:data", "--batch-size", "7",
                 "--epochs", "1"]) == 0  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value"),
    [("--epochs", "0"), ("--lr", "nan"), ("--momentum", "1"), ("--seed", "-1"), ("--gamma", "0"),
     ("--batch-size", "1.5"), ("--accumulate", "0"), ("--clip-grad-norm", "0"),
     ("--clip-grad-value", "x"), ("--threads", "0"), ("--weight-decay", "inf")],
)  # fmt: skip
def test_a_number_that_makes_no_sense_is_misuse(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "net.py:Net", option, value]) == 2
    assert f"argument {option}: expected a" in capsys.readouterr().err


def test_a_checkpoint_is_neither_overwritten_nor_resumed_with_other_settings(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train("--epochs", "1") == 0
    capsys.readouterr()
    base = ["net.py:Net", "--data", "net.py:data"]
    assert "has a checkpoint already: --resume continues" in _error(base, 2, capsys)
    resume = [*base, "--resume"]
    assert "--lr 0.5: the run to resume has 0.001" in _error([*resume, "--lr", "0.5"], 2, capsys)
    error = _error([*resume, "--epochs", "9"], 2, capsys)
    assert "the cosine schedule of the run to resume ends after 1" in error
    error = _error(["net.py:Other", "--out", "runs/Net", "--resume"], 1, capsys)
    assert "does not fit the model" in error
    Path("runs/Net/checkpoint.npz").write_bytes(b"PK broken")
    assert "damaged" in _error(resume, 1, capsys)


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_checkpoint(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.ones((16, 6))
    x[8:] = np.inf
    np.savez("inf.npz", x_train=x, y_train=np.zeros(16, np.int64))
    error = _error(
        ["net.py:Other", "--data", "inf.npz", "--batch-size", "4", "--epochs", "1"], 1, capsys
    )
    assert "the loss is nan in step" in error
    assert "smaller --lr" in error


# -- settings -------------------------------------------------------------------------------------


def _settings(*arguments: str) -> settings.Settings:
    return settings.chosen(make_parser().parse_args(["train", "net.py:Net", *arguments]))


def _rates(*arguments: str) -> list[float]:
    chosen = _settings(*arguments)
    factor = recipe.rate_factor(chosen, 10)
    return [factor(i) for i in range(chosen.epochs * 10)]


def test_the_optimizers_have_defaults_of_their_own() -> None:
    assert (_settings().lr, _settings().momentum) == (1e-3, 0.0)
    sgd = _settings("--optimizer", "sgd", "--lr", "0.2")
    assert (sgd.lr, sgd.momentum, sgd.weight_decay) == (0.2, 0.9, 0.0)
    assert _settings("--optimizer", "adamw").weight_decay == 0.01


def test_schedules() -> None:
    cosine = _rates("--epochs", "4")
    assert cosine[0] == 1.0
    assert cosine[20] == pytest.approx(0.5)
    assert 0 < cosine[-1] < 0.01
    linear = _rates("--epochs", "4", "--schedule", "linear", "--warmup", "1")
    assert linear[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert linear[10] == 1.0
    assert np.argmax(linear) in (9, 10)
    assert linear[25] == pytest.approx(0.5)
    stepped = _rates("--epochs", "5", "--schedule", "step")
    assert stepped[19] == 1.0
    assert stepped[20] == pytest.approx(0.1)
    assert stepped[40] == pytest.approx(0.01)
    assert set(_rates("--schedule", "none")) == {1.0}


def test_an_option_that_is_repeated_when_resuming_must_be_equal() -> None:
    saved = _settings("--lr", "0.1").as_json()
    options = make_parser().parse_args(["train", "net.py:Net", "--lr", "0.1"])
    assert settings.resumed(options, saved).as_json() == saved
    options = make_parser().parse_args(["train", "net.py:Net", "--augment"])
    with pytest.raises(Misuse, match="--augment True: the run to resume has False"):
        settings.resumed(options, saved)


def test_predictions_of_every_classifying_loss() -> None:
    output = nw.tensor([[0.2, 0.8], [0.9, -0.1]])
    found = recipe.matches("CrossEntropyLoss", output, nw.tensor([1, 1]))
    assert found is not None and found.tolist() == [True, False]
    found = recipe.matches("CrossEntropyLoss", output, nw.tensor([[0.1, 0.9], [0.3, 0.7]]))
    assert found is not None and found.tolist() == [True, False]
    found = recipe.matches("BCEWithLogitsLoss", output, nw.tensor([[1.0, 1.0], [1.0, 1.0]]))
    assert found is not None and found.tolist() == [[True, True], [True, False]]
    found = recipe.matches("BCELoss", output, nw.tensor([[1.0, 1.0], [1.0, 1.0]]))
    assert found is not None and found.tolist() == [[False, True], [True, False]]
    assert recipe.matches("MSELoss", output, output) is None
