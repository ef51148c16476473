"""Ends in the way that its second argument names, and notes into the file of its first what is still done after that."""

import atexit
import multiprocessing
import sys
import threading
import time
from pathlib import Path

FILE, WAY = sys.argv[1:3]


class Mine:
    """Looked for in `__main__` by an exit handler."""


def note(text):
    with Path(FILE).open("a", encoding="utf-8") as file:
        file.write(f"{text}\n")


def hook(kind, error, trace):
    names = []
    while trace is not None:
        names.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    note(f"hook: {kind.__name__}: {error} in {names}")


def late():
    time.sleep(0.2)
    note("a thread that is no daemon has ended")


def last():
    main = sys.modules["__main__"]
    alive = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    note(f"first registered; __main__ is mine: {main.Mine is Mine}; threads: {alive}")


def fail():
    raise ValueError("words of the user")


atexit.register(last)
atexit.register(note, "last registered")
threading.Thread(target=late).start()
threading.Thread(target=time.sleep, args=(60,), daemon=True, name="a daemon").start()
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
child.start()
note(f"begun as {Path(sys.argv[0]).name}")
match WAY:
    case "return":
        pass
    case "exit":
        sys.exit()
    case "exit 0":
        sys.exit(0)
    case "exit with words":
        sys.exit("the words")
    case "exit 3":
        sys.exit(3)
    case "raise":
        fail()
    case "raise with a hook":
        sys.excepthook = hook
        fail()
