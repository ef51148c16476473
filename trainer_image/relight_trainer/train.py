"""The training core: what runs in each worker of a job with `trainer.config`."""

import math
import os
from itertools import chain
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

from relight_agent.exits import ExitCode
from relight_agent.files import Outcome
from relight_trainer.config import TrainerConfig, parse
from relight_trainer.context import WorkerContext
from relight_trainer.evaluate import evaluate
from relight_trainer.optim import build_optimizer, set_rates
from relight_trainer.peers import form
from relight_trainer.registry import build
from relight_trainer.replicas import replicate
from relight_trainer.sampler import Sampler
from relight_trainer.schedule import build_schedule
from relight_trainer.seeds import seed_torch, stream
from relight_trainer.session import Cursor, Session, Stopped
from relight_trainer.settings.data import DATA
from relight_trainer.settings.model import MODELS
from relight_trainer.settings.position import Length
from relight_trainer.settings.train import Train

if TYPE_CHECKING:
    from relight_trainer.data.tensors import Splits

_AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class NonFiniteLoss(Exception):
    """The loss is NaN or infinite."""

    exit_code: ClassVar[ExitCode] = ExitCode.NON_FINITE_LOSS


class UnfitConfig(Exception):
    """The configuration asks for what this machine or this data set does not have."""

    exit_code: ClassVar[ExitCode] = ExitCode.BAD_CONFIG


def run(context: WorkerContext) -> Outcome:
    """Train to the end, or to a stop agreed by all ranks. Errors with an `exit_code` say how they are to be treated."""
    config = parse(context.job.entry["config"])
    device = prepare(config.train, context.local_rank)
    form(device)
    try:
        return train(config, Session(context), device)
    except Stopped as stopped:
        return stopped.outcome


def prepare(settings: Train, local_rank: int) -> torch.device:
    """Set torch up as `settings` say: the device this worker trains on. Runs no tensor operation."""
    wants_cuda = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
    if wants_cuda and local_rank >= torch.cuda.device_count():
        raise UnfitConfig(f"local rank {local_rank} has no GPU: this member has {torch.cuda.device_count()}")
    torch.set_num_threads(settings.threads)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
    return torch.device("cuda", local_rank) if wants_cuda else torch.device("cpu")


def train(config: TrainerConfig, session: Session, device: torch.device) -> Outcome:
    settings = config.train
    rank, world = session.peers.rank, session.peers.world

    data: Splits = build(DATA, config.data).to(device)
    if not world <= settings.global_batch <= data.train.size:
        raise UnfitConfig(
            f"train.global_batch {settings.global_batch}: allowed is at least {world}, one sample for each worker, "
            f"and at most {data.train.size}, the training set"
        )
    sampler = Sampler(data.train.size, settings.global_batch, settings.seed)
    session.batches_per_epoch = sampler.steps_per_epoch
    total = session.total_steps = settings.duration.steps(sampler.epoch)
    every = config.evaluate.every
    evaluate_every = every.steps(sampler.epoch) if every else total

    seed_torch(stream(settings.seed, "init"))
    model = build(MODELS, config.model).to(device)
    optimizer = build_optimizer(config.optimizer, model, settings.global_batch)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    length = Length(total, sampler.epoch)
    schedule = build_schedule(config.schedule, config.optimizer, length, settings.global_batch)
    # The warm-up in it comes before anything is loaded, in every process alike.
    replica = replicate(model, device)

    session.restore({"model": model, "optimizer": optimizer, "scaler": scaler}, [model])
    if session.cursor.weights_digest:
        return session.completed()

    def evaluate_now() -> None:
        with session.evaluation():
            session.log(evaluate(model, data.test, session.peers, session.leaving))

    for step in range(session.cursor.step, total):
        if step and step % evaluate_every == 0:
            evaluate_now()
        session.enter()
        set_rates(optimizer, schedule(step))
        seed_torch(stream(settings.seed, "step", step, rank))
        inputs, labels = data.train.take(sampler.indices(step, rank, world))
        with torch.autocast(device.type, _AUTOCAST[settings.precision], enabled=settings.precision != "fp32"):
            logits = replica(inputs)
        # DDP divides the sum over ranks by their number: with this factor the mean over samples is exact for
        # shares of any size.
        loss = cross_entropy(logits.float(), labels, reduction="sum") * (world / settings.global_batch)
        if device.type == "cpu" and settings.precision != "fp16":  # fp16's scaler skips such a step
            check_finite(loss, step)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()

        done = step + 1
        if done % settings.log_every == 0 or done == total:
            mean = loss.detach().clone()
            dist.all_reduce(mean)
            session.log({"loss": f"{mean.item() / world:.6g}"})
        session.step_done(Cursor(done, *sampler.place(done), done * settings.global_batch, session.cursor.metrics))

    evaluate_now()
    return session.complete(chain(model.named_parameters(), model.named_buffers()))


def check_finite(loss: torch.Tensor, step: int) -> None:
    value = loss.item()
    if not math.isfinite(value):
        raise NonFiniteLoss(f"the loss is {value} in step {step + 1}")
