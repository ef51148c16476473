"""Write a checkpoint's weights as safetensors or as a plain .pt."""

import json

import click

from relight_trainer.commands.reading import limits, reading_limits


@click.command("export")
@click.argument("checkpoint", metavar="CHECKPOINT")
@click.argument("out", metavar="OUT.safetensors|OUT.pt")
@click.option("--ema", is_flag=True, help="The moving average of the weights instead of the weights.")
@click.option("--key", metavar="NAME", help='Where the weights are in the file, such as "model" or "nets.teacher".')
@click.option("--force", is_flag=True, help="Replace OUT where it exists.")
@reading_limits
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print the answer.")
def command(
    *,
    checkpoint: str,
    out: str,
    ema: bool,
    key: str | None,
    force: bool,
    read_memory: int,
    read_seconds: int,
    output: str,
) -> None:
    """Write the weights in CHECKPOINT, and nothing else, to a file that others can load.

    CHECKPOINT is whatever `relight inspect` takes; of a job's folder, the newest one is taken, and its checksums are
    verified. Names are those of the model's state_dict, without DDP's or torch.compile's prefixes.

    \b
      relight export /checkpoints/default/digits digits.safetensors
      relight export run.ckpt weights.pt --ema

    Exit codes: 0, 64 nothing there or nothing to write, 65 damaged, dangerous or unknown, 74 OUT cannot be written.
    """  # noqa: D301  # click's mark for text that is not wrapped
    from relight_trainer.inspect.child import ask

    bounds = limits(read_memory, read_seconds)
    said = ask("export", [checkpoint], bounds, out=out, ema=ema, key=key, force=force)
    if output == "json":
        click.echo(json.dumps(said, indent=2))
    else:
        click.echo(
            f"{said['out']}: {said['tensors']} tensors, {said['elements']:,} elements, digest {said['weightsDigest']}"
        )
