"""Classification networks with the names, signatures and state_dict keys of ``torchvision.models``.

The functions build a network with random weights; ``load_state_dict`` takes the weights of a
network of the same name that torchvision has trained. See docs/models.md.
"""

from .alexnet import AlexNet, alexnet
from .densenet import DenseNet, densenet121
from .efficientnet import EfficientNet, efficientnet_b0
from .inception import Inception3, InceptionOutputs, inception_v3
from .mobilenetv2 import MobileNetV2, mobilenet_v2
from .mobilenetv3 import MobileNetV3, mobilenet_v3_large, mobilenet_v3_small
from .resnet import ResNet, resnet18, resnet34, resnet50
from .squeezenet import SqueezeNet, squeezenet1_1
from .vgg import VGG, vgg11, vgg11_bn, vgg16, vgg16_bn
from .vision_transformer import (
    VisionTransformer,
    vit_b_16,
    vit_b_32,
    vit_h_14,
    vit_l_16,
    vit_l_32,
)

__all__ = [
    "VGG",
    "AlexNet",
    "DenseNet",
    "EfficientNet",
    "Inception3",
    "InceptionOutputs",
    "MobileNetV2",
    "MobileNetV3",
    "ResNet",
    "SqueezeNet",
    "VisionTransformer",
    "alexnet",
    "densenet121",
    "efficientnet_b0",
    "inception_v3",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "resnet18",
    "resnet34",
    "resnet50",
    "squeezenet1_1",
    "vgg11",
    "vgg11_bn",
    "vgg16",
    "vgg16_bn",
    "vit_b_16",
    "vit_b_32",
    "vit_h_14",
    "vit_l_16",
    "vit_l_32",
]
