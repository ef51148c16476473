"""`relight` and `kubectl relight`."""

import ast
import contextlib
import importlib
import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

import relight_trainer
from relight_agent.exits import ExitCode
from relight_operator.errors import RelightError

# The torch-free commands. Those that need torch are the modules of relight_trainer.commands, found by their names.
_OWN: Mapping[str, tuple[str, str]] = {
    "completion": ("relight_operator.cli.main", "completion_command"),
    "crd": ("relight_operator.cli.validate", "crd_command"),
    "explain": ("relight_operator.cli.explain", "explain_command"),
    "run": ("relight_operator.cli.run", "run_command"),
    "validate": ("relight_operator.cli.validate", "validate_command"),
}
_TRAINER = Path(relight_trainer.__file__).parent / "commands"

HELP = """PyTorch training that loses machines at almost no cost.

\b
  relight validate job.yaml       is this TrainingJob right?
  relight run job.yaml            run it here, without a cluster
  relight run job.yaml --chaos preempt-node:1@step:40 --chaos kill-node:0@step:80
                                  the same, and watch it survive
  relight explain digits          what was lost, when and why

Exit codes: 0 done, 64 the job or the command line is wrong, 70-78 training failed (docs/exit-codes.md),
130 stopped by Ctrl-C with everything saved.
"""


@cache
def _trainer_commands() -> dict[str, str]:
    """The short help of each command that needs torch: its module's docstring, read and not imported."""
    files = sorted(_TRAINER.glob("[!_]*.py"))
    return {f.stem: ast.get_docstring(ast.parse(f.read_text(encoding="utf-8"))) or "" for f in files}


class _ReaderGone(Exception):
    """Nobody reads the output any more. Of a BrokenPipeError click makes exit code 1, which means something else."""


class _Commands(click.Group):
    """Imports a command only when it is asked for, so that --help and completion are quick and need no torch."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise _ReaderGone from None

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return sorted([*_OWN, *_trainer_commands()])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's signature
        module, attribute = _OWN.get(cmd_name, (f"relight_trainer.commands.{cmd_name}", "command"))
        if cmd_name not in _OWN and cmd_name not in _trainer_commands():
            return None
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = formatter.width - 6 - max(map(len, self.list_commands(ctx)))
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._short_help(ctx, name, width)) for name in self.list_commands(ctx)])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        return [
            *(CompletionItem(name, help=self._short_help(ctx, name, 80)) for name in names),
            *click.Command.shell_complete(self, ctx, incomplete),
        ]

    def _short_help(self, ctx: click.Context, name: str, width: int) -> str:
        text = _trainer_commands().get(name)
        if text is None:
            command = self.get_command(ctx, name)
            text = command.get_short_help_str(width) if command else ""
        return text

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from difflib import get_close_matches

        names = self.list_commands(ctx)
        if args and args[0] not in names:
            near = get_close_matches(args[0], names, n=1)
            hint = f' Did you mean "{near[0]}"?' if near else ""
            ctx.fail(f'no such command: "{args[0]}".{hint} Allowed: {", ".join(names)}')
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
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if not missing or missing.startswith("relight") or os.environ.get("RELIGHT_TRACEBACK"):
            raise
        click.echo(
            f"error: this needs {missing}, which is not installed here: pip install 'relight[operator,trainer]'",
            err=True,
        )
        sys.exit(os.EX_UNAVAILABLE)
    except RelightError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except _ReaderGone:
        _drop_output()
        sys.exit(141)
    except OSError as error:
        what = ": ".join(filter(None, (error.filename, error.strerror))) or str(error)
        click.echo(f"error: {what}", err=True)
        sys.exit(74)
    except Exception as error:
        exit_code = getattr(error, "exit_code", None)
        if isinstance(exit_code, ExitCode):  # the trainer's own errors, whose text says all there is to say
            click.echo(f"error: {error}", err=True)
            sys.exit(exit_code)
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
