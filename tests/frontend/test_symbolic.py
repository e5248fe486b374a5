"""Tensor programs traced with a symbolic batch compute what they compute eagerly.

Every program is traced at batch size 7 and evaluated at batch size 4.
"""

from __future__ import annotations

import numpy as np
import pytest

import netwright.frontend as fe
import netwright.frontend.functions as nf
from netwright.errors import BatchSpecializationError, TraceError, UnsupportedError
from netwright.frontend import tree
from netwright.frontend.trace import trace
from netwright.ir.interpreter import evaluate

X = np.random.default_rng(0).normal(size=(4, 3, 6))
EXAMPLE = np.concatenate([X, X])[:7]


def in_place(x):
    y = x * 2
    y += x
    y.add_(1).mul_(2).clamp_(min=0)
    return y


def heads(x):
    b, t, c = x.shape
    return x.view(b, t, 2, c // 2).transpose(1, 2).reshape(b * 2, t, c // 2)


PROGRAMS = {
    "view": lambda x: x.view(x.size(0), -1),
    "reshape": lambda x: x.reshape(-1, 6),
    "flatten": lambda x: x.flatten(1),
    "flatten all": lambda x: x.flatten(),
    "unflatten": lambda x: x.unflatten(2, (2, 3)),
    "multiple": lambda x: x.view(x.shape[0] * 3, 6),
    "heads": heads,
    "slice of the shape": lambda x: x.view(*x.shape[:1], 18),
    "sum of shapes": lambda x: x.view(x.shape[:-1] + (2, 3)),  # noqa: RUF005
    "numel": lambda x: x.reshape(x.numel()),
    "permute": lambda x: x.permute(2, 0, 1),
    "transpose": lambda x: x.flatten(1).T,
    "movedim": lambda x: x.movedim(1, 2),
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "cat": lambda x: nf.cat([x, x * 2], 1),
    "cat over the batch": lambda x: nf.cat([x, x]),
    "stack": lambda x: nf.stack([x, x], 1),
    "chunk": lambda x: x.chunk(3, 2)[1],
    "chunk of the batch": lambda x: nf.cat([x, x]).chunk(2)[1],
    "split": lambda x: x.split(4, -1)[1],
    "split of the batch": lambda x: nf.cat([x, x * 3]).split(x.shape[0])[1],
    "unbind": lambda x: x.unbind(1)[0],
    "expand": lambda x: x[:, :1].expand(-1, 5, -1),
    "expand to the batch": lambda x: nf.ones(1, 3, 6).double().expand(x.shape[0], -1, -1) + x,
    "repeat": lambda x: x.repeat(2, 2, 1),
    "index": lambda x: x[:, 1:, ::2] + x[:, -1, None, 0:3],
    "index with a list": lambda x: x[:, [2, 0]],
    "index with a tensor": lambda x: nf.arange(15.0).reshape(5, 3)[x.argmax(1) % 5],
    "index with negatives": lambda x: nf.arange(9.0)[x.argmax(2) - 7],
    "gather": lambda x: x.gather(1, x.argmax(1, keepdim=True)),
    "sums": lambda x: (x.sum(), x.sum(0), x.sum(1, keepdim=True)),
    "means": lambda x: (x.mean(), x.mean(0), x.mean((1, 2))),
    "variances": lambda x: (x.var(), x.var(0), x.std(1), x.var(0, correction=0)),
    "extrema": lambda x: (x.max(), tuple(x.max(1)), x.amin(0), x.argmin()),
    "norms": lambda x: (x.norm(), x.norm(dim=1), x.norm(p=1, dim=0)),
    "products": lambda x: (x.prod(1), x.cumsum(1), x.softmax(-1), x.logsumexp(1)),
    "booleans": lambda x: (
        (x > 0) & ~(x < 1) | ((x > 2) == (x < 3)),
        (x > 0).any(1),
        (x > 9).all(),
    ),
    "masks": lambda x: (x.masked_fill(x > 0, -1e9), nf.where(x > 0, 1, 0), (x @ x.mT).tril()),
    "filled": lambda x: (nf.zeros(x.shape[0], 2), nf.ones_like(x), nf.full_like(x, 3.0)),
    "number of elements": lambda x: x.sum() / x.numel() + x.sum(0) / x.shape[0],
    "rounding": lambda x: (x // 0.5, x % 0.5, x.round(), x.argmax(1) // 2, x.argmax(2) % 2),
    "powers": lambda x: x**2 + abs(x) ** 0.5 + 2**x + abs(x) ** 1.5 + 1 - x,
    "matmul": lambda x: (x @ nf.ones(6).double(), nf.ones(3).double() @ x, nf.bmm(x, x.mT)),
    "casts": lambda x: x.float().double() + x.long(),
    "copies": lambda x: x.clone().contiguous() * x.detach(),
    "in place": in_place,
}


def run_traced(program):
    traced = trace(program, {}, (nf.tensor(EXAMPLE),))
    values = {traced.inputs[0]: X}
    if any(n.attrs["path"] == "rng" for n in traced.graph.sources("input")):
        values["rng"] = fe.default_generator.next_key()
    return evaluate(traced.graph, values)


@pytest.mark.parametrize("name", PROGRAMS)
def test_traced_equals_eager_at_another_batch_size(name):
    expected = tree.flatten(PROGRAMS[name](nf.tensor(X)), nf.is_tensor)
    results = run_traced(PROGRAMS[name])
    assert expected
    for path, tensor in expected:
        value = results[path or "out"]
        assert value.dtype == tensor.dtype.np and value.shape == tensor.shape
        np.testing.assert_allclose(value, tensor.numpy(), rtol=1e-9, atol=1e-12)


def test_random_numbers_follow_the_batch():
    results = run_traced(lambda x: (nf.rand_like(x), nf.randn_like(x), nf.rand(x.shape[0], 500)))
    assert results["0"].shape == results["1"].shape == X.shape
    assert results["0"].min() >= 0 and results["0"].max() < 1
    assert abs(results["2"].mean() - 0.5) < 0.05 and results["2"].std() > 0.25


NEEDS_THE_BATCH = {
    "a size": lambda x: x.view(4, -1),
    "an example": lambda x: x[0],
    "the last example": lambda x: x[-1],
    "some examples": lambda x: x[:2],
    "narrow": lambda x: x.narrow(0, 0, 2),
    "select": lambda x: x.select(0, 1),
    "iteration": lambda x: sum(row for row in x),
    "pieces": lambda x: x.split(2),
    "comparison": lambda x: x if x.shape[0] == 4 else -x,
    "range": lambda x: [x for _ in range(x.shape[0])],
    "prod": lambda x: x.prod(0),
}


@pytest.mark.parametrize("name", NEEDS_THE_BATCH)
def test_programs_that_need_the_batch_size_say_so(name):
    # BatchSpecializationError is the signal to compile for one batch size.
    with pytest.raises(BatchSpecializationError):
        run_traced(NEEDS_THE_BATCH[name])
    traced = trace(NEEDS_THE_BATCH[name], {}, (nf.tensor(X),), dynamic=False)
    assert traced.graph.outputs


def view_then_write(x):
    y = x * 2
    z = y[:, 0]
    y += 1
    return y + z.sum()


NEEDS_VALUES = {
    "item": lambda x: x * x.max().item(),
    "a condition": lambda x: x if x.sum() > 0 else -x,
    "numpy": lambda x: nf.tensor(x.numpy()),
    "nonzero": lambda x: x.nonzero(),
    "a write to the input": lambda x: x.add_(1),
    "a write seen through a view": view_then_write,
}


@pytest.mark.parametrize("name", NEEDS_VALUES)
def test_programs_that_need_values_say_so(name):
    with pytest.raises(TraceError):
        run_traced(NEEDS_VALUES[name])


def test_assignment_to_elements_names_the_way_out():
    with pytest.raises(UnsupportedError, match=r"nw\.where"):
        run_traced(lambda x: x.__setitem__(0, 1.0))
