"""Distances and likelihoods against torch's: values and gradients, eager and in a compiled step."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn, optim

RNG = np.random.default_rng(0)
SIGNS = np.where(RNG.random(7) < 0.5, 1.0, -1.0)
ROWS = [RNG.standard_normal((7, 5)) for _ in range(3)]
PROBABILITIES = np.abs(ROWS[1]) / np.abs(ROWS[1]).sum(1, keepdims=True)
WITH_A_ZERO = np.where(np.arange(5) == 2, 0.0, PROBABILITIES)
COUNTS = RNG.integers(0, 6, (7, 5)).astype(float)
POSITIVE = np.abs(ROWS[2]) + 0.1

Case = tuple[Callable[[Any], Any], list[np.ndarray]]
CASES: dict[str, Case] = {
    "huber": (lambda n: n.HuberLoss(), ROWS[:2]),
    "huber, delta, sum": (lambda n: n.HuberLoss("sum", delta=0.3), ROWS[:2]),
    "kl": (lambda n: n.KLDivLoss(reduction="batchmean"), [ROWS[0], WITH_A_ZERO]),
    "kl, sum": (lambda n: n.KLDivLoss(reduction="sum"), [ROWS[0], PROBABILITIES]),
    "kl of logarithms": (
        lambda n: n.KLDivLoss(reduction="batchmean", log_target=True),
        [ROWS[0], np.log(PROBABILITIES)],
    ),
    "poisson": (lambda n: n.PoissonNLLLoss(), [ROWS[0], COUNTS]),
    "poisson of rates, full": (
        lambda n: n.PoissonNLLLoss(log_input=False, full=True),
        [POSITIVE, COUNTS],
    ),
    "gauss": (lambda n: n.GaussianNLLLoss(), [*ROWS[:2], POSITIVE]),
    "gauss, full, one variance per row, some too small": (
        lambda n: n.GaussianNLLLoss(full=True, eps=0.5),
        [*ROWS[:2], POSITIVE[:, :1]],
    ),
    "cosine embedding": (lambda n: n.CosineEmbeddingLoss(0.1), [*ROWS[:2], SIGNS]),
    "ranking": (lambda n: n.MarginRankingLoss(0.5), [*(r[:, 0] for r in ROWS[:2]), SIGNS]),
    "hinge": (lambda n: n.HingeEmbeddingLoss(), [ROWS[0][:, 0], SIGNS]),
    "triplet": (lambda n: n.TripletMarginLoss(), ROWS),
    "triplet, swap, sum": (
        lambda n: n.TripletMarginLoss(2.0, swap=True, reduction="sum"),
        ROWS,
    ),
    "cosine": (lambda n: n.CosineSimilarity(dim=-1), ROWS[:2]),
    "distance": (lambda n: n.PairwiseDistance(), ROWS[:2]),
}


@pytest.mark.parametrize(("make", "arrays"), CASES.values(), ids=CASES)
def test_values_and_gradients_equal_torchs(
    make: Callable[[Any], Any], arrays: list[np.ndarray]
) -> None:
    torch = pytest.importorskip("torch", reason="the reference")
    ours = [nw.tensor(a, requires_grad=i == 0) for i, a in enumerate(arrays)]
    theirs = [torch.tensor(a, requires_grad=i == 0) for i, a in enumerate(arrays)]
    found, expected = make(nn)(*ours), make(torch.nn)(*theirs)
    np.testing.assert_allclose(found.detach().numpy(), expected.detach().numpy(), rtol=1e-9)
    found.sum().backward()
    expected.sum().backward()
    np.testing.assert_allclose(ours[0].grad.numpy(), theirs[0].grad.numpy(), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", ["huber", "kl", "gauss", "cosine embedding", "triplet"])
def test_a_step_compiles_them_natively_for_every_batch(name: str) -> None:
    make, arrays = CASES[name]
    weight = RNG.standard_normal((5, 5)).astype(np.float32) / 2

    def model() -> nn.Module:
        made = nn.Linear(5, 5, bias=False)
        with nw.no_grad():
            made.weight.copy_(nw.from_numpy(weight))
        return made

    def loss(output: nw.Tensor, rest: list[nw.Tensor]) -> nw.Tensor:
        return make(nn)(output, *rest)

    trained, eager = model(), model()
    step = nw.compile(trained, loss=loss, optimizer=optim.SGD(trained.parameters(), lr=0.1))
    optimizer = optim.SGD(eager.parameters(), lr=0.1)
    for n in (7, 7, 3):
        first, *rest = (a[:n].astype(np.float32) for a in arrays)
        expected = loss(eager(nw.from_numpy(first)), [nw.from_numpy(r) for r in rest])
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        assert step(first, rest).item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
        np.testing.assert_allclose(
            trained.weight.detach().numpy(), eager.weight.detach().numpy(), atol=1e-5
        )
    assert (step.fallbacks, step.compilations) == (0, 1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: nn.HuberLoss(delta=0.0)(x, x), "non-positive values for delta"),
        (lambda x: nn.TripletMarginLoss(margin=0.0), "greater than 0"),
        (lambda x: nn.GaussianNLLLoss()(x, x, -x * x), "negative"),
        (lambda x: nn.GaussianNLLLoss()(x, x, x[:2]), r"incorrect size: \[2, 5\]"),
        (lambda x: nn.CosineEmbeddingLoss()(x, x, x), "expected two inputs"),
        (lambda x: nn.MarginRankingLoss()(x, x, x[0]), "same dimension"),
    ],
)
def test_what_cannot_be_is_an_error(call: Callable[[Any], Any], words: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=words):
        call(nw.tensor(ROWS[0]))


def test_the_mean_of_a_divergence_warns_as_in_torch() -> None:
    with pytest.warns(UserWarning, match="batchmean"):
        nn.KLDivLoss()(nw.tensor(ROWS[0]), nw.tensor(PROBABILITIES))
