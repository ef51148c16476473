"""What the operator may do is what its code does, and nothing else."""

import ast
from collections.abc import Iterator

import pytest
from charting import NAMESPACE, ROOT, Helm, Object

from relight_operator.kube import client
from relight_operator.kube.client import Resource

VERBS = {"get", "list", "create", "patch", "delete"}
WATCHED = ("trainingjobs", "pods", "nodes")  # Kopf's feeds
# Objects that name a job as the owner whose deletion they block: admission asks for it, no request of ours.
OWNING = ("trainingjobs/finalizers", "update")

IN_CLUSTER = {
    "relight.dev": {
        "trainingjobs": {"get", "list", "watch"},
        "trainingjobs/status": {"patch"},
        "trainingjobs/finalizers": {"update"},
    },
    "": {
        "pods": {"get", "list", "watch", "create", "patch", "delete"},
        "services": {"get", "create"},
        "configmaps": {"get", "create"},
        "events": {"list", "create"},
        "nodes": {"get", "list", "watch"},
    },
    "policy": {"poddisruptionbudgets": {"get", "create", "delete"}},
    "networking.k8s.io": {"networkpolicies": {"get", "create"}},
    "authentication.k8s.io": {"tokenreviews": {"create"}},
}
IN_ITS_NAMESPACE = {
    "coordination.k8s.io": {"leases": {"get", "create", "patch"}},
    "": {"secrets": {"get", "create", "patch"}},
}


def granted(role: Object) -> dict[str, dict[str, set[str]]]:
    found: dict[str, dict[str, set[str]]] = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                found.setdefault(group, {}).setdefault(resource, set()).update(rule["verbs"])
    return found


def verbs_in_the_code() -> Iterator[tuple[str, str]]:
    """(resource, verb) of every call of a client's method with one of its resources."""
    resources = {name: value.plural for name, value in vars(client).items() if isinstance(value, Resource)}
    for path in sorted((ROOT / "operator/relight_operator/kube").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            first = node.args[0]
            if node.func.attr in VERBS and isinstance(first, ast.Name) and first.id in resources:
                status = any(keyword.arg == "status" for keyword in node.keywords)
                yield resources[first.id] + ("/status" if status else ""), node.func.attr


def test_the_roles_are_these(helm: Helm) -> None:
    rendered = helm.render()
    assert granted(rendered.one("ClusterRole", "relight")) == IN_CLUSTER
    assert granted(rendered.one("Role")) == IN_ITS_NAMESPACE


def test_they_hold_every_verb_that_the_code_uses_and_no_other() -> None:
    used = set(verbs_in_the_code())
    used |= {(resource, verb) for resource in WATCHED for verb in ("list", "watch")} | {OWNING}
    allowed = {
        (resource, verb)
        for role in (IN_CLUSTER, IN_ITS_NAMESPACE)
        for resources in role.values()
        for resource, verbs in resources.items()
        for verb in verbs
    }
    assert used == allowed


def test_of_secrets_and_leases_only_its_own_can_be_read_or_changed(helm: Helm) -> None:
    rendered = helm.render(release="red")
    env = rendered.env()
    named = {
        (resource, verb, name)
        for rule in rendered.one("Role")["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", ["*"])
    }
    lease, secret = env["RELIGHT_LEASE"], env["RELIGHT_CA_SECRET"]
    assert named == {
        ("leases", "create", "*"),  # a create has no name that could be checked
        ("leases", "get", lease),
        ("leases", "patch", lease),
        ("secrets", "create", "*"),
        ("secrets", "get", secret),
        ("secrets", "patch", secret),
    }


@pytest.mark.parametrize(("kind", "role"), [("ClusterRoleBinding", "ClusterRole"), ("RoleBinding", "Role")])
def test_the_roles_are_bound_to_the_operator_s_account(helm: Helm, kind: str, role: str) -> None:
    rendered = helm.render({"serviceAccount.name": "runner"})
    binding = rendered.one(kind)
    assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": "relight"}
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "runner", "namespace": NAMESPACE}]
    assert (
        rendered.pod()["spec"]["serviceAccountName"] == "runner" == rendered.one("ServiceAccount")["metadata"]["name"]
    )


def test_people_get_their_rights_by_the_cluster_s_own_roles(helm: Helm) -> None:
    rendered = helm.render()
    aggregate = "rbac.authorization.k8s.io/aggregate-to-"
    roles = {
        tuple(
            label.removeprefix(aggregate) for label in role["metadata"]["labels"] if label.startswith(aggregate)
        ): granted(role)
        for role in rendered.of("ClusterRole")
    }
    read, change = {"get", "list", "watch"}, {"create", "update", "patch", "delete", "deletecollection"}
    assert roles["view",] == {"relight.dev": {"trainingjobs": read, "trainingjobs/status": read}}
    assert roles["edit", "admin"] == {
        "relight.dev": {"trainingjobs": change, "trainingjobs/scale": {"get", "update", "patch"}}
    }
    assert len(helm.render({"rbac.aggregate": False}).of("ClusterRole")) == 1
    assert not helm.render({"rbac.create": False}).of("ClusterRole")
