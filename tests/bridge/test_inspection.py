"""Looking into compiled programs: stages, explanations, dumps, debug output."""

from pathlib import Path

import numpy as np
import pytest

import netwright as nw
from netwright import nn, optim
from netwright.errors import NetwrightError


def model() -> nn.Module:
    nw.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 5 * 5, 3),
    )


X = np.random.default_rng(0).standard_normal((4, 1, 5, 5), np.float32)
Y = np.array([0, 1, 2, 0])


def compiled() -> nn.Module:
    fast = nw.compile(model().eval())
    with nw.no_grad():
        fast(X)
    return fast


def test_stages_go_from_traced_to_optimized() -> None:
    fast = compiled()
    assert fast.stages[0] == "traced"
    assert fast.stages[-1] == "optimized"
    assert "fuse_conv_bn_relu" in fast.stages


def test_the_graph_of_every_stage_and_mode_reads_back_and_verifies() -> None:
    fast = compiled()
    fast.train()
    fast(X).sum().backward()
    net = model()
    step = nw.compile(
        net, loss=nn.CrossEntropyLoss(), optimizer=optim.Adam(net.parameters(), lr=1e-3)
    )
    step(X, Y)
    for program, mode in ((fast, "eval"), (fast, "train"), (step, "step")):
        for stage, graph in program._compilation(mode).stages.items():
            nw.ir.verify(graph)
            assert nw.ir.parse(str(graph)) == graph, stage


def test_explain_names_what_was_fused_with_the_models_lines() -> None:
    text = compiled().explain()
    assert "F001" in text
    assert "F002" in text
    assert "test_inspection.py:" in text
    assert "0 numpy fallbacks" in text


def test_asking_before_the_first_call_says_what_to_do() -> None:
    with pytest.raises(NetwrightError, match="call it once"):
        nw.compile(model()).graph()


def test_unknown_stage_and_mode_list_the_known_ones() -> None:
    fast = compiled()
    with pytest.raises(ValueError, match="traced"):
        fast.graph("nonsense")
    with pytest.raises(ValueError, match="train"):
        fast.graph(mode="nonsense")


def test_dump_writes_text_svg_llvm_and_assembly(tmp_path: Path) -> None:
    files = compiled().dump(tmp_path / "out")
    suffixes = {f.suffix for f in files}
    assert {".txt", ".svg", ".ll", ".s"} <= suffixes
    assert all(f.stat().st_size > 0 for f in files)


def test_environment_flags_print_and_dump(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NETWRIGHT_DEBUG", "5")
    monkeypatch.setenv("NETWRIGHT_DUMP", str(tmp_path))
    compiled()
    shown = capsys.readouterr().err
    assert "graph Sequential" in shown
    assert "define" in shown
    assert list(tmp_path.glob("Sequential_eval_*/optimized.ll"))


def test_a_pass_can_be_switched_off_by_name() -> None:
    fast = nw.compile(model().eval(), passes={"fuse_conv_bn_relu": False})
    with nw.no_grad():
        expected, found = compiled()(X).numpy(), fast(X).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert "fuse_conv_bn_relu" not in fast.stages
    assert any(n.op == "batch_norm" for n in fast.graph("traced").nodes)


def test_compile_for_tells_the_memory_of_a_step_that_has_not_run() -> None:
    trained = model()
    before = {k: v.numpy().tobytes() for k, v in trained.state_dict().items()}
    adam = optim.Adam(trained.parameters())
    step = nw.compile(trained, loss=nn.CrossEntropyLoss(), optimizer=adam)
    step.compile_for(X[:1], Y[:1])
    use = step.memory(32)
    assert use.batch > 0 and step.compilations == 1
    assert {k: v.numpy().tobytes() for k, v in trained.state_dict().items()} == before
    assert not adam.state
    step(X, Y)
    assert step.compilations == 1 and step.memory(32).batch == use.batch


def test_compile_for_compiles_what_the_mode_of_now_would_run() -> None:
    fast = nw.compile(model())
    fast.compile_for(X)
    assert fast.memory(1, "train").saved > 0
    fast.eval()
    with nw.no_grad():
        fast.compile_for(X)
        assert fast.compilations == 2
        fast(X)
    assert fast.compilations == 2
