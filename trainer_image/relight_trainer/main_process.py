"""Makes a worker the same as under torchrun: a main process whose `__main__` is the user's script.

Relight starts workers by `multiprocessing`, and torchrun starts `python -u SCRIPT`. A script sees the difference in the name
of its process, in the start method that is taken already, and in `__main__`.
"""

import importlib.machinery
import io
import itertools
import multiprocessing.context
import multiprocessing.process
import multiprocessing.resource_tracker
import os
import pkgutil
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

# multiprocessing makes one instance of the class and deletes the class's name.
_MAIN_PROCESS: Any = next(
    c for c in multiprocessing.process.BaseProcess.__subclasses__() if c.__name__ == "_MainProcess"
)


def become_main_process() -> None:
    """Have `multiprocessing` take this process for one that nobody has started by it: no parent, no start method."""
    vars(multiprocessing.process).update(
        _current_process=_MAIN_PROCESS(), _parent_process=None, _process_counter=itertools.count(1)
    )
    vars(vars(multiprocessing.context)["_default_context"])["_actual_context"] = None
    # A process started by spawn shares its parent's tracker. It starts one of its own when it needs it.
    tracker = vars(vars(multiprocessing.resource_tracker)["_resource_tracker"])
    if tracker["_fd"] is not None:
        os.close(tracker["_fd"])
        tracker.update(_fd=None, _pid=None)
    _reopen_stdin()


def _reopen_stdin() -> None:
    """Put back the standard input: `multiprocessing` has closed it, and opened another descriptor in its place."""
    first, present = sys.__stdin__, sys.stdin
    if first is None or present is first:
        return
    if not present.closed:
        os.close(present.fileno())
    raw = io.FileIO(0, "rb", closefd=False)
    raw.name = "<stdin>"
    again: Any = io.TextIOWrapper(
        io.BufferedReader(raw), first.encoding, first.errors, write_through=first.write_through
    )
    again.mode = "r"
    vars(sys).update(stdin=again, __stdin__=again)


def run_script(script: str, arguments: Sequence[str]) -> None:
    """Run a file, or a folder or archive with a `__main__.py`, as `python script arguments...` does in this folder.

    `__main__` stays the script's afterwards: its threads and its exit handlers may still need it.
    """
    path = Path(script).absolute()
    sys.argv = [script, *arguments]
    _note_folder()
    if pkgutil.get_importer(str(path)) is not None:
        sys.path.insert(0, str(path))
        _new_main()
        _run_as_main("__main__", alter_argv=False)
        return
    sys.path.insert(0, str(path.resolve().parent))
    main = _new_main()
    code = _compiled(path)
    kind = importlib.machinery.SourceFileLoader if code is None else importlib.machinery.SourcelessFileLoader
    vars(main).update(__file__=str(path), __cached__=None, __loader__=kind("__main__", str(path)))
    exec(code or _source(path), vars(main))  # noqa: S102  # the user's own script


def run_module(module: str, arguments: Sequence[str]) -> None:
    """Run a module as `python -m module arguments...` does in this folder. `__main__` stays the module's afterwards."""
    sys.argv = ["-m", *arguments]
    _note_folder()
    sys.path.insert(0, str(Path.cwd()))
    _new_main()
    _run_as_main(module, alter_argv=True)


def _run_as_main(module: str, *, alter_argv: bool) -> None:
    vars(runpy)["_run_module_as_main"](module, alter_argv=alter_argv)  # what `python -m` calls


def _note_folder() -> None:
    """Loader processes that are not forked take relative paths from here."""
    vars(multiprocessing.process)["ORIGINAL_DIR"] = str(Path.cwd())


def _new_main() -> ModuleType:
    main = ModuleType("__main__")
    main.__dict__.update(__builtins__=sys.modules["builtins"], __annotations__={})
    sys.modules["__main__"] = main
    return main


def _compiled(path: Path) -> CodeType | None:
    """What a .pyc file holds; None for any other."""
    with io.open_code(str(path)) as file:
        code: CodeType | None = pkgutil.read_code(file)
    return code


def _source(path: Path) -> CodeType:
    with io.open_code(str(path)) as file:
        return compile(file.read(), str(path), "exec", dont_inherit=True)
