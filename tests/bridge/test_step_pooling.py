"""Training with max pooling: the same numbers with and without the places of the maxima."""

from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn, optim

OFF = {"save_pool_places": False, "fuse_elementwise_pooling": False}


def model(activation: type[nn.Module], dtype: Any, norm: bool = True) -> nn.Sequential:
    """Two blocks; 13 columns and then 7 rows are not whole windows."""
    nw.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 20)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=not norm)]
        layers += [nn.BatchNorm2d(after)] if norm else []
        layers += [activation(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(20 * 3 * 3, 5)).to(dtype)


def batch(dtype: Any, seed: int = 0) -> tuple[nw.Tensor, nw.Tensor]:
    rng = np.random.default_rng(seed)
    x = np.round(rng.normal(size=(6, 1, 14, 13)), 1)  # with ties
    return nw.tensor(x, dtype=dtype), nw.tensor(rng.integers(0, 5, 6))


def trained(network: nn.Module, dtype: Any, **options: Any) -> tuple[Any, list[np.ndarray]]:
    optimizer = optim.SGD(network.parameters(), lr=0.1)
    step = nw.compile(network, loss=nn.CrossEntropyLoss(), optimizer=optimizer, **options)
    for i in range(3):
        step(*batch(dtype, i))
    return step, [v.numpy().copy() for v in network.state_dict().values()]


@pytest.mark.parametrize(
    ("activation", "norm"), [(nn.ReLU, True), (nn.ReLU, False), (nn.LeakyReLU, True)]
)
def test_a_step_is_that_of_the_large_image(activation: type[nn.Module], norm: bool) -> None:
    step, found = trained(model(activation, nw.float64, norm), nw.float64)
    _, wanted = trained(model(activation, nw.float64, norm), nw.float64, passes=OFF)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    assert step.fallbacks == 0
    ops = {n.op for n in step.graph().nodes}
    assert "max_pool2d_grad" not in ops


def test_no_large_map_stands_between_normalisation_and_pooling() -> None:
    step, _ = trained(model(nn.ReLU, nw.float32), nw.float32)
    kinds = [n.attrs["kind"] for n in step.graph().nodes if n.op == "fused"]
    assert kinds.count("pooling") == 4
    plain, _ = trained(model(nn.ReLU, nw.float32), nw.float32, passes=OFF)
    assert step.memory(64).arena < plain.memory(64).arena


def test_steps_are_bitwise_equal_for_any_thread_count() -> None:
    runs = []
    try:
        for threads in (1, 2, 3):
            nw.set_num_threads(threads)
            runs.append(trained(model(nn.ReLU, nw.float32), nw.float32)[1])
    finally:
        nw.set_num_threads(None)
    for one, two, three in zip(*runs, strict=True):
        assert one.tobytes() == two.tobytes() == three.tobytes()


def test_under_autograd_places_are_saved_instead_of_images() -> None:
    x, target = batch(nw.float64)
    saved, grads = [], []
    for passes in ({}, OFF):
        network = model(nn.ReLU, nw.float64)
        fast = nw.compile(network, passes=passes)
        nn.CrossEntropyLoss()(fast(x), target).backward()
        saved.append(fast.memory(64, "train").saved)
        grads.append([p.grad.numpy() for p in network.parameters()])
    eager = model(nn.ReLU, nw.float64)
    nn.CrossEntropyLoss()(eager(x), target).backward()
    grads.append([p.grad.numpy() for p in eager.parameters()])
    assert saved[0] < 0.8 * saved[1]
    for a, b, c in zip(*grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(a, c, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "window", [(2, 2, 0), (3, 2, 1)], ids=["places are saved", "windows overlap"]
)
def test_of_several_nan_the_last_one_gets_the_gradient_as_in_pytorch(
    window: tuple[int, int, int],
) -> None:
    """Eager, compiled, and what PyTorch gives; of equal maxima it is the first one."""
    torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (2, 18, 9, 12)).astype(np.float32)
    x[rng.random(x.shape) < 0.3] = np.nan
    x[rng.random(x.shape) < 0.1] = -np.inf

    def gradient(lib: Any, compiled: bool = False) -> np.ndarray:
        layers = lib.nn.Conv2d(18, 18, 1, groups=18, bias=False), lib.nn.MaxPool2d(*window)
        layers[0].weight.data[...] = 1
        network = lib.nn.Sequential(*layers)
        network = nw.compile(network) if compiled else network
        image = lib.tensor(x, requires_grad=True)
        y = network(image)
        y.backward(lib.arange(y.numel()).reshape(y.shape).to(y.dtype))
        found: np.ndarray = image.grad.numpy()
        return found.copy()

    expected = gradient(torch)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(gradient(nw), expected)
    np.testing.assert_array_equal(gradient(nw, compiled=True), expected)
