"""What each command prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import netwright as nw
from netwright.cli import main
from netwright.commands import demo, model_inputs
from netwright.commands.compare import relative_difference
from netwright.commands.progress import Progress
from netwright.ir.types import float32, int64

# -- inspect --------------------------------------------------------------------------------------


def test_inspect_prints_ir_that_parses(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", f"{models}:Tiny", "--input", "1x6"]) == 0
    graph = nw.ir.parse(capsys.readouterr().out)
    assert graph.name == "Tiny"
    assert [str(n.type) for n in graph.sources("input")] == ["f32[N,6]"]


@pytest.mark.parametrize("name", ["make_tiny", "ready"])
def test_a_factory_and_an_instance_are_models_too(
    models: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    size = "4" if name == "ready" else "6"
    assert main(["inspect", f"{models}:{name}", "--input", f"2x{size}"]) == 0
    assert "linear" in capsys.readouterr().out


def test_inspect_lists_stages_and_prints_each_of_them(
    models: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["inspect", f"{models}:Tiny", "--input", "2x6", "--train"]
    assert main([*base, "--stage", "list"]) == 0
    stages = capsys.readouterr().out.split()
    assert stages[0] == "traced"
    assert "backward" in stages
    for stage in ("traced", "differentiate", "backward"):
        assert main([*base, "--stage", stage]) == 0
        nw.ir.parse(capsys.readouterr().out)


def test_inspect_train_of_a_batch_of_one_prints_the_symbolic_graph_despite_batch_norm(
    models: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", f"{models}:Tiny", "--input", "1x6", "--train"]) == 0
    assert "batch_norm_statistics" in capsys.readouterr().out


def test_inspect_formats(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["inspect", f"{models}:Tiny", "--input", "3x6", "--format"]
    assert main([*base, "table"]) == 0
    table = capsys.readouterr().out
    assert "operands" in table
    assert "Tiny, batch size 3" in table
    assert main([*base, "dot"]) == 0
    assert capsys.readouterr().out.startswith("digraph")
    assert main([*base, "svg"]) == 0
    assert capsys.readouterr().out.startswith("<svg")
    assert main([*base, "json", "--stage", "traced"]) == 0
    graph = json.loads(capsys.readouterr().out)
    assert set(graph) == {"name", "nodes", "outputs", "updates"}
    norm = next(n for n in graph["nodes"] if n["op"] == "batch_norm")
    assert norm["attributes"] == {"eps": 1e-5, "channel_dim": 1}
    assert norm["types"] == ["f32[N,5]"]
    assert norm["source"]["module"] == "layers.1"
    assert main([*base, "json"]) == 0
    fused = next(n for n in json.loads(capsys.readouterr().out)["nodes"] if n["op"] == "fused")
    assert fused["attributes"]["body"]["nodes"]


def test_inspect_explains(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", f"{models}:Tiny", "--input", "1x6", "--explain"]) == 0
    assert "BatchNorm folded" in capsys.readouterr().out


def test_several_inputs_and_dtypes(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = ["--input", "2x7:i64", "--input", "2x4"]
    assert main(["inspect", f"{models}:Words", *inputs, "--stage", "traced"]) == 0
    graph = nw.ir.parse(capsys.readouterr().out)
    assert [str(n.type) for n in graph.sources("input")] == ["i64[N,7]", "f32[N,4]"]


# -- bench, lint ----------------------------------------------------------------------------------


def test_bench_json_has_the_documented_keys(
    models: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--input", "1x6", "--batch", "2,3", "--seconds", "0.01", "--json"]
    assert main(["bench", f"{models}:Tiny", *arguments, "--loss", "MSELoss"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["inputs"] == ["1x6:f32"]
    assert found["fallbacks"] == 0
    assert {"model", "cpu", "isa", "threads", "compile_ms", "compile_phases_ms"} < set(found)
    assert isinstance(found["from_cache"], bool)
    rows = [(row["mode"], row["batch"]) for row in found["rows"]]
    assert rows == [("inference", 2), ("training", 2), ("inference", 3), ("training", 3)]
    for row in found["rows"]:
        assert set(row["compiled"]) == {
            "median_ms",
            "q1_ms",
            "q3_ms",
            "p90_ms",
            "min_ms",
            "calls",
        }
        assert row["difference"] < 1e-4
        assert {"speedup", "first_call_ms", "break_even_calls"} < set(row)


def test_bench_prints_a_table(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", f"{models}:Tiny", "--input", "2x6", "--seconds", "0.01"]) == 0
    text = capsys.readouterr().out
    assert "break-even" in text
    assert "inference" in text


def test_bench_refuses_to_time_results_that_differ(
    models: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--input", "2x6", "--seconds", "0.01"]
    assert main(["bench", f"{models}:Drifting", *arguments]) == 1
    captured = capsys.readouterr()
    assert "nothing was timed" in captured.err
    assert captured.out == ""


def test_lint_guesses_the_input_and_finds_nothing_in_a_good_model(
    models: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lint", f"{models}:Tiny"]) == 0
    assert "no warnings" in capsys.readouterr().out


def test_lint_exits_with_1_and_prints_codes(
    models: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lint", f"{models}:Images"]) == 1
    assert capsys.readouterr().out.startswith("L005: ")


def test_lint_with_a_loss_as_json(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    loss = ["--input", "8x4", "--loss", "CrossEntropyLoss", "--json"]
    assert main(["lint", f"{models}:ready", *loss]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [w["code"] for w in found["warnings"]] == ["L001"]
    assert found["inputs"] == ["8x4:f32"]
    assert found["loss"] == "CrossEntropyLoss"


def test_lint_asks_for_the_input_where_it_cannot_guess(
    models: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lint", f"{models}:Words"]) == 2
    assert "--input" in capsys.readouterr().err


# -- doctor, cache, demo --------------------------------------------------------------------------


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETWRIGHT_NUM_THREADS", "1")
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["versions"]) == {
        "netwright", "python", "numpy", "llvmlite", "llvm", "networkx",
    }  # fmt: skip
    assert found["threads"]["used"] == 1
    assert found["measured"]["peak_gflops"] > 0
    assert found["environment"]["NETWRIGHT_NUM_THREADS"] == "1"
    assert main(["doctor"]) == 0
    assert "GFLOP/s" in capsys.readouterr().out


def test_cache_info_and_clear(
    models: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NETWRIGHT_CACHE_DIR", str(tmp_path / "cache"))
    assert main(["inspect", f"{models}:Words", "--input", "3x2:i64", "--input", "3x4"]) == 0
    capsys.readouterr()
    assert main(["cache", "info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"directory", "entries", "bytes", "problem"}
    assert main(["cache", "clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == found["entries"]
    assert main(["cache", "info"]) == 0
    assert "entries    0" in capsys.readouterr().out


def test_demo_with_a_tiny_setting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "BATCH", 8)
    images, labels = nw.vision.datasets.MNIST(train=False).tensors()
    monkeypatch.setattr(demo, "training_digits", lambda: nw.utils.data.TensorDataset(
        images[:480], labels[:480]
    ))  # fmt: skip
    assert main(["demo", "--epochs", "2", "--seconds", "0.01", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert 0 <= found["accuracy"] <= 1
    assert len(found["losses"]) == 2
    assert found["losses"][1] < found["losses"][0]
    assert found["fallbacks"] == 0
    assert found["training"]["speedup"] > 0
    assert "batch_norm(" in found["ir"]["before"]
    assert "batch_norm(" not in found["ir"]["after"]
    for text in found["ir"].values():
        nw.ir.parse(text)
    assert "epoch 2/2" in captured.err
    assert main(["demo", "--epochs", "1", "--seconds", "0.01"]) == 0
    assert "eager (numpy)" in capsys.readouterr().out


# -- parts ----------------------------------------------------------------------------------------


def test_inputs_are_parsed_and_rescaled() -> None:
    image = model_inputs.parse_input("1x3x8x8")
    words = model_inputs.parse_input("1x5:i64")
    table = model_inputs.parse_input("7x2:float32")
    assert (image.shape, image.dtype) == ((1, 3, 8, 8), float32)
    assert (words.shape, words.dtype) == ((1, 5), int64)
    rescaled = model_inputs.with_batch([image, words, table], 4)
    assert [s.shape for s in rescaled] == [(4, 3, 8, 8), (4, 5), (7, 2)]
    floats, integers, _ = model_inputs.make_inputs([image, words, table])
    assert float(floats.abs().sum()) > 0
    assert float(integers.sum()) == 0


def test_the_difference_of_results_sees_nan_and_infinity() -> None:
    a = nw.tensor([1.0, float("nan"), float("inf")]).numpy()
    assert relative_difference(a, a.copy()) == 0
    assert relative_difference(a, nw.tensor([1.0, 2.0, float("inf")]).numpy()) == float("inf")
    assert relative_difference(a[:1], a[:1] + 0.5) == pytest.approx(0.5)
    assert relative_difference(a[:1], a[:2]) == float("inf")


class _Terminal:
    def __init__(self, live: bool) -> None:
        self.live, self.text = live, ""

    def isatty(self) -> bool:
        return self.live

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("live", [True, False])
def test_progress_draws_on_terminals_and_prints_lines_elsewhere(live: bool) -> None:
    terminal = _Terminal(live)
    bar = Progress("epoch 1/2", 4, terminal)  # type: ignore[arg-type]
    for i in range(4):
        bar.update(i + 1, "loss 0.5")
    bar.done("mean loss 0.7")
    assert terminal.text.endswith("\n")
    if live:
        assert "####] 4/4 loss 0.5" in terminal.text
    else:
        assert terminal.text == "epoch 1/2 mean loss 0.7\n"
