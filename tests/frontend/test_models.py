"""The model zoo: names and shapes of the state, arguments, initial weights, eager results.

Comparisons with PyTorch are in ``tests/bridge/test_zoo.py``.
"""

from __future__ import annotations

import hashlib
import math
from functools import partial
from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn
from netwright.errors import UnsupportedError
from netwright.frontend.nn import init
from netwright.frontend.vision.models.channels import make_divisible
from netwright.frontend.vision.models.mobilenetv3 import InvertedResidualConfig
from netwright.frontend.vision.models.resnet import BasicBlock, Bottleneck
from netwright.vision import models, ops

# Of the models of torchvision 0.24.1: parameters, entries of the state_dict, SHA-256 of the sorted
# lines "key shape".
STATES = {
    "alexnet": (61100840, 16, "935c1ea73a7869eef424454bd79f9a16fdcb7a6342ab404d13f9ead2466d1092"),
    "vgg11": (132863336, 22, "b11acd4f90d9643fb47e4326d0f40d1ae7ee580b0509f272826300b0996358c2"),
    "vgg11_bn": (132868840, 62, "56ed5816909a813293b13a7b24c808b5f2594f625d2f5b4ae45cac233d75a268"),
    "vgg16": (138357544, 32, "ba63c2556d912509cba94697742dd762a05c284047650150bab0c2ddc806bb59"),
    "vgg16_bn": (138365992, 97, "86bad13b66635552f31b1a53eaf739fc05bf6111f696e97fd006755355d50d26"),
    "resnet18": (11689512, 122, "5191d63ec398959223d67ef37376f9061e6965b859fc2d4e40e23d037147a0d7"),
    "resnet34": (21797672, 218, "f8de2a1812ef85e46b3f60c61589921afee0c2a6d4165e27508ad215f101671b"),
    "resnet50": (25557032, 320, "a87e91cd6bd1f939e0b723852e567a7205d33b0ac984ac02dd1a5f225d37c036"),
    "squeezenet1_1": (
        1235496, 52, "3fbd2a746421cada0f54c8e59ea6b1b6e563ad4cc1db312b5017c6d8fed0ee08",
    ),
    "mobilenet_v2": (
        3504872, 314, "e3eb10f890f74c6ee65e79c53b1a3c9ee5dd5c8d8eb4ec3185d92cbea9d47b89",
    ),
    "mobilenet_v3_small": (
        2542856, 244, "8fee267f118ca2d792c601972a6569784230d072ae8bdc09f798603f30decf4f",
    ),
    "mobilenet_v3_large": (
        5483032, 312, "555a3f5e3bcc126ea392ac52ab422c6a68f733ea2a9046dbf0f1b191dd1a09af",
    ),
    "efficientnet_b0": (
        5288548, 360, "98a6d92c040c4bca9b0daea5616d2df84c1cbc4d570afdfbdd5e6ede87f9a700",
    ),
    "densenet121": (
        7978856, 727, "9c659ec278435e95dba57acdc3b0b3e81670779625122b059b6168bbfa51e232",
    ),
    "inception_v3": (
        27161264, 580, "4c9e13f64584de741d008cd24d3aae249cd3871df374ba3da192ffb031ba7376",
    ),
}  # fmt: skip
# The smallest images that a network takes.
SMALLEST = {
    "alexnet": 63,
    "resnet18": 1,
    "resnet50": 1,
    "squeezenet1_1": 17,
    "mobilenet_v2": 1,
    "mobilenet_v3_small": 1,
    "mobilenet_v3_large": 1,
    "efficientnet_b0": 1,
    "densenet121": 29,
    "inception_v3": 75,
}
every_model = pytest.mark.parametrize("name", STATES)


@pytest.fixture
def empty_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are built with the weights that their memory holds, in no time."""

    def keep(tensor: nw.Tensor, *args: Any, **kwargs: Any) -> nw.Tensor:
        return tensor

    for name in ("uniform_", "normal_", "trunc_normal_"):
        monkeypatch.setattr(init, name, keep)


def build(name: str, **kwargs: Any) -> Any:
    return getattr(models, name)(**kwargs)


def images(size: int, batch: int = 1) -> nw.Tensor:
    rng = np.random.default_rng(0)
    return nw.from_numpy(rng.standard_normal((batch, 3, size, size), np.float32))


# -- the state ------------------------------------------------------------------------------------


@every_model
@pytest.mark.usefixtures("empty_weights")
def test_the_state_dict_has_the_keys_and_shapes_of_torchvisions(name: str) -> None:
    model = build(name)
    state = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    text = "\n".join(sorted(f"{key} {shape}" for key, shape in state.items()))
    count = sum(p.numel() for p in model.parameters())
    assert (count, len(state), hashlib.sha256(text.encode()).hexdigest()) == STATES[name]


def test_every_function_of_the_zoo_is_in_this_table() -> None:
    functions = {name for name in models.__all__ if name.islower()}
    others = {name for name in functions if name.startswith("vit")}  # have a test of their own
    assert functions - others == set(STATES)


@pytest.mark.parametrize("name", ["vgg11_bn", "densenet121", "inception_v3"])
@pytest.mark.usefixtures("empty_weights")
def test_num_classes_sets_the_last_layers_outputs(name: str) -> None:
    last = list(build(name, num_classes=7).state_dict().items())[-1]
    assert last[0].endswith("bias")
    assert last[1].shape == (7,)


def test_modules_are_found_under_torchvisions_module_names() -> None:
    import netwright.vision.models as found
    import netwright.vision.models.resnet as resnet

    assert found is models
    assert nw.vision.models is models
    assert resnet.ResNet is models.ResNet


# -- arguments ------------------------------------------------------------------------------------


@every_model
def test_weights_other_than_none_are_an_error_that_says_what_to_do(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{name}.*'DEFAULT'.*load_state_dict"):
        build(name, weights="DEFAULT")


def test_constructors_name_the_wrong_argument() -> None:
    with pytest.raises(ValueError, match="base_width=128"):
        BasicBlock(8, 8, base_width=128)
    with pytest.raises(NotImplementedError, match="dilation"):
        BasicBlock(8, 8, dilation=2)
    with pytest.raises(ValueError, match="3-element"):
        models.ResNet(BasicBlock, [1, 1, 1, 1], replace_stride_with_dilation=[True])
    with pytest.raises(ValueError, match="1_2: 1_0 or 1_1"):
        models.SqueezeNet("1_2")
    with pytest.raises(ValueError, match="rows of 4"):
        models.MobileNetV2(inverted_residual_setting=[[1, 16, 1]])
    with pytest.raises(ValueError, match="not be empty"):
        models.MobileNetV3([], 16)
    with pytest.raises(TypeError, match="InvertedResidualConfig"):
        models.MobileNetV3([(16, 3, 16, 16)], 16)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="not be empty"):
        models.EfficientNet([], 0.2)
    with pytest.raises(TypeError, match="MBConvConfig"):
        models.EfficientNet([(1, 3, 1, 32, 16, 1)], 0.2)  # type: ignore[list-item]
    with pytest.raises(UnsupportedError, match="memory_efficient"):
        models.densenet121(memory_efficient=True)
    with pytest.raises(ValueError, match="7 instead of 1"):
        models.inception_v3(inception_blocks=[nn.Identity])


def test_resnet_dilates_instead_of_striding() -> None:
    model = models.ResNet(
        Bottleneck, [1, 2, 2, 1], replace_stride_with_dilation=[False, True, True], num_classes=5
    )
    convolutions = [
        (block.conv2.stride[0], block.conv2.dilation[0])
        for stage in (model.layer2, model.layer3, model.layer4)
        for block in stage
    ]
    assert convolutions == [(2, 1), (1, 1), (1, 1), (1, 2), (1, 2)]


def test_groups_and_width_make_resnext_and_wide_blocks() -> None:
    block = Bottleneck(64, 64, groups=32, base_width=4)
    assert block.conv2.weight.shape == (128, 4, 3, 3)
    assert block.conv3.weight.shape == (256, 128, 1, 1)


@pytest.mark.parametrize(("reduced", "last", "hidden"), [(False, 96, 576), (True, 48, 288)])
def test_mobilenet_v3_halves_its_tail(reduced: bool, last: int, hidden: int) -> None:
    model = models.mobilenet_v3_small(reduced_tail=reduced, dilated=True)
    block = model.features[11]
    assert block.block[0][0].weight.shape == (hidden, last, 1, 1)
    assert block.block[1][0].dilation == (2, 2)
    assert model.features[8].block[1][0].dilation == (1, 1)
    assert model.classifier[0].out_features == (512 if reduced else 1024)


def test_channel_counts_are_multiples_not_below_nine_tenths() -> None:
    assert [make_divisible(c, 8) for c in (3, 16, 17.9, 24 * 0.75, 30)] == [8, 16, 24, 24, 32]
    assert make_divisible(3, 8, minimum=16) == 16
    wide = models.MobileNetV2(width_mult=0.5, num_classes=3)
    assert (wide.features[0].out_channels, wide.last_channel) == (16, 1280)


def test_mb_conv_config_scales_width_and_depth() -> None:
    from netwright.vision.models.efficientnet import MBConvConfig

    config = MBConvConfig(6, 3, 2, 40, 80, 3, width_mult=1.1, depth_mult=1.2)
    assert (config.input_channels, config.out_channels, config.num_layers) == (48, 88, 4)
    later = config.after_first()
    assert (later.input_channels, later.stride, config.stride) == (88, 1, 2)


# -- initial weights ------------------------------------------------------------------------------


def spread(tensor: Any) -> float:
    return float(tensor.detach().numpy().std())


def test_convolutions_start_normal_by_fan_out() -> None:
    nw.manual_seed(0)
    model = models.resnet18(num_classes=3)
    weight = model.layer3[0].conv2.weight
    assert spread(weight) == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.01)
    depthwise = models.mobilenet_v2(num_classes=3).features[5].conv[1][0].weight
    assert depthwise.shape == (192, 1, 3, 3)
    assert spread(depthwise) == pytest.approx(math.sqrt(2 / (192 * 9)), rel=0.1)


def test_zero_init_residual_makes_blocks_their_shortcuts() -> None:
    model = models.ResNet(Bottleneck, [1, 1, 1, 1], zero_init_residual=True, num_classes=3)
    assert (model.layer2[0].bn3.weight.detach().numpy() == 0).all()
    assert (model.layer2[0].bn2.weight.detach().numpy() == 1).all()


def test_last_layers_start_as_the_papers_code_does() -> None:
    nw.manual_seed(0)
    last = models.squeezenet1_1(num_classes=40).classifier[1]
    assert spread(last.weight) == pytest.approx(0.01, rel=0.05)
    assert (last.bias.detach().numpy() == 0).all()
    linear = models.efficientnet_b0(num_classes=25).classifier[1]
    assert 0.19 < float(np.abs(linear.weight.detach().numpy()).max()) <= 0.2
    linear = models.mobilenet_v3_small(num_classes=25).classifier[3]
    assert spread(linear.weight) == pytest.approx(0.01, rel=0.05)
    dense = models.DenseNet(8, (1, 1), 8, num_classes=3)
    assert (dense.classifier.bias.detach().numpy() == 0).all()
    assert spread(dense.features.denseblock1.denselayer1.conv2.weight) == pytest.approx(
        math.sqrt(2 / (32 * 9)), rel=0.1
    )


def test_inception_starts_truncated_normal_or_as_its_layers_do() -> None:
    nw.manual_seed(0)
    model = narrow_inception()
    assert spread(model.fc.weight) == pytest.approx(0.1, rel=0.05)
    assert spread(model.AuxLogits.fc.weight) == pytest.approx(0.001, rel=0.1)
    plain = narrow_inception(init_weights=False)
    assert spread(plain.fc.weight) == pytest.approx(1 / math.sqrt(3 * 2048), rel=0.05)


def test_vgg_leaves_the_layers_as_they_are_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        "netwright.frontend.vision.models.vgg.initialise", lambda *a, **k: seen.append((a, k))
    )
    monkeypatch.setattr(init, "uniform_", lambda tensor, *a, **k: tensor)
    model = models.VGG(nn.Identity(), init_weights=False)
    assert not seen
    model = models.VGG(nn.Identity())
    assert seen == [((model,), {"linear_std": 0.01})]


# -- results --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALLEST)
@pytest.mark.usefixtures("empty_weights")
def test_eager_logits_of_the_smallest_images(name: str) -> None:
    options = {"aux_logits": False} if name == "inception_v3" else {}
    model = build(name, num_classes=4, **options).eval()
    for parameter in model.parameters():
        parameter.detach().numpy().fill(0.01)
    with nw.no_grad():
        result = model(images(SMALLEST[name]))
    assert result.shape == (1, 4)
    assert np.isfinite(result.numpy()).all()


@pytest.mark.usefixtures("empty_weights")
def test_vgg_halves_images_five_times() -> None:
    from netwright.vision.models.vgg import VGG11, VGG16, make_features

    small = make_features(VGG11, batch_norm=False).eval()
    assert len(small) == 21
    assert small(images(32)).shape == (1, 512, 1, 1)
    large = make_features(VGG16, batch_norm=True)
    kinds = [type(layer).__name__ for layer in large]
    assert (kinds.count("Conv2d"), kinds.count("BatchNorm2d"), kinds.count("MaxPool2d")) == (
        13, 13, 5,
    )  # fmt: skip


@pytest.mark.usefixtures("empty_weights")
def test_smaller_images_are_an_error_that_names_the_model_line() -> None:
    model = models.squeezenet1_1().eval()
    with pytest.raises(RuntimeError, match=r"max_pool2d.*too small.*squeezenet\.py:\d+"):
        model(images(16))


class Narrow(nn.Module):
    """Stands for the convolutions of Inception: the right shapes at no cost."""

    def __init__(self, in_channels: int, out_channels: int, **kwargs: Any) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(
            kwargs["kernel_size"], kwargs.get("stride", 1), kwargs.get("padding", 0)
        )
        self.weight = nn.Parameter(nw.ones(1, out_channels, 1, 1))

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        return self.pool(x).mean(1, keepdim=True) * self.weight


def narrow_inception(**kwargs: Any) -> Any:
    from netwright.vision.models.inception import BLOCKS

    blocks = [Narrow, *(partial(block, conv_block=Narrow) for block in BLOCKS[1:])]
    return models.Inception3(num_classes=3, inception_blocks=blocks, **kwargs)


@pytest.mark.usefixtures("empty_weights")
def test_inception_returns_auxiliary_logits_in_training_alone() -> None:
    model = narrow_inception()
    x = images(299)
    with nw.no_grad():
        found = model.train()(x)
        assert type(found) is models.InceptionOutputs
        assert found._fields == ("logits", "aux_logits")
        assert (found.logits.shape, found.aux_logits.shape) == ((1, 3), (1, 3))
        assert model.eval()(x).shape == (1, 3)
        assert narrow_inception(aux_logits=False).train()(x).shape == (1, 3)


@pytest.mark.usefixtures("empty_weights")
def test_transform_input_undoes_one_normalisation_and_does_the_other() -> None:
    class Keep(Narrow):
        seen: list[np.ndarray] = []  # noqa: RUF012

        def forward(self, x: nw.Tensor) -> nw.Tensor:
            self.seen.append(x.numpy())
            return super().forward(x)

    model = narrow_inception(transform_input=True).eval()
    model.Conv2d_1a_3x3 = Keep(3, 32, kernel_size=3, stride=2)
    pixels = np.random.default_rng(0).random((1, 3, 75, 75), np.float32)
    mean = np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1)
    std = np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1)
    with nw.no_grad():
        model(nw.from_numpy((pixels - mean) / std))
    np.testing.assert_allclose(Keep.seen[0], (pixels - 0.5) / 0.5, atol=1e-6)


def test_dense_layers_drop_their_output_in_training() -> None:
    model = models.DenseNet(8, (2,), 8, drop_rate=0.9, num_classes=2)
    layer = model.features.denseblock1.denselayer2
    x = nw.randn(2, 16, 6, 6)
    assert float((layer.train()([x[:, :8], x[:, 8:]]) == 0).float().mean().item()) > 0.7
    assert float((layer.eval()(x) == 0).float().mean().item()) < 0.1


# -- the shared blocks ----------------------------------------------------------------------------


def test_conv2d_norm_activation_pads_to_the_same_size_and_leaves_parts_out() -> None:
    full = ops.Conv2dNormActivation(3, 4, kernel_size=(3, 5), dilation=(2, 1))
    assert [type(layer) for layer in full] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert full[0].bias is None
    assert full(images(9)).shape == (1, 4, 9, 9)
    assert full[2].inplace is True
    bare = ops.Conv2dNormActivation(3, 4, 3, padding=0, norm_layer=None, activation_layer=None)
    assert len(bare) == 1
    assert bare[0].bias is not None
    assert bare(images(9)).shape == (1, 4, 7, 7)
    assert bare.out_channels == 4
    plain = ops.Conv2dNormActivation(3, 4, activation_layer=nn.Sigmoid, inplace=None, bias=True)
    assert plain[0].bias is not None


def test_squeeze_excitation_scales_channels() -> None:
    nw.manual_seed(0)
    layer = ops.SqueezeExcitation(3, 2, activation=nn.SiLU, scale_activation=nn.Hardsigmoid)
    x = images(5, batch=2)
    with nw.no_grad():
        y = layer(x)
        state = {key: value.numpy() for key, value in layer.state_dict().items()}
        means = x.numpy().mean((2, 3))
        hidden = means @ state["fc1.weight"][:, :, 0, 0].T + state["fc1.bias"]
        hidden = hidden / (1 + np.exp(-hidden))
        scale = hidden @ state["fc2.weight"][:, :, 0, 0].T + state["fc2.bias"]
    expected = x.numpy() * np.clip(scale / 6 + 0.5, 0, 1)[:, :, None, None]
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("mode", "patterns"), [("row", 8), ("batch", 2)])
def test_stochastic_depth_drops_samples_or_the_whole_batch(mode: str, patterns: int) -> None:
    nw.manual_seed(0)
    layer = ops.StochasticDepth(0.25, mode)
    x = nw.ones(3, 2, 2)
    seen = set()
    for _ in range(100):
        y = layer(x).numpy()
        factors = y[:, 0, 0]
        assert (y == factors[:, None, None]).all()
        assert set(factors.tolist()) <= {0.0, np.float32(1 / 0.75).item()}
        seen.add(tuple(factors.tolist()))
    assert len(seen) == patterns
    assert layer.eval()(x) is x
    assert repr(layer) == f"StochasticDepth(p=0.25, mode={mode})"


def test_stochastic_depth_keeps_nothing_or_everything_at_the_ends() -> None:
    x = nw.ones(4, 1)
    assert ops.stochastic_depth(x, 0.0, "row") is x
    assert (ops.stochastic_depth(x, 1.0, "row").numpy() == 0).all()


@pytest.mark.parametrize(("p", "mode", "wrong"), [(1.5, "row", "1.5"), (0.5, "column", "column")])
def test_stochastic_depth_refuses_what_has_no_meaning(p: float, mode: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        ops.stochastic_depth(nw.ones(2, 2), p, mode)


def test_a_config_with_hardswish_says_so() -> None:
    made = InvertedResidualConfig(16, 3, 16, 16, False, "HS", 1, 1, 1.0)
    assert made.use_hs
    assert not InvertedResidualConfig(16, 3, 16, 16, False, "RE", 1, 1, 1.0).use_hs
