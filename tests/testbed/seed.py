"""Images are unpacked once: into a containerd folder from which every machine gets its own by hard links.

Files below an overlay are only read, so machines may share them; what containerd writes itself, its databases, is copied.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from tests.testbed.cache import cached, key_of
from tests.testbed.images import pause_image
from tests.testbed.packages import unpacked_packages
from tests.testbed.shell import sh

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.testbed.images import Image

KEPT = 2

# In a mount namespace of its own, so that nothing is left of what containerd mounts while it unpacks.
IMPORT = """
set -eu
root=$1; shift
mount -t tmpfs tmpfs /run
containerd --config "$root/containerd.toml" > "$root/containerd.log" 2>&1 &
daemon=$!
until ctr version > /dev/null 2>&1; do kill -0 $daemon; sleep 0.1; done
for archive in "$@"; do ctr -n=k8s.io images import "$archive"; done
kill $daemon
wait $daemon || true
"""


def seed(images: Sequence[Image]) -> Path:
    """A containerd folder that holds the pause image and `images`, unpacked."""
    wanted = {image.reference: image.archive for image in (pause_image(), *images)}

    def build(folder: Path) -> None:
        (folder / "containerd.toml").write_text(
            f'version = 2\nroot = "{folder}/containerd"\nstate = "/run/containerd"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]\n'
        )
        debian = unpacked_packages() / "usr"
        path = f"{debian}/bin:{debian}/sbin:{os.environ['PATH']}:/usr/sbin:/sbin"
        words = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", IMPORT, "sh")
        sh(*words, folder, *wanted.values(), env=os.environ | {"PATH": path})

    return cached(f"seed-{key_of(*wanted)}", build, keep=KEPT) / "containerd"


def sow(source: Path, target: Path) -> None:
    """Gives a machine its containerd folder."""
    sh("cp", "--archive", "--link", source, target)
    for database in source.glob("*/*.db"):
        own = target / database.relative_to(source)
        own.unlink()
        shutil.copy2(database, own)
