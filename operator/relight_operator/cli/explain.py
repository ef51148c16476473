"""`relight explain`: where a job's time went, from a cluster, from a local run, or from a file."""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError
from rich.console import Console

from relight_operator.api.status import JobStatus
from relight_operator.cli.printing import shown
from relight_operator.errors import InvalidUsage, RelightError, StateError
from relight_operator.explain import Story, duration, tell
from relight_operator.kube.status import parse

BAR_WIDTH = 20


class ClusterError(RelightError):
    """The cluster cannot be asked."""

    exit_code = os.EX_UNAVAILABLE


@click.command("explain", short_help="Tell where a job's time went: what was lost, when and why.")
@click.argument("job", metavar="JOB")
@click.option("-n", "--namespace", metavar="NAME", help='Of the job. Default: the kubeconfig context\'s, or "default".')
@click.option("--cluster", is_flag=True, help="Ask the cluster, also where a local run has this name.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="json: for programs.")
def explain_command(job: str, namespace: str | None, cluster: bool, output: str) -> int:
    """Tell where the time of JOB went: every second of its members, each loss, its cause, and what it cost.

    JOB is a name: of a `relight run` on this machine, else of a TrainingJob in the cluster of your kubeconfig.
    Or it is a path: of a state folder of `relight run`, or of a file with the job or its status (- is stdin).

    \b
      relight explain digits
      relight explain digits -n research
      relight explain ./state -o json | jq .goodput
      kubectl get trainingjob digits -o yaml | relight explain -

    Exit codes: 0 told, however the job has ended; 64 no such job, 69 no answer from the cluster, 74 a file that cannot
    be read.
    """  # noqa: D301  # click's mark for text that is not wrapped
    name, status = find(job, namespace, cluster=cluster)
    story = tell(name, status, time.time())
    if output == "json":
        click.echo(json.dumps(story.dump(), indent=2))
    else:
        show(story, Console(highlight=False, soft_wrap=True))
    return 0


def find(job: str, namespace: str | None, *, cluster: bool) -> tuple[str, JobStatus]:
    """The job's name and its status. Raises InvalidUsage where there is no such job."""
    path = Path(job)
    if job == "-":
        return _in_text(sys.stdin.read(), "stdin")
    if not cluster and (path.is_file() or (path / "job.json").is_file()):
        file = path if path.is_file() else path / "job.json"
        return _in_text(file.read_text(encoding="utf-8", errors="replace"), str(file))
    if os.sep in job:
        raise InvalidUsage(f"{job}: found neither a file nor a state folder of `relight run` (it has no job.json)")
    from relight_operator.local.state import default_state_dir

    folder = default_state_dir(namespace or "default", job)
    if not cluster and (folder / "job.json").is_file():
        return _in_text((folder / "job.json").read_text(encoding="utf-8"), str(folder / "job.json"))
    local = [p.parent.name for p in folder.parent.glob("*/job.json")]
    return _in_cluster(job, namespace, [] if cluster else local, folder)


def _in_text(text: str, source: str) -> tuple[str, JobStatus]:
    """A TrainingJob, or the status of one, in JSON or YAML."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise StateError(f"{source}: neither JSON nor YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(value, dict):
        raise StateError(f"{source}: found no object; allowed: a TrainingJob with its status, or the status alone")
    metadata = value.get("metadata")
    is_job = isinstance(metadata, dict) and value.get("kind") == "TrainingJob"
    if not is_job and "phase" not in value:
        raise StateError(f"{source}: found neither kind: TrainingJob nor a phase; allowed: a TrainingJob or its status")
    name = str(metadata.get("name")) if isinstance(metadata, dict) and is_job else Path(source).stem
    return name, _parsed(value.get("status") if is_job else value, source)


def _parsed(value: Any, source: str) -> JobStatus:
    try:
        return parse(value)
    except (ValidationError, ValueError, TypeError, AttributeError) as error:
        raise StateError(f"{source}: not the status of a TrainingJob: {str(error).splitlines()[0]}") from None


def _in_cluster(job: str, namespace: str | None, local: list[str], folder: Path) -> tuple[str, JobStatus]:
    if not _has_cluster():
        raise InvalidUsage(_unknown(job, local, f"there is no {folder}, and no kubeconfig that leads to a cluster"))
    try:
        from relight_operator.kube.client import JOBS, connect
        from relight_operator.kube.errors import KubeError, NotConfigured, NotFound
    except ModuleNotFoundError as error:
        why = f"to ask a cluster needs {error.name}: pip install 'relight[operator]'"
        raise InvalidUsage(_unknown(job, local, f"there is no {folder}, and {why}")) from None

    async def ask() -> tuple[dict[str, Any] | None, str, list[str]]:
        async with connect() as client:
            space = namespace or _namespace_of_context()
            try:
                return dict(await client.get(JOBS, space, job)), space, []
            except NotFound:
                others = await client.list(JOBS, space)
                return None, space, [o["metadata"]["name"] for o in others]

    try:
        body, space, names = asyncio.run(ask())
    except NotConfigured as error:
        raise InvalidUsage(_unknown(job, local, f"there is no {folder}, and {error}")) from None
    except NotFound:
        raise ClusterError("the cluster knows no TrainingJobs: is Relight installed there? (docs/install.md)") from None
    except KubeError as error:
        raise ClusterError(f"the cluster gives no answer: {error}") from None
    if body is None:
        where = f"not in namespace {space} of the cluster" + (f", and there is no {folder}" if local else "")
        raise InvalidUsage(_unknown(job, [*local, *names], where))
    return job, _parsed(body.get("status") or {}, f"TrainingJob {space}/{job}")


def _kubeconfigs() -> list[Path]:
    given = os.environ.get("KUBECONFIG")
    return [Path(p) for p in given.split(os.pathsep) if p] if given else [Path("~/.kube/config").expanduser()]


def _has_cluster() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ or any(path.is_file() for path in _kubeconfigs())


def _namespace_of_context() -> str:
    """The namespace that kubectl would use."""
    import yaml

    values = []
    for path in _kubeconfigs():
        with contextlib.suppress(OSError, yaml.YAMLError):
            values.append(yaml.safe_load(path.read_text(encoding="utf-8")))
    files = [v for v in values if isinstance(v, dict)]
    current = next((v["current-context"] for v in files if v.get("current-context")), None)
    contexts = [c for v in files for c in v.get("contexts") or () if isinstance(c, dict) and c.get("name") == current]
    return str(
        next((c["context"]["namespace"] for c in contexts if (c.get("context") or {}).get("namespace")), "default")
    )


def _unknown(job: str, names: Iterable[str], where: str) -> str:
    known = sorted(set(names))
    near = get_close_matches(job, known, n=1)
    hint = f' Did you mean "{near[0]}"?' if near else f" There are: {', '.join(known[:10])}." if known else ""
    return f'no such job: "{job}" ({where}).{hint}'


def show(story: Story, console: Console) -> None:
    console.print(f"[bold]{shown(story.summary[0])}[/bold]")
    for text in story.summary[1:]:
        console.print(shown(text))
    if story.shares:
        console.print(
            f"\n[bold]Where the time of the members went[/bold] ({duration(sum(s.seconds for s in story.shares))})"
        )
    for share in story.shares:
        bar = "#" * round(BAR_WIDTH * share.share)
        style = "green" if share.bucket == "productive" else "default"
        figures = f"{duration(share.seconds):>12} {100 * share.share:5.1f} %"
        console.print(
            f"  {share.bucket:<11}{figures}  [{style}]{bar:<{BAR_WIDTH}}[/]  [dim]{shown(share.meaning)}[/dim]"
        )
    if story.timeline:
        console.print("\n[bold]What happened[/bold]")
    for moment in story.timeline:
        at = f"+{duration(moment.at)}" if moment.at is not None else "..."
        style = "red" if moment.bad else "default"
        console.print(f"  {at:<13} [{style}]{shown(moment.text)}[/]")
        for text in moment.more:
            console.print(f"  {'':<13} [dim]{shown(text)}[/dim]")
    if story.advice:
        console.print()
    for text in story.advice:
        console.print(shown(text))
