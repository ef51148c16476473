"""Residual networks (He et al. 2015), with the stride in the 3x3 convolution ("v1.5"), named as torchvision names them.

Weights of torchvision's and timm's models of the same names fit.
"""

from functools import partial
from typing import Literal

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: (n, c, h, w) -> (n, width, h / stride, w / stride)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        z: Tensor = self.relu(y.add_(x if self.downsample is None else self.downsample(x)))
        return z


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions: (n, c, h, w) -> (n, 4 width, h / stride, w / stride)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _convolution(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        z: Tensor = self.relu(y.add_(x if self.downsample is None else self.downsample(x)))
        return z


Block = BasicBlock | Bottleneck


class ResNet(nn.Module):
    """(n, channels, h, w) -> (n, classes) logits."""

    def __init__(
        self,
        block: type[Block],
        depths: tuple[int, int, int, int],
        *,
        classes: int,
        channels: int = 3,
        width: int = 64,
        stem: Literal["imagenet", "small"] = "imagenet",
        zero_init_residual: bool = False,
    ) -> None:
        """`stem` small is for images such as CIFAR's: one 3x3 convolution, no pooling.

        With `zero_init_residual` each block begins as the identity (Goyal et al. 2017).
        """
        super().__init__()
        if stem == "imagenet":
            self.conv1 = _convolution(channels, width, 7, 2)
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = _convolution(channels, width, 3)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        out = block.expansion
        self.layer1 = _stage(block, depths[0], width, width, 1)
        self.layer2 = _stage(block, depths[1], width * out, width * 2, 2)
        self.layer3 = _stage(block, depths[2], width * 2 * out, width * 4, 2)
        self.layer4 = _stage(block, depths[3], width * 4 * out, width * 8, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width * 8 * out, classes)
        self._initialise(zero_init_residual)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits

    def _initialise(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, Block):
                last = module.bn2 if isinstance(module, BasicBlock) else module.bn3
                nn.init.zeros_(last.weight)


resnet18 = partial(ResNet, BasicBlock, (2, 2, 2, 2))
resnet34 = partial(ResNet, BasicBlock, (3, 4, 6, 3))
resnet50 = partial(ResNet, Bottleneck, (3, 4, 6, 3))


def _stage(block: type[Block], depth: int, inputs: int, width: int, stride: int) -> nn.Sequential:
    first = block(inputs, width, stride)
    return nn.Sequential(first, *(block(width * block.expansion, width, 1) for _ in range(depth - 1)))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
