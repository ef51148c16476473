"""What may be done to a training image. Pure functions of an image and of random numbers.

`draw()` gives the next random number, uniform in [0, 1).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image, ImageEnhance, ImageOps

Uniform = Callable[[], float]


class Box(NamedTuple):
    """A part of an image, in pixels that need not be whole."""

    left: float
    top: float
    right: float
    bottom: float


def middle(width: int, height: int, share: float) -> Box:
    """The square in the middle whose side is `share` of the shorter side."""
    half = min(width, height) * share / 2
    return Box(width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)


def random_part(width: int, height: int, scale: Sequence[float], ratio: Sequence[float], draw: Uniform) -> Box:
    """A random part with an area of `scale` of the whole and a width over height of `ratio` (Szegedy et al. 2015).

    Where ten attempts do not fit into the image, the largest part in the middle with an allowed ratio.
    """
    for _ in range(10):
        area = width * height * _between(scale[0], scale[1], draw)
        shape = math.exp(_between(math.log(ratio[0]), math.log(ratio[1]), draw))
        w, h = math.sqrt(area * shape), math.sqrt(area / shape)
        left, top = draw() * (width - w), draw() * (height - h)
        if w <= width and h <= height:
            return Box(left, top, left + w, top + h)
    shape = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, height * shape), min(height, width / shape)
    return Box((width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2)


def moved_a_little(image: Image.Image, padding: int, draw: Uniform) -> Image.Image:
    """`image` moved by up to `padding` pixels both ways, black where it was not."""
    x, y = (math.floor(draw() * (2 * padding + 1)) - padding for _ in range(2))
    return image.crop((x, y, x + image.width, y + image.height))


def flipped(image: Image.Image, chance: float, draw: Uniform) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw() < chance else image


def rand_augment(image: Image.Image, operations: int, magnitude: float, draw: Uniform) -> Image.Image:
    """`operations` of the list below, drawn with repetition, at `magnitude` of 0..10 (Cubuk et al. 2020)."""
    for _ in range(operations):
        operation = _OPERATIONS[math.floor(draw() * len(_OPERATIONS))]
        sign = 1 if draw() < 0.5 else -1
        image = operation(image, magnitude / 10, sign)
    return image


def _between(low: float, high: float, draw: Uniform) -> float:
    return low + (high - low) * draw()


def _affine(image: Image.Image, *rows: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> "_Operation":
    return lambda image, strength, sign: kind(image).enhance(1 + 0.9 * strength * sign)


_Operation = Callable[[Image.Image, float, int], Image.Image]
_OPERATIONS: tuple[_Operation, ...] = (
    lambda image, _, __: image,
    lambda image, _, __: ImageOps.autocontrast(image),
    lambda image, _, __: ImageOps.equalize(image),
    lambda image, strength, _: ImageOps.posterize(image, 8 - round(4 * strength)),
    lambda image, strength, _: ImageOps.solarize(image, round(256 * (1 - strength))),
    lambda image, strength, sign: image.rotate(30 * strength * sign, Image.Resampling.BILINEAR),
    lambda image, strength, sign: _affine(image, 1, 0.3 * strength * sign, 0, 0, 1, 0),
    lambda image, strength, sign: _affine(image, 1, 0, 0, 0.3 * strength * sign, 1, 0),
    lambda image, strength, sign: _affine(image, 1, 0, 0.3 * strength * sign * image.width, 0, 1, 0),
    lambda image, strength, sign: _affine(image, 1, 0, 0, 0, 1, 0.3 * strength * sign * image.height),
    _enhanced(ImageEnhance.Color),
    _enhanced(ImageEnhance.Contrast),
    _enhanced(ImageEnhance.Brightness),
    _enhanced(ImageEnhance.Sharpness),
)
