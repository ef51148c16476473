"""What does a step of the training core cost over a loop written by hand?

A tiny model on the CPU, one process, one thread: the step itself takes so little that what surrounds it shows. Ours
does what it does in a job: snapshots, as often as by default, the heartbeat, the stop agreement, the checkpoint
timer, checks for numbers that are not finite, logging, the hooks of the default configuration. The others do nothing of
that but train and log. accelerate has the form that its guide gives a loop whose accumulation is a setting, as it is
here; how much of its cost that is, `accelerate, bare` shows, which cannot accumulate.

All train the same model on the same batches, in turns of some steps each, one after the other in each round. A round's
overhead is the difference to the hand-written loop's turn in that same round, and what is told is the median over the
rounds with its 95 % interval, so that what else the machine does meets all alike. Time is the CPU time of the thread
that trains. Ours has others beside it that listen for a stop and the like; what share of a second they take each second
is measured over the whole run, and that share is added to each of our steps. The store is served by a process of its
own, as in a job.

In a world of several ranks their states are compared besides: what that takes of the time is told for a model of
`--compared` parameters with Adam's two averages beside them. It is measured alone, because one process has nobody to
compare with: how long the training stands still for one comparison, and how often there is one.

accelerate and Lightning take part where they are installed; `--peers FOLDER` is put on the path for them.
"""

import argparse
import itertools
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import HashStore, TCPStore
from torch.nn.functional import cross_entropy

import _runs
from relight_agent.files import GenerationFolder, JobFile
from relight_trainer import session as sessions
from relight_trainer import train
from relight_trainer.config import parse
from relight_trainer.context import WorkerContext
from relight_trainer.data.splits import splits_of
from relight_trainer.data.tensors import Samples
from relight_trainer.equality.ranks import interval_seconds
from relight_trainer.equality.reading import Reading
from relight_trainer.hooks import Hook
from relight_trainer.run import Run
from relight_trainer.sampler import Sampler

BATCH, COUNT, LR, LOG_EVERY = 8, 4096, 0.01, 10


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


def data() -> Samples:
    generator = torch.Generator().manual_seed(0)
    return Samples(torch.randn(COUNT, 16, generator=generator), torch.randint(0, 4, (COUNT,), generator=generator))


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """The same samples in the same order as ours."""
    samples, sampler = data(), Sampler(COUNT, BATCH, 0)
    for step in itertools.count():
        indices = torch.from_numpy(sampler.batch_of(step))
        yield samples.inputs[indices], samples.labels[indices]


@dataclass
class Contender:
    name: str
    turn: Callable[[int], object]  # do so many steps
    seconds: list[float] = field(default_factory=list)  # of a step, in each round

    def measure(self, steps: int) -> None:
        began = time.thread_time()
        self.turn(steps)
        self.seconds.append((time.thread_time() - began) / steps)


@dataclass(frozen=True)
class Overhead:
    """What a contender's step costs over `base`'s, in microseconds: the median over the rounds, its 95 % interval."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, contender: Contender, base: Contender) -> "Overhead":
        over = sorted((one - other) * 1e6 for one, other in zip(contender.seconds, base.seconds, strict=True))
        # The sign test's: how many of the rounds lie below the true median is binomial.
        reach = math.ceil(1.96 * math.sqrt(len(over)) / 2)
        middle = len(over) // 2
        return cls(statistics.median(over), over[max(0, middle - reach)], over[min(len(over) - 1, middle + reach)])


def by_hand() -> Contender:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=0.9)
    source, steps = batches(), itertools.count(1)

    def turn(count: int) -> None:
        for _ in range(count):
            inputs, labels = next(source)
            optimizer.zero_grad(set_to_none=True)
            loss = cross_entropy(net(inputs), labels)
            loss.backward()
            optimizer.step()
            if next(steps) % LOG_EVERY == 0:
                loss.item()

    return Contender("by hand", turn)


def accelerate(*, accumulates: bool = True) -> Contender | None:
    try:
        from accelerate import Accelerator
    except ImportError:
        return None
    accelerator = Accelerator(cpu=True)
    net = model()
    net, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=LR, momentum=0.9))
    source, steps = batches(), itertools.count(1)

    def step(inputs: Tensor, labels: Tensor) -> Tensor:
        loss = cross_entropy(net(inputs), labels)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    def turn(count: int) -> None:
        for _ in range(count):
            inputs, labels = next(source)
            if accumulates:
                with accelerator.accumulate(net):
                    loss = step(inputs, labels)
            else:
                loss = step(inputs, labels)
            if next(steps) % LOG_EVERY == 0:
                loss.item()

    return Contender("accelerate" if accumulates else "accelerate, bare", turn)


def lightning() -> Contender | None:
    try:
        import lightning as pl
    except ImportError:
        return None

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            loss = cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=LR, momentum=0.9)

    class Clock(pl.Callback):
        """Times the steps of one fit but for its first ones; a fit's start and end are not a step's cost."""

        def __init__(self) -> None:
            self.at: list[float] = []

        def on_train_batch_end(self, *_: Any) -> None:
            self.at.append(time.thread_time())

    class Batches:  # a list would be several loaders to it
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return batches()

    contender = Contender("Lightning", lambda _: None)

    def measure(steps: int) -> None:
        clock, warm = Clock(), 10
        trainer = pl.Trainer(
            accelerator="cpu", devices=1, max_steps=steps + warm, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[clock], log_every_n_steps=LOG_EVERY,
        )  # fmt: skip
        trainer.fit(Module(), Batches())
        contender.seconds.append((clock.at[-1] - clock.at[warm - 1]) / (len(clock.at) - warm))

    contender.measure = measure  # type: ignore[method-assign]
    return contender


class Turns(Hook):
    """Ours is the loop itself: after each of its turns the others have theirs."""

    order = 100
    others: list[Contender]
    mine: Contender
    steps: int

    def run_begin(self, _: Run) -> None:
        self.whole = _Beside()
        self.began = time.thread_time()

    def step_end(self, run: Run) -> None:
        if run.step % Turns.steps:
            return
        Turns.mine.seconds.append((time.thread_time() - self.began) / Turns.steps)
        for other in Turns.others:
            other.measure(Turns.steps)
        Turns.others.append(Turns.others.pop(0))  # nobody is always next to ours
        self.began = time.thread_time()

    def run_end(self, _: Run) -> None:
        share = self.whole.share()
        Turns.mine.seconds = [seconds * (1 + share) for seconds in Turns.mine.seconds]
        print(f"the threads beside the training take {share:.2%} of a CPU")


class _Beside:
    """The CPU time of all threads but this one, since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic(), time.process_time(), time.thread_time()

    def share(self) -> float:
        wall, whole, own = self._began
        return (time.process_time() - whole - time.thread_time() + own) / (time.monotonic() - wall)


@contextmanager
def store() -> Iterator[int]:
    """The port of a store in a process of its own."""
    told, tell = os.pipe()
    ends, hold = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(hold)
        server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(tell, str(server.port).encode())
        os.read(ends, 1)  # until whoever asked for it has gone, however that ended
        os._exit(0)
    try:
        yield int(os.read(told, 16))
    finally:
        os.close(hold)
        os.waitpid(pid, 0)


def ours(others: list[Contender], turns: int, steps: int) -> Contender:
    """Train for `turns` turns; `others` have theirs in between."""
    Turns.others, Turns.mine, Turns.steps = list(others), Contender("ours", lambda _: None), steps
    config = parse(
        {
            "model": {"type": "trainer_overhead:model"},
            "train": {"duration": f"{turns * steps}st", "global_batch": BATCH, "device": "cpu", "log_every": LOG_EVERY},
            "optimizer": {"type": "sgd", "lr": LR, "nesterov": False, "weight_decay": 0.0},
            "schedule": {"type": "constant"},
            "hooks": [{"type": "trainer_overhead:Turns"}],
        }
    )
    with store() as port, tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        run_dir = Path(memory)
        job = JobFile(
            namespace="default", name="overhead", uid="u", created=1.0, nodes=1, proc_per_node=1,
            entry={"kind": "config", "config": {}}, config_hash="c",
            checkpoint_dir=str(run_dir / "checkpoints"), checkpoint_seconds=600.0,
        )  # fmt: skip
        context = WorkerContext(
            job=job, folder=GenerationFolder.create(run_dir, 1), run_dir=run_dir, generation=1, slot=0, rank=0,
            local_rank=0, world_size=1, local_world_size=1, node_rank=0,
        )  # fmt: skip
        sessions.connect = lambda prefix: torch.distributed.PrefixStore(  # type: ignore[assignment]
            prefix, TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
        )
        torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        device = train.prepare(config.train, 0)
        splits = splits_of((data(), None), config.loader, config.train.seed, device)
        train.train(config, splits, sessions.Session(context), device, context)
        torch.distributed.destroy_process_group()
    return Turns.mine


@dataclass(frozen=True)
class Comparing:
    """What it costs to compare the ranks' states."""

    parameters: int
    seconds: float  # that the training stands still for one comparison
    interval: float  # seconds between two

    @property
    def share(self) -> float:
        """Of the training's time."""
        return self.seconds / self.interval


def comparing(parameters: int) -> Comparing:
    """Measured on layers of 4 million parameters and their biases; the quickest of three, as trainings take it."""
    width = 2048
    layers = max(1, round(parameters / (width * (width + 1))))
    net = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
    optimizer = torch.optim.Adam(net.parameters())
    for p in net.parameters():
        optimizer.state[p] = {
            "step": torch.tensor(1.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p),
        }  # fmt: skip
    seconds = [Reading({"model": net, "optimizer": optimizer}).seconds for _ in range(3)]
    return Comparing(sum(p.numel() for p in net.parameters()), min(seconds), interval_seconds(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=60, help="of each contender, one in each round")
    parser.add_argument("--steps", type=int, default=100, help="in a turn")
    parser.add_argument(
        "--compared", type=float, default=100e6, help="parameters of the model whose ranks are compared"
    )
    parser.add_argument("--peers", help="a folder with accelerate and Lightning, as `pip install --target` makes it")
    parser.add_argument("--results", type=Path, default=_runs.RESULTS, help="folder for the JSON of the numbers")
    arguments = parser.parse_args()
    if arguments.peers:
        sys.path.append(arguments.peers)
    torch.set_num_threads(1)
    hand = by_hand()
    others = [c for c in (hand, accelerate(), accelerate(accumulates=False), lightning()) if c]
    everybody = [*others, ours(others, arguments.turns, arguments.steps)]
    over = {c.name: Overhead.of(c, hand) for c in everybody}
    medians = {c.name: statistics.median(c.seconds) * 1e6 for c in everybody}
    for name, cost in over.items():
        print(
            f"{name:<16} {medians[name]:7.1f} us/step, over by hand {cost.median:6.1f} ({cost.low:.1f}..{cost.high:.1f})"
        )
    compared = comparing(round(arguments.compared))
    print(
        f"comparing ranks of {compared.parameters / 1e6:.0f} M parameters with Adam: {compared.seconds:.2f} s each "
        f"{compared.interval:.0f} s, {compared.share:.2%} of the time"
    )
    _runs.write(
        arguments.results,
        "trainer_overhead",
        {
            "us_per_step": {name: round(median, 1) for name, median in medians.items()},
            "over_by_hand": {
                name: {"median": round(cost.median, 1), "interval": [round(cost.low, 1), round(cost.high, 1)]}
                for name, cost in over.items()
            },
            "rounds": arguments.turns,
            "steps_in_a_turn": arguments.steps,
            "comparing_ranks": {
                "parameters": compared.parameters,
                "seconds": round(compared.seconds, 3),
                "interval_seconds": round(compared.interval, 1),
                "share": round(compared.share, 5),
            },
        },
    )
    whole = {name: f"{cost.median:.0f}" for name, cost in over.items()}
    peers = ", ".join(f"{name} {whole.get(name, 'not installed')}" for name in ("accelerate", "Lightning"))
    print(f"overhead {whole['ours']} us/step ({peers})")


if __name__ == "__main__":
    sys.modules["trainer_overhead"] = sys.modules["__main__"]
    main()
