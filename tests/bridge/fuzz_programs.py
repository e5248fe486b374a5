"""Random programs, eager against compiled. ``python fuzz_programs.py FIRST LAST`` runs the seeds in
[FIRST, LAST) and prints each before it runs, so that a crash of the process names its seed.

Exit code 1 and a report per seed if compiled differs from eager: in values, shapes, dtypes, or in
whether there is an error at all.
"""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import netwright as nw
import netwright.nn.functional as F
from netwright import nn, optim

ERRORS = (ValueError, TypeError, RuntimeError, IndexError, NotImplementedError)
Op = Callable[[Any], Any]


# -- stacks of layers -----------------------------------------------------------------------------

ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Softplus,
    nn.Identity,
    lambda: nn.GELU(approximate="tanh"),
]


class Residual(nn.Module):
    """``f(x) + x``."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        return self.inner(x) + x


def pick(rng: np.random.Generator, items: Any) -> Any:
    return items[int(rng.integers(len(items)))]


def image_layer(rng: np.random.Generator, shape: tuple[int, ...]) -> nn.Module:
    channels = shape[1]
    if rng.random() < 0.04:
        channels += 1  # an error
    kind = rng.integers(9)
    if kind <= 2:
        kernel = pick(rng, [1, 2, 3, 3, 5, (1, 3), (3, 2)])
        groups = pick(rng, [1, 1, 1, channels, 2 if channels % 2 == 0 else 1])
        return nn.Conv2d(
            channels,
            groups * int(rng.integers(1, 4)),
            kernel,
            stride=pick(rng, [1, 1, 2, 3, (2, 1)]),
            padding=pick(rng, [0, 1, 2, (0, 1)]),
            dilation=pick(rng, [1, 1, 2]),
            groups=groups,
            bias=bool(rng.random() < 0.5),
        )
    if kind == 3:
        return nn.BatchNorm2d(channels, affine=bool(rng.random() < 0.8))
    if kind == 4:
        return nn.MaxPool2d(
            pick(rng, [2, 3, (1, 2)]), pick(rng, [1, 2]), padding=pick(rng, [0, 0, 1]),
            ceil_mode=bool(rng.random() < 0.3),
        )  # fmt: skip
    if kind == 5:
        return nn.AvgPool2d(
            pick(rng, [2, 3]), pick(rng, [1, 2]), padding=pick(rng, [0, 1]),
            ceil_mode=bool(rng.random() < 0.3), count_include_pad=bool(rng.random() < 0.5),
        )  # fmt: skip
    if kind == 6:
        return nn.AdaptiveAvgPool2d(pick(rng, [1, 2, (3, 1)]))
    if kind == 7:
        inner = nn.Conv2d(channels, channels, 3, padding=1)
        return Residual(nn.Sequential(inner, pick(rng, ACTIVATIONS)()))
    return pick(rng, ACTIVATIONS)()


def sequence_layer(rng: np.random.Generator, shape: tuple[int, ...]) -> nn.Module:
    channels, length = shape[1], shape[2]
    kind = rng.integers(6)
    if kind <= 1:
        return nn.Conv1d(
            channels,
            int(rng.integers(1, 9)),
            int(rng.integers(1, 6)),
            stride=int(rng.integers(1, 3)),
            padding=int(rng.integers(0, 3)),
        )
    if kind == 2:
        return nn.BatchNorm1d(channels)
    if kind == 3:
        return nn.LayerNorm(length, elementwise_affine=bool(rng.random() < 0.7))
    if kind == 4:
        return nn.Linear(length, int(rng.integers(1, 20)), bias=bool(rng.random() < 0.7))
    return pick(rng, ACTIVATIONS)()


def vector_layer(rng: np.random.Generator, shape: tuple[int, ...]) -> nn.Module:
    width = shape[-1] + (rng.random() < 0.04)  # sometimes an error
    kind = rng.integers(7)
    if kind <= 2:
        out = int(pick(rng, [1, 2, 7, 8, 9, 16, 31, 33, 70]))
        return nn.Linear(int(width), out, bias=bool(rng.random() < 0.7))
    if kind == 3:
        return nn.BatchNorm1d(int(width))
    if kind == 4:
        return nn.LayerNorm(int(width))
    if kind == 5:
        return pick(rng, [nn.Softmax, nn.LogSoftmax])(dim=-1)
    return pick(rng, ACTIVATIONS)()


def layer_for(rng: np.random.Generator, shape: tuple[int, ...]) -> nn.Module:
    if len(shape) > 2 and rng.random() < 0.12:
        return nn.Flatten()
    make = {4: image_layer, 3: sequence_layer}.get(len(shape), vector_layer)
    return make(rng, shape)


def random_stack(rng: np.random.Generator) -> tuple[nn.Module, list[np.ndarray]]:
    """A Sequential that mostly works, and its input (a batch of 0, 1 or a few)."""
    n = int(pick(rng, [0, 1, 2, 3, 5, 8]))
    extents = [1, 1, 2, 3, 4, 5, 7, 8, 13]
    rank = int(rng.integers(2, 5))
    shape = (n, *(int(pick(rng, extents)) for _ in range(rank - 1)))
    layers: list[nn.Module] = []
    if rng.random() < 0.15:
        x: np.ndarray = rng.integers(0, 11, (n, int(rng.integers(1, 9))))
        layers.append(nn.Embedding(11, int(rng.integers(1, 9))))
        shape = (*x.shape, layers[0].embedding_dim)
    else:
        x = rng.standard_normal(shape, np.float32)
    for _ in range(int(rng.integers(1, 7))):
        layer = layer_for(rng, shape)
        layers.append(layer)
        try:
            with nw.no_grad():
                shape = tuple(layer.eval()(nw.zeros(2, *shape[1:])).shape)
        except ERRORS:
            break  # both must raise
    model = nn.Sequential(*layers).train()
    if rng.random() < 0.4:
        model.double()
        x = x.astype(np.float64) if x.dtype.kind == "f" else x
    return model, [x]


# -- expressions ----------------------------------------------------------------------------------

UNARY: list[Op] = [
    lambda x: x.exp().clamp(max=50.0),
    lambda x: (x.abs() + 0.1).log(),
    lambda x: (x * x + 0.5).sqrt(),
    lambda x: (x.abs() + 0.5).rsqrt(),
    lambda x: -x,
    lambda x: x.tanh(),
    lambda x: x.sigmoid(),
    lambda x: F.softplus(x),
    lambda x: nw.erf(x),
    lambda x: x.sin() + x.cos(),
    lambda x: x.clamp(-0.7, 0.9),
    lambda x: (x.abs() + 0.3) ** 1.5,
    lambda x: 1.0 / (x * x + 1.0),
    lambda x: x.floor() * 0.1 + x,
    lambda x: nw.where(x > 0.2, x, x * 0.1),
    lambda x: (x > 0).to(x.dtype) + x,
    lambda x: x.to(nw.int32).to(x.dtype) + x,
    lambda x: x.detach() * x,
    lambda x: x.unsqueeze(1),
    lambda x: x.squeeze(),
    lambda x: x.flatten(1),
    lambda x: x.reshape(-1),
    lambda x: x.reshape(x.shape[0], -1),
    lambda x: x.transpose(0, 1),
    lambda x: x.transpose(-1, -2),
    lambda x: x[:, 0],
    lambda x: x[:, -1:],
    lambda x: x[:, ::2],
    lambda x: x[..., 1:],
    lambda x: x[None],
    lambda x: x[:, None],
    lambda x: nw.cat([x, x * 2], dim=-1),
    lambda x: nw.cat([x, x.relu()], dim=0),
    lambda x: nw.stack([x, -x], dim=1),
    lambda x: sum(x.chunk(2, dim=1)[:1]),
    lambda x: x.softmax(-1),
    lambda x: x.log_softmax(1),
    lambda x: x.sum(-1, keepdim=True) + x,
    lambda x: x.mean(0) + x,
    lambda x: x - x.amax(1, keepdim=True),
    lambda x: x.sum(0),
    lambda x: x.sum(1),
    lambda x: x.var(-1, keepdim=True) + x,
    lambda x: x.amin(-1),
    lambda x: x.max(1).values,
    lambda x: x.argmax(-1).to(x.dtype) + x.sum(),
    lambda x: x @ x.transpose(-1, -2),
    lambda x: F.layer_norm(x, x.shape[-1:]),
    lambda x: F.gelu(x),
    lambda x: F.pad(x, (1, 2)),
    lambda x: x.permute(*reversed(range(x.dim()))),
    lambda x: x.sum() * x,
]
BINARY: list[Callable[[Any, Any], Any]] = [
    lambda x, y: x + y,
    lambda x, y: x * y,
    lambda x, y: x - 2.0 * y,
    lambda x, y: x / (y * y + 1.0),
    lambda x, y: nw.maximum(x, y),
    lambda x, y: nw.minimum(x, y * 0.5),
    lambda x, y: nw.where(x > y, x, y),
    lambda x, y: x @ y,
    lambda x, y: x * (y.sum() / 10.0),
]


class Expression(nn.Module):
    """Applies operations to a stack of values: ``(function, operands)`` in order."""

    def __init__(self, ops: list[tuple[Callable[..., Any], tuple[int, ...]]]) -> None:
        super().__init__()
        self.ops = ops
        self.weight = nn.Parameter(nw.tensor(0.5))

    def forward(self, *inputs: nw.Tensor) -> Any:
        values = [inputs[0] * self.weight.to(inputs[0].dtype), *inputs[1:]]
        for op, operands in self.ops:
            values.append(op(*(values[i] for i in operands)))
        return values[-1], values[len(values) // 2]


def random_expression(rng: np.random.Generator) -> tuple[nn.Module, list[np.ndarray]]:
    n = int(pick(rng, [1, 2, 3, 4, 6]))
    extents = [1, 2, 3, 5, 8, 17]
    shape = (n, *(int(pick(rng, extents)) for _ in range(int(rng.integers(1, 4)))))
    dtype = pick(rng, [np.float32, np.float64])
    arrays = [rng.standard_normal(shape).astype(dtype) for _ in range(2)]
    if rng.random() < 0.3:
        arrays[1] = rng.standard_normal(shape[-1:]).astype(dtype)
    values = [nw.from_numpy(a) for a in arrays]
    ops: list[tuple[Callable[..., Any], tuple[int, ...]]] = []
    for _ in range(int(rng.integers(2, 10))):
        binary = rng.random() < 0.3
        op = pick(rng, BINARY if binary else UNARY)
        last = len(values) - 1
        operands = (last, int(rng.integers(len(values)))) if binary else (last,)
        try:
            with np.errstate(all="ignore"):
                result = op(*(values[i] for i in operands))
        except ERRORS:
            continue
        if isinstance(result, nw.Tensor) and result.numel() <= 20_000:
            ops.append((op, operands))
            values.append(result)
    return Expression(ops), arrays


# -- comparison -----------------------------------------------------------------------------------


def forward_and_backward(model: nn.Module, call: Any, arrays: list[np.ndarray]) -> Any:
    """Results, gradients and buffers as arrays; or the error."""
    model.zero_grad()
    inputs = [nw.from_numpy(a.copy()).requires_grad_(a.dtype.kind == "f") for a in arrays]
    try:
        with np.errstate(all="ignore"):
            out = call(*inputs)
            outs = list(out) if isinstance(out, tuple) else [out]
            total = sum(scalar(o) for o in outs if o.requires_grad)
            if isinstance(total, nw.Tensor):
                total.backward()
    except Exception as error:  # a wrong kind of error is a finding, and the next seed still runs
        return error
    found = [o.detach().numpy().copy() for o in outs]
    for t in (*inputs, *model.parameters()):
        found.append(np.zeros(0) if t.grad is None else t.grad.numpy().copy())
    return found + [b.numpy().copy() for b in model.buffers()]


def scalar(output: nw.Tensor) -> nw.Tensor:
    """A number whose gradient is nowhere zero by symmetry, as that of a normalised result's sum of
    squares would be."""
    return (output * 1.3).sin().sum()


def difference(got: Any, expected: Any) -> str:
    """What is wrong with compiled's outcome; empty if nothing is."""
    if isinstance(expected, Exception) or isinstance(got, Exception):
        if isinstance(expected, ERRORS) and isinstance(got, ERRORS):
            return ""
        return f"compiled {_brief(got)}, eager {_brief(expected)}"
    overall = max((_largest(b) for b in expected), default=0.0)
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return f"array {i}: {a.dtype}{a.shape}, eager {b.dtype}{b.shape}"
        tolerance = 1e-6 if b.dtype == np.float64 else 2e-3
        # A sum that cancels to zero is as inexact as its terms.
        scale = max(_largest(b), 1e-3 * overall, 1e-3)
        if not np.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
            return f"array {i} of shape {b.shape} differs:\n{a.ravel()[:8]}\n{b.ravel()[:8]}"
    return ""


def exact(model: nn.Module, arrays: list[np.ndarray], start: Any) -> list[Any]:
    """What float64 gives; the model is float32 again afterwards."""
    if all(t.dtype is nw.float64 for t in start.values() if t.dtype.is_float):
        return [None]
    model.load_state_dict(start)
    model.double()
    wide = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]
    found = forward_and_backward(model, model, wide)
    model.float()
    return [found]


def is_rounding(eager: Any, compiled: Any, truth: Any) -> bool:
    """Whether a float32 program is so badly conditioned that eager is as far off as compiled."""
    if any(not isinstance(outcome, list) for outcome in (eager, compiled, truth)):
        return False
    for a, b, t in zip(compiled, eager, truth, strict=True):
        if a.shape != b.shape or not np.isfinite(t).all():
            return False
        error, reference = (float(np.abs(v - t).max(initial=0.0)) for v in (a, b))
        if error > 10 * reference + 1e-4 * _largest(t):
            return False
    return True


def _largest(array: np.ndarray) -> float:
    finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array
    return float(np.abs(finite.astype(np.float64)).max(initial=0.0))


def _brief(outcome: Any) -> str:
    return repr(outcome) if isinstance(outcome, Exception) else "has a result"


def run_seed(seed: int) -> list[str]:
    """Runs one program in training and eval mode; what is wrong with it."""
    rng = np.random.default_rng(seed)
    nw.manual_seed(seed)
    model, arrays = (random_stack if seed % 2 else random_expression)(rng)
    fast = nw.compile(model)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    problems = []
    for training in (True, False):
        outcomes = []
        for call in (model, fast):
            model.load_state_dict(start)
            model.train(training)
            outcomes.append(forward_and_backward(model, call, arrays))
        problem = difference(outcomes[1], outcomes[0])
        if problem and not is_rounding(*outcomes, *exact(model, arrays, start)):
            problems.append(f"seed {seed} training={training}: {problem}\n{model}\n"
                            f"{[(a.dtype.name, a.shape) for a in arrays]}")  # fmt: skip
    if seed % 4 == 1:
        problems += run_step(seed, model, arrays, start)
    return problems


def run_step(seed: int, model: nn.Module, arrays: list[np.ndarray], start: Any) -> list[str]:
    """A compiled step against a step in eager mode."""
    model.load_state_dict(start)
    model.train()
    if not list(model.parameters()):
        return []
    target = np.zeros(1, np.float32)
    outcomes: list[Any] = []
    for compiled in (False, True):
        model.load_state_dict(start)
        optimizer = optim.SGD(model.parameters(), lr=0.01)
        try:
            with np.errstate(all="ignore"):
                loss = _step(model, optimizer, arrays, target, compiled)
            outcomes.append([loss, *(p.detach().numpy().copy() for p in model.parameters())])
        except Exception as error:
            outcomes.append(error)
    problem = difference(outcomes[1], outcomes[0])
    return [f"seed {seed} step: {problem}\n{model}"] if problem else []


def _step(
    model: nn.Module, optimizer: Any, arrays: list[np.ndarray], target: Any, compiled: bool
) -> np.ndarray:
    if compiled:
        return nw.compile(model, loss=_loss, optimizer=optimizer)(*arrays, target).numpy()
    optimizer.zero_grad()
    loss = _loss(model(*(nw.from_numpy(a) for a in arrays)), nw.from_numpy(target))
    loss.backward()
    optimizer.step()
    return loss.detach().numpy()


def _loss(output: nw.Tensor, target: nw.Tensor) -> nw.Tensor:
    return scalar(output) + 0.0 * target.to(output.dtype).sum()


def main() -> int:
    first, last = int(sys.argv[1]), int(sys.argv[2])
    warnings.simplefilter("ignore")
    bad = 0
    for seed in range(first, last):
        print(f"seed {seed}", flush=True)
        for problem in run_seed(seed):
            bad += 1
            print("PROBLEM", problem, flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
