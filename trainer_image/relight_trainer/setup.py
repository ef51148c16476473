"""From a configuration to a training that can begin."""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from relight_agent.exits import ExitCode
from relight_trainer.buffers import unchanged
from relight_trainer.checkpoint.place import place_of
from relight_trainer.clip import build_clip
from relight_trainer.config import TrainerConfig
from relight_trainer.context import WorkerContext
from relight_trainer.data.splits import Splits, known_labels
from relight_trainer.ema import Ema
from relight_trainer.evaluate import evaluate, sums_of
from relight_trainer.freeze import Freezer
from relight_trainer.hooks import Hook, Hooks
from relight_trainer.init_from import init_from
from relight_trainer.kept_parameters import KeptParameters
from relight_trainer.modes import begin_training
from relight_trainer.norm_layers import moving_though_frozen
from relight_trainer.object_states import check_savable
from relight_trainer.objective import Objective, OwnObjective, OwnStep
from relight_trainer.observe.build import hooks_for
from relight_trainer.optim import build_optimizer, set_rates
from relight_trainer.paths import Paths
from relight_trainer.placement import check_model
from relight_trainer.precision import autocast, build_scaler
from relight_trainer.recalibrate import recalibrated
from relight_trainer.recalibration_settings import check_recalibration
from relight_trainer.reduction import Reduction
from relight_trainer.registry import build
from relight_trainer.replicas import replicate
from relight_trainer.run import Run, numbers
from relight_trainer.sampler import Sampler
from relight_trainer.schedule import build_schedule, require_sense
from relight_trainer.seeds import seed_torch, stream
from relight_trainer.session import Session, Stateful
from relight_trainer.settings.hooks import HOOKS, CustomHook
from relight_trainer.settings.loss import LOSSES
from relight_trainer.settings.model import MODELS
from relight_trainer.settings.position import UNKNOWN, Length
from relight_trainer.settings.schedule_sense import of_evaluations, ruler_of
from relight_trainer.settings.spans import Span, Time
from relight_trainer.step import Step
from relight_trainer.sync_batchnorm import apply as apply_sync_bn
from relight_trainer.tokens import TokenMean
from relight_trainer.trained_time import TrainedTime
from relight_trainer.unused import Unused, of_group
from relight_trainer.windows import Dealer


class UnfitConfig(Exception):
    """The configuration asks for what this machine, this world or this data set does not have."""

    exit_code = ExitCode.BAD_CONFIG


class Training:
    """What the loop needs, built in the order that matters: model, its conversions, optimizer, replica."""

    def __init__(
        self, config: TrainerConfig, splits: Splits, session: Session, device: torch.device, context: WorkerContext
    ) -> None:
        settings = config.train
        self.config = config
        self.splits = splits
        self._time = _time(config)
        self._session = session
        self._context = context
        self._device = device
        self.sampler = _sampler(config, splits.train.size)
        epoch = self.sampler.epoch
        length = Length(UNKNOWN if isinstance(settings.duration, Time) else settings.duration.steps(epoch), epoch)
        self.dealer = _dealer(config, self.sampler, session, context)

        seed_torch(stream(settings.seed, "init"))
        model: nn.Module = build(MODELS, config.model).to(device)
        if settings.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        check_savable({"model": model})
        check_model(model, device)
        begin_training(model)
        apply_sync_bn(config.sync_bn, model)
        check_recalibration(config, model)
        self.freezer = Freezer(config.freeze, model, length)
        self.freezer.at(0)
        optimizer = build_optimizer(config.optimizer, model, settings.global_batch)
        self.schedule = build_schedule(config.schedule, config.optimizer, length, settings.global_batch)
        require_sense(of_evaluations(config.schedule, config.evaluate, ruler_of(settings.duration, length)))
        self.ema = Ema(config.ema, model) if config.ema else None

        own = hasattr(model, "training_step")
        criterion = None if own else build(LOSSES, config.loss)
        objective = (
            OwnObjective()
            if criterion is None
            else Objective(criterion, known_labels(splits), divided=self.dealer.parts_in_all > 1)
        )
        self._objective = objective
        self._tokens = getattr(criterion, "denominator", None)
        self._callee = OwnStep(model) if own else model
        # A supernet uses a part of itself in each step: DDP is to know the rest before its backward passes.
        self._finds_unused = config.supernet is not None or config.ddp.find_unused_parameters is True
        self._unused: Unused | None = None
        if session.peers.world > 1 and not self._finds_unused:
            self._unused = of_group(f"training/{context.generation}", device)
        self.run = Run(
            config=config,
            session=session,
            device=device,
            model=model,
            replica=self._callee,
            optimizer=optimizer,
            scaler=build_scaler(settings.precision, device),
            epoch_size=epoch,
            total_steps=length.total,
            hooks=Hooks(
                [*self._own_hooks(), *map(_hook, config.hooks), *hooks_for(config.observe, context, device)],
                session.say,
            ),
        )
        self._paths = Paths(config, self.run, self.splits, context) if config.supernet else None
        if self._paths:
            self.run.passes = self._paths.of_step
        self.step = Step(
            self.run,
            objective=objective,
            autocast=autocast(settings.precision, device),
            clip=build_clip(config.clip, model),
            passed_on=self.dealer.passed_on,
        )
        session.batches_per_epoch = epoch.steps
        session.total_steps = length.total if length.total != UNKNOWN else 0
        session.state_equal = self._state_equal
        self._kept = KeptParameters(model, optimizer)
        session.before_saving = self._before_saving
        session.saving = self._saving
        every = config.evaluate.every
        self._evaluate_every = every.steps(epoch) if isinstance(every, Span) else None

    def _own_hooks(self) -> list[Hook]:
        hooks: list[Hook] = [TokenMean(self._tokens, self.dealer, self.sampler.size)] if self._tokens else []
        return [self._time, *hooks] if self._time else hooks

    def restore(self) -> None:
        """Load the newest state, or begin."""
        run = self.run
        objects: dict[str, Stateful] = {
            "model": run.model,
            "optimizer": run.optimizer,
            "scaler": run.scaler,
            "schedule": self.schedule,
            "updates": self.step.updates,
            "data": self.splits.identity,
            "hooks": run.hooks,
        }
        if self.ema:
            objects["ema"] = self.ema
        self._session.restore(objects, [run.model], self._begin_afresh, follow={"ema"})
        run.step = self._session.cursor.step
        if self._time is not None and self._time.is_over:
            run.total_steps = run.step
        self.freezer.at(run.step)
        self._replicate()

    def before_step(self) -> None:
        """Make the model what it is to be in the next step; DDP is built anew where other parameters learn."""
        if self.freezer.at(self.run.step):
            self._replicate()
        set_rates(self.run.optimizer, self.schedule(self.step.updates.taken))

    def _before_saving(self) -> None:
        self.step.watch.settle()
        self._kept.check()

    def _state_equal(self) -> None:
        run = self.run
        if self.ema and not run.skipped:
            self.ema.update()  # not earlier: before, the buffers that it follows are each rank's own
        run.hooks.state_equal(run)
        run.hooks.step_end(run)
        if self._session.cursor.batch == 0:
            run.hooks.epoch_end(run)
        run.hooks.saving(run)

    @property
    def evaluation_due(self) -> bool:
        """Whether the state is evaluated before the next step."""
        step, every = self.run.step, self._evaluate_every
        if every is not None:
            return step > 0 and step % every == 0
        return self._time is not None and step > 0 and self._time.evaluates(step)

    def evaluate(self) -> None:
        """Evaluate, and note what came of it."""
        run, session = self.run, self._session
        # What is frozen then is not recalibrated: the same in a training that is resumed here. At the end, the last step's.
        if self.freezer.at(min(run.step, run.total_steps - 1)):
            self._replicate()
        with session.evaluation():
            run.hooks.evaluation_begin(run)  # not earlier: a resume from here evaluates again
            metrics = self._unchanged()
            self._objective.targets.require_right()
            if self.ema:
                with self.ema.swapped():
                    metrics |= {f"ema_{name}": value for name, value in self._unchanged().items()}
        self.schedule.observe(metrics, run.step)
        run.log(metrics)
        run.hooks.evaluation_end(run, numbers(metrics))

    def _unchanged(self) -> dict[str, str]:
        """Evaluate, and leave no trace of it in buffers that the model moves in evaluation mode too."""
        with unchanged(
            self.run.model, self._device
        ):  # else the weights would depend on how often, and where, that is done
            return self._evaluate()

    def _evaluate(self) -> dict[str, str]:
        run = self.run
        if self._paths:
            sums = sums_of(run.model, self._objective, run)
            return self._paths.evaluate(sums, lambda batch: self._objective.output(run.model, batch, run))
        sums = sums_of(run.model, self._objective, run, self._tokens)
        test = partial(evaluate, run.model, sums, self.splits.test, self._session.peers, self._session.leaving)
        if self.config.evaluate.recalibrate is None:
            return test()
        with recalibrated(
            run.model,
            self.config.evaluate.recalibrate,
            self.splits.train,
            self._session.peers,
            seed=self.config.train.seed,
            forward=lambda batch: self._objective.output(run.model, batch, run),
            interrupted=self._session.leaving,
        ):
            return test()

    def close(self) -> None:
        if self._paths:
            self._paths.close()
        if self._unused is not None:
            self._unused.close()

    def _begin_afresh(self) -> None:
        if self.config.init_from:
            report = init_from(self.config.init_from, self.run.model)
            self._session.say(report.summary())
            self._note_beside_checkpoints("init_from.json", report.dump())
        if self.ema:
            self.ema.reset()
        if moving := moving_though_frozen(self.run.model):
            self._session.say(moving)

    def _note_beside_checkpoints(self, name: str, content: Any) -> None:
        location = self._context.job.checkpoint_dir
        if not location:
            return
        place = place_of(location)
        try:
            place.prepare()
            place.put(name, json.dumps(content, indent=2).encode())
        except place.errors as error:  # nothing is lost but the note
            self._session.say(f"{name} could not be written to {place}: {error}")

    def _replicate(self) -> None:
        """In a world of one, DDP would do nothing but take time: the sums are the same bits without it."""
        run = self.run
        if run.world == 1:
            return
        run.replica = self._callee
        gc.collect()  # an older DDP hangs its hooks on parameters for as long as it lives
        run.replica = replicate(self._callee, self._device, self.config.ddp, find_unused=self._finds_unused)
        self.step.reduction = Reduction(
            run.replica, self._unused, {id(p): name for name, p in run.model.named_parameters()}
        )

    @contextmanager
    def _saving(self) -> Iterator[None]:
        self.run.hooks.checkpoint_begin(self.run)
        yield
        self.run.hooks.checkpoint_end(self.run)


def _sampler(config: TrainerConfig, samples: int) -> Sampler:
    settings = config.train
    keep = settings.last_batch == "keep"
    if settings.global_batch > samples and not keep:
        raise UnfitConfig(
            f"train.global_batch {settings.global_batch}: allowed is at most {samples}, the training set, "
            "or last_batch: keep"
        )
    return Sampler(samples, settings.global_batch, settings.seed, keep_tail=keep)


def _dealer(config: TrainerConfig, sampler: Sampler, session: Session, context: WorkerContext) -> Dealer:
    settings, peers = config.train, session.peers
    # A world that is larger than the job's is one that was asked for in another way.
    workers = max(context.job.nodes * context.job.proc_per_node, peers.world)
    ranks = workers if settings.virtual_ranks == "auto" else settings.virtual_ranks
    if (
        ranks < peers.world and config.sync_bn is None
    ):  # whoever has no part would keep its buffers, and lend them to all
        raise UnfitConfig(
            f"train.virtual_ranks {ranks}: fewer than the {peers.world} workers of this world; allowed: auto, "
            f"{peers.world} or more"
        )
    return Dealer(
        sampler,
        virtual_ranks=ranks,
        accumulate=settings.micro_batches(ranks),
        rank=peers.rank,
        world=peers.world,
        together=config.sync_bn is not None,
        stand_in=config.supernet is not None,  # what is on no path is to have no gradient, on no rank
    )


def _time(config: TrainerConfig) -> TrainedTime | None:
    duration, every = config.train.duration, config.evaluate.every
    times = (duration if isinstance(duration, Time) else None, every if isinstance(every, Time) else None)
    return TrainedTime(duration=times[0], every=times[1]) if any(times) else None


def _hook(settings: CustomHook) -> Hook:
    hook = build(HOOKS, settings)
    if not isinstance(hook, Hook):
        raise UnfitConfig(
            f"hooks: {settings.type} gives a {type(hook).__name__}; allowed: a relight_trainer.hooks.Hook"
        )
    if settings.order is not None:
        hook.order = settings.order
    if settings.on_error is not None:
        hook.on_error = settings.on_error
    return hook
