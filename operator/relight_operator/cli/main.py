"""`relight` and `kubectl relight`."""

import contextlib
import os
import sys

import click

from relight_operator.errors import RelightError

HELP = """PyTorch training that loses machines at almost no cost.

\b
  relight validate job.yaml       is this TrainingJob right?
  relight run job.yaml            run it here, without a cluster
  relight run job.yaml --chaos preempt-node:1@step:40 --chaos kill-node:0@step:80
                                  the same, and watch it survive

Exit codes: 0 done, 64 the job or the command line is wrong, 70-78 training failed (docs/exit-codes.md),
130 stopped by Ctrl-C with everything saved.
"""


class _Commands(click.Group):
    """Imports a command only when it is asked for, so that --help and completion are quick."""

    names = ("completion", "crd", "run", "validate")

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(self.names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's signature
        if cmd_name == "run":
            from relight_operator.cli.run import run_command

            return run_command
        if cmd_name == "validate":
            from relight_operator.cli.validate import validate_command

            return validate_command
        if cmd_name == "crd":
            from relight_operator.cli.validate import crd_command

            return crd_command
        return completion_command if cmd_name == "completion" else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from difflib import get_close_matches

        if args and self.get_command(ctx, args[0]) is None:
            near = get_close_matches(args[0], self.names, n=1)
            hint = f' Did you mean "{near[0]}"?' if near else ""
            ctx.fail(f'no such command: "{args[0]}".{hint} Allowed: {", ".join(self.names)}')
        return super().resolve_command(ctx, args)


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print the completion script: eval "$(relight completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(group, {}, "relight", "_RELIGHT_COMPLETE").source())


@click.command(cls=_Commands, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="relight", prog_name="relight")
def group() -> None: ...


def main() -> None:
    """The console script. Whatever goes wrong ends in words and an exit code, never in a traceback."""
    _hold_standard_descriptors()
    try:
        code = group.main(standalone_mode=False, prog_name="relight")
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(64)
    except RelightError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        _drop_output()
        sys.exit(141)
    except OSError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(74)
    except Exception as error:
        if os.environ.get("RELIGHT_TRACEBACK"):
            raise
        click.echo(
            f"error: {type(error).__name__}: {error} (a bug in relight; RELIGHT_TRACEBACK=1 shows where)", err=True
        )
        sys.exit(70)
    sys.exit(code if isinstance(code, int) else 0)


def _hold_standard_descriptors() -> None:
    """Open what was closed of 0, 1 and 2: the next file would get that number, and be printed into."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _drop_output() -> None:
    """Nobody reads any more: what is still buffered must not be complained about when the interpreter ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(null, stream.fileno())
