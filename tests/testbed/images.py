"""Images as archives, and the one that every pod needs: the pause image."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.testbed.cache import cached, key_of
from tests.testbed.errors import TestbedError
from tests.testbed.layout import PAUSE_IMAGE
from tests.testbed.packages import unpacked_packages
from tests.testbed.shell import sh

if TYPE_CHECKING:
    from pathlib import Path

PAUSE_SOURCE = """package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGINT, syscall.SIGTERM)
	<-ended
}
"""


@dataclass(frozen=True)
class Image:
    """An image in an archive (docker-archive or OCI, a .tar), to be given to `Cluster.load_image`."""

    reference: str
    archive: Path


def pause_image() -> Image:
    """One static program that waits to be told to go: what holds a pod's namespaces open."""

    def build(folder: Path) -> None:
        source, program = folder / "pause.go", folder / "pause"
        source.write_text(PAUSE_SOURCE)
        go = unpacked_packages() / "usr/lib/go-1.19"
        env = {
            "PATH": os.environ["PATH"],
            "GOROOT": str(go),
            "GOCACHE": str(folder / "cache"),
            "CGO_ENABLED": "0",
            "GO111MODULE": "off",
        }
        sh(go / "bin/go", "build", "-ldflags=-s -w", "-o", program, source, env=env)
        (folder / "pause.tar").write_bytes(single_program_image(PAUSE_IMAGE, program.read_bytes()))
        sh("rm", "-rf", folder / "cache")

    return Image(PAUSE_IMAGE, cached(f"pause-{key_of(PAUSE_IMAGE, PAUSE_SOURCE)}", build) / "pause.tar")


def single_program_image(reference: str, program: bytes) -> bytes:
    """A docker-archive of an image that holds one program at /program and runs it."""
    layer = tar_of({"program": program}, mode=0o755)
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {"Entrypoint": ["/program"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"]}]
    return tar_of(
        {"config.json": json.dumps(config).encode(), "layer.tar": layer, "manifest.json": json.dumps(manifest).encode()}
    )


def tar_of(files: dict[str, bytes], mode: int = 0o644) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def reference_of(archive: Path) -> str:
    """The first name that a docker-archive gives its image."""
    with tarfile.open(archive) as tar:
        file = tar.extractfile("manifest.json")
        if file is None:
            raise TestbedError(f"{archive}: manifest.json is not a file")
        return str(json.load(file)[0]["RepoTags"][0])
