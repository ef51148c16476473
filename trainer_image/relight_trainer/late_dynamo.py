"""torch's compiler, imported where something is compiled and not before.

To import `torch._dynamo` takes as long as torch itself, and torch does so in every training: DDP's constructor, the first
step of an optimizer and others call functions of it that do nothing where nothing is compiled. A lost member's
replacement would wait for that before its first step. `stand_in` puts a module in its place that answers those calls as
`torch._dynamo` does, and makes way for it as soon as anything else of it, or of its submodules, is asked for: by
`torch.compile`, and by activation checkpointing, which disables functions of its own.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from threading import Lock
from types import ModuleType
from typing import Any

import torch

_NAME = "torch._dynamo"
_KEPT = "__dynamo_disable"  # where torch._compile keeps what `disable` has given it


def stand_in() -> None:
    """Once; does nothing where `torch._dynamo` is imported already."""
    if _NAME in sys.modules:
        return
    standing = _StandIn(find_spec(_NAME))
    sys.meta_path.insert(0, standing.finder)
    sys.modules[_NAME] = standing
    torch._dynamo = standing  # noqa: SLF001


def use_deterministic_algorithms() -> None:
    """As torch's function of this name, which imports the compiler to tell it of this."""
    if "torch._inductor.config" in sys.modules:
        torch.use_deterministic_algorithms(True)
    else:
        os.environ["TORCHINDUCTOR_DETERMINISTIC"] = "1"  # what it reads when it is imported
        torch._C._set_deterministic_algorithms(True, warn_only=False)  # noqa: SLF001


class _StandIn(ModuleType):
    def __init__(self, spec: ModuleSpec | None) -> None:
        super().__init__(_NAME)
        self.finder = _Finder(self)
        # What is looked up in every module by who prints a traceback or a warning.
        self.__spec__ = spec
        self.__file__ = spec.origin if spec else None
        self.__path__: list[str] = []
        self._undisabled: list[Any] = []
        self._making_way = Lock()
        self.graph_break = _nothing
        self.trace_rules = _Part(self, "trace_rules", clear_lru_cache=_nothing)  # asked by init_process_group
        self.utils = _Part(self, "utils", get_optimize_ddp_mode=lambda: "ddp_optimizer")  # by DDP; the default

    def disable(self, *args: Any, **how: Any) -> Any:
        """The function itself, for torch._compile, where nothing is compiled that could be disabled."""
        if args and how == {"wrapping": False}:
            self._undisabled.append(args[0])
            return args[0]
        return self.real().disable(*args, **how)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.real(), name)

    def real(self) -> ModuleType:
        """The real module, imported as if this one had never been there."""
        with self._making_way:
            if sys.modules.get(_NAME) is self:
                for function in self._undisabled:
                    vars(function).pop(_KEPT, None)
                sys.meta_path.remove(self.finder)
                del torch._dynamo  # noqa: SLF001
                del sys.modules[_NAME]
        return importlib.import_module(_NAME)  # outside: imports have locks of their own


class _Part(ModuleType):
    """A submodule's stand-in, for who has it as an attribute."""

    def __init__(self, whole: _StandIn, name: str, **answers: Any) -> None:
        super().__init__(f"{_NAME}.{name}")
        vars(self).update(answers, _whole=whole)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._real(), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._real(), name, value)

    def _real(self) -> ModuleType:
        vars(self)["_whole"].real()
        return importlib.import_module(self.__name__)


class _Finder(MetaPathFinder):
    """Has the real package imported before any of its submodules."""

    def __init__(self, whole: _StandIn) -> None:
        self._whole = whole

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002  # the stand-in's
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if not fullname.startswith(f"{_NAME}."):
            return None
        real = self._whole.real()
        loaded = sys.modules.get(fullname)
        if loaded is None:
            return PathFinder.find_spec(fullname, real.__path__, target)
        # What the import goes by from here on is the module's own, as in any import that its parent has done meanwhile.
        spec = ModuleSpec(fullname, _Loaded(loaded))
        vars(loaded)["__spec__"] = spec  # past modules that refuse to be changed
        return spec


class _Loaded(Loader):
    """For an import whose module the package has loaded meanwhile, which would be loaded twice."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._spec = module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:  # noqa: ARG002
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__spec__"] = self._spec


def _nothing(*_args: Any, **_how: Any) -> None: ...
