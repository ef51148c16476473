"""By what an exception is recognised when it comes again: its type, its words and its place, on whichever rank.

What differs from one process to the next (addresses, process numbers, temporary paths, ports, ranks, instants) is left
out of the words. Who meets the same exception at the same step after going back to the state before it would meet it
for ever: the job need not try. What the world outside brought about (files, networks) may well have passed by then, so
such an exception has no fingerprint. `sys.exit("words")` has one, `sys.exit(3)` has none: a number says too little.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from traceback import FrameSummary

from relight_trainer.words import code_of, text_of, type_of

MAX_TEXT = 8192  # characters of an exception's words that are looked at

# (what is volatile, what stands in its place), applied in this order. Each takes time that is linear in the text: a
# repetition that can begin anywhere and may fail at its end needs a lookbehind, or a bound.
_VOLATILE = tuple(
    (re.compile(pattern, re.IGNORECASE), instead)
    for pattern, instead in (
        (r"(?:/private)?(?:/var)?/(?:tmp|dev/shm)/[^\s'\",;:)\]]+", "<tmp>"),
        (r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "<id>"),
        (r"\b0x[0-9a-f]+\b", "<address>"),
        (r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?", "<time>"),
        (r"\b\d\d?:\d\d:\d\d(?:[.,]\d+)?\b", "<time>"),
        (r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b", "<host>"),
        (r"(?<![\w.-])(?=localhost:|[\w.-]*?\.svc)[\w.-]++:\d+", "<host>"),
        (
            r"\b(local_rank|rank|pid|ppid|tid|process|thread|worker|port|fd|device|gpu|cuda)((?:\s*id)?[\s:=#(\[]*)\d+",
            r"\1<n>",
        ),
        (r"\b\d+(?:\.\d+)?\s*(?:ns|us|ms|s|sec|secs|seconds|minutes|KiB|MiB|GiB|TiB|KB|MB|GB|TB|bytes)\b", "<amount>"),
        (r"\b(?=[0-9a-f]*\d)[0-9a-f]{12,}\b", "<id>"),
    )
)
# Errors of networks that libraries derive from Exception alone.
_OUTSIDE = re.compile(r"Connect|Timeout|TimedOut|Unavailable|Network|Endpoint|HTTP|SSL|Throttl|Socket|Transport")


def fingerprint(chain: Iterable[BaseException], frames: Sequence[FrameSummary]) -> str:
    """Of the exception that `chain` begins with and whatever it came from; "" where coming again would prove nothing.

    `frames` are where it was raised, the innermost last; the last one counts.
    """
    errors = list(chain)
    if any(_is_from_outside(error) for error in errors) or not frames:
        return ""
    where = frames[-1]
    place = f"{Path(where.filename).name}:{where.name}:{where.lineno}"
    words = [f"{type_of(e)}: {steady(text_of(e, MAX_TEXT))}" for e in errors]
    return hashlib.sha256("\0".join([place, *words]).encode("utf-8", "replace")).hexdigest()[:16]


def steady(text: str) -> str:
    """`text` without what differs from one process to the next.

    >>> steady("<Net object at 0x7f3a2c> on rank 3 of /tmp/tmpx1/run: bad label 17")
    '<Net object at <address>> on rank<n> of <tmp>: bad label 17'
    """
    text = text[:MAX_TEXT]
    if own := os.environ.get("TMPDIR", "").rstrip("/"):
        text = text.replace(own, "/tmp")  # noqa: S108  # no file: a word that is left out below
    for pattern, instead in _VOLATILE:
        text = pattern.sub(instead, text)
    return text


def _is_from_outside(error: BaseException) -> bool:
    if isinstance(error, SystemExit):
        return not isinstance(code_of(error), str)
    return isinstance(error, (OSError, KeyboardInterrupt)) or bool(_OUTSIDE.search(type(error).__name__))
