"""Say how two checkpoints or weights files differ."""

import json

import click

from relight_trainer.commands.reading import limits, reading_limits


@click.command("diff")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--weights", is_flag=True, help="Only the models' weights, whatever they are called in each file.")
@reading_limits
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print the answer.")
def command(*, a: str, b: str, weights: bool, read_memory: int, read_seconds: int, output: str) -> None:
    """Say how two files or folders of training state differ.

    Names that only one has, changed shapes, dtypes and values, and for each tensor how many elements differ and by how
    much at most. Takes what `relight inspect` takes; the two may be of different kinds. Nothing in them is run.

    \b
      relight diff step-000000100.g1 step-000000200.g1
      relight diff --weights /checkpoints/default/digits exported.safetensors

    Exit codes: 0 equal, 1 different, 64 nothing there, 65 damaged, dangerous or unknown.
    """  # noqa: D301  # click's mark for text that is not wrapped
    from relight_trainer.inspect.child import ask
    from relight_trainer.inspect.compare import text

    said = ask("compare", [a, b], limits(read_memory, read_seconds), only_weights=weights)
    click.echo(json.dumps(said, indent=2, allow_nan=False) if output == "json" else text(said))
    raise SystemExit(0 if said["equal"] else 1)
