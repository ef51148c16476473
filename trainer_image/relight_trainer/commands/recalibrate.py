"""Compute batch norm's running statistics anew and write the weights with them."""

import json

import click


@click.command("recalibrate")
@click.argument("checkpoint", metavar="CHECKPOINT")
@click.argument("out", metavar="OUT.safetensors|OUT.pt")
@click.option("--config", metavar="FILE", help="For weights that do not say which model and data they belong to.")
@click.option("--set", "sets", multiple=True, metavar="A.B=VALUE", help="Change a field of the configuration first.")
@click.option(
    "--path", metavar="PATH", help='Of a supernet: the path, such as "0-3-1", or "best" of the last evaluation.'
)
@click.option("--samples", type=click.IntRange(2), help="Training samples to compute them of (default 1024).")
@click.option("--batch", type=click.IntRange(2), help="Samples of one forward pass (default 128).")
@click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="PATTERN",
    help="Batch norm layers that get new statistics, frozen ones too, such as student.*; by default all that train.",
)
@click.option("--ema", is_flag=True, help="The moving average of the weights instead of the weights.")
@click.option("--force", is_flag=True, help="Replace OUT where it exists.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print the answer.")
def command(
    *,
    checkpoint: str,
    out: str,
    config: str | None,
    sets: tuple[str, ...],
    path: str | None,
    samples: int | None,
    batch: int | None,
    layers: tuple[str, ...],
    ema: bool,
    force: bool,
    output: str,
) -> None:
    """Give the batch norm layers of CHECKPOINT the exact statistics of training samples, and write its weights to OUT.

    What training leaves is a moving average over weights that were changing; in a supernet, a mixture of all paths.
    CHECKPOINT is whatever `relight inspect` takes; of a job's folder, the newest one is taken. Relight's own say
    themselves which model and data they belong to. The test set's metrics are shown with the old statistics and with
    the new ones. Frozen layers keep theirs: a layer is frozen where `freeze` says so at the checkpoint's step, where none
    of its parameters requires a gradient, and where it stays in evaluation mode while the model trains.

    \b
      relight recalibrate /checkpoints/default/digits digits.safetensors
      relight recalibrate /checkpoints/default/supernet best.pt --path best
      relight recalibrate old.pth new.pth --config config.yaml --set data.root=/data/imagenet

    Exit codes: 0, 64 wrong input, 65 damaged checkpoint or data, 74 OUT cannot be written.
    """  # noqa: D301  # click's mark for text that is not wrapped
    from pathlib import Path

    from relight_trainer.recalibrate_checkpoint import recalibrate_checkpoint

    said = recalibrate_checkpoint(
        checkpoint,
        Path(out),
        config=config,
        sets=sets,
        path=path,
        samples=samples,
        batch=batch,
        layers=layers,
        ema=ema,
        force=force,
    )
    if output == "json":
        click.echo(json.dumps(said, indent=2))
        return
    click.echo(f"{said['out']}: {said['layers']} layers have the statistics of {said['samples']} samples")
    if said["kept"]:
        click.echo(f"{said['kept']} layers keep their statistics: frozen, not named, or not reached by the samples")
    for name, before in said["before"].items():
        click.echo(f"{name} {before} -> {said['after'][name]}")
