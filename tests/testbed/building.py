"""Images built with buildah: a Debian base with Python, and Relight's own as `make image` makes them. Kept in the cache by content."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path

from tests.testbed.cache import cache_root, cached, key_of, locked
from tests.testbed.images import Image
from tests.testbed.packages import MIRROR, SUITE
from tests.testbed.shell import sh

REPOSITORY = Path(__file__).parents[2]
KEPT = 3  # of each image: a trainer with torch takes over a gigabyte
BASE_PACKAGES = ("python3", "python3-venv", "ca-certificates", "git", "openssh-client")
TARGETS = ("operator", "trainer")
MAKER = (".ci/images.py", "Dockerfile", ".dockerignore")  # beside what the last of these lets into a build


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


def relight_image(target: str) -> Image:
    """Relight's `operator` or `trainer` on `base_image()`, by the command behind `make image`.

    It is built again when something that may go into it has changed; its tag says what it was made of.
    """
    base = base_image()
    files = [*MAKER, *_files()]
    contents = [part for file in files for part in (file, (REPOSITORY / file).read_bytes())]
    key = key_of(base.reference, *contents)
    repository = "relight.dev/testbed/relight"

    def build(folder: Path) -> None:
        # A copy: the checkout may be edited while this goes on.
        with tempfile.TemporaryDirectory(dir=cache_root()) as copy:
            for file in files:
                (Path(copy) / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPOSITORY / file, Path(copy) / file)
            _buildah("pull", "--quiet", f"docker-archive:{base.archive}")
            _in_storage(
                *(sys.executable, f"{copy}/.ci/images.py", target, "--engine=buildah", f"--archives={copy}/archives"),
                *(f"--base={base.reference}", f"--repository={repository}", f"--tag={key}"),
            )
            shutil.move(f"{copy}/archives/{target}.tar", folder / "image.tar")

    return Image(f"{repository}-{target}:{key}", cached(f"image-{target}-{key}", build, keep=KEPT) / "image.tar")


def _files() -> list[str]:
    """What .dockerignore lets into a build, by name below the checkout."""
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    seen = [REPOSITORY / line[1:] for line in lines if line.startswith("!")]
    unseen = [line.removeprefix("**/") for line in lines if line.startswith("**/")]
    below = [path for root in seen for path in (root.rglob("*") if root.is_dir() else [root]) if path.is_file()]
    names = (path.relative_to(REPOSITORY) for path in below)
    return sorted(str(name) for name in names if not any(fnmatch(part, u) for part in name.parts for u in unseen))


def _buildah(*words: str | Path) -> str:
    return _in_storage("buildah", *words)


def _in_storage(*words: str | Path) -> str:
    """A command whose buildah keeps its storage in the cache, in a mount namespace so that none of its mounts stays."""
    storage = cache_root() / "buildah"
    with locked(cache_root() / ".locks/buildah"):
        storage.mkdir(exist_ok=True)
        configuration = storage / "storage.conf"
        configuration.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{storage}/storage"\nrunroot = "{storage}/run"\n'
        )
        settings = {
            "CONTAINERS_STORAGE_CONF": str(configuration),
            "BUILDAH_ISOLATION": "chroot",
            "TMPDIR": "/tmp",
        }
        return sh("unshare", "--mount", "--", *words, env=os.environ | settings)
