"""Images as a data set: decoded and augmented in loader processes, made floats on the device."""

import io
import random
from collections.abc import Sequence
from typing import Any, Protocol, assert_never

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

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.float32]  # (height, width, channels), 0 to 255
Sample = tuple[Pixels, int | float]

_ORIENTATION = 0x0112  # EXIF: how the camera was held
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = range(5, 9)
_BITS_16 = {"I;16", "I;16L", "I;16B", "I;16N"}
_SCALED_TO_16 = {"PNG", "PPM"}  # formats whose 32-bit integers are Pillow's way of giving 16 bits


class Source(Protocol):
    """Where images come from."""

    labels: npt.NDArray[Any]  # (n,) int64, or float32 where numbers are to be predicted
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
    def known_labels(self) -> npt.NDArray[Any]:
        """The labels of all samples."""
        labels: npt.NDArray[Any] = self._source.labels[self._chosen]
        return labels

    def name(self, index: int) -> str:
        return self._source.name(int(self._chosen[index]))

    def __getitem__(self, index: int) -> Sample:
        at = int(self._chosen[index])
        try:
            # `random` has been seeded for this sample.
            pixels = pixels_of(self._source.image(at), self._settings, random.random, training=self._training)
        except Exception as error:  # decoders raise of everything, SyntaxError included
            raise unreadable(self._source.name(at), error) from error
        return pixels, self._source.labels[at].item()

    def collate(self, samples: Sequence[Sample]) -> Samples:
        """Bytes still, a quarter of what floats would be on the way to the device; floats where an image has 16 bits."""
        return Samples(
            torch.from_numpy(np.stack([pixels for pixels, _ in samples])),
            torch.tensor([label for _, label in samples]),
        )

    def finish(self, batch: Samples) -> Samples:
        """(n, height, width, channels) in 0 to 255 -> (n, channels, height, width) float32, normalised."""
        device = batch.inputs.device
        if device not in self._scales:
            std = 255 * torch.tensor(self._settings.std).view(-1, 1, 1)
            mean = 255 * torch.tensor(self._settings.mean).view(-1, 1, 1)
            self._scales[device] = moved(mean, device), moved(1 / std, device)
        mean, factor = self._scales[device]
        inputs = batch.inputs.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return Samples(inputs.sub_(mean).mul_(factor), batch.labels)


def pixels_of(image: Image.Image, settings: Images, draw: Uniform, *, training: bool) -> Pixels:
    """`image` upright, cropped, scaled and, in training, augmented: (size, size, channels), 0 to 255.

    Floats where the image has 16 bits. Raises ValueError where the range of its values is unknown.
    """
    crop = settings.crop if training else "center"
    mode = "RGB" if settings.channels == 3 else "L"
    orientation = _orientation(image)
    width, height = image.size[::-1] if orientation in _SIDEWAYS else image.size
    match crop:
        case "random_resized":
            box = augment.random_part(width, height, settings.scale, settings.ratio, draw)
        case "padded":
            box = augment.middle(width, height, 1.0)
        case "center":
            box = augment.middle(width, height, settings.test_crop)
        case _:
            assert_never(crop)
    image = _scaled(image, box, settings.size, mode, orientation)
    if training:
        if crop == "padded":
            image = augment.moved_a_little(image, settings.padding, draw)
        image = augment.flipped(image, settings.flip, draw)
        if settings.rand_augment is not None:
            if image.mode == "F":  # the operations are made for bytes
                image = Image.fromarray(np.asarray(image).round().astype(np.uint8)).convert(mode)
            image = augment.rand_augment(image, settings.rand_augment.operations, settings.rand_augment.magnitude, draw)
    pixels = np.asarray(image).reshape(settings.size, settings.size, -1)
    return pixels if pixels.shape[2] == settings.channels else np.repeat(pixels, settings.channels, axis=2)


def _orientation(image: Image.Image) -> int:
    """How `image` has to be turned, as EXIF numbers it; 1 where it is upright."""
    if image.format == "TIFF":
        image.load()  # turns it, and forgets that it was turned
    found = image.getexif().get(_ORIENTATION, 1)
    return found if found in _TURNED else 1


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """`image` in `mode`, or in floats from 0 to 255 where it has 16 bits: Pillow would cut its values off at 255.

    Raises ValueError where nothing says which value is white.
    """
    if image.mode in _BITS_16 or (image.mode == "I" and image.format in _SCALED_TO_16):
        return Image.fromarray(np.asarray(image).astype(np.float32) / np.float32(257))
    if image.mode in {"I", "F"}:
        kind = "floats" if image.mode == "F" else "whole numbers"
        raise ValueError(
            f"its pixels are {kind} of 32 bits, and the file does not say which value is white; allowed: 8 or 16 bits for each "
            "channel, or the values in data: {type: arrays}"
        )
    if image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)


def _scaled(image: Image.Image, box: Box, size: int, mode: str, orientation: int) -> Image.Image:
    """The part of `image` in `box` at `size` x `size`. `box` is that of the upright image."""
    width, height = image.size
    # A JPEG decodes to a half, a quarter or an eighth in a fraction of the time, and no smaller than asked for.
    reduction = min(box.right - box.left, box.bottom - box.top) / size
    image.draft(mode, (int(width / reduction), int(height / reduction)))
    image = _in_mode(image, mode)
    if orientation in _TURNED:
        image = image.transpose(_TURNED[orientation])
    if orientation in _SIDEWAYS:
        width, height = height, width
    across, down = image.width / width, image.height / height
    part = box.left * across, box.top * down, box.right * across, box.bottom * down
    bounded = max(part[0], 0), max(part[1], 0), min(part[2], image.width), min(part[3], image.height)  # rounding
    return image.resize((size, size), Image.Resampling.BILINEAR, box=bounded)


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
