"""`relight run ...` on a backend that takes a member for lost as soon as there is a file `lost-<member>` beside its
folder, and does not touch it: what a cluster does with a machine that it cannot reach.
"""

import sys
from typing import Any

from relight_agent.exits import CAUSE_CLASS, Cause
from relight_operator.cli.main import main
from relight_operator.core.observed import MemberEnd
from relight_operator.local import members, runner


class Partitioned(members.ProcessMembers):
    def all(self) -> list[Any]:
        for member in self._members.values():
            if member.end is None and (self._folder.parent / f"lost-{member.name}").exists():
                cause = Cause.MACHINE_LOST
                member.end = MemberEnd(cause, CAUSE_CLASS[cause], self._clock(), message="its machine does not answer")
        return super().all()


runner.ProcessMembers = Partitioned  # type: ignore[misc]
runner.RESYNC_SECONDS = 0.2
sys.exit(main())
