from torch import nn


def digits_cnn(width: int) -> nn.Module:
    """Three 3x3 convolutions with batch norm, of `width`, 2x and 4x channels: (n, 1, 8, 8) -> (n, 10) logits."""
    return nn.Sequential(
        *_convolution(1, width),
        *_convolution(width, 2 * width),
        nn.MaxPool2d(2),
        *_convolution(2 * width, 4 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, 10),
    )


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
