"""What a script can see of the process that it runs in, written as JSON into the file that its first argument names."""

import atexit
import contextlib
import faulthandler
import gc
import json
import locale
import logging
import multiprocessing
import os
import pickle
import random
import resource
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

try:
    import numpy as np
except ModuleNotFoundError:
    np = None


class Numbers(Dataset):
    """Defined in the script: loader processes that are not forked must find it in `__main__`."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return i


def loaded(method):
    loader = DataLoader(Numbers(), 2, num_workers=1, multiprocessing_context=method)
    return [batch.tolist() for batch in loader]


def name_of_child(method):
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    child = context.Process(target=say_name, args=(queue,))
    child.start()
    child.join()
    return queue.get()


def say_name(queue):
    parent = multiprocessing.parent_process()
    queue.put([multiprocessing.current_process().name, parent.name if parent else None])


def pool_in_a_child(queue):
    with multiprocessing.get_context("fork").Pool(1) as pool:
        queue.put(pool.map(abs, [-1]))


def terminated():
    """How a forked child ends that is asked to, and what it is."""
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join(10)
    alive = child.is_alive()
    child.kill()
    return "alive" if alive else child.exitcode


def attempted(do):
    try:
        return do()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def descriptors():
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found[entry.name] = str(entry.readlink())
    return found


def masks():
    lines = Path("/proc/self/status").read_text().splitlines()
    wanted = ("SigBlk", "SigIgn", "SigCgt")
    return {name: int(value, 16) for name, _, value in (line.partition(":\t") for line in lines) if name in wanted}


def numbers_of(mask):
    return [n for n in range(1, 65) if mask >> (n - 1) & 1]


def streams():
    return {
        name: [stream.line_buffering, stream.write_through, stream.encoding, stream.errors, stream.fileno()]
        for name, stream in (("stdin", sys.stdin), ("stdout", sys.stdout), ("stderr", sys.stderr))
    }


def main_module():
    main = sys.modules["__main__"]
    return {
        "file": main.__file__,
        "name": main.__name__,
        "spec": main.__spec__.name if main.__spec__ else None,
        "package": main.__package__,
        "loader": type(main.__loader__).__name__ if not isinstance(main.__loader__, type) else main.__loader__.__name__,
        "cached": getattr(main, "__cached__", None),
        "doc": main.__doc__,
        "is mine": main.__dict__ is globals(),
        "builtins": main.__builtins__ is sys.modules["builtins"],
        "names": sorted(name for name in vars(main) if name.startswith("__")),
        "annotations": hasattr(main, "__annotations__"),
    }


def what_is_seen():
    process = multiprocessing.current_process()
    parent = multiprocessing.parent_process()
    return {
        "process name": process.name,
        "process class": type(process).__name__,
        "process pid": process.pid == os.getpid(),
        "process identity": list(process._identity),
        "process config": sorted(process._config),
        "process daemon": process.daemon,
        "authkey length": len(process.authkey),
        "parent process": parent.name if parent else None,
        "start method": multiprocessing.get_start_method(allow_none=True),
        "children": len(multiprocessing.active_children()),
        "torch start method": torch.multiprocessing.get_start_method(allow_none=True),
        "temporary folder of multiprocessing": process._config.get("tempdir"),
        "main": main_module(),
        "frames below": below(),
        "argv": sys.argv,
        "path[0]": sys.path[0],
        "path": sys.path,
        "flags": {
            name: getattr(sys.flags, name)
            for name in dir(sys.flags)
            if not name.startswith(("_", "n_", "count", "index"))
        },
        "warn options": sys.warnoptions,
        "xoptions": sys._xoptions,
        "executable": sys.executable,
        "prefix": sys.prefix,
        "dont_write_bytecode": sys.dont_write_bytecode,
        "cwd": str(Path.cwd()),
        "environment": dict(os.environ),
        "signal handlers": {
            n.name: str(h) if isinstance(h := signal.getsignal(n), signal.Handlers) else getattr(h, "__name__", str(h))
            for n in signal.valid_signals()
            if isinstance(n, signal.Signals)
        },
        "signals": {name: numbers_of(mask) for name, mask in masks().items()},
        "signal mask": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
        "wakeup": _wakeup(),
        "umask": _umask(),
        "nice": os.nice(0),
        "descriptors": descriptors(),
        "inheritable": sorted(
            fd for fd in map(int, descriptors()) if attempted(lambda fd=fd: os.get_inheritable(fd)) is True
        ),
        "streams": streams(),
        "limits": {
            name: list(resource.getrlimit(getattr(resource, name)))
            for name in dir(resource)
            if name.startswith("RLIMIT_")
        },
        "leads its group": os.getpgrp() == os.getpid(),
        "leads its session": os.getsid(0) == os.getpid(),
        "affinity": sorted(os.sched_getaffinity(0)),
        "torch threads": torch.get_num_threads(),
        "torch interop threads": torch.get_num_interop_threads(),
        "blas threads": _blas(),
        "threads": [t.name for t in threading.enumerate()],
        "main thread": threading.main_thread() is threading.current_thread() and threading.main_thread().name,
        "tasks": len(list(Path("/proc/self/task").iterdir())),
        "torch seed": torch.initial_seed(),
        "torch numbers": torch.rand(3).tolist(),
        "cuda initialised": torch.cuda.is_initialized(),
        "random numbers": [random.random() for _ in range(2)],
        "numpy numbers": np.random.rand(2).tolist() if np else [],
        "warning filters": [[str(p) for p in f] for f in warnings.filters],
        "showwarning": warnings.showwarning.__name__,
        "root logger": [logging.root.level, [str(h) for h in logging.root.handlers], logging.root.disabled],
        "loggers": {
            name: [logger.level, [type(h).__name__ for h in logger.handlers], logger.propagate, logger.disabled]
            for name, logger in sorted(logging.root.manager.loggerDict.items())
            if isinstance(logger, logging.Logger) and (logger.level or logger.handlers or not logger.propagate)
        },
        "logging disabled": logging.root.manager.disable,
        "locale": [locale.setlocale(locale.LC_ALL), locale.getpreferredencoding(), sys.getfilesystemencoding()],
        "hooks": [
            sys.excepthook is sys.__excepthook__,
            threading.excepthook is threading.__excepthook__,
            sys.unraisablehook is sys.__unraisablehook__,
            sys.displayhook is sys.__displayhook__,
            sys.breakpointhook is sys.__breakpointhook__,
        ],
        "tracing": [sys.gettrace() is None, sys.getprofile() is None],
        "faulthandler": faulthandler.is_enabled(),
        "gc": [gc.isenabled(), list(gc.get_threshold()), gc.get_debug()],
        "frozen objects": gc.get_freeze_count() > 0,
        "recursion limit": sys.getrecursionlimit(),
        "switch interval": sys.getswitchinterval(),
        "depth": depth(),
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "matmul precision": torch.get_float32_matmul_precision(),
        "deterministic": [
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
        ],
        "grad": [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()],
        "sharing": torch.multiprocessing.get_sharing_strategy(),
        "distributed": torch.distributed.is_initialized(),
        "torchelastic": torch.distributed.is_torchelastic_launched(),
        "pickled": attempted(lambda: type(pickle.loads(pickle.dumps(Numbers()))) is Numbers),
        "modules": sorted(sys.modules),
        "meta path": [getattr(f, "__name__", type(f).__name__) for f in sys.meta_path],
        "excepthook": sys.excepthook.__name__,
        "atexit": atexit._ncallbacks() > 0,
        "posix session tty": os.isatty(0),
    }


def below():
    """The names of the functions that called the script."""
    frame, names = sys._getframe(), []
    while frame := frame.f_back:
        names.append(frame.f_code.co_name)
    return names


def depth():
    return len(below())


def _wakeup():
    before = signal.set_wakeup_fd(-1)
    if before != -1:
        signal.set_wakeup_fd(before)
    return before


def _umask():
    before = os.umask(0)
    os.umask(before)
    return before


def _blas():
    try:
        import threadpoolctl
    except ModuleNotFoundError:
        return None
    return sorted((p["user_api"], p["num_threads"]) for p in threadpoolctl.threadpool_info())


def what_can_be_done():
    multiprocessing.set_start_method("spawn")
    queue = multiprocessing.get_context("fork").SimpleQueue()
    child = multiprocessing.get_context("fork").Process(target=pool_in_a_child, args=(queue,))
    child.start()
    child.join()
    return {
        "start method once set": multiprocessing.get_start_method(),
        "loaded by spawn": attempted(lambda: loaded("spawn")),
        "loaded by forkserver": attempted(lambda: loaded("forkserver")),
        "loaded by fork": attempted(lambda: loaded("fork")),
        "child's name": attempted(lambda: name_of_child("fork")),
        "child of a child": queue.get(),
        "a child that is terminated": terminated(),
    }


if __name__ == "__main__":
    out = Path(sys.argv[1])
    seen = what_is_seen()
    # Each loader process that is not forked imports torch: once is enough. In an archive they fail under python itself.
    if "--only-see" not in sys.argv and int(os.environ["RANK"]) + 1 == int(os.environ["WORLD_SIZE"]):
        seen |= what_can_be_done()
    path = out / f"{os.environ['RANK']}.json"
    path.with_suffix(".part").write_text(json.dumps(seen, indent=1, default=str))
    path.with_suffix(".part").rename(path)
