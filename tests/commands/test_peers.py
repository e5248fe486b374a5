"""``netwright bench --peers``: outputs first, then the times of the runtimes that agree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright.cli import main
from netwright.commands.peers import peer as peers
from netwright.commands.peers.contest import contest, relative_error
from netwright.commands.timing import interleave
from netwright.ir.interpreter import evaluate
from netwright.runtime import settings

SECONDS = ["--seconds", "0.01"]


@dataclass(frozen=True)
class Fake(peers.Peer):
    """A peer that runs the numpy interpreter, adds an error to its outputs, or raises."""

    error: float = 0.0
    reason: str = ""

    def version(self) -> str | None:
        return "1.0"

    def prepare(self) -> peers.Prepare:
        def make(traced: Any, inputs: Sequence[np.ndarray], threads: int) -> peers.Ready:
            if self.reason:
                raise RuntimeError(self.reason)
            values = {path: tensor._array for path, tensor in traced.state.items()}
            values |= dict(zip(traced.inputs, inputs, strict=True))

            def call() -> Any:
                return evaluate(traced.graph, values)

            return peers.Ready(call, lambda found: [a + self.error for a in found.values()])

        return make


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers that need nothing installed; float64 references apart, as the real ones."""
    monkeypatch.setitem(peers.PEERS, "right", Fake("right", "Right", "", ""))
    monkeypatch.setitem(peers.PEERS, "wrong", Fake("wrong", "Wrong", "", "", error=0.01))
    reason = "no compiler\n  found on PATH"
    monkeypatch.setitem(peers.PEERS, "broken", Fake("broken", "Broken", "", "", reason=reason))


@pytest.mark.usefixtures("fakes")
def test_json_has_a_row_per_thread_count_with_the_documented_keys(
    models: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = settings.num_threads()
    options = ["--input", "1x6", "--batch", "2", "--threads", "1,2", "--json", *SECONDS]
    assert main(["bench", f"{models}:Tiny", *options, "--peers", "right,wrong,broken"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert set(found) == {"model", "inputs", "cpu", "isa", "versions", "fallbacks", "rows"}
    rows = [(row["batch"], row["threads"]) for row in found["rows"]]
    assert rows == [(2, 1), (2, 2)]
    timed = {"median_ms", "q1_ms", "q3_ms", "p90_ms", "min_ms", "calls", "set_up_s", "error"}
    for row in found["rows"]:
        assert set(row) == {
            "batch", "threads", "gflop", "peak_gflops", "reference", "netwright", "peers",
            "fastest_peer", "ratio",
        }  # fmt: skip
        assert row["gflop"] == 2 * row["batch"] * 6 * 5 / 1e9
        assert set(row["netwright"]) == set(row["peers"]["right"]) == timed
        assert row["netwright"]["error"] < 1e-5
        assert "outputs differ from the reference by 0.0" in row["peers"]["wrong"]["failed"]
        assert row["peers"]["broken"] == {"failed": "RuntimeError: no compiler found on PATH"}
        assert row["fastest_peer"] == "right"
        medians = [found["median_ms"] for found in (row["peers"]["right"], row["netwright"])]
        assert row["ratio"] == pytest.approx(medians[0] / medians[1])
    assert "batch 2, 1 thread: netwright" in captured.err
    assert settings.num_threads() == before


@pytest.mark.usefixtures("fakes")
def test_the_table_shows_the_reasons_of_failures(
    models: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--input", "2x6", "--threads", "1", *SECONDS]
    assert main(["bench", f"{models}:Tiny", *options, "--peers", "right,broken"]) == 0
    text = capsys.readouterr().out
    assert "batch 2, 1 thread; errors against" in text
    assert "Broken failed: RuntimeError: no compiler" in text
    assert "Right " in text


@pytest.mark.usefixtures("fakes")
def test_nothing_is_timed_if_netwright_itself_is_wrong(
    models: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--input", "2x6", "--threads", "1", *SECONDS]
    assert main(["bench", f"{models}:Drifting", *options, "--peers", "right"]) == 1
    captured = capsys.readouterr()
    assert "nothing was timed" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--peers", "ort,tvm"], "unknown peer 'tvm'; the peers are torch, compile, ort, openvino"),
        (["--peers", "--loss", "MSELoss"], "leave --loss out or add --train"),
        (["--optimizer", "adam"], "--optimizer goes with training steps: add --train"),
        (["--train", "--peers", "torch,ort"], "ONNX Runtime cannot train; with --train, the peers"),
        (["--threads", "2"], "--threads goes with --peers"),
        (["--peers", "--threads", "0"], "numbers of at least 1"),
    ],
)
def test_misuse(
    models: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", f"{models}:Tiny", "--input", "2x6", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_without_any_peer_the_error_names_the_extras(
    models: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers.Peer, "version", lambda self: None)
    assert main(["bench", f"{models}:Tiny", "--input", "2x6", "--peers"]) == 1
    assert "pip install 'netwright[bench]'" in capsys.readouterr().err


# -- the real ones --------------------------------------------------------------------------------


def _say(step: int, total: int, text: str) -> None:
    assert 0 <= step < total
    assert text


@pytest.mark.parametrize(
    ("name", "package"), [("torch", "torch"), ("ort", "onnxruntime"), ("openvino", "openvino")]
)
def test_a_peer_runs_a_model_with_several_inputs_and_outputs(name: str, package: str) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    if name != "torch":
        pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")

    class Two(nw.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nw.nn.Embedding(10, 4)
            self.norm = nw.nn.BatchNorm1d(4)

        def forward(self, words: nw.Tensor, scale: nw.Tensor) -> dict[str, nw.Tensor]:
            rows = self.table(words).sum(1)
            return {"normal": self.norm(rows) * scale, "sums": rows}

    nw.manual_seed(0)
    inputs = [nw.randint(0, 10, (3, 5)), nw.randn(3, 1)]
    row = contest(nw.compile(Two().eval()), inputs, [name], 1, 0.01, _say)
    assert row["peers"][name].get("failed") is None
    assert row["peers"][name]["error"] < 1e-5
    assert row["peers"][name]["calls"] >= 5


def test_the_table_of_peers_names_functions_that_exist() -> None:
    for entry in list(peers.PEERS.values()):
        if entry.version() is not None:
            assert callable(entry.prepare())


# -- parts ----------------------------------------------------------------------------------------


def test_the_error_is_relative_to_the_largest_value_of_each_output() -> None:
    small, large = np.full(3, 1e-3, np.float32), np.full(2, 100.0, np.float32)
    assert relative_error([small, large], [small, large]) == 0
    assert relative_error([small, large], [small * 1.1, large]) == pytest.approx(0.1, rel=1e-4)
    assert relative_error([small], [small, large]) == float("inf")
    assert relative_error([small], [large]) == float("inf")
    assert relative_error([small], [np.full(3, np.nan)]) == float("inf")
    assert relative_error([np.zeros(2)], [np.full(2, 0.5)]) == 0.5


def test_timing_tells_how_much_of_it_has_passed() -> None:
    shares: list[float] = []
    interleave({"nothing": lambda: None}, 0.01, shares.append)
    assert len(shares) >= 5
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] <= 1
