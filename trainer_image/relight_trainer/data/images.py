"""Images as a data set: decoded and augmented in loader processes, made floats on the device."""

import io
import random
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from relight_trainer.data import augment
from relight_trainer.data.augment import Box, Uniform
from relight_trainer.data.device import moved
from relight_trainer.data.errors import unreadable
from relight_trainer.data.fingerprint import digest
from relight_trainer.data.parts import Indices, chosen_parts
from relight_trainer.data.tensors import Samples
from relight_trainer.settings.data import Images

Sample = tuple[npt.NDArray[np.uint8], int]  # (height, width, channels)


class Source(Protocol):
    """Where images come from."""

    labels: npt.NDArray[np.int64]  # (n,)
    fingerprint: str

    def name(self, index: int) -> str:
        """What a person finds the image by."""
        ...

    def image(self, index: int) -> Image.Image:
        """Need not be decoded yet. Raises whatever."""
        ...


class ImageSet:
    """Map-style data set of the images at `chosen` of `source`, for training or for evaluation."""

    def __init__(self, source: Source, settings: Images, *, training: bool, chosen: Indices | None) -> None:
        self._source = source
        self._settings = settings
        self._training = training
        self._chosen = np.arange(len(source.labels)) if chosen is None else chosen
        self._scales: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}
        self.fingerprint = source.fingerprint if chosen is None else digest(source.fingerprint, chosen.tobytes())

    def __len__(self) -> int:
        return len(self._chosen)

    @property
    def known_labels(self) -> npt.NDArray[np.int64]:
        """Of all samples."""
        return self._source.labels[self._chosen]

    def name(self, index: int) -> str:
        return self._source.name(int(self._chosen[index]))

    def __getitem__(self, index: int) -> Sample:
        at = int(self._chosen[index])
        try:
            # `random` has been seeded for this sample.
            pixels = pixels_of(self._source.image(at), self._settings, random.random, training=self._training)
        except Exception as error:  # decoders raise of everything, SyntaxError included
            raise unreadable(self._source.name(at), error) from error
        return pixels, int(self._source.labels[at])

    def collate(self, samples: Sequence[Sample]) -> Samples:
        """Bytes still: a quarter of what floats would be on the way to the device."""
        return Samples(
            torch.from_numpy(np.stack([pixels for pixels, _ in samples])),
            torch.tensor([label for _, label in samples]),
        )

    def finish(self, batch: Samples) -> Samples:
        """(n, height, width, channels) bytes -> (n, channels, height, width) float32, normalised."""
        device = batch.inputs.device
        if device not in self._scales:
            std = 255 * torch.tensor(self._settings.std).view(-1, 1, 1)
            mean = 255 * torch.tensor(self._settings.mean).view(-1, 1, 1)
            self._scales[device] = moved(mean, device), moved(1 / std, device)
        mean, factor = self._scales[device]
        inputs = batch.inputs.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return Samples(inputs.sub_(mean).mul_(factor), batch.labels)


def pixels_of(image: Image.Image, settings: Images, draw: Uniform, *, training: bool) -> npt.NDArray[np.uint8]:
    """`image` cropped, scaled and, in training, augmented: (size, size, channels)."""
    crop = settings.crop if training else "center"
    if crop == "random_resized":
        box = augment.random_part(image.width, image.height, settings.scale, settings.ratio, draw)
    else:
        box = augment.middle(image.width, image.height, 1.0 if crop == "padded" else settings.test_crop)
    image = _scaled(image, box, settings.size, "RGB" if settings.channels == 3 else "L")
    if training:
        if crop == "padded":
            image = augment.moved_a_little(image, settings.padding, draw)
        image = augment.flipped(image, settings.flip, draw)
        if settings.rand_augment is not None:
            image = augment.rand_augment(image, settings.rand_augment.operations, settings.rand_augment.magnitude, draw)
    return np.asarray(image).reshape(settings.size, settings.size, settings.channels)


def _scaled(image: Image.Image, box: Box, size: int, mode: str) -> Image.Image:
    """The part of `image` in `box` at `size` x `size`."""
    width, height = image.size
    # A JPEG decodes to a half, a quarter or an eighth in a fraction of the time, and no smaller than asked for.
    reduction = min(box.right - box.left, box.bottom - box.top) / size
    image.draft(mode, (int(width / reduction), int(height / reduction)))
    if image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA")
    across, down = image.width / width, image.height / height
    part = box.left * across, box.top * down, box.right * across, box.bottom * down
    bounded = max(part[0], 0), max(part[1], 0), min(part[2], image.width), min(part[3], image.height)  # rounding
    return image.convert(mode).resize((size, size), Image.Resampling.BILINEAR, box=bounded)


def decoded(data: bytes) -> Image.Image:
    """The image in a file's bytes."""
    return Image.open(io.BytesIO(data))


def image_sets(
    source: Source, other: Source | None, settings: Images, test_fraction: float, split_seed: int
) -> tuple[ImageSet, ImageSet]:
    """The training set of `source`, and the test set of `other` or, where that is None, of a part of `source`."""
    chosen = chosen_parts(source.labels, test_fraction, split_seed) if other is None else (None, None)
    return (
        ImageSet(source, settings, training=True, chosen=chosen[0]),
        ImageSet(other or source, settings, training=False, chosen=chosen[1]),
    )
