"""`python -m relight_agent.install FOLDER`: gives agent and client to an image that has neither.

Runs in the init container of a pod with an image of the user's own; the folder is a volume that both containers mount,
and stands in PYTHONPATH of the other. Both packages are pure Python, so any interpreter >= 3.9 there can import them.
"""

import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import List

from relight_agent.exits import ExitCode

PACKAGES = ("relight_agent", "relight_trainer")


def install(folder: Path) -> List[Path]:
    """Copy the packages into `folder`; what an earlier, cut-off try left there is replaced. Returns where they are.

    Raises ModuleNotFoundError where a package is not there to be copied, OSError where the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [_install(package, folder) for package in PACKAGES]


def _install(package: str, folder: Path) -> Path:
    spec = find_spec(package)  # imports nothing: the client would want torch
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {package} in this image")
    target = folder / package
    with tempfile.TemporaryDirectory(prefix=f".{package}-", dir=str(folder)) as scratch:
        whole = os.path.join(scratch, package)
        shutil.copytree(spec.submodule_search_locations[0], whole, ignore=shutil.ignore_patterns("__pycache__"))
        if target.exists():
            shutil.rmtree(str(target))
        os.replace(whole, str(target))
    return target


def main(argv: List[str]) -> int:
    if len(argv) != 1 or argv[0].startswith("-"):
        print("usage: python -m relight_agent.install FOLDER", file=sys.stderr)
        return ExitCode.BAD_CONFIG
    try:
        for path in install(Path(argv[0])):
            print(f"relight-agent: installed {path}")
    except (ModuleNotFoundError, OSError) as error:
        print(f"relight-agent: cannot install into {argv[0]}: {error}", file=sys.stderr)
        return ExitCode.BAD_CONFIG
    return ExitCode.COMPLETED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
