"""Weights of another training into a fresh model, with an account of what was found and what was not."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, assert_never

import torch
from torch import Tensor, nn

from relight_trainer.config import BadConfig
from relight_trainer.globs import chosen
from relight_trainer.inspect import Unreadable, WrongInput, read
from relight_trainer.inspect.folders import damage
from relight_trainer.inspect.statistics import Bytes
from relight_trainer.inspect.weights import weights
from relight_trainer.patterns import require
from relight_trainer.problems import Problem, shown
from relight_trainer.strict import nearest

if TYPE_CHECKING:
    from relight_trainer.inspect import TensorRef
    from relight_trainer.settings.init_from import InitFrom, Rename

_PATH = "config.init_from"
_SHOWN = 6  # names in one message


class Reshaped(NamedTuple):
    name: str
    found: tuple[int, ...]
    wanted: tuple[int, ...]


@dataclass(frozen=True)
class Report:
    """What became of each tensor: of the model's, `matched`, `missing` or `reshaped`; of the file's, `unexpected`."""

    path: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[Reshaped, ...]

    @property
    def ratio(self) -> float:
        """The share of the model's tensors that were found."""
        return len(self.matched) / max(len(self.matched) + len(self.missing) + len(self.reshaped), 1)

    def dump(self) -> dict[str, Any]:
        """The JSON object."""
        return {**asdict(self), "ratio": self.ratio}

    def summary(self) -> str:
        count = len(self.matched) + len(self.missing) + len(self.reshaped)
        parts = [f"{len(self.matched)} of the model's {count} tensors are from {self.path}"]
        parts += [f"missing there: {_some(self.missing)}"] if self.missing else []
        parts += [f"not in the model: {_some(self.unexpected)}"] if self.unexpected else []
        shapes = [f"{r.name} is {list(r.found)} there and {list(r.wanted)} here" for r in self.reshaped]
        return "; ".join([*parts, *([_some(shapes)] if shapes else [])])


def init_from(settings: "InitFrom", module: nn.Module) -> Report:
    """Load into `module` what `settings` say, or nothing at all.

    No code of the file is run. Raises BadConfig where there is nothing or the policy is not met, Unreadable.
    """
    with local_copy(settings.path) as path:
        try:
            contents = read(path)
            found = dict(weights(contents, key=settings.key, ema=settings.ema))
        except WrongInput as error:
            message = str(error).replace("--key", "`key`")  # as the commands call it
            raise BadConfig([Problem(_PATH, message)]) from None
        wrong = damage(contents)
        if wrong:
            raise Unreadable(f"{settings.path}: {'; '.join(wrong)}")
        there = _renamed(found, settings.rename)
        own = {**dict(module.named_parameters(remove_duplicate=False)), **_saved_buffers(module)}
        whole = {name: tensor for name, tensor in own.items() if not _old_counter(name, there)}
        own = _part(settings, whole)
        # What is elsewhere in the model is not asked for, and so not unexpected either.
        there = {name: ref for name, ref in there.items() if name in own or name not in whole}
        report = _report(settings.path, there, own)
        _judge(settings, report)
        with torch.no_grad(), Bytes() as data:
            for name in report.matched:
                own[name].copy_(_tensor(there[name], data))
    return report


@contextmanager
def local_copy(path: str) -> Iterator[str]:
    """A path on this machine for `path`, which may be a URL that fsspec knows: then a copy, for as long as it is used.

    Raises BadConfig where there is no such thing, or nothing that could fetch it.
    """
    if "://" not in path:
        yield path
        return
    import fsspec

    from relight_trainer.storage_options import discreet, options

    with TemporaryDirectory(prefix="relight-init-from-") as folder:
        copy = str(Path(folder) / PurePosixPath(path).name)
        try:
            with discreet():
                filesystem, remote = fsspec.core.url_to_fs(path, **options(path))
                filesystem.get(remote, copy, recursive=True)
        except (ImportError, ValueError, FileNotFoundError) as error:
            raise BadConfig([Problem(f"{_PATH}.path", f"cannot be fetched ({error})", shown(path))]) from None
        yield copy


def _renamed(there: Mapping[str, "TensorRef"], renames: "list[Rename]") -> dict[str, "TensorRef"]:
    result: dict[str, TensorRef] = {}
    for old, ref in there.items():
        name = old
        for rename in renames:
            name = re.sub(rename.pattern, rename.to, name)
        if name in result:
            message = "two tensors of the file would have one name"
            raise BadConfig([Problem(f"{_PATH}.rename", message, shown(name))])
        result[name] = ref
    return result


def _saved_buffers(module: nn.Module) -> dict[str, Tensor]:
    saved = module.state_dict().keys()
    return {name: b for name, b in module.named_buffers(remove_duplicate=False) if name in saved}


def _old_counter(name: str, there: Mapping[str, "TensorRef"]) -> bool:
    """Whether `name` is batch norm's counter, which old files lack and which only an unset momentum reads."""
    sibling = f"{name.removesuffix('num_batches_tracked')}running_mean"
    return name.endswith("num_batches_tracked") and name not in there and sibling in there


def _part(settings: "InitFrom", whole: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the model that the file is for. Raises BadConfig where a pattern of `only` fits none."""
    if settings.only is None:
        return whole
    require(whole, settings.only, f"{_PATH}.only")
    return {name: whole[name] for name in chosen(whole, settings.only)}


def _report(path: str, there: Mapping[str, "TensorRef"], here: Mapping[str, Tensor]) -> Report:
    common = [name for name in here if name in there]
    same = {name for name in common if there[name].shape == tuple(here[name].shape)}
    return Report(
        path=path,
        matched=tuple(name for name in common if name in same),
        missing=tuple(name for name in here if name not in there),
        unexpected=tuple(name for name in there if name not in here),
        reshaped=tuple(
            Reshaped(name, there[name].shape, tuple(here[name].shape)) for name in common if name not in same
        ),
    )


def _judge(settings: "InitFrom", report: Report) -> None:
    """Raises BadConfig where `report` is less than `settings` ask for."""
    near = None
    if report.missing and report.unexpected:
        near = nearest(report.missing[0], report.unexpected)
    match settings.policy:
        case "strict":
            differing = bool(report.reshaped or report.missing or report.unexpected)
            allowed = "shape_tolerant (other shapes stay fresh), subset (missing ones too), or rename"
        case "shape_tolerant":
            differing = bool(report.missing or report.unexpected)
            allowed = "subset (missing ones stay fresh), or rename"
        case "subset":
            differing, allowed = False, ""
        case unknown:
            assert_never(unknown)
    if differing:
        raise BadConfig([Problem(f"{_PATH}.policy", report.summary(), shown(settings.policy), allowed, near)])
    if report.ratio < settings.min_match:
        message = f"only {report.ratio:.0%} match: {report.summary()}"
        allowed = f"{int(report.ratio * 100) / 100:g} or less, or rename"
        raise BadConfig([Problem(f"{_PATH}.min_match", message, shown(settings.min_match), allowed, near)])


def _tensor(ref: "TensorRef", data: Bytes) -> Tensor:
    """The tensor itself, on the CPU."""
    import numpy as np

    raw = np.array(data.whole(ref), order="C", copy=True)
    flat = torch.from_numpy(raw.reshape(-1).view(np.uint8))
    return flat.view(getattr(torch, ref.dtype)).view(ref.shape)


def _some(names: "tuple[str, ...] | list[str]") -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
