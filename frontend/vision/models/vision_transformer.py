"""Vision Transformers (Dosovitskiy et al., arXiv:2010.11929)."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from ... import nn
from ...creation import zeros
from ...shaping import cat
from ...tensor import Tensor
from .weights import need_none

Norm = Callable[[int], nn.Module]
LAYER_NORM: Norm = partial(nn.LayerNorm, eps=1e-6)


class ConvStemConfig(NamedTuple):
    """One convolution, norm and activation of a stem of convolutions (arXiv:2106.14881)."""

    out_channels: int
    kernel_size: int
    stride: int
    norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d
    activation_layer: Callable[..., nn.Module] = nn.ReLU


class MLPBlock(nn.Sequential):
    """Linear, GELU, Linear, each Linear with a dropout behind it or its activation."""

    # Before version 2 the layers were linear_1 and linear_2: so they are in published weights.
    _version = 2

    def __init__(self, in_dim: int, mlp_dim: int, dropout: float) -> None:
        first, second = nn.Linear(in_dim, mlp_dim), nn.Linear(mlp_dim, in_dim)
        super().__init__(first, nn.GELU(), nn.Dropout(dropout), second, nn.Dropout(dropout))
        for layer in (first, second):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=1e-6)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        for old, new in (("linear_1.", "0."), ("linear_2.", "3.")):
            for name in ("weight", "bias"):
                if prefix + old + name in state_dict:
                    state_dict[prefix + new + name] = state_dict.pop(prefix + old + name)
        super()._load_from_state_dict(state_dict, prefix, *others)


class EncoderBlock(nn.Module):
    """Self-attention and an MLP, each behind a norm and added to its input."""

    def __init__(
        self,
        num_heads: int,
        hidden_dim: int,
        mlp_dim: int,
        dropout: float,
        attention_dropout: float,
        norm_layer: Norm = LAYER_NORM,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.ln_1 = norm_layer(hidden_dim)
        self.self_attention = nn.MultiheadAttention(
            hidden_dim, num_heads, dropout=attention_dropout, batch_first=True
        )
        self.dropout = nn.Dropout(dropout)
        self.ln_2 = norm_layer(hidden_dim)
        self.mlp = MLPBlock(hidden_dim, mlp_dim, dropout)

    def forward(self, input: Tensor) -> Tensor:
        """(N, tokens, hidden_dim) to the same."""
        x = self.ln_1(input)
        attended, _ = self.self_attention(x, x, x, need_weights=False)
        x = self.dropout(attended) + input
        return x + self.mlp(self.ln_2(x))


class Encoder(nn.Module):
    """Adds the learned positions and runs the blocks and a last norm."""

    def __init__(
        self,
        seq_length: int,
        num_layers: int,
        num_heads: int,
        hidden_dim: int,
        mlp_dim: int,
        dropout: float,
        attention_dropout: float,
        norm_layer: Norm = LAYER_NORM,
    ) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(zeros(1, seq_length, hidden_dim).normal_(std=0.02))
        self.dropout = nn.Dropout(dropout)
        sizes = (num_heads, hidden_dim, mlp_dim, dropout, attention_dropout)
        blocks = (EncoderBlock(*sizes, norm_layer) for _ in range(num_layers))
        self.layers = nn.Sequential(
            OrderedDict((f"encoder_layer_{i}", block) for i, block in enumerate(blocks))
        )
        self.ln = norm_layer(hidden_dim)

    def forward(self, input: Tensor) -> Tensor:
        """(N, tokens, hidden_dim) to the same."""
        x: Tensor = self.ln(self.layers(self.dropout(input + self.pos_embedding)))
        return x


class VisionTransformer(nn.Module):
    """Patches of an image and a class token through an encoder; the token is classified.

    Images are (N, 3, image_size, image_size). With ``representation_size`` a layer with tanh stands
    before the last one; ``conv_stem_configs`` replaces the convolution that cuts the patches.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        num_layers: int,
        num_heads: int,
        hidden_dim: int,
        mlp_dim: int,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        num_classes: int = 1000,
        representation_size: int | None = None,
        norm_layer: Norm = LAYER_NORM,
        conv_stem_configs: Sequence[ConvStemConfig] | None = None,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(
                f"VisionTransformer: image_size {image_size} must be a multiple of patch_size "
                f"{patch_size}"
            )
        self.image_size = image_size
        self.patch_size = patch_size
        self.hidden_dim = hidden_dim
        self.mlp_dim = mlp_dim
        self.attention_dropout = attention_dropout
        self.dropout = dropout
        self.num_classes = num_classes
        self.representation_size = representation_size
        self.norm_layer = norm_layer
        self.conv_proj = _patches(patch_size, hidden_dim, conv_stem_configs)
        self.class_token = nn.Parameter(zeros(1, 1, hidden_dim))
        self.seq_length = (image_size // patch_size) ** 2 + 1
        self.encoder = Encoder(
            self.seq_length,
            num_layers,
            num_heads,
            hidden_dim,
            mlp_dim,
            dropout,
            attention_dropout,
            norm_layer,
        )
        self.heads = _heads(hidden_dim, num_classes, representation_size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, num_classes) scores of images."""
        n, _, height, width = x.shape
        if (height, width) != (self.image_size, self.image_size):
            raise ValueError(
                f"VisionTransformer: the image is {height} x {width}, expected {self.image_size} x "
                f"{self.image_size}; resize it, or make a model with image_size={height}"
            )
        x = self.conv_proj(x).reshape(n, self.hidden_dim, self.seq_length - 1).permute(0, 2, 1)
        token = self.class_token.expand(n, -1, -1)
        x = self.encoder(cat([token, x], dim=1))
        scores: Tensor = self.heads(x[:, 0])
        return scores


def _patches(patch_size: int, hidden_dim: int, stem: Sequence[ConvStemConfig] | None) -> nn.Module:
    """The layer that makes a vector of each patch."""
    if stem is None:
        patches = nn.Conv2d(3, hidden_dim, kernel_size=patch_size, stride=patch_size)
        nn.init.trunc_normal_(patches.weight, std=math.sqrt(1 / (3 * patch_size**2)))
        _zero_bias(patches)
        return patches
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for i, config in enumerate(stem):
        convolution = nn.Conv2d(
            channels,
            config.out_channels,
            config.kernel_size,
            config.stride,
            padding=(config.kernel_size - 1) // 2,
            bias=False,
        )
        channels = config.out_channels
        layers[f"conv_bn_relu_{i}"] = nn.Sequential(
            convolution, config.norm_layer(channels), config.activation_layer(inplace=True)
        )
    layers["conv_last"] = last = nn.Conv2d(channels, hidden_dim, kernel_size=1)
    nn.init.normal_(last.weight, std=math.sqrt(2 / hidden_dim))
    _zero_bias(last)
    return nn.Sequential(layers)


def _heads(hidden_dim: int, num_classes: int, representation_size: int | None) -> nn.Sequential:
    """The classifier; its last layer starts with zeros."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    features = hidden_dim
    if representation_size is not None:
        layers["pre_logits"] = before = nn.Linear(hidden_dim, representation_size)
        layers["act"] = nn.Tanh()
        nn.init.trunc_normal_(before.weight, std=math.sqrt(1 / hidden_dim))
        _zero_bias(before)
        features = representation_size
    layers["head"] = head = nn.Linear(features, num_classes)
    nn.init.zeros_(head.weight)
    _zero_bias(head)
    return nn.Sequential(layers)


def _zero_bias(layer: nn.Conv2d | nn.Linear) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _vision_transformer(
    name: str, sizes: tuple[int, int, int, int, int], weights: Any, kwargs: dict[str, Any]
) -> VisionTransformer:
    """(patch_size, num_layers, num_heads, hidden_dim, mlp_dim) and the other arguments."""
    need_none(name, weights)
    return VisionTransformer(kwargs.pop("image_size", 224), *sizes, **kwargs)


def vit_b_16(*, weights: Any = None, progress: bool = True, **kwargs: Any) -> VisionTransformer:
    """ViT-B/16: 12 layers of 768 features, patches of 16 x 16; 86,567,656 parameters."""
    return _vision_transformer("vit_b_16", (16, 12, 12, 768, 3072), weights, kwargs)


def vit_b_32(*, weights: Any = None, progress: bool = True, **kwargs: Any) -> VisionTransformer:
    """ViT-B/32: 12 layers of 768 features, patches of 32 x 32."""
    return _vision_transformer("vit_b_32", (32, 12, 12, 768, 3072), weights, kwargs)


def vit_l_16(*, weights: Any = None, progress: bool = True, **kwargs: Any) -> VisionTransformer:
    """ViT-L/16: 24 layers of 1024 features, patches of 16 x 16."""
    return _vision_transformer("vit_l_16", (16, 24, 16, 1024, 4096), weights, kwargs)


def vit_l_32(*, weights: Any = None, progress: bool = True, **kwargs: Any) -> VisionTransformer:
    """ViT-L/32: 24 layers of 1024 features, patches of 32 x 32."""
    return _vision_transformer("vit_l_32", (32, 24, 16, 1024, 4096), weights, kwargs)


def vit_h_14(*, weights: Any = None, progress: bool = True, **kwargs: Any) -> VisionTransformer:
    """ViT-H/14: 32 layers of 1280 features, patches of 14 x 14."""
    return _vision_transformer("vit_h_14", (14, 32, 16, 1280, 5120), weights, kwargs)
