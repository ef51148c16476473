"""Faults on demand, for `relight run --chaos`: started by a worker, in a session of its own.

`preempt`: SIGTERM to the agent, and SIGKILL after the grace period. `kill`: a machine lost, everything at once.
`announce`: the machine is to go, as a taint says in a cluster. `withdraw`: it stays after all.
"""

import argparse
import os
import shutil
import signal
import sys
import time
from typing import List, Optional, Set

from relight_agent.files import LEAVING
from relight_agent.processes import Process, descendants, is_alive, kill_all, processes


def main(argv: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="relight_agent.chaos", description=__doc__)
    parser.add_argument("action", choices=["preempt", "kill", "announce", "withdraw"])
    parser.add_argument("--agent-pid", type=int, required=True)
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--grace", type=float, default=120.0)
    arguments = parser.parse_args(argv)
    mark = os.path.join(arguments.run_dir, LEAVING)
    if arguments.action == "announce":
        with open(mark, "w", encoding="ascii"):
            return 0
    if arguments.action == "withdraw":
        if os.path.exists(mark):
            os.unlink(mark)
        return 0
    if arguments.action == "preempt":
        preempt(arguments.agent_pid, arguments.grace)
    kill(arguments.agent_pid)
    if arguments.action == "kill":
        shutil.rmtree(arguments.run_dir, ignore_errors=True)
    return 0


def preempt(agent: int, grace: float) -> None:
    os.kill(agent, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while is_alive(agent) and time.monotonic() < deadline:
        time.sleep(0.02)


def kill(agent: int) -> None:
    """SIGKILL the agent and everything below it but this very process; the agent first, so that it cannot react."""
    kept = {os.getpid()}
    members = set(descendants(agent)) - kept
    sessions = {p.session for p in processes() if p.pid in members and p.session in members | {agent}}
    if is_alive(agent):
        os.kill(agent, signal.SIGKILL)

    def select(seen: List[Process]) -> Set[int]:
        below = set().union(*(descendants(m, seen) for m in members)) if members else set()
        return ((members & {p.pid for p in seen}) | below | {p.pid for p in seen if p.session in sessions}) - kept

    kill_all(select)


if __name__ == "__main__":
    sys.exit(main())
