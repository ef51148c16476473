"""Running a program and failing with what it said."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from tests.testbed.errors import TestbedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def sh(
    *argv: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | bytes | None = None,
    check: bool = True,
    timeout: float = 3600,
) -> str:
    """Runs `argv` and returns its stdout. Raises TestbedError with the end of its output when it fails."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            env=dict(env) if env is not None else None,
            cwd=cwd,
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            check=False,
            timeout=timeout,
        )
    except FileNotFoundError as error:
        raise TestbedError(f"{words[0]}: no such program here") from error
    except subprocess.TimeoutExpired as error:
        raise TestbedError(f"{' '.join(words)[:300]}: still running after {timeout:g} s") from error
    out = done.stdout.decode(errors="replace")
    if check and done.returncode != 0:
        said = (done.stderr.decode(errors="replace").strip() or out.strip())[-3000:]
        raise TestbedError(f"{' '.join(words)[:300]}: exit status {done.returncode}\n{said}")
    return out
