"""The options of commands that read a file of training state, whose author may not be known."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from relight_trainer.inspect.limits import Limits

_F = TypeVar("_F", bound=Callable[..., Any])


def reading_limits(command: _F) -> _F:
    """Adds --read-memory and --read-seconds; `limits` takes what they give."""
    for option in (
        click.option(
            "--read-seconds",
            type=click.IntRange(1, 86_400),
            default=60,
            show_default=True,
            help="Seconds of the processor's time that finding out what is in a file may take.",
        ),
        click.option(
            "--read-memory",
            type=click.IntRange(16, 1 << 20),
            default=1024,
            show_default=True,
            metavar="MIB",
            help="Memory that finding out what is in a file may take.",
        ),
    ):
        command = option(command)
    return command


def limits(read_memory: int, read_seconds: int) -> "Limits":
    from relight_trainer.inspect.limits import Limits, MiB

    return Limits(memory=read_memory * MiB, seconds=read_seconds)
