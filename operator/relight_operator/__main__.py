"""`python -m relight_operator`: the operator in a cluster, or beside one by KUBECONFIG."""

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Mapping
from typing import Any

import click
from pydantic import ValidationError

from relight_operator.api.job import Resources
from relight_operator.api.problems import problems_of
from relight_operator.kube.app import Options, run
from relight_operator.kube.errors import KubeError
from relight_operator.kube.network import NetworkDefaults
from relight_operator.kube.pods import PodDefaults


def _resources(_: click.Context, __: click.Parameter, value: str) -> dict[str, Any]:
    resources = _json(value)
    try:
        Resources.model_validate(resources)
    except ValidationError as error:
        raise click.BadParameter("; ".join(str(p) for p in problems_of(error))) from None
    return dict(resources)


def _secrets(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    secrets = _json(value)
    if not isinstance(secrets, list) or not all(
        isinstance(s, dict) and isinstance(s.get("name"), str) for s in secrets
    ):
        raise click.BadParameter('wanted: [{"name": "..."}]')
    return tuple(s["name"] for s in secrets)


def _objects(_: click.Context, __: click.Parameter, value: str) -> tuple[Mapping[str, Any], ...]:
    found = _json(value)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise click.BadParameter("wanted: a list of objects")
    return tuple(found)


def _json(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}") from None


# The environment is the chart's way; only names that no Service of a namespace can put there.
@click.command(context_settings={"show_default": True})
@click.option("--trainer-image", required=True, envvar="RELIGHT_TRAINER_IMAGE", help="Image of the training pods.")
@click.option(
    "--trainer-image-pull-policy",
    default="IfNotPresent",
    envvar="RELIGHT_TRAINER_IMAGE_PULL_POLICY",
    type=click.Choice(["Always", "IfNotPresent", "Never"]),
)
@click.option(
    "--trainer-image-pull-secrets",
    default="[]",
    envvar="RELIGHT_TRAINER_IMAGE_PULL_SECRETS",
    callback=_secrets,
    help="Secrets in the jobs' namespaces, as JSON: a list of {name}.",
)
@click.option(
    "--trainer-resources",
    default="{}",
    envvar="RELIGHT_TRAINER_RESOURCES",
    callback=_resources,
    help="Limits and requests of a training pod, as JSON.",
)
@click.option("--trainer-user", default=10001, help="Numeric user of the training pods.")
@click.option(
    "--network-policies/--no-network-policies",
    default=True,
    envvar="RELIGHT_NETWORK_POLICIES",
    help="Make a NetworkPolicy for each job whose networkPolicy is Auto.",
)
@click.option(
    "--scrapers",
    default='[{"namespaceSelector": {}}]',
    envvar="RELIGHT_SCRAPERS",
    callback=_objects,
    help="Who may connect to the metrics port of training pods, as JSON: a list of NetworkPolicyPeer.",
)
@click.option(
    "--training-egress",
    default="[]",
    envvar="RELIGHT_TRAINING_EGRESS",
    callback=_objects,
    help="Where training pods may connect to beside each other, as JSON: a list of NetworkPolicyEgressRule; empty: anywhere.",
)
@click.option("--namespace", envvar="POD_NAMESPACE", default="relight", help="The operator's own namespace.")
@click.option("--pod-name", envvar="POD_NAME", default="", help="The operator's own pod; empty outside a cluster.")
@click.option("--watch-namespace", multiple=True, help="Watch this namespace only; may be repeated. Default: all.")
@click.option(
    "--coordinator",
    required=True,
    envvar="RELIGHT_COORDINATOR_HOST",
    metavar="HOST[:PORT]",
    help="Where agents reach the operator that leads.",
)
@click.option("--coordinator-port", default=8443, help="Listens for agents, HTTPS.")
@click.option("--http-port", default=8080, help="Listens for /healthz, /readyz and /metrics.")
@click.option(
    "--lease", default="relight", envvar="RELIGHT_LEASE", help="Name of the Lease by which one replica leads."
)
@click.option(
    "--ca-secret", default="relight-ca", envvar="RELIGHT_CA_SECRET", help="Name of the Secret of the coordinator's CA."
)
@click.option("--workers", default=8, help="Jobs that are reconciled at the same time.")
@click.option("--resync-seconds", default=300.0, help="Everything is read anew this often.")
@click.option(
    "--log-level", default="info", envvar="RELIGHT_LOG_LEVEL", type=click.Choice(["debug", "info", "warning", "error"])
)
def main(log_level: str, **given: Any) -> None:
    """Run Relight's operator."""
    level = logging.getLevelName(log_level.upper())
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("kopf").setLevel(max(level, logging.WARNING))
    options = Options(
        defaults=PodDefaults(
            image=given["trainer_image"],
            image_pull_policy=given["trainer_image_pull_policy"],
            image_pull_secrets=given["trainer_image_pull_secrets"],
            resources=given["trainer_resources"],
            user=given["trainer_user"],
        ),
        network=NetworkDefaults(
            enabled=given["network_policies"], scrapers=given["scrapers"], egress=given["training_egress"]
        ),
        namespaces=tuple(given["watch_namespace"]),
        **{name: given[name] for name in _SAME},
    )
    try:
        good = asyncio.run(_main(options))
    except KubeError as error:
        raise click.ClickException(f"{type(error).__name__}: {error}") from None
    sys.exit(0 if good else 1)


_SAME = (
    "namespace", "pod_name", "coordinator", "coordinator_port", "http_port", "lease", "ca_secret", "workers", "resync_seconds",
)  # fmt: skip


async def _main(options: Options) -> bool:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return await run(options, stop)


if __name__ == "__main__":
    main()
