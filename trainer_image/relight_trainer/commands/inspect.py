"""Say what is in a checkpoint or weights file, without running its code."""

import json

import click

from relight_agent.exits import ExitCode
from relight_trainer.commands.reading import limits, reading_limits


@click.command("inspect")
@click.argument("path", metavar="FILE|FOLDER")
@click.option("--only", default="*", metavar="GLOB", help='Only tensors and values of these names, such as "model.*".')
@click.option("--quick", is_flag=True, help="Names, shapes and dtypes only: no tensor is read.")
@click.option("--model", "of_model", is_flag=True, help="FILE is a configuration: show its model's layers and shapes.")
@click.option(
    "--input", "form", metavar="3x224x224", help="With --model: a sample's shape, where the data is not here."
)
@click.option(
    "--set", "sets", multiple=True, metavar="A.B=VALUE", help="With --model: change a field first; repeatable."
)
@reading_limits
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print the answer.")
def command(
    *,
    path: str,
    only: str,
    quick: bool,
    of_model: bool,
    form: str | None,
    sets: tuple[str, ...],
    read_memory: int,
    read_seconds: int,
    output: str,
) -> None:
    """Say what is in a file or folder of training state.

    Names, shapes, dtypes, norms, NaN and Inf counts of every tensor; optimizers; everything else that was saved.
    Takes .pt, .pth, .pth.tar, .ckpt, safetensors, folders of torch.distributed.checkpoint and of sharded safetensors,
    and Relight's own checkpoints, checkpoint folders and snapshots.

    Nothing in the file is run, classes in it are named and not loaded, and tensors are read in small parts: a file of
    many gigabytes is inspected in a few dozen megabytes of memory. Another process reads it, whose memory and time are
    bounded while it finds out what is in the file.

    With --model: every layer of the model that a TrainingJob or a trainer's configuration names, with the shapes that go
    in and come out. Nothing is computed. Where the shapes do not fit, the layer is named that cannot take them.

    \b
      relight inspect weights.pth
      relight inspect /checkpoints/default/digits              the newest one
      relight inspect model.safetensors --only "*bn*" -o json
      relight inspect --model imagenet.yaml --input 3x224x224

    Exit codes: 0, 64 nothing there or shapes that do not fit, 65 damaged, dangerous or unknown.
    """  # noqa: D301  # click's mark for text that is not wrapped
    if of_model:
        raise SystemExit(_model(path, form, sets, output))
    if form or sets:
        raise click.UsageError("--input and --set go with --model")
    from relight_trainer.inspect.child import ask
    from relight_trainer.inspect.report import text

    said = ask("report", [path], limits(read_memory, read_seconds), numbers=not quick, pattern=only)
    click.echo(json.dumps(said, indent=2, allow_nan=False) if output == "json" else text(said))
    if said["damage"]:
        raise SystemExit(ExitCode.BAD_DATA)


def _model(path: str, form: str | None, sets: tuple[str, ...], output: str) -> int:
    from relight_trainer.amounts import shape
    from relight_trainer.config_file import load
    from relight_trainer.observe import predict, shapes

    config = load(path, sets)
    found = shapes.trace(config, predict.sample_like(shape(form)) if form else predict.one_sample(config))
    click.echo(json.dumps(shapes.dump(found), indent=2) if output == "json" else shapes.text(found))
    return ExitCode.BAD_CONFIG if found.message else ExitCode.COMPLETED
