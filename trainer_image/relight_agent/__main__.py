"""`python -m relight_agent`: run as PID 1 of a training pod (or as a process of the local runner)."""

import os
import sys

# `python -m` puts the working folder first: a user's `queue.py` there must not become the library's.
if __name__ == "__main__" and not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
    del sys.path[0]

from relight_agent.agent import Agent, write_termination_message
from relight_agent.exits import ExitCode
from relight_agent.identity import Identity
from relight_agent.reserved import leave_out


def main() -> int:
    if strange := leave_out(os.environ):
        print(f"relight-agent: left out of the environment, set by Relight: {', '.join(strange)}", file=sys.stderr)
    try:
        me = Identity.from_env(os.environ)
    except (OSError, ValueError) as error:
        print(f"relight-agent: {error}", file=sys.stderr)
        write_termination_message(
            os.environ.get("RELIGHT_TERMINATION_LOG", "/dev/termination-log"), ExitCode.BAD_CONFIG, str(error), None
        )
        return ExitCode.BAD_CONFIG
    code = Agent(me).run()
    sys.stdout.flush()
    # Daemon threads may sit in a held wait: nothing of them is needed any more.
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
