"""Ends, or does not, in the way that argv names."""

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

folder = Path(os.environ["RELIGHT_GENERATION_DIR"])


def late():
    time.sleep(0.2)
    (folder / "thread").write_text("done")


match sys.argv[1:]:
    case ["signal", name]:
        os.kill(os.getpid(), getattr(signal, name))
    case ["terminated"]:
        # The agent's own SIGTERM and a terminal's Ctrl-C are not for the workers; their programs obey as usual.
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        program = subprocess.Popen(["sleep", "60"])
        program.terminate()
        assert program.wait(10) == -signal.SIGTERM
    case ["thread"]:
        threading.Thread(target=late).start()
    case ["slow exit"]:
        atexit.register(late)
    case ["unfinished"]:
        os._exit(0)
    case ["storage"]:
        error = OSError("no space left")
        error.exit_code = 74
        raise error
    case ["wait"]:
        (folder / f"waiting-{os.environ['LOCAL_RANK']}.json").write_text(str(os.getpid()))
        time.sleep(600)
