"""Images: the pause image, a Debian base with Python, and what a Dockerfile makes of it. All kept in the cache by content."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from typing import TYPE_CHECKING

from tests.testbed.cache import cached, key_of
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


def pause_image() -> Path:
    """The archive of PAUSE_IMAGE: one static program that waits to be told to go."""

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

    return cached(f"pause-{key_of(PAUSE_IMAGE, PAUSE_SOURCE)}", build) / "pause.tar"


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
