from torch import nn


def lenet(*, width: int, classes: int, dropout: float) -> nn.Module:
    """LeNet-5's shape (LeCun et al. 1998) with batch norm and ReLU: (n, 1, 28, 28) -> (n, classes) logits."""
    return nn.Sequential(
        *_convolution(1, width),
        *_convolution(width, 2 * width),
        nn.Flatten(),
        nn.Linear(2 * width * 7 * 7, 8 * width),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(8 * width, classes),
    )


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 5, padding=2, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)
