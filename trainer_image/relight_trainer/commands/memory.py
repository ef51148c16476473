"""Say how much memory a training will want, without a GPU."""

import json
from typing import TYPE_CHECKING, Any

import click

from relight_trainer.amounts import amount, shape, size

if TYPE_CHECKING:
    from relight_trainer.config import TrainerConfig

_LAYERS = 8  # in the table


@click.command("memory")
@click.argument("config", metavar="CONFIG")
@click.option("--set", "sets", multiple=True, metavar="A.B=VALUE", help="Change a field first; repeatable.")
@click.option("--workers", type=click.IntRange(min=1), default=1, help="Among whom the global batch is divided.")
@click.option("--input", "form", metavar="3x224x224", help="A sample's shape, where the data set is not here.")
@click.option("--limit", metavar="80GiB", help="What a worker's device has: says whether it fits, and what would.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print the answer.")
def command(
    *, config: str, sets: tuple[str, ...], workers: int, form: str | None, limit: str | None, output: str
) -> None:
    """Say how much memory a worker of CONFIG, a TrainingJob or a trainer's configuration, will want on its device.

    Nothing is allocated and nothing is trained: the model runs on shapes alone. Parameters, gradients and the
    optimizer's state are exact. Activations are what the forward pass keeps for the backward pass; the peak is the
    most that is needed at one time. A device needs more than that: 0.3 to 0.6 GiB for CUDA, and cuDNN's workspaces.

    \b
      relight memory examples/digits.yaml
      relight memory imagenet.yaml --input 3x224x224 --workers 8 --limit 80GiB
      relight memory config.yaml --set train.micro_batch=32 -o json

    Exit codes: 0, 1 more than --limit, 64 the configuration or the command line is wrong, 65 the data set is.
    """  # noqa: D301  # click's mark for text that is not wrapped
    from relight_trainer.config_file import load

    said = foretold(load(config, sets), workers, form=form, limit=limit)
    click.echo(json.dumps(said, indent=2) if output == "json" else text(said))
    raise SystemExit(0 if said.get("fits", True) else 1)


def foretold(
    config: "TrainerConfig", workers: int, *, form: str | None = None, limit: str | None = None
) -> dict[str, Any]:
    """The account of one worker's memory as JSON, with a verdict where there is a `limit`.

    Raises BadSize, Unpredictable, and what building the model or opening the data set raises.
    """
    from relight_trainer.observe import predict

    most = size(limit) if limit else None
    sample = predict.sample_like(shape(form)) if form else predict.one_sample(config)
    said = predict.account(config, workers, sample)
    if most is not None:
        said |= {"limit": most, "fits": said["peak"] <= most}
        if not said["fits"]:
            smaller = predict.fitting(config, workers, sample, most)
            said["fittingMicroBatch"] = smaller.train.micro_batch if smaller else None
    return said


def text(said: dict[str, Any]) -> str:
    """The account for a person."""
    sizes = said["bytes"]
    names = {
        "parameters": f"parameters ({said['elements']:,} numbers)",
        "frozen": "  of them frozen",
        "gradients": "gradients",
        "buffers": "buffers",
        "optimizer": f"optimizer ({said['optimizerType']})",
        "ema": "moving average",
        "ddp": "gradients on their way (DDP)",
        "batch": "a batch",
        "activations": "activations",
    }
    rows = [(names[name], sizes[name]) for name in names if sizes[name]]
    layers = [(path or "(the model itself)", n) for path, n in said["layers"].items()][:_LAYERS]
    width = max(len(name) for name, _ in [*rows, *layers]) + 2
    lines = [
        f"each of {said['workers']} --workers, {said['samples']} samples at a time, {said['precision']}",
        *(f"  {name:<{width}}{amount(n):>12}" for name, n in rows),
        f"{'at most at one time':<{width + 2}}{amount(said['peak']):>12}",
        f"{'in the machine, for snapshots':<{width + 2}}{amount(said['snapshots']):>12}",
        "activations by layer",
        *(f"  {path:<{width}}{amount(n):>12}" for path, n in layers),
    ]
    if "limit" in said:
        lines.append(_verdict(said))
    return "\n".join(lines)


def _verdict(said: dict[str, Any]) -> str:
    if said["fits"]:
        return f"it fits into {amount(said['limit'])}"
    smaller = said["fittingMicroBatch"]
    remedy = f"train.micro_batch: {smaller} would fit" if smaller else "no micro-batch would fit"
    return f"it does not fit into {amount(said['limit'])}: {remedy}"
