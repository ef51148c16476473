from torch import nn

from relight_trainer.supernet.choices import Choice


def digits_supernet(width: int, choices: int) -> nn.Module:
    """`choices` blocks of four convolutions to choose from, batch norm after each: (n, 1, 8, 8) -> (n, 10) logits.

    A block's norm is one for all its options: its running statistics mix the paths, and no path can be evaluated with
    them before they are computed anew.
    """
    blocks: list[nn.Module] = []
    for i in range(choices):
        blocks += [_convolutions(width), nn.BatchNorm2d(width), nn.ReLU()]
        if i == 0:
            blocks.append(nn.MaxPool2d(2))
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 10),
    )


def _convolutions(width: int) -> Choice:
    def convolution(kernel: int, groups: int = 1) -> nn.Conv2d:
        return nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=groups, bias=False)

    return Choice(
        convolution(3),
        convolution(5),
        nn.Sequential(convolution(3, groups=width), convolution(1)),
        nn.Sequential(convolution(5, groups=width), convolution(1)),
    )
