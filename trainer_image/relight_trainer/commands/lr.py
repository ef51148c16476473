"""Show the learning rate of every step of a training, without training."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from relight_agent.exits import ExitCode

if TYPE_CHECKING:
    from relight_trainer.config import TrainerConfig
    from relight_trainer.settings.position import Length

_ROWS = 12  # of the table
_MOST = 10_000  # steps whose rate is computed


@click.command("lr")
@click.argument("config", metavar="CONFIG")
@click.option("--set", "sets", multiple=True, metavar="A.B=VALUE", help="Change a field first; repeatable.")
@click.option("--plot", is_flag=True, help="Draw the curve in the terminal.")
@click.option("--svg", "image", metavar="FILE", help="Write the curve as an SVG image.")
@click.option("--samples", type=click.IntRange(min=1), metavar="N", help="Of the training set, where it is not here.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print the answer.")
def command(
    *, config: str, sets: tuple[str, ...], plot: bool, image: str | None, samples: int | None, output: str
) -> None:
    """Show the learning rate (and a cycled momentum) that CONFIG, a TrainingJob or a trainer's configuration, gives.

    How many steps there are follows from the data set, which is opened for its size unless --samples says it.
    Of more than 10,000 steps, 10,000 are shown, from the first to the last.

    \b
      relight lr examples/digits.yaml --plot
      relight lr config.yaml --set schedule.warmup=5ep --svg curve.svg
      relight lr config.yaml --samples 1281167 -o json

    Exit codes: 0, 64 the configuration or the command line is wrong, 65 the data set is.
    """  # noqa: D301  # click's mark for text that is not wrapped
    from relight_trainer.config_file import load
    from relight_trainer.schedule import build_schedule

    trainer = load(config, sets)
    length = _length(trainer, samples)
    schedule = build_schedule(trainer.schedule, trainer.optimizer, length, trainer.train.global_batch)
    said = _account(trainer, length)
    rates = ((step, schedule(step)) for step in _spread(length.total, _MOST))
    said["rates"] = [{"step": step, "lr": r.lr, "momentum": r.momentum} for step, r in rates]
    if image is not None:
        _write(Path(image), said)
    if output == "json":
        click.echo(json.dumps(said, indent=None if length.total > _ROWS else 2))
    else:
        click.echo(_text(said))
        if plot:
            click.echo(_drawn(said))


def _spread(count: int, most: int) -> list[int]:
    """All numbers below `count`, or `most` of them from the first to the last."""
    if count <= most:
        return list(range(count))
    return [i * (count - 1) // (most - 1) for i in range(most)]


def _length(config: "TrainerConfig", samples: int | None) -> "Length":
    from relight_trainer.sampler import Sampler
    from relight_trainer.settings.position import Length
    from relight_trainer.settings.spans import Time

    settings = config.train
    if isinstance(settings.duration, Time):
        click.echo(
            f'train.duration: "{settings.duration}" is a time, and how many steps fit into it is not known here; '
            "look at a length of your choice: --set train.duration=5000st",
            err=True,
        )
        sys.exit(ExitCode.BAD_CONFIG)
    if samples is None:
        import torch

        from relight_trainer.data.splits import open_splits

        samples = open_splits(config.data, config.loader, settings.seed, torch.device("cpu")).train.size
    keep = settings.last_batch == "keep"
    if settings.global_batch > samples and not keep:
        click.echo(
            f"train.global_batch: {settings.global_batch} is more than the {samples} samples there are", err=True
        )
        sys.exit(ExitCode.BAD_CONFIG)
    epoch = Sampler(samples, settings.global_batch, settings.seed, keep_tail=keep).epoch
    return Length(settings.duration.steps(epoch), epoch)


def _account(config: "TrainerConfig", length: "Length") -> dict[str, Any]:
    from relight_trainer.settings.rate import ScaledRate, rate_at

    optimizer = config.optimizer
    lr, batch = optimizer.lr, config.train.global_batch
    why = f"{lr.value:g} at batch {lr.at_batch}, {lr.scale}, at batch {batch}" if isinstance(lr, ScaledRate) else ""
    return {
        "steps": length.total,
        "stepsPerEpoch": length.epoch.steps,
        "optimizer": optimizer.type,
        "schedule": config.schedule.type,
        "peak": rate_at(lr, batch),
        "why": why,
        "groups": [{"match": g.match, "layer": g.layer, "lr_scale": g.lr_scale, **g.own} for g in optimizer.groups],
    }


def _text(said: dict[str, Any]) -> str:
    steps, per_epoch, rates = said["steps"], said["stepsPerEpoch"], said["rates"]
    shown = sorted({round(i * (len(rates) - 1) / (_ROWS - 1)) for i in range(_ROWS)})
    cycled = rates[0]["momentum"] is not None
    lines = [
        f"{steps} steps, {per_epoch} in an epoch: {said['optimizer']} with {said['schedule']}",
        f"learning rate {said['peak']:.6g}" + (f" ({said['why']})" if said["why"] else ""),
        *(f"group {i}: {_group(group)}" for i, group in enumerate(said["groups"])),
        "",
        f"{'step':>9} {'epoch':>9} {'lr':>12}" + (f" {'momentum':>9}" if cycled else ""),
    ]
    for i in shown:
        step = rates[i]["step"]
        row = f"{step:>9} {step / per_epoch:>9.2f} {rates[i]['lr']:>12.6g}"
        lines.append(row + (f" {rates[i]['momentum']:>9.4f}" if cycled else ""))
    if said["schedule"] == "plateau":
        lines.append("and less from where the evaluation's metric has stopped getting better")
    return "\n".join(lines)


def _group(group: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in group.items() if value != [])


def _labels(said: dict[str, Any]) -> tuple[str, str]:
    return "step 0", f"step {said['steps'] - 1}, epoch {said['steps'] / said['stepsPerEpoch']:.4g}"


def _drawn(said: dict[str, Any]) -> str:
    from relight_trainer import plot

    return "\n" + plot.text([r["lr"] for r in said["rates"]], labels=_labels(said))


def _write(path: Path, said: dict[str, Any]) -> None:
    from relight_trainer import plot

    if path.suffix != ".svg":
        click.echo(f'--svg: "{path}" is no name of an SVG image; allowed: *.svg', err=True)
        sys.exit(ExitCode.BAD_CONFIG)
    title = f"learning rate: {said['optimizer']} with {said['schedule']}, peak {said['peak']:.4g}"
    path.write_text(plot.svg([r["lr"] for r in said["rates"]], title=title, labels=_labels(said)), encoding="utf-8")
