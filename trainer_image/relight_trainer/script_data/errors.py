"""Errors of a script's loader."""

from typing import ClassVar

from relight_agent.exits import ExitCode


class BadLoader(Exception):
    """The loader, or how the script asks for its batches, cannot work."""

    exit_code: ClassVar[ExitCode] = ExitCode.BAD_CONFIG


class DataDiffers(Exception):
    """The loader does not give the batches that it gave before, or none at all; it would do so at every start."""

    exit_code: ClassVar[ExitCode] = ExitCode.BAD_DATA


HOW_TO_REPEAT = (
    "Make the order a function of the epoch and of a seed: give the sampler a torch.Generator, a numpy Generator or a "
    "random.Random as an attribute (Relight seeds it for each epoch), or use a StatefulDataLoader and give it to "
    "client.start as state. Then start a new job"
)


def name_of(loader: object) -> str:
    """The loader as a person knows it: its type, its data set's, its sampler's.

    >>> name_of([1, 2])
    'the loader (list)'
    """
    parts = [type(loader).__name__]
    data = getattr(loader, "dataset", None)
    if data is not None:
        parts.append(f"data set {type(data).__name__}")
    batches = getattr(loader, "batch_sampler", None)
    sampler = getattr(batches, "sampler", None) or getattr(loader, "sampler", None)
    if sampler is not None:
        parts.append(f"sampler {type(sampler).__name__}")
    return f"the loader ({', '.join(parts)})"
