"""Vision Transformers: torchvision's parameters and keys, torch's numbers from the same source."""

import hashlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn
from netwright.errors import UnsupportedError
from netwright.frontend.vision.models import vision_transformer as source
from netwright.vision.models import VisionTransformer, vit_b_16

TINY = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 3, "hidden_dim": 48}
STEM = [source.ConvStemConfig(4, 3, 2), source.ConvStemConfig(6, 3, 4)]


def tiny(model: Any = VisionTransformer, **others: Any) -> Any:
    return model(**{**TINY, "mlp_dim": 96, "num_classes": 10, **others})


def images(n: int = 3) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, 3, 32, 32), np.float32)


def digest(model: nn.Module) -> str:
    """Of names and shapes of the state, in order."""
    lines = (f"{name} {tuple(value.shape)}" for name, value in model.state_dict().items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# Computed once from torchvision 0.24.1.
def test_vit_b_16_has_the_parameters_and_keys_of_torchvision() -> None:
    model = vit_b_16()
    assert sum(p.numel() for p in model.parameters()) == 86_567_656
    assert digest(model).startswith("b124b34d9346c58cb7db25e1bfc36a32")


def test_a_stem_of_convolutions_and_a_representation_have_the_keys_of_torchvision() -> None:
    model = tiny(
        num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=1000,
        representation_size=5, conv_stem_configs=STEM,
    )  # fmt: skip
    assert digest(model).startswith("8f58f8ca4ac241aba805924ed851a85a")
    assert model.eval()(nw.from_numpy(images(2))).shape == (2, 1000)


@pytest.fixture(scope="module")
def twin() -> Any:
    """The same source file as a torch module."""
    torch = pytest.importorskip("torch")
    text = Path(source.__file__).read_text()
    head, rest = text.split("from ... import nn\n")
    rest = rest.split("from .weights import need_none\n")[1]
    module = types.ModuleType("torch_vision_transformer")
    sys.modules[module.__name__] = module
    names = "from torch import Tensor, cat, nn, zeros\n"
    names += "from netwright.frontend.vision.models.weights import need_none\n"
    exec(compile(head + names + rest, "vit", "exec"), module.__dict__)
    torch.manual_seed(0)
    model = tiny(module.VisionTransformer)
    torch.nn.init.normal_(model.heads.head.weight)
    del sys.modules[module.__name__]
    return model


def ours(twin: Any) -> nn.Module:
    model = tiny()
    model.load_state_dict(twin.state_dict())
    return model


def close(found: Any, wanted: Any, tolerance: float = 2e-5) -> None:
    scale = float(abs(wanted).max())
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=tolerance * scale)


@pytest.mark.parametrize("compiled", [False, True])
def test_scores_equal_those_of_torch(twin: Any, compiled: bool) -> None:
    torch = pytest.importorskip("torch")
    model = ours(twin).eval()
    run = nw.compile(model) if compiled else model
    with torch.no_grad(), nw.no_grad():
        for n in (3, 1):
            wanted = twin.eval()(torch.from_numpy(images(n))).numpy()
            close(run(nw.from_numpy(images(n))).numpy(), wanted)
    if compiled:
        assert run.fallbacks == 0


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_equal_those_of_torch(twin: Any, compiled: bool) -> None:
    torch = pytest.importorskip("torch")
    model = ours(twin).train()
    run = nw.compile(model) if compiled else model
    twin.train().zero_grad()
    weights = np.random.default_rng(1).standard_normal((3, 10), np.float32)
    (twin(torch.from_numpy(images())) * torch.from_numpy(weights)).sum().backward()
    (run(nw.from_numpy(images())) * nw.from_numpy(weights)).sum().backward()
    wanted = {name: p.grad.numpy() for name, p in twin.named_parameters()}
    scale = max(abs(g).max() for g in wanted.values())
    for name, p in model.named_parameters():
        np.testing.assert_allclose(
            p.grad.numpy(), wanted[name], rtol=1e-3, atol=1e-5 * scale, err_msg=name
        )
    if compiled:
        assert run.fallbacks == 0


def test_a_block_is_seven_kernels_without_copies() -> None:
    fast = nw.compile(tiny(num_layers=3).eval())
    fast(images())
    graph = fast.graph("optimized", "eval")
    block = "encoder.layers.encoder_layer_1"
    inside = [n for n in graph.nodes if n.source.module.startswith(block) and n.operands]
    kernels = [n.op for n in inside if n.op != "pack_matrix"]
    assert kernels == [
        "layer_norm", "linear_packed", "attention", "fused", "layer_norm", "fused", "fused",
    ]  # fmt: skip
    moved = [n.op for n in graph.nodes if n.op in ("permute", "slice", "cat", "broadcast_to")]
    # Channels-last pixels, the class token of every image, in front of the patches; its row.
    assert moved == ["permute", "broadcast_to", "cat", "slice"]


def test_published_weights_with_the_old_names_of_the_layers_load() -> None:
    model, other = tiny(), tiny()
    state = dict(model.state_dict())
    for key in list(state):
        for new, old in ((".mlp.0.", ".mlp.linear_1."), (".mlp.3.", ".mlp.linear_2.")):
            if new in key:
                state[key.replace(new, old)] = state.pop(key)
    keys = list(state)
    other.load_state_dict(state)
    assert list(state) == keys, "the caller's dictionary was changed"
    for name, value in model.state_dict().items():
        assert nw.equal(value, other.state_dict()[name]), name


def test_an_image_of_another_size_is_an_error_that_names_both() -> None:
    with pytest.raises(ValueError, match=r"32 x 40, expected 32 x 32"):
        tiny()(nw.zeros(1, 3, 32, 40))
    with pytest.raises(ValueError, match="image_size 33 must be a multiple of patch_size 8"):
        tiny(image_size=33)
    with pytest.raises(UnsupportedError, match="no pretrained weights"):
        vit_b_16(weights="IMAGENET1K_V1")
