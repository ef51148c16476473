"""`python -m relight_operator`: the operator in a cluster, or beside one by KUBECONFIG."""

import asyncio
import json
import logging
import signal
import sys
from typing import Any

import click

from relight_operator.kube.app import Options, run
from relight_operator.kube.errors import KubeError
from relight_operator.kube.pods import PodDefaults


def _resources(_: click.Context, __: click.Parameter, value: str) -> dict[str, Any]:
    try:
        resources = json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}") from None
    if not isinstance(resources, dict) or not set(resources) <= {"limits", "requests"}:
        raise click.BadParameter('wanted: {"limits": {...}, "requests": {...}}')
    return resources


# No options from RELIGHT_* in the environment: Services named relight-... put their own addresses there.
@click.command(context_settings={"show_default": True})
@click.option("--trainer-image", required=True, help="Image of the training pods.")
@click.option("--image-pull-policy", default="IfNotPresent", type=click.Choice(["Always", "IfNotPresent", "Never"]))
@click.option("--image-pull-secret", multiple=True, help="Names of Secrets in the jobs' namespaces; may be repeated.")
@click.option("--trainer-resources", default="{}", callback=_resources, help="Limits and requests of a pod, as JSON.")
@click.option("--trainer-user", default=10001, help="Numeric user of the training pods.")
@click.option("--namespace", envvar="POD_NAMESPACE", default="relight", help="The operator's own namespace.")
@click.option("--pod-name", envvar="POD_NAME", default="", help="The operator's own pod; empty outside a cluster.")
@click.option("--watch-namespace", multiple=True, help="Watch this namespace only; may be repeated. Default: all.")
@click.option(
    "--coordinator-url", default="", help="How agents reach the operator. Default: the Service relight-coordinator."
)
@click.option("--coordinator-port", default=8443, help="HTTPS, for agents.")
@click.option("--http-port", default=8080, help="/healthz, /readyz and /metrics.")
@click.option("--lease", default="relight-operator", help="Name of the Lease by which one replica leads.")
@click.option("--workers", default=8, help="Jobs that are reconciled at the same time.")
@click.option("--resync-seconds", default=300.0, help="Everything is read anew this often.")
@click.option("--log-level", default="INFO", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]))
def main(log_level: str, **given: Any) -> None:
    """Run Relight's operator."""
    logging.basicConfig(level=log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("kopf").setLevel(max(logging.getLevelName(log_level), logging.WARNING))
    namespace, port = given["namespace"], given["coordinator_port"]
    options = Options(
        defaults=PodDefaults(
            image=given["trainer_image"],
            image_pull_policy=given["image_pull_policy"],
            image_pull_secrets=tuple(given["image_pull_secret"]),
            resources=given["trainer_resources"],
            user=given["trainer_user"],
        ),
        namespace=namespace,
        coordinator_url=given["coordinator_url"] or f"https://relight-coordinator.{namespace}.svc:{port}",
        pod_name=given["pod_name"],
        namespaces=tuple(given["watch_namespace"]),
        coordinator_port=port,
        http_port=given["http_port"],
        lease=given["lease"],
        workers=given["workers"],
        resync_seconds=given["resync_seconds"],
    )
    try:
        good = asyncio.run(_main(options))
    except KubeError as error:
        raise click.ClickException(f"{type(error).__name__}: {error}") from None
    sys.exit(0 if good else 1)


async def _main(options: Options) -> bool:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return await run(options, stop)


if __name__ == "__main__":
    main()
