"""A job's NetworkPolicy: who may open a connection to its members, and where members may connect to.

The process group's store, gloo and NCCL know no authentication, and listen on ports of their own choice: whoever reaches a
member can join its training. Pure but for `ensure`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from relight_agent.files import clip
from relight_operator.api.job import JobSpec
from relight_operator.kube import names
from relight_operator.kube.client import NETWORK_POLICIES, Client
from relight_operator.kube.conditions import Hindrance
from relight_operator.kube.errors import AlreadyExists, Forbidden, Invalid, KubeError
from relight_operator.kube.names import Owner
from relight_operator.kube.pods import job_labels, metadata

RETRY_SECONDS = 30.0
_ANYONE: Sequence[Mapping[str, Any]] = ({"namespaceSelector": {}},)


@dataclass(frozen=True)
class NetworkDefaults:
    """What the installation says of the jobs' policies; peers and rules as in networking.k8s.io/v1.

    Without `egress` members may connect to anything; with it to each other and to what its rules name.
    """

    enabled: bool = True
    scrapers: Sequence[Mapping[str, Any]] = _ANYONE  # may read the members' metrics
    egress: Sequence[Mapping[str, Any]] = ()


def is_wanted(spec: JobSpec, network: NetworkDefaults) -> bool:
    return network.enabled and spec.network_policy == "Auto"


def network_policy(owner: Owner, network: NetworkDefaults) -> dict[str, Any]:
    members = [{"podSelector": {"matchLabels": job_labels(owner)}}]
    ingress: list[dict[str, Any]] = [{"from": members}]
    if network.scrapers:
        ports = [{"protocol": "TCP", "port": names.METRICS_PORT}]
        ingress.append({"from": [dict(peer) for peer in network.scrapers], "ports": ports})
    spec: dict[str, Any] = {
        "podSelector": {"matchLabels": job_labels(owner)},
        "policyTypes": ["Ingress"],
        "ingress": ingress,
    }
    if network.egress:
        spec["policyTypes"] = ["Ingress", "Egress"]
        spec["egress"] = [{"to": members}, *(dict(rule) for rule in network.egress)]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(owner, owner.name),
        "spec": spec,
    }


async def ensure(client: Client, owner: Owner, network: NetworkDefaults) -> Hindrance | None:
    """The job's policy is there before its first member; None, or what is in the way. Raises KubeError."""
    try:
        await client.create(NETWORK_POLICIES, owner.namespace, network_policy(owner, network))
    except AlreadyExists:
        found = await client.get(NETWORK_POLICIES, owner.namespace, owner.name)
        if names.controller_of(found).get("uid") == owner.uid:
            return None
        message = (
            f"a NetworkPolicy {owner.name} exists that is not the job's: remove it, rename the job, or set "
            "spec.networkPolicy: None and write a policy of your own"
        )
        return Hindrance("NameConflict", message, RETRY_SECONDS)
    except (Forbidden, Invalid) as error:
        return _refused(error)
    return None


def _refused(error: KubeError) -> Hindrance:
    message = f"the job's NetworkPolicy cannot be made (spec.networkPolicy: None does without): {error}"
    return Hindrance("CreateForbidden", clip(message), RETRY_SECONDS)
