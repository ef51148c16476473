"""What an exception at a worker's end means for the job, and how it is told in one line."""

import contextlib
import re
import sys
import sysconfig
import traceback
from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist

from relight_agent.exits import ExitCode, Manner
from relight_agent.files import MAX_MESSAGE_BYTES, clip
from relight_trainer.fingerprint import fingerprint
from relight_trainer.words import attribute_of, chain, code_of, text_of

# gloo's errors are plain RuntimeErrors that begin with the place in its source; device.cc is about the own machine.
_GLOO = re.compile(r"/gloo/(?!gloo/|transport/\w+/device)|[Gg]loo connect\w* failed|failed to pass monitoredBarrier")
# A wrong call, not a lost peer: it would fail the same way for ever.
_NCCL_MISUSE = re.compile(r"ncclInvalidUsage|ncclInvalidArgument|Duplicate GPU detected")
_CUDA_BROKEN = re.compile(r"uncorrectable|hardware stack error|no CUDA-capable device|GPU is lost|fallen off the bus")
# A loader process is killed by the kernel for the pod's memory limit, or by SIGBUS for a full /dev/shm.
_NO_MEMORY = re.compile(
    r"can't allocate memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
    r"|DataLoader worker \(pid \d+\) is killed by signal: (Killed|Bus error)"
)

# A program that cannot be loaded, or names what is not there, cannot run at the next try either.
_PERMANENT = (ImportError, SyntaxError, NameError)
_MAX_TEXT = 1 << 16  # characters of an exception's words in which a meaning is looked for

_OWN = Path(__file__).parent
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
# Libraries of another folder than this interpreter's: a virtual environment over the system's packages, a .pth file.
_LIBRARY_FOLDERS = frozenset({"site-packages", "dist-packages"})


def classify(error: BaseException) -> ExitCode:
    """The exit code of a worker that ended with `error`.

    An exception of ours carries `exit_code`. One raised from, or while handling, another means what that one meant,
    unless it has a meaning of its own: user code wraps errors. A group of exceptions means what one of them means.

    >>> classify(RuntimeError("[/src/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.1]:1")).name
    'PEER_LOST'
    >>> classify(ConnectionResetError("by the object store")).name
    'EXCEPTION'
    """
    for one in chain(error):
        code = _own_meaning(one)
        if code is not ExitCode.EXCEPTION:
            return code
    return ExitCode.EXCEPTION


def manner_of(error: BaseException) -> Manner:
    """How a worker that raised `error` ended.

    Only what was raised itself, or is named as its cause (`raise ... from`), makes it permanent: what a program does
    in an `except ImportError` may fail for reasons that pass.
    """
    if isinstance(error, SystemExit) and not isinstance(code_of(error), str):
        return Manner.EXITED
    link: BaseException | None = error
    for _ in range(8):  # causes that are named; a chain may be a ring
        if isinstance(link, _PERMANENT):
            return Manner.PERMANENT
        link = link.__cause__ if link is not None else None
    return Manner.RAISED


def _own_meaning(error: BaseException) -> ExitCode:
    declared = error.code if isinstance(error, SystemExit) else attribute_of(error, "exit_code")
    if isinstance(declared, int) and declared in set(ExitCode) - {ExitCode.COMPLETED}:
        return ExitCode(declared)
    text = text_of(error, _MAX_TEXT)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return ExitCode.OUT_OF_MEMORY
    if isinstance(error, dist.DistError):
        return ExitCode.EXCEPTION if _NCCL_MISUSE.search(text) else ExitCode.PEER_LOST
    if isinstance(error, RuntimeError):
        if _NO_MEMORY.search(text):
            return ExitCode.OUT_OF_MEMORY
        if _CUDA_BROKEN.search(text):
            return ExitCode.MACHINE_UNHEALTHY
        if _GLOO.search(text):
            return ExitCode.PEER_LOST
    return ExitCode.EXCEPTION


def describe(error: BaseException) -> str:
    """`Type: text (file:line)`, where the line is the innermost one of the user's code; our own errors' text alone.

    One line, within the bound on a message. Of a group of exceptions, the first one's words follow.
    """
    if _is_ours(error):
        return clip(_first_line(error))
    place = _innermost_user_frame(error)
    where = f" ({place})" if place else ""
    inside = ""
    if isinstance(error, BaseExceptionGroup):
        inside = f"; the first is {clip(describe(_first_leaf(error)), 500)}"
    room = max(100, MAX_MESSAGE_BYTES - len((where + inside).encode()))
    return clip(clip(_typed(error), room) + inside + where)


def _typed(error: BaseException) -> str:
    first_line = _first_line(error)
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__


def _first_line(error: BaseException) -> str:
    """The first line with words; with the one after it where that one only announces it, by a colon at its end."""
    lines = [line.strip() for line in text_of(error, _MAX_TEXT).splitlines() if line.strip()]
    return " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1])


def _first_leaf(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _is_ours(error: BaseException) -> bool:
    """Relight's own errors say in their text all there is to say."""
    return isinstance(attribute_of(error, "exit_code"), ExitCode)


def recognise(error: BaseException) -> str:
    """The error's fingerprint, "" for one that might not come again."""
    return fingerprint(chain(error), _frames_that_matter(error))


def exit_status(error: BaseException) -> int | None:
    """What `sys.exit` was given, where that is a number and no code of ours."""
    code = code_of(error) if isinstance(error, SystemExit) else None
    return code if isinstance(code, int) and 0 < code <= 255 and code not in set(ExitCode) else None


def _innermost_user_frame(error: BaseException) -> str | None:
    frames = _frames_that_matter(error)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


def _frames_that_matter(error: BaseException) -> traceback.StackSummary:
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if _is_users(f.filename)]
    if not theirs:
        # Nothing of the user's: the innermost line of ours, else of whoever raised.
        theirs = [f for f in frames if Path(f.filename).is_relative_to(_OWN)] or list(frames)
    return traceback.StackSummary.from_list(theirs)


def _is_users(filename: str) -> bool:
    path = Path(filename)
    return (
        path.is_absolute()
        and not path.is_relative_to(_OWN)
        and not any(path.is_relative_to(folder) for folder in _LIBRARIES)
        and _LIBRARY_FOLDERS.isdisjoint(path.parts)
    )


def tell(error: BaseException) -> None:
    """Write `error` to stderr: with its traceback, less the frames by which Relight got to the user's code.

    As an interpreter does, only the text of a SystemExit; and only the text of an error of ours. Where the traceback
    cannot be made, for a method of the exception raises, `describe`'s line stands in its place. Where stderr cannot be
    written (a log on a full disk), it is not told here: the outcome still says it.
    """
    with contextlib.suppress(OSError, ValueError):  # ValueError: the script has closed it
        try:
            _tell(error)
        except OSError:
            raise
        except BaseException:  # the user's methods
            print(describe(error), file=sys.stderr)
        sys.stderr.flush()


def _call_hook(error: BaseException, trace: TracebackType | None) -> None:
    """Have `sys.excepthook` tell it, which torch or the user has set; where that fails, both errors are shown."""
    whole = error.__traceback__
    try:
        sys.excepthook(type(error), error.with_traceback(trace), trace)  # the interpreter's own hook shows the error's
    except Exception:
        print("Error in sys.excepthook:", file=sys.stderr)
        traceback.print_exc(file=sys.stderr)
        traceback.print_exception(type(error), error, trace, file=sys.stderr)
    finally:
        error.__traceback__ = whole


def _tell(error: BaseException) -> None:
    if isinstance(error, SystemExit):
        if isinstance(code := code_of(error), str):
            print(code, file=sys.stderr)
    elif _is_ours(error):
        print(error, file=sys.stderr)
    else:
        start = error.__traceback__
        while start is not None and not _is_users(start.tb_frame.f_code.co_filename):
            start = start.tb_next
        # Where the user has no frame, all of them matter.
        trace = start or error.__traceback__
        if sys.excepthook is sys.__excepthook__:
            traceback.print_exception(type(error), error, trace, file=sys.stderr)
        else:
            _call_hook(error, trace)
