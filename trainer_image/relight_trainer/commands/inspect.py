"""Say what is in a checkpoint or weights file, without running its code."""

import json

import click

from relight_agent.exits import ExitCode


@click.command("inspect")
@click.argument("path", metavar="FILE|FOLDER")
@click.option("--only", default="*", metavar="GLOB", help='Only tensors and values of these names, such as "model.*".')
@click.option("--quick", is_flag=True, help="Names, shapes and dtypes only: no tensor is read.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print the answer.")
def command(path: str, only: str, quick: bool, output: str) -> None:
    """Say what is in a file or folder of training state.

    Names, shapes, dtypes, norms, NaN and Inf counts of every tensor; optimizers; everything else that was saved.
    Takes .pt, .pth, .pth.tar, .ckpt, safetensors, folders of torch.distributed.checkpoint and of sharded safetensors,
    and Relight's own checkpoints, checkpoint folders and snapshots.

    Nothing in the file is run, classes in it are named and not loaded, and tensors are read in small parts: a file of
    many gigabytes is inspected in a few dozen megabytes of memory.

    \b
      relight inspect weights.pth
      relight inspect /checkpoints/default/digits              the newest one
      relight inspect model.safetensors --only "*bn*" -o json

    Exit codes: 0, 64 nothing there, 65 damaged, dangerous or unknown.
    """  # noqa: D301  # click's mark for text that is not wrapped
    from relight_trainer.inspect import read
    from relight_trainer.inspect.report import report, text

    said = report(read(path), numbers=not quick, pattern=only)
    click.echo(json.dumps(said, indent=2, allow_nan=False) if output == "json" else text(said))
    if said["damage"]:
        raise SystemExit(ExitCode.BAD_DATA)
