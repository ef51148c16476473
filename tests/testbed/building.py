"""Images built with buildah: a Debian base with Python, and what a Dockerfile makes of it. Kept in the cache by content."""

from __future__ import annotations

import ast
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.testbed.cache import cache_root, cached, key_of, locked
from tests.testbed.images import Image
from tests.testbed.packages import MIRROR, SUITE
from tests.testbed.shell import sh

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

REPOSITORY = Path(__file__).parents[2]
KEPT = 3  # of each image: a trainer with torch takes over a gigabyte
BASE_PACKAGES = ("python3", "python3-venv", "ca-certificates")


def base_image() -> Image:
    """Debian 12 with its Python 3.11 and nothing else that could be left out."""
    key = key_of(SUITE, *BASE_PACKAGES)
    reference = f"relight.dev/testbed/base:{key}"

    def build(folder: Path) -> None:
        system = folder / "system.tar"
        sh("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(BASE_PACKAGES)}", SUITE, system, MIRROR)
        container = _buildah("from", "scratch").strip()
        try:
            _buildah("add", "--quiet", container, system, "/")
            _buildah(
                "config",
                "--cmd=/bin/sh",
                "--env=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                container,
            )
            _buildah("commit", "--quiet", container, f"docker-archive:{folder}/image.tar:{reference}")
        finally:
            _buildah("rm", container)
        system.unlink()

    return Image(reference, cached(f"image-base-{key}", build) / "image.tar")


def build_image(
    target: str,
    dockerfile: Path,
    *,
    name: str | None = None,
    context: Path = REPOSITORY,
    paths: Sequence[str] = (),
    arguments: Mapping[str, str] | None = None,
) -> Image:
    """Builds one target of a Dockerfile from `base_image()`, whose name its build argument BASE gets.

    `paths` are those parts of `context` that the build may see, all files that git does not ignore by default: the image is
    built again when one of them, the Dockerfile, an argument or the base has changed. pip inside the build is configured as
    pip is here, packages and certificates on this computer included.
    """
    base = base_image()
    files = _files(context, paths)
    arguments = {"BASE": base.reference} | dict(arguments or {})
    contents = [part for file in files for part in (file, (context / file).read_bytes())]
    key = key_of(target, dockerfile.read_bytes(), repr(sorted(arguments.items())), *contents)
    reference = f"relight.dev/{name or target}:{key}"

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=cache_root()) as temporary, _pip_settings() as volumes:
            seen = Path(temporary)
            for file in files:
                (seen / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(context / file, seen / file)
            _buildah("pull", "--quiet", f"docker-archive:{base.archive}")
            _buildah(
                *(
                    "bud",
                    "--layers",
                    "--pull=false",
                    f"--target={target}",
                    f"--file={dockerfile.absolute()}",
                    f"--tag={reference}",
                ),
                *(f"--build-arg={argument}={value}" for argument, value in arguments.items()),
                *(f"--volume={volume}" for volume in volumes),
                str(seen),
            )
        _buildah("push", "--quiet", reference, f"docker-archive:{folder}/image.tar:{reference}")

    return Image(reference, cached(f"image-{name or target}-{key}", build, keep=KEPT) / "image.tar")


def _files(context: Path, paths: Sequence[str]) -> list[str]:
    """The files under `context`, by relative name; those that git ignores are left out where there is git."""
    if not (context / ".git").exists():
        found = [
            path.relative_to(context)
            for root in paths or ["."]
            for path in (context / root).rglob("*")
            if path.is_file()
        ]
        return sorted(map(str, found))
    listed = sh("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *paths, cwd=context)
    return sorted({name for name in listed.split("\0") if name and (context / name).is_file()})


def _buildah(*words: str | Path) -> str:
    """buildah with its storage in the cache, in a mount namespace so that none of its mounts stays."""
    storage = cache_root() / "buildah"
    with locked(cache_root() / ".locks/buildah"):
        return sh(
            *("unshare", "--mount", "--", "buildah", "--root", storage / "storage", "--runroot", storage / "run"),
            *("--storage-driver", "overlay", *words),
            env=os.environ | {"BUILDAH_ISOLATION": "chroot", "TMPDIR": "/tmp"},
        )


@contextmanager
def _pip_settings() -> Iterator[list[str]]:
    """What to mount (buildah's --volume) so that pip in a build finds what pip finds here."""
    settings = _settings_of(sh(sys.executable, "-m", "pip", "config", "list"))
    lines = [f"{setting} = {' '.join(value.split())}" for setting, value in settings.items()]
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "pip.conf"
        written.write_text("\n".join(["[global]", *lines]) + "\n")
        yield [f"{written}:/etc/pip.conf:ro", *(f"{path}:{path}:ro" for path in _local_paths(settings))]


def _local_paths(settings: Mapping[str, str]) -> list[Path]:
    """Files and folders here that pip's settings name; of an index its parent folder, in which lies what it links to."""
    found = set()
    for word in " ".join(settings.values()).split():
        path = Path(urlsplit(word).path).parent if word.startswith("file:") else Path(word)
        if path.is_absolute() and path.exists() and path != Path("/"):
            found.add(path)
    return sorted(found)


def _settings_of(listing: str) -> dict[str, str]:
    """`pip config list` as a mapping; what the environment says wins, as it does with pip."""
    found: dict[str, str] = {}
    for line in sorted(listing.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        setting = name.rpartition(".")[2]
        if setting not in {"config-file", "require-virtualenv", "user", "prefix", "target", "log", "cache-dir"}:
            found[setting] = str(ast.literal_eval(value))
    return found
