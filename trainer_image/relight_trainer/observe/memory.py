"""How much memory a training will want, from shapes alone: nothing is allocated, no device is needed.

The model, its optimizer and two steps run on fake tensors, which have shapes, types and storages but no bytes. Parameters,
gradients and the optimizer's state come out exact; activations are the storages that autograd keeps for the backward
pass; the peak is the most that was alive at one time. A real device adds what libraries keep to themselves: the CUDA
context (0.3-0.6 GiB), cuDNN's and cuBLAS's workspaces.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from relight_agent.exits import ExitCode

_NUMBER_OF = torch.ops.aten._local_scalar_dense.default  # noqa: SLF001  # what tensor.item() calls
_BLOCK = 512  # bytes: CUDA's allocator gives whole blocks


class Unpredictable(Exception):
    """A step cannot be run on shapes alone."""

    exit_code = ExitCode.BAD_CONFIG


@dataclass(frozen=True)
class Footprint:
    """Bytes of one worker's memory on its device."""

    samples: int  # in one forward pass
    parameters: int
    frozen: int  # of the parameters: those without a gradient
    gradients: int
    buffers: int
    optimizer: int
    batch: int
    activations: int  # kept from the forward pass for the backward pass
    peak: int  # in whole blocks of the allocator
    elements: int  # numbers in the parameters
    by_module: dict[str, int] = field(default_factory=dict)  # dotted path -> activations that its own forward keeps


def measure(
    make_model: Callable[[], nn.Module],
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    batch: Any,
    loss_of: Callable[[nn.Module, Any], Tensor],
    samples: int,
) -> Footprint:
    """The memory of a training whose micro-batches look like `batch` (real tensors, of which only shapes are used).

    Raises Unpredictable where the step fails, or looks at values, which fake tensors do not have.
    """
    alive = LiveBytes()
    try:
        model = _shaped(make_model)
        with FakeTensorMode(), alive:
            _fake_parameters(model)
            model.train()
            optimizer = make_optimizer(model)
            inputs = tree_map(_faked, batch)
            kept = Kept(model, tree_leaves(inputs))
            for _ in range(2):  # the second with the optimizer's state beside the activations
                alive.peak = alive.now
                with kept:
                    loss = loss_of(model, inputs)
                loss.backward()  # type: ignore[no-untyped-call]
                del loss
                gradients = size_of(p.grad for p in model.parameters() if p.grad is not None)
                alive.scalar = 1.0  # optimizers read their step counter
                optimizer.step()
                alive.scalar = None
                optimizer.zero_grad(set_to_none=True)
    except DataDependentOutputException as error:
        raise Unpredictable(f"the model looks at values that only a real run has: {error}") from None
    except Exception as error:
        if hasattr(error, "exit_code"):
            raise
        kind = type(error).__name__
        raise Unpredictable(f"a step on {samples} samples of this shape fails: {kind}: {error}") from error
    parameters = list(model.parameters())
    return Footprint(
        samples=samples,
        parameters=size_of(parameters),
        frozen=size_of(p for p in parameters if not p.requires_grad),
        gradients=gradients,
        buffers=size_of(model.buffers()),
        optimizer=size_of(tree_leaves([list(s.values()) for s in optimizer.state.values()])),
        batch=size_of(tree_leaves(inputs)),
        activations=kept.total,
        peak=alive.peak,
        elements=sum(p.numel() for p in parameters),
        by_module=kept.by_module,
    )


def size_of(tensors: Iterable[Any]) -> int:
    """The bytes of the elements of `tensors`; what is no tensor counts nothing."""
    return sum(t.nelement() * t.element_size() for t in tensors if isinstance(t, Tensor))


def rows(batch: Any, count: int) -> Any:
    """`batch`, of one sample or more, as one of `count` samples: the shapes alone, on the meta device."""

    def resized(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.dim():
            return x
        return torch.empty((count, *x.shape[1:]), dtype=x.dtype, device="meta")

    return tree_map(resized, batch)


@contextmanager
def on_shapes(make_model: Callable[[], nn.Module], batch: Any) -> Iterator[tuple[nn.Module, Any]]:
    """The model and the batch without memory, while entered: what is computed has shapes, and no values."""
    model = _shaped(make_model)
    with FakeTensorMode():
        _fake_parameters(model)
        yield model, tree_map(_faked, batch)


def _shaped(make: Callable[[], nn.Module]) -> nn.Module:
    """The model without memory; for real where its constructor looks at values."""
    try:
        with torch.device("meta"):
            return make()
    except (NotImplementedError, RuntimeError):
        return make()


def _fake_parameters(model: nn.Module) -> None:
    """Put fake tensors in the place of parameters and buffers; what is shared stays shared."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)  # noqa: SLF001  # setattr is slower and stricter
        for table in tables:
            for name, tensor in table.items():
                if tensor is None:
                    continue
                fake = made.get(id(tensor))
                if fake is None:
                    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
                    if isinstance(tensor, nn.Parameter):
                        fake = nn.Parameter(fake, tensor.requires_grad)
                    made[id(tensor)] = fake
                table[name] = fake


def _faked(value: Any) -> Any:
    return torch.empty(value.shape, dtype=value.dtype, device="cpu") if isinstance(value, Tensor) else value


def _identity(storage: torch.UntypedStorage) -> int:
    """Views of one storage have the same, as long as one of them lives."""
    name: int = storage._cdata  # noqa: SLF001  # fake storages have no address, and no other name
    return name


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operations have made and that are still there.

    Where `scalar` is set, it is what tensors are told to hold when they are asked for a number.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self.scalar: float | None = None
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.scalar is not None and func is _NUMBER_OF:
            return self.scalar
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = _identity(storage)
        if key in self._known:
            return
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK

        def gone(_: object) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


class Kept:
    """While entered: the storages that autograd keeps of a forward pass, by the module whose forward kept them."""

    def __init__(self, model: nn.Module, inputs: Iterable[Any]) -> None:
        self.total = 0
        self.by_module: dict[str, int] = {}
        self._model = model
        self._inputs = [x for x in inputs if isinstance(x, Tensor)]
        self._seen: set[int] = set()
        self._path: list[str] = []
        self._stack = ExitStack()

    def __enter__(self) -> None:
        self.total = 0
        self.by_module = {}
        # Parameters and inputs are there anyway; an activation that two operations keep is there once.
        own = [*self._model.parameters(), *self._model.buffers(), *self._inputs]
        self._seen = {_identity(t.untyped_storage()) for t in own}
        self._path = [""]
        for path, module in self._model.named_modules():
            self._stack.callback(module.register_forward_pre_hook(self._enter(path)).remove)
            self._stack.callback(module.register_forward_hook(self._leave, always_call=True).remove)
        self._stack.enter_context(saved_tensors_hooks(self._pack, lambda kept: kept))

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _enter(self, path: str) -> Callable[[nn.Module, Any], None]:
        return lambda _, __: self._path.append(path)

    def _leave(self, *_: Any) -> None:
        self._path.pop()

    def _pack(self, kept: Tensor) -> Tensor:
        storage = kept.untyped_storage()
        key = _identity(storage)
        if key not in self._seen:
            self._seen.add(key)
            size = storage.nbytes()
            self.total += size
            self.by_module[self._path[-1]] = self.by_module.get(self._path[-1], 0) + size
        return kept.detach()
