"""Builds the images of the Dockerfile with docker or, where no docker daemon answers, with buildah: `make image`.

This machine's pip configuration (an index of its own, a proxy's certificate, a folder of wheels) is handed to the build
and stays out of the images: pip.conf as a secret, the local files it names as volumes, which only buildah can mount.
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("operator", "trainer")
REPOSITORY = "localhost/relight"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{' and '.join(TARGETS)}, where none is named")
    parser.add_argument("--base", help="the base image; the Dockerfile says what it must have")
    parser.add_argument("--repository", default=REPOSITORY, help="images are REPOSITORY-TARGET:TAG (%(default)s)")
    parser.add_argument(
        "--tag", default=project_version(), help="the project's version, which is the chart's default too"
    )
    parser.add_argument(
        "--archives", type=Path, metavar="FOLDER", help="also write FOLDER/TARGET.tar in docker's format"
    )
    parser.add_argument(
        "--engine", choices=("docker", "buildah"), help="without it docker, if its daemon answers, else buildah"
    )
    given = parser.parse_args()
    unknown = set(given.targets) - set(TARGETS)
    if unknown:
        parser.error(f"unknown target: {', '.join(sorted(unknown))}; allowed: {', '.join(TARGETS)}")
    engine = given.engine or find_engine()
    if engine is None:
        print("make image needs docker with its daemon running, or buildah; neither is here", file=sys.stderr)
        return 69
    for target in given.targets or TARGETS:
        image = f"{given.repository}-{target}:{given.tag}"
        build(engine, target, image, given.base)
        if given.archives is not None:
            given.archives.mkdir(parents=True, exist_ok=True)
            save(engine, image, given.archives / f"{target}.tar")
        print(image)
    return 0


def project_version() -> str:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def find_engine() -> str | None:
    if shutil.which("docker") and subprocess.run(["docker", "info"], check=False, capture_output=True).returncode == 0:
        return "docker"
    return "buildah" if shutil.which("buildah") else None


def build(engine: str, target: str, image: str, base: str | None) -> None:
    configuration = pip_configuration()
    with tempfile.NamedTemporaryFile("w", prefix="relight-pip-", suffix=".conf") as file:
        file.write(as_pip_conf(configuration))
        file.flush()
        command = [engine, "build", "--target", target, "--tag", image, "--secret", f"id=pip,src={file.name}"]
        if engine == "buildah":
            command += ["--layers", "--pull=false"]  # a base that is here is used as it is
            for path in local_paths(configuration.values()):
                command += ["--volume", f"{path}:{path}:ro"]
        if base:
            command += ["--build-arg", f"BASE={base}"]
        if "PIP_EXTRA_INDEX_URL" in os.environ:
            command += ["--build-arg", f"PIP_EXTRA_INDEX_URL={os.environ['PIP_EXTRA_INDEX_URL']}"]
        subprocess.run([*command, "."], cwd=ROOT, check=True, env=engine_environment())


def save(engine: str, image: str, path: Path) -> None:
    """Writes `path`, a docker archive: what `docker load` and `ctr image import` read."""
    path.unlink(missing_ok=True)  # buildah would append to it
    if engine == "docker":
        command = ["docker", "save", "--output", str(path), image]
    else:
        command = ["buildah", "push", "--quiet", image, f"docker-archive:{path}:{image}"]
    subprocess.run(command, check=True, env=engine_environment())


def engine_environment() -> dict[str, str]:
    """Root in a container may not make the namespaces that buildah would otherwise want."""
    isolation = {"BUILDAH_ISOLATION": "chroot"} if os.geteuid() == 0 else {}
    return {**isolation, **os.environ, "DOCKER_BUILDKIT": "1"}


def pip_configuration() -> dict[str, str]:
    """What pip is told on this machine, the environment's over the files', as `find-links` -> value."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(command, check=False, capture_output=True, text=True)
    return parse_pip_config(listing.stdout) if listing.returncode == 0 else {}  # a Python without pip has none


def parse_pip_config(listing: str) -> dict[str, str]:
    """The options that `pip config list` prints as `section.option='value'`, one a line, for any command."""
    found: dict[str, dict[str, str]] = {"global": {}, ":env:": {}}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if section in found:
            found[section][option] = str(ast.literal_eval(value))
    return {**found["global"], **found[":env:"]}


def as_pip_conf(options: Mapping[str, str]) -> str:
    lines = (f"{name} = {' '.join(value.split())}" for name, value in options.items() if name != "config-file")
    return "\n".join(["[global]", *lines, ""])


def local_paths(values: Iterable[str]) -> list[str]:
    """The local files and folders that pip's options name; of an index folder its parent, which holds what it links to."""
    words = {word.removeprefix("file://") for value in values for word in value.split()}
    paths = {re.sub(r"/simple/?$", "", word) for word in words if word.startswith("/")}
    return sorted(path for path in paths if path not in {"", "/"} and Path(path).exists())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
