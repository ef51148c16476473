"""The buffers of modules, looked up in the modules each time: a module may replace a buffer at any time.

`self.center = new` puts another tensor in the place of the old one, as DINO's loss does in each step; `module.to(...)`
does so for every buffer. A buffer may also change its shape, dtype or device, be set to None, or be registered late.
Whoever keeps a list of buffers then works on tensors that the module no longer has. `Places` notices, `Kept` puts back.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from operator import is_
from typing import ClassVar

import torch
from torch import Tensor, nn

from relight_agent.exits import ExitCode


class UnsupportedBuffer(Exception):
    """A buffer is of a kind whose bytes cannot be copied."""

    exit_code: ClassVar[ExitCode] = ExitCode.BAD_CONFIG


class Places:
    """The buffers of `modules`, and with `parameters` their parameters, as they are at the last `look`.

    `named` has each tensor once, under its first name; with several modules, a name begins with the module's number.
    `version` rises each time a look finds a tensor, shape, dtype, device, name or submodule that was not there before.
    """

    def __init__(self, modules: Iterable[nn.Module], *, parameters: bool = False) -> None:
        """Raises UnsupportedBuffer for a module that is compiled to TorchScript: its buffers are not in Python's hands."""
        self._modules = list({id(m): m for m in modules}.values())
        for top in self._modules:
            for name, module in top.named_modules():
                if isinstance(module, torch.jit.ScriptModule):
                    raise UnsupportedBuffer(
                        f"{name or 'the model'} is a {type(module).__name__} of torch.jit; allowed: the module that it "
                        "was compiled from. Script or trace the model after the training"
                    )
        self._parameters = parameters
        self.version = 0
        self.named: dict[str, Tensor] = {}
        self._walk()

    def look(self, *, shapes: bool = True) -> int:
        """Bring `named` up to date; the version. Costs less than a microsecond for a small module.

        Without `shapes`, a tensor that changes its shape, dtype or device and stays the same object is not noticed.
        """
        if not self._same_objects() or (
            shapes
            and (
                [*map(Tensor.size, self._tensors)] != self._sizes
                or [t.dtype for t in self._tensors] != self._dtypes
                or [t.device for t in self._tensors] != self._devices
            )
        ):
            self._walk()
        return self.version

    def _same_objects(self) -> bool:
        # Two tensors of one number each may be equal; tensors of several numbers are no answer where they are not the
        # same object, which is looked at first.
        if not all(held.get(name) is tensor for held, name, tensor in self._singles):
            return False
        try:
            return self._containers == self._seen
        except (RuntimeError, ValueError, TypeError):
            return False

    def layout(self) -> list[str]:
        """A line for each tensor, such as `head.center (16,) float32`."""
        return [f"{name} {describe(tensor)}" for name, tensor in self.named.items()]

    def remember(self) -> Callable[[], None]:
        """A function that puts these very tensors back in their places, under their names. Their values are not kept."""
        owners = [module for top in self._modules for module in top.modules()]
        kept = [(module, held, held.copy()) for module in owners for held in self._containers_of(module)]
        unsaved = [
            (module._non_persistent_buffers_set, module._non_persistent_buffers_set.copy())  # noqa: SLF001
            for module in owners
        ]

        def put_back() -> None:
            for _, held, before in kept:
                if [*held] != [*before] or not all(map(is_, held.values(), before.values())):
                    held.clear()
                    held.update(before)
            for names, names_before in unsaved:
                if names != names_before:
                    names.clear()
                    names.update(names_before)

        return put_back

    def _containers_of(self, module: nn.Module) -> tuple[dict[str, Tensor | None], ...]:
        buffers: dict[str, Tensor | None] = module._buffers  # noqa: SLF001
        parameters: dict[str, Tensor | None] = module._parameters  # type: ignore[assignment]  # noqa: SLF001
        return (parameters, buffers) if self._parameters else (buffers,)

    def _walk(self) -> None:
        owners = list(dict.fromkeys(module for top in self._modules for module in top.modules()))
        containers = [held for module in owners for held in (*self._containers_of(module), module._modules)]  # noqa: SLF001
        self._containers: list[dict[str, object]] = containers  # type: ignore[assignment]
        self._seen = [held.copy() for held in self._containers]
        self._singles = [
            (held, name, tensor)
            for held in self._containers
            for name, tensor in held.items()
            if isinstance(tensor, Tensor) and tensor.numel() == 1
        ]
        self.named = dict(self._names())
        self._tensors = [*self.named.values()]
        self._sizes = [*map(Tensor.size, self._tensors)]
        self._dtypes = [t.dtype for t in self._tensors]
        self._devices = [t.device for t in self._tensors]
        self.version += 1

    def _names(self) -> Iterator[tuple[str, Tensor]]:
        seen: set[int] = set()
        for i, top in enumerate(self._modules):
            prefix = f"{i}." if len(self._modules) > 1 else ""
            named = chain(top.named_parameters() if self._parameters else (), top.named_buffers())
            for name, tensor in named:
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield prefix + name, tensor


def describe(tensor: Tensor) -> str:
    """The shape and dtype of `tensor`, such as `(16,) float32`."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


class Packed:
    """Tensors of any types, and room for a copy of them in one run of bytes."""

    def __init__(self, named: dict[str, Tensor], device: torch.device) -> None:
        """Raises UnsupportedBuffer, which names the tensor, for one whose bytes cannot be copied."""
        for name, tensor in named.items():
            if tensor.layout is not torch.strided or tensor.is_quantized:
                kind = "quantized" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
                raise UnsupportedBuffer(
                    f"the buffer {name} is a {kind} tensor, {describe(tensor)}; allowed are dense tensors: "
                    "keep it as a plain attribute, or make it dense"
                )
        # The widest first, so that each view into the bytes is aligned.
        self._order = sorted(named, key=lambda name: -named[name].element_size())
        self._geometry = _geometry(named)
        self._take(named)
        self.bytes = torch.empty(
            sum(t.numel() * t.element_size() for t in self._tensors), dtype=torch.uint8, device=device
        )
        self._views: list[Tensor] = []
        self._odd = any(_is_odd(t) for t in self._tensors)
        start = 0
        for tensor in self._tensors:
            end = start + tensor.numel() * tensor.element_size()
            self._views.append(self.bytes[start:end].view(tensor.dtype).view(tensor.shape))
            start = end

    def refit(self, named: dict[str, Tensor]) -> bool:
        """Work on the tensors in `named` from now on; False where names, shapes or dtypes are other than before."""
        if [*named] != self._names or _geometry(named) != self._geometry:
            return False
        self._take(named)
        return True

    @torch.no_grad()
    def save(self) -> None:
        if self._tensors:
            self._copy(self._views, self._tensors)

    @torch.no_grad()
    def load(self) -> None:
        if self._tensors:
            self._copy(self._tensors, self._views)

    def _take(self, named: dict[str, Tensor]) -> None:
        self._names = [*named]
        self._tensors = [named[name] for name in self._order]

    def _copy(self, targets: list[Tensor], sources: list[Tensor]) -> None:
        if self._odd:
            targets, sources = [*map(copyable, targets)], [*map(copyable, sources)]
        torch._foreach_copy_(targets, sources)  # the one copy of a list that torch has


def _geometry(named: dict[str, Tensor]) -> list[tuple[torch.Size, torch.dtype]]:
    return [(t.shape, t.dtype) for t in named.values()]


_ODD = frozenset(
    kind
    for name in [f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)]
    if (kind := getattr(torch, name, None)) is not None
)


def _is_odd(tensor: Tensor) -> bool:
    return tensor.dtype in _ODD


def copyable(tensor: Tensor) -> Tensor:
    """`tensor`, or its bytes where torch cannot copy its dtype."""
    return tensor.view(torch.uint8) if _is_odd(tensor) else tensor


def copy_of(tensor: Tensor) -> Tensor:
    """A clone of `tensor`, of whatever dtype."""
    return copyable(tensor).clone().view(tensor.dtype) if _is_odd(tensor) else tensor.clone()


class Kept:
    """Room for what the buffers in `places` are at one moment: which tensors, and the values in them."""

    def __init__(self, places: Places, device: torch.device) -> None:
        self._places = places
        self._device = device
        self._version = -1
        self._put_back: Callable[[], None] = _nothing
        self._named: dict[str, Tensor] = {}
        self._shapes: list[tuple[torch.Size, torch.dtype, torch.device]] = []
        self._packed = Packed({}, device)

    def keep(self) -> None:
        """Keep the buffers as they are now."""
        if self._places.look() != self._version:
            self._pack()
        self._packed.save()

    @torch.no_grad()
    def bring_back(self) -> None:
        """Make the buffers what they were when kept: replaced ones are the old tensors again, late ones are gone."""
        if self._places.look() != self._version:
            self._put_back()
            for tensor, (shape, dtype, device) in zip(self._named.values(), self._shapes, strict=True):
                if (tensor.shape, tensor.dtype, tensor.device) != (shape, dtype, device):
                    tensor.data = torch.empty(shape, dtype=dtype, device=device)
            self._version = self._places.look()
        self._packed.load()

    def _pack(self) -> None:
        self._version, self._named = self._places.version, self._places.named
        self._put_back = self._places.remember()
        self._shapes = [(t.shape, t.dtype, t.device) for t in self._named.values()]
        if not self._packed.refit(self._named):
            self._packed = Packed(self._named, self._device)


@contextmanager
def unchanged(module: nn.Module, device: torch.device) -> Iterator[None]:
    """At the end of the block the buffers of `module` are what they were before: tensors, shapes and values."""
    kept = Kept(Places([module]), device)
    kept.keep()
    try:
        yield
    finally:
        kept.bring_back()


def _nothing() -> None: ...
