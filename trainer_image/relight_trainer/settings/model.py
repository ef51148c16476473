"""The section `model`: the registered models and their arguments."""

from typing import Annotated, Literal

from pydantic import Field

from relight_trainer.registry import Arguments, Entry, Table

Size = Annotated[int, Field(ge=1)]


class DigitsCnn(Arguments):
    """Three 3x3 convolutions with batch norm, for 8x8 images of 10 classes."""

    width: int = Field(16, ge=1, le=1024, description="Channels of the first convolution; the others have 2x and 4x.")


class DigitsSupernet(Arguments):
    """Blocks of four convolutions to choose from, for 8x8 images of 10 classes; goes with the section `supernet`."""

    width: int = Field(16, ge=1, le=1024, description="Channels of every block.")
    choices: int = Field(3, ge=1, le=32, description="Blocks; there are 4 to their power paths.")


class Lenet(Arguments):
    """Two 5x5 convolutions with batch norm and two linear layers, for grey images of 28x28."""

    width: int = Field(16, ge=1, le=1024, description="Channels of the first convolution; the other has 2x.")
    classes: Size = Field(10, description="Logits.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Before the last layer.")


class Mlp(Arguments):
    """Linear layers with ReLU between them, for samples of any shape."""

    inputs: Size = Field(description="Numbers in a sample.")
    hidden: list[Size] = Field([256], description="Widths of the layers between; none: a linear model.")
    outputs: Size = Field(description="Logits, or predicted numbers.")
    dropout: float = Field(0.0, ge=0, lt=1, description="After each layer between.")


class ResNet(Arguments):
    """A residual network; weights of torchvision's and timm's of the same name fit."""

    classes: Size = Field(1000, description="Logits.")
    channels: Size = Field(3, description="Of the images: 3 for colour, 1 for grey.")
    width: int = Field(64, ge=1, le=1024, description="Channels of the first convolution.")
    stem: Literal["imagenet", "small"] = Field(
        "imagenet", description="small: no early reduction, for images of less than about 64x64."
    )
    zero_init_residual: bool = Field(False, description="Each block begins as the identity.")


MODELS: Table = {
    "digits_cnn": Entry("relight_trainer.models.digits_cnn:digits_cnn", DigitsCnn),
    "digits_supernet": Entry("relight_trainer.models.digits_supernet:digits_supernet", DigitsSupernet),
    "lenet": Entry("relight_trainer.models.lenet:lenet", Lenet),
    "mlp": Entry("relight_trainer.models.mlp:mlp", Mlp),
    "resnet18": Entry("relight_trainer.models.resnet:resnet18", ResNet),
    "resnet34": Entry("relight_trainer.models.resnet:resnet34", ResNet),
    "resnet50": Entry("relight_trainer.models.resnet:resnet50", ResNet),
}
