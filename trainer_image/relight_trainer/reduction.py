"""Gradients that are the mean over ranks, whichever parameters have taken part in a step.

DDP reduces gradients in buckets, in a fixed order, each once all of its parameters have got their gradient in the
backward pass (torch/csrc/distributed/c10d/reducer.cpp). Where a parameter has got none, the rest is never reduced: the
update would use each rank's own gradients, DDP complains only in the next forward pass, and ranks that did use the
parameter wait for ever. Here, the rank that lacks a gradient adds zero in its place, so that DDP reduces what is left. The
sums are those that DDP always makes, in the same order. How the ranks' graphs differ does not matter.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from relight_agent.exits import ExitCode
from relight_trainer.replicas import reduced
from relight_trainer.unused import Alone, Unused

_INDICES = re.compile(r"Parameter indices which did not receive grad for rank \d+:((?: \d+)+)")
_SHOWN = 8


class UnreducedGradients(Exception):
    """Gradients are not reduced over ranks, and cannot be."""

    exit_code = ExitCode.BAD_CONFIG


class Reduction:
    """The reduction of `replica`'s gradients in each step.

    `unused` settles which parameters no rank has used; None where `replica` finds that out itself
    (`find_unused_parameters`). Made right after `replica`: its parameters that learn are those of DDP's reducer.
    `names`: of each parameter, by its `id`.
    """

    def __init__(
        self, replica: DistributedDataParallel, unused: Unused | Alone | None, names: Mapping[int, str]
    ) -> None:
        self._parameters, self._sparse = reduced(replica)
        self._names = [names[id(p)] for p in self._parameters]
        self._reducer: Any = replica.reducer
        self._check: Callable[[], None] = replica.reducer._check_reducer_finalized  # noqa: SLF001  # nor in torch 2.13 a public name
        self._unused = unused
        self._before: tuple[nn.Parameter, Tensor, int] | None = None

    def last_pass_begins(self) -> None:
        """The forward and backward passes that DDP reduces the gradients of come next, after others of this step."""
        self._before = None
        found = next((p for p in self._parameters if p.grad is not None), None)
        if found is not None and found.grad is not None:
            self._before = found, found.grad, found.grad._version  # noqa: SLF001

    def finish(self, *, together: bool = False) -> list[str]:
        """After a step's last backward pass: reduce what DDP has not. Names of the parameters that no rank has used.

        Those have no gradient, as in one process. `together`: some rank has no sample in this step, as all ranks know.
        Raises UnreducedGradients where DDP does not say what it waits for.
        """
        missing = self.missing()
        if not missing and self.untouched():
            missing = list(range(len(self._parameters)))
        self._before = None
        idle: list[int] = []
        if missing:
            _in_backward(lambda: idle.extend(self.complete(missing)))
            if self.missing():
                raise UnreducedGradients(
                    "gradients are not reduced over ranks, and DDP did not take zero in their place"
                )
        return self.settle(idle, together=together)

    def missing(self) -> list[int]:
        """The parameters that DDP still waits for, by index; none where all is reduced, or no backward pass has begun."""
        try:
            self._check()
        except RuntimeError as error:
            found = _INDICES.search(str(error))
            if found is None:
                raise UnreducedGradients(
                    "gradients are not reduced over ranks, and this torch does not say which parameters got none: set "
                    f"find_unused_parameters to true ({str(error).splitlines()[0]})"
                ) from error
            return [int(index) for index in found[1].split()]
        return []

    def complete(self, missing: Sequence[int]) -> list[int]:
        """Give DDP what it waits for. Called within a backward pass, which ends with all gradients reduced.

        A gradient that an earlier pass of the step has left is reduced, else zero. Returns those of `missing` without.
        """
        idle = [i for i in missing if self._parameters[i].grad is None]
        for i in idle:
            if self._sparse[i]:
                self._parameters[i].grad = _no_rows(self._parameters[i])
        for i in missing:
            # Where DDP looks for unused parameters, the first call makes it add zero for those that it has found.
            with suppress(RuntimeError) if self._unused is None else nullcontext():
                self._reducer._autograd_hook(i)  # noqa: SLF001
        return idle

    def settle(self, idle: Sequence[int], *, together: bool = False) -> list[str]:
        """Once all is reduced: take the gradient of zero from parameters that no rank has used; their names.

        `idle`: parameters without a gradient on this rank, by index.
        """
        if self._unused is None:
            return []
        nowhere = self._unused.settle(idle, len(self._parameters), together=together)
        for i in nowhere:
            self._parameters[i].grad = None
        return self.names_of(nowhere)

    def names_of(self, indices: Sequence[int]) -> list[str]:
        return [self._names[i] for i in indices]

    def has_gradients(self, parameters: Iterable[Tensor]) -> bool:
        """Whether some of `parameters` are of this replica and have a gradient."""
        ours = {id(p) for p in self._parameters}
        return any(p.grad is not None and id(p) in ours for p in parameters)

    def untouched(self) -> bool:
        """Whether the last backward pass has reached no parameter, for which DDP does not even wait."""
        if self._before is None:
            return all(p.grad is None for p in self._parameters)
        parameter, gradient, version = self._before
        return parameter.grad is gradient and gradient._version == version  # noqa: SLF001


def told(names: Sequence[str], step: int) -> str:
    """What a person hears of parameters that no rank has used in `step`, counted from 1."""
    return (
        f"no gradient for {listed(names)} in step {step}, on any rank: these parameters are not updated; for "
        "faster steps freeze parameters that are never used, or set ddp.find_unused_parameters to true"
    )


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _no_rows(parameter: nn.Parameter) -> Tensor:
    """A sparse gradient of zero."""
    indices = torch.zeros(1, 0, dtype=torch.long, device=parameter.device)
    values = torch.zeros(0, *parameter.shape[1:], dtype=parameter.dtype, device=parameter.device)
    return torch.sparse_coo_tensor(indices, values, parameter.shape, check_invariants=False)


def _in_backward(act: Callable[[], None]) -> None:
    """Call `act` within a backward pass, at whose end DDP finishes its work."""
    leaf = torch.zeros((), requires_grad=True)
    root = leaf * 1.0

    def hook(_: Tensor) -> None:
        act()

    root.register_hook(hook)  # type: ignore[no-untyped-call]
    root.backward()  # type: ignore[no-untyped-call]
