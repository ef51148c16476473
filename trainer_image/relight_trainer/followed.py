"""The reduction of gradients in a script's own loop: complete when a backward pass ends, whichever parameters took part.

A script calls `backward`, and may clip or unscale gradients before `optimizer.step`. So what DDP has not reduced must be
reduced within the backward pass: a hook on the replica's output queues a callback of the autograd engine. Where the output
hides its tensors from that, an optimizer's step with such gradients is refused.
"""

import gc
import itertools
import os
import weakref
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parallel import distributed as internals
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from relight_trainer.reduction import Reduction, UnreducedGradients, listed
from relight_trainer.replicas import own_sparse_gradients, warm_up
from relight_trainer.unused import Alone, Unused, of_group

# Beside the replicas and not in them: a replica may be copied, and its copy is nobody's.
_all: "weakref.WeakKeyDictionary[DistributedDataParallel, _Followed]" = weakref.WeakKeyDictionary()
_numbers = itertools.count()


def follow(replica: DistributedDataParallel) -> None:
    """Make sure that no gradient of `replica` is applied before it is reduced over ranks.

    Called on all ranks, for each replica in the same order, once it is warmed up.
    """
    in_python = replica._use_python_reducer or replica._delay_all_reduce_all_params  # noqa: SLF001  # no reducer to ask
    if in_python or replica in _all:
        return
    if not _all:
        register_optimizer_step_pre_hook(_check_all)
    _all[replica] = _Followed(replica, next(_numbers))
    replica.register_forward_hook(_after_forward)


def adopt(replica: DistributedDataParallel) -> None:
    """Make a DDP that the script created reduce all gradients, and sum them in a fixed order."""
    own_sparse_gradients(replica)
    warm_up(replica)
    follow(replica)


def adopt_all(modules: Iterable[nn.Module]) -> None:
    """`adopt` each DDP of this process that trains parameters of `modules` and is not followed yet.

    For DDPs that a script makes around modules which it has given without; called before the first step.
    """
    if dist.get_world_size() == 1:
        return
    ours = {id(p) for module in modules for p in module.parameters()}
    for replica in [o for o in gc.get_objects() if issubclass(type(o), DistributedDataParallel)]:
        if replica not in _all and any(id(p) in ours for p in replica.module.parameters()):
            adopt(replica)


class Reductions:
    """In which steps of this process gradients have been reduced: the same on all ranks, or sums mix different steps.

    A rank that leaves a backward pass out (`continue` at a loss that is not finite) takes part in the others' reduction with
    its next one.
    """

    def __init__(self) -> None:
        self.in_step = 0
        self._all = 0

    def step_done(self) -> None:
        self._all = hash((self._all, self.in_step))  # of numbers: the same in every process
        self.in_step = 0

    def compared_state(self) -> dict[str, int]:
        """See `equality.reading`."""
        return {"history": self._all}


reductions = Reductions()


class _Followed:
    def __init__(self, replica: DistributedDataParallel, number: int) -> None:
        group = replica.process_group
        unused: Unused | Alone | None = None
        self._is_alone = dist.get_world_size(group) == 1  # DDP waits for its gradients all the same
        if replica.find_unused_parameters:
            pass  # DDP settles it
        elif self._is_alone:
            unused = Alone()
        else:
            name = f"script/{os.environ.get('RELIGHT_GENERATION', '')}/{group.group_name}/{number}"
            unused = of_group(name, next(replica.parameters()).device, group)
            weakref.finalize(replica, unused.close)
        names = {id(p): name for name, p in replica.module.named_parameters()}
        self.reduction = Reduction(replica, unused, names)
        self._rank = dist.get_rank(group)
        self._is_of_all = dist.get_world_size(group) == dist.get_world_size()
        self._told = False
        self._expects = False  # a forward pass has been made whose gradients are not reduced yet
        self._running = False
        self._unreduced = False  # a backward pass since the last reduction has left gradients that DDP does not reduce

    def expect(self, output: Any, *, alone: bool) -> None:
        """A forward pass of the replica has given `output`; `alone`: within `no_sync`, where DDP reduces nothing."""
        self._expects, self._running = not alone, False
        find: Any = internals._find_tensors  # noqa: SLF001  # what DDP itself looks through
        for tensor in find(output):
            if tensor.requires_grad:
                tensor.register_hook(self._begins)

    def check(self, optimizer: Optimizer) -> None:
        """`optimizer` is about to apply its gradients. Raises UnreducedGradients where they are this rank's own."""
        if self._is_alone:
            return  # nothing is left to reduce
        missing = self.reduction.missing()
        if missing:
            raise UnreducedGradients(
                f"rank {self._rank}: optimizer.step() comes before the gradients are reduced over ranks: on this rank "
                f"{listed(self.reduction.names_of(missing))} took no part in the backward pass. Let the model's "
                "forward return tensors, alone or in tuples, lists, mappings or dataclasses, or wrap the model with "
                "find_unused_parameters=True"
            )
        if self._unreduced and self.reduction.has_gradients(p for g in optimizer.param_groups for p in g["params"]):
            raise UnreducedGradients(
                f"rank {self._rank}: optimizer.step() would apply gradients that are not reduced over ranks: the last backward "
                "pass ran inside no_sync, or was the second one after the same forward pass. Run the last forward and "
                "backward pass of each step outside no_sync, and add up the losses of one forward pass before its "
                "only backward pass"
            )

    def _begins(self, _: Tensor) -> None:
        """A backward pass has begun, and has not reached the model yet."""
        if self._running:
            return
        self._running = True
        self.reduction.last_pass_begins()
        _at_the_end(self._ends)

    def _ends(self) -> None:
        """All gradients are there. What DDP does at the end of a pass, it has queued by now, and is done before."""
        _at_the_end(self._finish if self._expects else self._note)

    def _note(self) -> None:
        self._running = False
        self._unreduced = self._unreduced or not self.reduction.untouched()

    def _finish(self) -> None:
        self._running = False
        reduction = self.reduction
        missing = reduction.missing()
        if not missing:
            if reduction.untouched():
                return  # the pass was `torch.autograd.grad`: the gradients of parameters are yet to come
            self._expects = self._unreduced = False
            self._settle([])
            return
        self._expects = self._unreduced = False
        idle = reduction.complete(missing)
        _at_the_end(lambda: self._settle(idle))

    def _settle(self, idle: list[int]) -> None:
        reductions.in_step += self._is_of_all
        names = self.reduction.settle(idle)
        if names and not self._told:
            self._told = True
            if self._rank == 0:
                print(
                    f"relight: no gradient for {listed(names)} on any rank: these parameters are not updated; for faster steps freeze "
                    "parameters that are never used, or wrap the model with find_unused_parameters=True",
                    flush=True,
                )


def _after_forward(replica: nn.Module, _: Any, output: Any) -> None:
    assert isinstance(replica, DistributedDataParallel)
    followed = _all.get(replica)
    if followed is not None and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        followed.expect(output, alone=not replica.require_backward_grad_sync)


def _check_all(optimizer: Optimizer, *_: Any) -> None:
    for followed in [*_all.values()]:
        followed.check(optimizer)


def _at_the_end(act: Any) -> None:
    """Call `act` at the end of the backward pass under way."""
    engine: Any = torch.autograd.Variable._execution_engine  # noqa: SLF001  # as torch's FSDP does
    engine.queue_callback(act)
