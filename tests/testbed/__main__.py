"""`python -m tests.testbed up|down|status|build|load|kill|revive|partition|heal`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from tests.testbed.building import TARGETS, base_image, relight_image
from tests.testbed.cache import cache_root
from tests.testbed.cluster import Cluster, bring_down, prepare
from tests.testbed.errors import TestbedError
from tests.testbed.images import Image, reference_of
from tests.testbed.layout import NODES, kubeconfig_path
from tests.testbed.packages import missing_packages
from tests.testbed.seed import seed


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def agreed() -> bool:
    """Asks before anything is installed on somebody's computer; RELIGHT_TESTBED_YES=1 answers for those who cannot."""
    missing = missing_packages()
    if not missing or os.environ.get("RELIGHT_TESTBED_YES") == "1":
        return True
    say(f"The testbed installs these packages here with apt-get: {' '.join(missing)}")
    say(f"It builds Kubernetes from source (about ten minutes, once) and keeps it in {cache_root()}.")
    if not sys.stdin.isatty():
        say("Nobody to ask: set RELIGHT_TESTBED_YES=1 to agree.")
        return False
    return input("Go on? [y/N] ").strip().lower() in {"y", "yes"}


def up() -> int:
    if not agreed():
        return 1
    began = time.monotonic()
    cluster = Cluster.running()
    if cluster is None:
        say("starting the testbed (the first time it is built: about ten minutes)")
        cluster = Cluster.up(keep=True)
        say(f"up after {time.monotonic() - began:.0f} s; end it with: make cluster-down")
    print(f"export KUBECONFIG={cluster.kubeconfig}")
    return 0


def status() -> int:
    cluster = Cluster.running()
    if cluster is None:
        say("no testbed is running")
        return 1
    for name, pid in cluster.machines().items():
        print(f"{name}\t{'dead' if pid is None else f'running, pid {pid}'}")
    print(f"export KUBECONFIG={kubeconfig_path()}")
    return 0


def with_cluster(action: str, argument: str) -> int:
    cluster = Cluster.running()
    if cluster is None:
        say("no testbed is running")
        return 1
    if action == "load":
        archive = Path(argument).absolute()
        cluster.load_image(Image(reference_of(archive), archive))
    else:
        {
            "kill": cluster.kill_machine,
            "revive": cluster.revive_machine,
            "partition": cluster.partition,
            "heal": cluster.heal,
        }[action](argument)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.testbed", description="a Kubernetes cluster on this computer"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in {
        "up": "start it; prints the line that points kubectl at it",
        "down": "end it, and remove what a killed one left behind",
        "status": "its machines",
    }.items():
        commands.add_parser(name, help=text)
    build = commands.add_parser("build", help="install and build what it needs, and start nothing")
    build.add_argument("--images", action="store_true", help="Relight's images of this checkout too, unpacked")
    commands.add_parser("load", help="import an image archive into every machine").add_argument(
        "argument", metavar="TAR"
    )
    for name in ("kill", "revive", "partition", "heal"):
        commands.add_parser(name, help=f"{name} a machine").add_argument("argument", metavar="MACHINE", choices=NODES)
    arguments = parser.parse_args()
    try:
        match arguments.command:
            case "up":
                return up()
            case "down":
                bring_down()
                return 0
            case "status":
                return status()
            case "build":
                if not agreed():
                    return 1
                prepare()
                if arguments.images:
                    seed([base_image(), *(relight_image(target) for target in TARGETS)])
                return 0
            case action:
                return with_cluster(action, arguments.argument)
    except TestbedError as error:
        say(f"error: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
