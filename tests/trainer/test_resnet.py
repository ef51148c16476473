import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from relight_trainer.config import parse
from relight_trainer.models.resnet import BasicBlock, Bottleneck
from relight_trainer.registry import build
from relight_trainer.settings.model import MODELS


def built(**model: object) -> nn.Module:
    module: nn.Module = build(MODELS, parse({"model": model}).model)
    return module


# The numbers that torchvision's documentation gives for its models of these names.
@pytest.mark.parametrize(
    ("name", "parameters", "giga_macs"),
    [("resnet18", 11_689_512, 1.814), ("resnet34", 21_797_672, 3.664), ("resnet50", 25_557_032, 4.089)],
)
def test_residual_networks_have_the_published_parameters_and_operations(
    name: str, parameters: int, giga_macs: float
) -> None:
    with torch.device("meta"):
        model = built(type=name).eval()
        images = torch.empty(1, 3, 224, 224)
    assert sum(p.numel() for p in model.parameters()) == parameters
    with FlopCounterMode(display=False) as counter:
        assert model(images).shape == (1, 1000)
    assert abs(counter.get_total_flops() / 2e9 - giga_macs) < 0.001


def test_weights_are_called_as_everywhere() -> None:
    names = set(built(type="resnet50").state_dict())
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.downsample.0.weight",
        "layer3.5.conv3.weight",
        "fc.bias",
    } <= names
    assert len(names) == 320  # torchvision's
    assert len(built(type="resnet18").state_dict()) == 122


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_with_zero_init_each_block_begins_as_the_identity(name: str) -> None:
    model = built(type=name, width=8, zero_init_residual=True, stem="small")
    inputs = torch.rand(2, 3, 9, 9)
    blocks = [m for m in model.modules() if isinstance(m, (BasicBlock, Bottleneck))]
    plain = [block for block in blocks if block.downsample is None]
    assert plain
    for block in plain:
        x = torch.rand(2, block.conv1.in_channels, 5, 5)
        assert torch.equal(block(x.clone()), x)
    assert model(inputs).shape == (2, 1000)
    assert any(
        not torch.equal(m.weight, torch.zeros_like(m.weight))
        for m in blocks[0].modules()
        if isinstance(m, nn.BatchNorm2d)
    )


def test_channels_last_computes_the_same() -> None:
    torch.manual_seed(0)
    model = built(type="resnet50", width=8, classes=7, stem="small").double()
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    plain = model(images)
    plain.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model.to(memory_format=torch.channels_last)
    last = model(images.to(memory_format=torch.channels_last))
    last.square().sum().backward()
    assert (plain - last).abs().max() < 1e-10
    assert all(
        (a - p.grad).abs().max() < 1e-8
        for a, p in zip(gradients, model.parameters(), strict=True)
        if p.grad is not None
    )


def test_grey_images_of_any_size_fit() -> None:
    assert built(type="resnet18", channels=1, classes=10, width=8, stem="small")(torch.rand(2, 1, 8, 8)).shape == (
        2,
        10,
    )
    assert built(type="resnet18", width=8)(torch.rand(2, 3, 65, 97)).shape == (2, 1000)
    assert built(type="lenet", classes=4, dropout=0.5)(torch.rand(2, 1, 28, 28)).shape == (2, 4)


def test_a_perceptron_without_layers_between_is_linear() -> None:
    model = built(type="mlp", inputs=12, hidden=[], outputs=3)
    x = torch.rand(5, 3, 4)
    [weight, bias] = model.parameters()
    assert torch.allclose(model(x), x.flatten(1) @ weight.T + bias)
    assert [tuple(p.shape) for p in built(type="mlp", inputs=4, hidden=[8, 2], outputs=3).parameters()][::2] == [
        (8, 4),
        (2, 8),
        (3, 2),
    ]
