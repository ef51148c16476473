"""What the operator did in all of the session's tests is what the chart lets it do, no less and no more.

Runs last: it reads the API server's audit log.
"""

import json
from typing import Any

import pytest
from tests.cluster import test_operator
from tests.cluster.relight import CHART, RELEASE, SYSTEM, Operator
from tests.testbed import Cluster

pytestmark = [pytest.mark.at_the_end, pytest.mark.timeout(300)]

UNSEEN = {
    # What admission asks of who makes objects that block their owner's deletion. Nobody requests it, so no log has it.
    ("relight.dev", "trainingjobs/finalizers", "update"),
    # The certificate authority is looked at once an hour and followed by a new one after some years.
    ("", "secrets", "patch"),
}

Right = tuple[str, str, str]  # API group, resource or resource/subresource, verb


def granted(cluster: Cluster, values: list[str]) -> set[Right]:
    """The verbs of the chart's roles that are bound to the operator's account."""
    rendered = cluster.helm("template", RELEASE, CHART, f"-n={SYSTEM}", "--show-only=templates/rbac.yaml", *values)
    listed = cluster.kubectl("create", "--dry-run=client", "--validate=false", "-o=json", "-f-", stdin=rendered)
    return {
        (group, resource, verb)
        for role in objects(listed)
        for rule in role.get("rules", ())
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def objects(listed: str) -> list[dict[str, Any]]:
    """JSON objects that stand one after the other, or in a List."""
    found, decoder, at = [], json.JSONDecoder(), 0
    while at < len(listed.rstrip()):
        value, length = decoder.raw_decode(listed[at:].lstrip())
        at = len(listed) - len(listed[at:].lstrip()) + length
        found += value["items"] if value["kind"] == "List" else [value]
    return found


def requests(cluster: Cluster) -> dict[Right, list[dict[str, Any]]]:
    """The audit log's events of the operator's account as this release made it, by what it takes to be allowed them."""
    account = cluster.get("serviceaccount", RELEASE, f"-n={SYSTEM}")["metadata"]["uid"]
    found: dict[Right, list[dict[str, Any]]] = {}
    for event in cluster.audit_log():
        # without an object it is discovery, which is everybody's
        if event["user"].get("uid") == account and (what := event.get("objectRef")):
            resource = "/".join(filter(None, (what["resource"], what.get("subresource"))))
            found.setdefault((what.get("apiGroup", ""), resource, event["verb"]), []).append(event)
    return found


def test_the_operator_was_refused_nothing(operator: Operator, testbed: Cluster) -> None:
    del operator
    refused = {
        right: event["requestURI"]
        for right, events in requests(testbed).items()
        for event in events
        if event.get("responseStatus", {}).get("code") in {401, 403}
    }
    assert refused == {}


def test_the_operator_used_every_verb_that_the_chart_grants_and_no_other(
    operator: Operator, testbed: Cluster, values: list[str], request: pytest.FixtureRequest
) -> None:
    del operator
    allowed, used = granted(testbed, values), set(requests(testbed))
    assert used <= allowed
    ran = {getattr(item, "originalname", "") for item in request.session.items}
    if left_out := {name for name in vars(test_operator) if name.startswith("test_")} - ran:
        pytest.skip(f"which verbs are never used only a session with these can tell: {', '.join(sorted(left_out))}")
    assert allowed - used == UNSEEN
