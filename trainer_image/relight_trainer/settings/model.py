"""The section `model`: the registered models and their arguments."""

from pydantic import Field

from relight_trainer.registry import Arguments, Entry, Table


class DigitsCnn(Arguments):
    """Three 3x3 convolutions with batch norm, for 8x8 images of 10 classes."""

    width: int = Field(16, ge=1, le=1024, description="Channels of the first convolution; the others have 2x and 4x.")


MODELS: Table = {"digits_cnn": Entry("relight_trainer.models.digits_cnn:digits_cnn", DigitsCnn)}
