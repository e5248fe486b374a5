"""Training steps written by hand for JAX: one jitted function whose old state is donated."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from training import Task

from netwright.commands.peers.peer import Ready
from netwright.commands.peers.training import Recipe, Start, buffer_names, results

Arrays = dict[str, Any]
_MOMENTUM, _EPS = 0.1, 1e-5


def prepare(task: Task, start: Start, threads: int) -> Ready:
    """Compiles and runs the first step. JAX uses all CPUs that the process may: RuntimeError if
    these are not ``threads``."""
    cpus = len(os.sched_getaffinity(0))
    if cpus != threads:
        raise RuntimeError(f"JAX uses {cpus} threads, one per CPU, and cannot be told otherwise")
    assert task.jax is not None
    forward = FORWARD[task.jax]
    buffers = {n: v for n, v in start.state.items() if "running" in n}
    weights = {n: v for n, v in start.state.items() if v.dtype.kind == "f" and n not in buffers}
    state = jax.tree.map(jnp.array, (weights, buffers, _optimizer_state(task.recipe, weights)))
    x, labels = jnp.asarray(start.inputs[0]), [jnp.asarray(t) for t in start.targets]

    def loss_of(weights: Arrays, buffers: Arrays, x: Any, t: Any) -> Any:
        logits, buffers = forward(weights, buffers, x)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), t[:, None], 1)
        return -picked.mean(), buffers

    def train(state: Any, count: Any, x: Any, t: Any) -> Any:
        weights, buffers, moments = state
        (loss, buffers), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            weights, buffers, x, t
        )
        new = {
            n: _update(task.recipe, w, gradients[n], moments[n], count) for n, w in weights.items()
        }
        weights, moments = ({n: pair[i] for n, pair in new.items()} for i in (0, 1))
        return loss, (weights, buffers, moments)

    compiled = jax.jit(train, donate_argnums=0)
    count = 0

    def step() -> Any:
        nonlocal state, count
        count += 1
        loss, state = compiled(state, np.float32(count), x, labels[(count - 1) % len(labels)])
        jax.block_until_ready((loss, state))
        return loss

    loss = step()
    found = [jax.tree.map(np.array, part) for part in state]
    first = results(task.recipe, start, np.array(loss), found[0], found[2], found[1])
    assert list(found[1]) == buffer_names(start, weights)
    return Ready(step, lambda _: first)


def _optimizer_state(recipe: Recipe, weights: Arrays) -> dict[str, Arrays]:
    """PyTorch's names, all zeros."""
    names = ["exp_avg", "exp_avg_sq"] if recipe.kind.startswith("Adam") else []
    if recipe.options.get("momentum"):
        names = ["momentum_buffer"]
    return {n: {name: np.zeros_like(w) for name in names} for n, w in weights.items()}


def _update(recipe: Recipe, w: Any, g: Any, moments: Arrays, count: Any) -> tuple[Any, Arrays]:
    """PyTorch's SGD and Adam."""
    lr = recipe.options["lr"]
    if recipe.kind == "SGD":
        if not moments:
            return w - lr * g, {}
        buffer = recipe.options["momentum"] * moments["momentum_buffer"] + g
        return w - lr * buffer, {"momentum_buffer": buffer}
    assert recipe.kind == "Adam"
    first, second = recipe.options.get("betas", (0.9, 0.999))
    m = first * moments["exp_avg"] + (1 - first) * g
    v = second * moments["exp_avg_sq"] + (1 - second) * g * g
    step = m / (1 - first**count) / (jnp.sqrt(v / (1 - second**count)) + 1e-8)
    return w - lr * step, {"exp_avg": m, "exp_avg_sq": v}


def _linear(w: Arrays, name: str, x: Any) -> Any:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _batch_norm(w: Arrays, buffers: Arrays, name: str, x: Any) -> tuple[Any, Arrays]:
    """Over all axes but the last."""
    axes = tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    mean, var = x.mean(axes), x.var(axes)
    y = (x - mean) / jnp.sqrt(var + _EPS) * w[f"{name}.weight"] + w[f"{name}.bias"]
    new = {"running_mean": mean, "running_var": var * count / (count - 1)}
    kept = {
        f"{name}.{key}": (1 - _MOMENTUM) * buffers[f"{name}.{key}"] + _MOMENTUM * value
        for key, value in new.items()
    }
    return y, {**buffers, **kept}


def _mlp(w: Arrays, buffers: Arrays, x: Any) -> tuple[Any, Arrays]:
    """examples/mlp.py."""
    x = x.reshape(len(x), -1)
    x = jax.nn.relu(_linear(w, "layers.0", x))
    x = jax.nn.relu(_linear(w, "layers.2", x))
    return _linear(w, "layers.4", x), buffers


def _mlp_batchnorm(w: Arrays, buffers: Arrays, x: Any) -> tuple[Any, Arrays]:
    """examples/mlp_batchnorm.py."""
    x = x.reshape(len(x), -1)
    for i in (1, 4):
        x, buffers = _batch_norm(w, buffers, f"layers.{i + 1}", _linear(w, f"layers.{i}", x))
        x = jax.nn.relu(x)
    return _linear(w, "layers.7", x), buffers


def _cnn(w: Arrays, buffers: Arrays, x: Any) -> tuple[Any, Arrays]:
    """examples/cnn.py without dropout, as JAX is fastest here: channels last, and the pooling as a
    maximum over two axes (the gradient of ``reduce_window`` takes some 15 ms)."""
    x = x.reshape(len(x), 28, 28, 1)
    layout = ("NHWC", "HWIO", "NHWC")
    kernel = w["features.0.weight"].transpose(2, 3, 1, 0)
    x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
    x, buffers = _batch_norm(w, buffers, "features.1", x + w["features.0.bias"])
    x = jax.nn.relu(x).reshape(len(x), 14, 2, 14, 2, 16).max((2, 4))
    x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    x = jax.nn.relu(_linear(w, "classifier.0", x))
    return _linear(w, "classifier.3", x), buffers


FORWARD: dict[str, Callable[[Arrays, Arrays, Any], tuple[Any, Arrays]]] = {
    "mlp": _mlp,
    "mlp_batchnorm": _mlp_batchnorm,
    "cnn": _cnn,
}
