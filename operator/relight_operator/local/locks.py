"""Locks of a job's files: the kernel releases them when their holder ends, however it ends."""

import errno
import fcntl
from typing import IO, Any

from relight_operator.errors import StateError

# What flock(2) answers on a file system that has no locks (NFS without its lock service, some FUSE file systems).
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


def lock(file: IO[Any], *, wait: bool = False) -> None:
    """Take the lock of an open file. Raises BlockingIOError where another holds it, StateError where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise OSError(error.errno, error.strerror, file.name) from None
        raise StateError(
            f"{file.name} cannot be locked ({error.strerror}): name a folder on a local disk with --state-dir"
        ) from None
