"""Writing through to the storage, on file systems of every kind."""

import errno
import os
from typing import Union

# What fsync(2) answers where the file system has no such call: SMB, 9p, vboxsf and some FUSE file systems for a folder.
_NO_SUCH_CALL = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


def sync(descriptor: int, path: "Union[str, os.PathLike[str]]") -> bool:
    """Flush what has been written to `descriptor`, opened from `path`; False where the file system cannot.

    Raises OSError with the path for every other answer: a full disk, a broken one.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in _NO_SUCH_CALL:
            return False
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    return True
