"""The section `data`: the registered data sets and their arguments."""

from pydantic import Field

from relight_trainer.registry import Arguments, Entry, Table


class Digits(Arguments):
    """Scikit-learn's 1797 handwritten digits, 8x8 grey values in 0..1."""

    test_fraction: float = Field(0.2, gt=0, lt=1, description="The share of each class that is kept for evaluation.")
    split_seed: int = Field(0, ge=0, description="Chooses which samples those are, apart from the training's own seed.")


DATA: Table = {"digits": Entry("relight_trainer.data.digits:digits", Digits)}
