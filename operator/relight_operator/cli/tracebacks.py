"""The end of a failed member's log: the traceback of what the job has failed of."""

import os
import re
from pathlib import Path

MAX_LINES = 10
LOG_BYTES = 256 * 1024  # of a log, from its end

_BEGIN = re.compile(r"^\s*\+? ?(Exception Group )?Traceback \(most recent call last\):")


def end_of(path: Path) -> str:
    """The last LOG_BYTES of a file, "" where it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def last_traceback(log: str, message: str, most: int = MAX_LINES) -> list[str]:
    """The last `most` lines of the newest traceback in `log` that ends with the exception that `message` begins with.

    Empty where there is none: an error of Relight's own says all in its message, and so does `sys.exit`.
    """
    found: list[str] = []
    for block in _tracebacks(log.splitlines()):
        name = block[-1].partition(":")[0].strip(" |").rpartition(".")[2]
        if name and message.startswith(name):
            found = block
    return found[-most:]


def _tracebacks(lines: list[str]) -> list[list[str]]:
    """Each traceback, with the first line of its exception's words."""
    blocks: list[list[str]] = []
    block: list[str] = []
    for line in lines:
        if _BEGIN.match(line):
            block = [line]
        elif block:
            block.append(line)
            if not line.startswith((" ", "+")):
                blocks.append(block)
                block = []
    return blocks
