"""The members of a job accept connections from each other alone, and none is made before that is so."""

from typing import Any

import pytest
from kube_world import SPEC, World, refuse, scenario

from relight_operator.kube.client import NETWORK_POLICIES
from relight_operator.kube.errors import Forbidden
from relight_operator.kube.names import Owner
from relight_operator.kube.network import NetworkDefaults, network_policy

pytestmark = pytest.mark.timeout(30)

OWNER = Owner("ml", "digits", "u-1")
MEMBERS = {"podSelector": {"matchLabels": {"relight.dev/job": "digits"}}}
PROMETHEUS = {"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}
STORAGE = {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}
METRICS = [{"protocol": "TCP", "port": 9090}]


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (
            NetworkDefaults(),
            {"policyTypes": ["Ingress"], "ingress": [{"from": [MEMBERS]}, {"from": [{"namespaceSelector": {}}], "ports": METRICS}]},
        ),
        (NetworkDefaults(scrapers=()), {"policyTypes": ["Ingress"], "ingress": [{"from": [MEMBERS]}]}),
        (
            NetworkDefaults(scrapers=[PROMETHEUS], egress=[STORAGE]),
            {
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [MEMBERS]}, {"from": [PROMETHEUS], "ports": METRICS}],
                "egress": [{"to": [MEMBERS]}, STORAGE],
            },
        ),
    ],
    ids=["by default", "nobody scrapes", "named"],
)  # fmt: skip
def test_the_policy_lets_in_members_and_scrapers_and_nobody_else(
    network: NetworkDefaults, expected: dict[str, Any]
) -> None:
    made = network_policy(OWNER, network)
    assert made["spec"] == {**MEMBERS, **expected}
    assert made["metadata"]["ownerReferences"][0]["uid"] == "u-1"


@scenario
async def test_the_policy_is_there_before_the_first_member(w: World) -> None:
    await w.formed()
    made = [(plural, name) for verb, plural, name in w.client.requests if verb == "create"]
    assert made.index(("networkpolicies", "digits")) < made.index(("pods", w.pods()[0]))
    assert made.count(("networkpolicies", "digits")) == 1


@scenario
async def test_a_job_that_wants_none_has_none(w: World) -> None:
    await w.formed({**SPEC, "networkPolicy": "None"})
    assert w.client.all("networkpolicies") == []


@scenario
async def test_without_its_policy_no_member_is_made_and_the_condition_says_how_to_go_on(w: World) -> None:
    w.client.before = refuse(Forbidden("no"), "create", "networkpolicies")
    await w.apply()
    await w.settle()
    assert w.pods() == []
    condition = next(c for c in w.status.conditions if c.type == "CreateForbidden")
    assert "spec.networkPolicy: None" in condition.message
    w.client.before = lambda *_: None
    await w.settle()
    assert len(w.pods()) == 2


@scenario
async def test_somebody_elses_policy_of_the_name_is_left_alone_and_no_member_is_made(w: World) -> None:
    await w.client.create(NETWORK_POLICIES, "ml", {"metadata": {"name": "digits"}, "spec": {"podSelector": {}}})
    await w.apply()
    await w.settle()
    assert w.pods() == []
    condition = next(c for c in w.status.conditions if c.type == "NameConflict")
    assert "a NetworkPolicy digits exists that is not the job's" in condition.message
    assert w.client.named("networkpolicies", "digits")["spec"] == {"podSelector": {}}
