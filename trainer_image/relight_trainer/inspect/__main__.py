"""The child process that reads files of training state: a request in JSON on its input, the answer on its output."""

import json
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from relight_trainer.inspect import Contents, Unreadable, WrongInput, read
from relight_trainer.inspect.child import too_large
from relight_trainer.inspect.compare import compare
from relight_trainer.inspect.contents import OutOfMemory
from relight_trainer.inspect.export import export
from relight_trainer.inspect.limits import Limits, limited
from relight_trainer.inspect.report import report


def main() -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    request = json.load(sys.stdin)
    answer = answered(request["what"], request["paths"], Limits(**request["limits"]), request["options"])
    sys.stdout.write(json.dumps(answer, allow_nan=False))
    return 0


def answered(what: str, paths: list[str], limits: Limits, options: Mapping[str, Any]) -> dict[str, Any]:
    """{result} of the function named `what`, or {error, message}."""
    try:
        return {"result": _FUNCTIONS[what](_contents(paths, limits), **options)}
    except (WrongInput, Unreadable) as error:
        return {"error": type(error).__name__, "message": str(error)}
    except OSError as error:
        return {"error": "OSError", "errno": error.errno, "message": error.strerror, "filename": error.filename}


def _contents(paths: list[str], limits: Limits) -> list[Contents]:
    found = []
    for path in paths:
        try:
            with limited(limits):
                contents = read(path)
                for _ in contents.leaves():  # what is not a bounded number of them is found here
                    pass
        except (MemoryError, OutOfMemory):
            raise Unreadable(too_large(path, limits)) from None
        found.append(contents)
    return found


def _report(contents: list[Contents], *, numbers: bool, pattern: str) -> dict[str, Any]:
    return report(*contents, numbers=numbers, pattern=pattern)


def _compare(contents: list[Contents], *, only_weights: bool) -> dict[str, Any]:
    return compare(*contents, only_weights=only_weights)


def _export(contents: list[Contents], *, out: str, ema: bool, key: str | None, force: bool) -> dict[str, Any]:
    [checkpoint] = contents
    return export(checkpoint, Path(out), ema=ema, key=key, force=force)


_FUNCTIONS: Mapping[str, Callable[..., dict[str, Any]]] = {"report": _report, "compare": _compare, "export": _export}


if __name__ == "__main__":
    sys.exit(main())
