"""Which Secret or config map a member waits for, in plain words. Pure.

The kubelet says so in a pod's status, and asks again every few seconds; Relight has no right to read Secrets.
"""

import re

from relight_operator.api.environment import Needed, needed
from relight_operator.api.job import JobSpec

REASON = "CreateContainerConfigError"
_OBJECT = re.compile(r'(?P<kind>secret|configmap) "(?P<name>[^"]+)" not found', re.IGNORECASE)
_KEY = re.compile(r"couldn't find key (?P<key>\S+) in (?P<kind>Secret|ConfigMap) (?P<namespace>[^/\s]+)/(?P<name>\S+)")


def in_words(said: str, spec: JobSpec, namespace: str) -> str | None:
    """What `said`, a kubelet's message, means for this job; None where it is of something else."""
    if found := _KEY.search(said):
        kind, name, key = _kind(found["kind"]), found["name"], found["key"]
        fields = [n for n in wanted_by(spec) if (n.kind, n.name, n.key) == (kind, name, key)]
        what, remedy = f"{kind} {name} in namespace {namespace} has no key {key}", "add the key"
    elif found := _OBJECT.search(said):
        kind, name = _kind(found["kind"]), found["name"]
        fields = [n for n in wanted_by(spec) if (n.kind, n.name) == (kind, name) and not n.optional]
        keys = ", ".join(dict.fromkeys(n.key for n in fields if n.key))
        what = f"{kind} {name} does not exist in namespace {namespace}"
        remedy = f"create it{f' with key {keys}' if keys else ''}"
    else:
        return None
    where = f" ({', '.join(n.field for n in fields[:5])})" if fields else ""
    return f"{what}{where}: {remedy}, and the members start by themselves within a minute"


def wanted_by(spec: JobSpec) -> list[Needed]:
    found = needed(spec.trainer.env, spec.trainer.env_from)
    if spec.checkpoint is not None and spec.checkpoint.secret_ref is not None:
        name = spec.checkpoint.secret_ref.name
        found.append(Needed("spec.checkpoint.secretRef", "Secret", name, "", optional=False))
    return found


def _kind(word: str) -> str:
    return "Secret" if word.lower() == "secret" else "config map"
