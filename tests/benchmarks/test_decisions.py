"""benchmarks/decisions.py: a rule that is made to say yes or no, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType

import pytest

from netwright import optim
from netwright.codegen import winograd


@pytest.fixture
def decisions(program: Callable[[str], ModuleType]) -> ModuleType:
    return program("decisions")


def test_a_row_says_what_the_rule_says_and_times_both_answers(decisions: ModuleType) -> None:
    small = decisions.convolution("conv2d", 16, 3, batch=1)
    name, text, says, yes, no, ratio = decisions.measure(
        "winograd", decisions.RULES["winograd"], small, 0.01
    )
    assert (name, text) == ("winograd", "3x3 16->16 3x3, batch 1")
    assert says == "no"  # the image is too small
    assert float(yes) > 0 and float(no) > 0
    assert ratio.endswith("x")


def test_the_answer_decides_what_is_compiled_and_holds_in_the_block_only(
    decisions: ModuleType,
) -> None:
    rule, own = decisions.RULES["updating_gemm"], decisions.RULES["updating_gemm"].module.is_faster
    program = decisions.step((48, 32, 4), 8, partial(optim.SGD, lr=0.1, momentum=0.9), "SGD")
    kernels = {}
    for answer in (True, False):
        with rule.saying(answer) as given:
            call = program.make()
        assert given and set(given) == {answer}
        (step,) = (c.cell_contents for c in call.__closure__ if hasattr(c.cell_contents, "graph"))
        kernels[answer] = [n.op for n in step.graph().nodes].count("linear_grad_weight")
    assert kernels[False] > kernels[True] == 0
    assert rule.module.is_faster is own


def test_results_that_differ_stop_the_program(
    decisions: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "_TOLERANCE", -1.0)
    with pytest.raises(SystemExit, match="the results differ"):
        rule = decisions.Rule(winograd, "is_faster", ())
        decisions.measure("winograd", rule, decisions.convolution("conv2d", 16, 4, batch=1), 0.01)
