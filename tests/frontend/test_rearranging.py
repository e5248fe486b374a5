"""flip, roll, chosen rows, grids, scattered sums, einsum: eager and compiled against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn
from netwright.errors import LintWarning

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore::netwright.errors.LintWarning")
assert issubclass(LintWarning, UserWarning)

# Programs of the library and of x (4, 6), float32, and i (4, 6), integers from 0 to 3.
PROGRAMS: dict[str, Any] = {
    "flip": lambda t, x, i: [x.flip(1), t.flip(x.view(-1, 2, 3), [1, 2]), x[:, :1].flip(1)],
    "roll": lambda t, x, i: [x.roll(2, 1), t.roll(x.view(-1, 2, 3), (1, -1), (1, 2)), x.roll(0, 1)],
    "index_select": lambda t, x, i: [x.index_select(1, t.tensor([5, 0, 0]))],
    "tile": lambda t, x, i: [t.tile(x, (2,)), x.tile(1, 3)],
    "repeat_interleave": lambda t, x, i: [x.repeat_interleave(2, 1), x.repeat_interleave(3, dim=0)],
    "hstack": lambda t, x, i: [t.hstack([x, x * 2]), t.vstack([x, x * 2])],
    "diagonal": lambda t, x, i: [
        x.view(-1, 2, 3).diagonal(0, 1, 2),
        x.view(-1, 2, 3).diagonal(1, 1, 2),
        x.view(-1, 2, 3).diagonal(-1, -1, 1),
    ],
    "scatter_add": lambda t, x, i: [
        t.zeros_like(x).scatter_add(1, i, x),
        x.scatter_add(1, i[:, :2], x[:, :2]),
    ],
    "scatter": lambda t, x, i: [x.scatter(1, i[:, :1], 7.0)],
    "sort": lambda t, x, i: [
        *x.sort(1),
        *x.topk(2, 1),
        *x.topk(2, 1, largest=False),
        x.argsort(1, descending=True),
    ],
    "einsum": lambda t, x, i: [
        t.einsum("bi,bj->bij", x, x),
        t.einsum("bij,bkj->bik", x.view(-1, 2, 3), x.view(-1, 2, 3)),
        t.einsum("bij,bij->b", x.view(-1, 2, 3), x.view(-1, 2, 3)),
        t.einsum("bi->ib", x),
        t.einsum("bij->j", x.view(-1, 2, 3)),
        t.einsum("bi,bi,bj", x, x, x),
        t.einsum("bij,bij->bji", [x.view(-1, 2, 3), x.view(-1, 2, 3)]),
    ],
}


class Program(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.__dict__["function"] = function

    def forward(self, x, i):
        return self.function(nw, x, i)


def inputs(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    return rng.normal(size=(n, 6)).astype(np.float32), rng.integers(0, 4, (n, 6))


@pytest.mark.parametrize("name", PROGRAMS)
def test_results_and_gradients_are_torchs(name: str) -> None:
    program = PROGRAMS[name]
    for run in (Program(program), nw.compile(Program(program))):
        for n in (4, 3):
            x, i = inputs(n)
            ours, theirs = nw.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
            found = run(ours, nw.tensor(i))
            expected = program(torch, theirs, torch.tensor(i))
            for a, b in zip(found, expected, strict=True):
                assert a.dtype.name == str(b.dtype).removeprefix("torch.")
                np.testing.assert_allclose(
                    a.detach().numpy(), b.detach().numpy(), rtol=1e-5, atol=1e-5
                )
            sum((a * a).sum() for a in found if a.dtype.is_float).backward()
            sum((b * b).sum() for b in expected if b.is_floating_point()).backward()
            np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("indexing", ["ij", "xy"])
def test_meshgrid_is_torchs(indexing: str) -> None:
    found = nw.meshgrid(nw.arange(3), nw.arange(2), indexing=indexing)
    expected = torch.meshgrid(torch.arange(3), torch.arange(2), indexing=indexing)
    for a, b in zip(found, expected, strict=True):
        assert a.tolist() == b.tolist()


def test_what_einsum_cannot_do_is_said() -> None:
    x = nw.ones(2, 2)
    with pytest.raises(nw.errors.UnsupportedError, match=r"diagonal\(\) first"):
        nw.einsum("ii->i", x)
    with pytest.raises(nw.errors.UnsupportedError, match="name the dimensions"):
        nw.einsum("...i->i", x)
    with pytest.raises(nw.errors.ShapeError, match=r"dimension 'j' .* is 2 in one operand and 3"):
        nw.einsum("ij,jk->ik", x, nw.ones(3, 2))
    with pytest.raises(ValueError, match="2 operands, but 1"):
        nw.einsum("ij,jk->ik", x)


def test_scatter_of_a_tensor_names_the_way_out() -> None:
    with pytest.raises(nw.errors.UnsupportedError, match=r"use scatter_add\(\)"):
        nw.zeros(2, 2).scatter(1, nw.zeros(2, 2, dtype=nw.int64), nw.ones(2, 2))
