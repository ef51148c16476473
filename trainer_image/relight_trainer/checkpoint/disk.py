"""Durable files: written through to the storage, with the checksum of what was written."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from relight_agent.durable import sync

_CHUNK = 16 * 2**20


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Create `path` of `parts`, through to the disk. Returns (bytes, SHA-256). Raises `OSError`."""
    digest = hashlib.sha256()
    size = 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for part in parts:
            view = memoryview(part)
            for at in range(0, len(view), _CHUNK):
                chunk = view[at : at + _CHUNK]
                digest.update(chunk)
                while chunk:
                    chunk = chunk[os.write(descriptor, chunk) :]
            size += len(view)
        sync(descriptor, path)
    finally:
        os.close(descriptor)
    return size, digest.hexdigest()
