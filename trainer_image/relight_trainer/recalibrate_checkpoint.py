"""`relight recalibrate`: a checkpoint in, its weights with batch norm statistics computed anew out."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from relight_trainer.config import TrainerConfig, check, parse
from relight_trainer.config_file import load, with_sets
from relight_trainer.data.splits import Split, open_splits
from relight_trainer.evaluate import Sums, shard_sums, sums_of
from relight_trainer.freeze import Freezer
from relight_trainer.init_from import init_from
from relight_trainer.inspect import Contents, WrongInput, read
from relight_trainer.inspect.export import appearing, check_out, save_torch
from relight_trainer.modes import begin_training
from relight_trainer.norm_layers import running_layers
from relight_trainer.objective import Objective, OwnObjective
from relight_trainer.recalibrate import calibration_draws, recalibrate
from relight_trainer.registry import build
from relight_trainer.sampler import Sampler
from relight_trainer.settings.init_from import InitFrom
from relight_trainer.settings.loss import LOSSES
from relight_trainer.settings.model import MODELS
from relight_trainer.settings.position import UNKNOWN, Length
from relight_trainer.settings.spans import Time
from relight_trainer.settings.supernet import Recalibration
from relight_trainer.step_context import OutsideTraining
from relight_trainer.supernet.choices import path_of, space_of


def recalibrate_checkpoint(
    checkpoint: str,
    out: Path,
    *,
    config: str | None = None,
    sets: Sequence[str] = (),
    path: str | None = None,
    samples: int | None = None,
    batch: int | None = None,
    layers: Sequence[str] = (),
    ema: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Write the weights in `checkpoint` with new statistics to `out`, which appears whole or not at all.

    The configuration is the one in the checkpoint, else in the file `config`, with `sets` (`a.b=c`) put into it. Layers
    that are frozen at the checkpoint's step keep their statistics; patterns in `layers` name others.
    Returns {out, layers, kept, samples, path, before, after}: how many layers have new statistics and how many keep
    theirs; metrics of the test set as text, with the statistics of before and after. Runs on the CPU. Raises WrongInput, and what reading, configuration and data raise, with exit codes.
    """
    check_out(out, force=force)
    contents = read(checkpoint)
    trainer = load(config, sets) if config else _config_of(contents, sets)
    check(trainer.model_copy(update={"hooks": []}))  # which take no part in this, and may be far from here
    splits = open_splits(trainer.data, trainer.loader, trainer.train.seed, torch.device("cpu"))
    model: nn.Module = build(MODELS, trainer.model)
    begin_training(model)
    init_from(InitFrom(path=checkpoint, ema=ema, min_match=1.0), model)
    path = _choose(model, trainer, contents, path)

    defaults = (trainer.supernet and trainer.supernet.recalibrate) or Recalibration()
    draws = calibration_draws(
        splits.train.size, trainer.train.seed, samples=samples or defaults.samples, batch=batch or defaults.batch
    )
    _freeze(model, trainer, contents, splits.train.size)
    named = list(layers) or defaults.layers
    run = OutsideTraining(trainer, model)
    objective = OwnObjective() if hasattr(model, "training_step") else Objective(build(LOSSES, trainer.loss))
    sums = sums_of(model, objective, run)
    before = _metrics(model, sums, splits.test)
    forward = partial(_forward, objective, model, run)
    statistics = recalibrate(model, splits.train.batches(draws), forward=forward, layers=named)
    _write(model, out)
    return {
        "out": str(out),
        "layers": len(statistics),
        "kept": len(running_layers(model)) - len(statistics),
        "samples": sum(len(draw.indices) for draw in draws),
        "path": path,
        "before": before,
        "after": _metrics(model, sums, splits.test),
    }


def _config_of(contents: Contents, sets: Sequence[str]) -> TrainerConfig:
    saved = contents.facts.get("config")
    if saved is None:
        raise WrongInput(
            f"{contents.path} is a {contents.kind} and does not say which model and data it belongs to; allowed: "
            "--config FILE, or a checkpoint that a job with trainer.config has written"
        )
    return parse(with_sets(saved, sets))


def _freeze(model: nn.Module, config: TrainerConfig, contents: Contents, samples: int) -> None:
    """Freeze what was frozen in the checkpoint's last step; in that of the whole training, where it does not say its own."""
    if not config.freeze:
        return
    epoch = Sampler(
        samples, config.train.global_batch, config.train.seed, keep_tail=config.train.last_batch == "keep"
    ).epoch
    duration = config.train.duration
    length = Length(UNKNOWN if isinstance(duration, Time) else duration.steps(epoch), epoch)
    step = contents.facts.get("cursor", {}).get("step", length.total)
    Freezer(config.freeze, model, length).at(min(step, length.total - 1))


def _forward(objective: Objective, model: nn.Module, run: OutsideTraining, batch: Any) -> object:
    return objective.output(model, batch, run)


def _choose(model: nn.Module, config: TrainerConfig, contents: Contents, path: str | None) -> str | None:
    """Make the model take `path`; its text. None for a model that is no supernet."""
    if config.supernet is None:
        if path is not None:
            raise WrongInput(f"--path: found {path}, but {contents.path} is no supernet's")
        return None
    ranking = contents.path.parent / "paths.json"
    if path is None:
        near = f", or best, as {ranking} has it" if ranking.exists() else ""
        raise WrongInput(f"--path is missing: statistics are one path's; allowed: a path of the model{near}")
    if path == "best":
        if not ranking.exists():
            raise WrongInput(f"--path best: there is no {ranking}, which an evaluation of the job writes")
        path = str(json.loads(ranking.read_text())[0]["path"])
    space = space_of(model)
    space.choose(path_of(path, space))
    return path


def _metrics(model: nn.Module, sums: Sums, test: Split) -> dict[str, str]:
    if not test.size:
        return {}
    names, totals = shard_sums(model, sums, test, rank=0, world=1, interrupted=lambda: False)
    count, *rest = totals.tolist()
    return {f"test_{name}": f"{value / count:.4f}" for name, value in zip(names, rest, strict=True)}


def _write(model: nn.Module, out: Path) -> None:
    state = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    with appearing(out) as file:
        if out.suffix == ".safetensors":
            file.write(save(state, metadata={"format": "pt"}))
        else:
            save_torch(state, file)
