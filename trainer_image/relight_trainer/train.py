"""The training core: what runs in each worker of a job with `trainer.config`."""

import os
from contextlib import closing

import torch
import torch.distributed as dist

from relight_agent.files import Outcome
from relight_trainer.checkpoint import weights_of
from relight_trainer.config import TrainerConfig, check, parse
from relight_trainer.context import WorkerContext
from relight_trainer.data.splits import Splits, open_splits
from relight_trainer.feed import Feed
from relight_trainer.late_dynamo import use_deterministic_algorithms
from relight_trainer.peers import form
from relight_trainer.precision import allow_tf32
from relight_trainer.run import Run
from relight_trainer.session import Cursor, Session, Stopped
from relight_trainer.settings.train import Train
from relight_trainer.setup import Training, UnfitConfig


def run(context: WorkerContext) -> Outcome:
    """Train to the end, or to a stop agreed by all ranks. Errors with an `exit_code` say how they are to be treated."""
    config = parse(context.job.entry["config"])
    check(config)
    device = prepare(config.train, context.local_rank)
    splits = open_splits(config.data, config.loader, config.train.seed, device)
    form(device, context.folder.members())
    try:
        return train(config, splits, Session(context), device, context)
    except Stopped as stopped:
        return stopped.outcome


def prepare(settings: Train, local_rank: int) -> torch.device:
    """Set torch up as `settings` say: the device this worker trains on. Runs no tensor operation."""
    wants_cuda = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
    if wants_cuda and local_rank >= torch.cuda.device_count():
        raise UnfitConfig(f"local rank {local_rank} has no GPU: this member has {torch.cuda.device_count()}")
    torch.set_num_threads(settings.threads)
    allow_tf32(settings.precision == "tf32")
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        use_deterministic_algorithms()
        # What it fills is memory that nothing reads before writing it; that would cost each allocation a pass over it.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property of the module
    return torch.device("cuda", local_rank) if wants_cuda else torch.device("cpu")


def train(
    config: TrainerConfig, splits: Splits, session: Session, device: torch.device, context: WorkerContext
) -> Outcome:
    training = Training(config, splits, session, device, context)
    training.restore()
    if session.cursor.weights_digest and session.cursor.step >= training.run.total_steps:
        return session.completed()
    run, hooks = training.run, training.run.hooks
    try:
        hooks.run_begin(run)
        with closing(Feed(training.sampler, training.dealer, splits.train, run.step, run.total_steps)) as feed:
            _steps(training, feed)
        training.evaluate()
        with session.section("after"):  # it may export, or compute for long
            hooks.run_end(run)
    except Stopped:
        hooks.run_end(run)
        raise
    except Exception as error:
        hooks.failed(run, error)
        raise
    finally:
        training.close()
    return session.complete(weights_of(run.model))


def _steps(training: Training, feed: Feed) -> None:
    run, session, sampler = training.run, training.run.session, training.sampler
    hooks, log_every = run.hooks, run.config.train.log_every
    while run.step < run.total_steps:
        if training.evaluation_due:
            training.evaluate()
        size = sampler.size(run.step)
        fewest = training.dealer.fewest(size)
        session.enter(last=fewest <= 1)
        hooks.step_begin(run)
        training.before_step()
        training.step(feed.parts(run.step), feed.batches, size, fewest)

        run.step += 1
        if run.step % log_every == 0 or run.step == run.total_steps:
            _log_loss(run)
        cursor = Cursor(run.step, *sampler.place(run.step), sampler.consumed(run.step), session.cursor.metrics)
        session.step_done(cursor)
        hooks.saved(run)


def _log_loss(run: Run) -> None:
    assert run.loss is not None
    loss = run.loss
    if run.world > 1:
        # Of one type on all ranks: where some run several parts of a step and others one, their sums are of two.
        loss = loss.to(torch.float64, copy=True)
        dist.all_reduce(loss)
    run.log({"loss": f"{loss.item() / run.world:.6g}"})
