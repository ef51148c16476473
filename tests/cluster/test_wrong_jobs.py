"""The wrong jobs that `relight validate` knows, by `kubectl apply`: who refuses which, and in what words, is docs/wrong-jobs.md.

`RELIGHT_WRITE_DOCS=1` writes that page instead of comparing with it.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.cluster.relight import RELEASE, SYSTEM, Job, Operator, items
from tests.testbed import Cluster, ExistingCluster, TestbedError
from tests.unit.test_validate import CONFIG, WRONG

TITLES = (
    "nested typo",
    "wrong type",
    "nodes 0",
    "two of config, script, command",
    "none of config, script, command",
    "reserved env",
    "bad duration",
    "negative retry",
    "unknown model",
    "wrong argument of a model",
    "RANK in env",
)
PAGE = Path(__file__).parents[2] / "docs/wrong-jobs.md"
INTRODUCTION = """# Wrong jobs, and who says so

What the resource's schema can tell, kubectl and the API server tell at once: the job is refused, and nothing is made. What only Relight can tell (the trainer's
configuration, names that are taken), the operator tells as soon as it sees the job: its phase becomes `Invalid`, its condition `Invalid` says why, no pod is
made, and an edit that mends it starts it. `relight validate FILE` gives every answer before anything is sent, the nearest right name with it.

Seen on Kubernetes 1.20, the oldest that is supported; a test applies each of these and compares. Servers from 1.25 on also check the rules that stand in the
resource as CEL, and refuse more of them at once.
"""


@dataclass(frozen=True)
class Answer:
    refused: bool
    message: str

    def __str__(self) -> str:
        who = "Refused" if self.refused else "`Invalid`"
        return f"{who}: `{self.message}`"


def slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower())


def refusal(cluster: ExistingCluster, *words: str, stdin: str | None = None) -> str | None:
    """What kubectl says on stderr, None when it did what it was asked."""
    try:
        cluster.kubectl(*words, stdin=stdin)
    except TestbedError as error:
        return " ".join(str(error).partition("\n")[2].split())
    return None


def restarts(operator: Operator) -> dict[str, int]:
    pods = items(operator.cluster, "pods", f"-n={SYSTEM}", f"-l=app.kubernetes.io/instance={RELEASE}")
    return {pod["metadata"]["name"]: pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods}


def page(answers: dict[str, Answer]) -> str:
    def lines() -> Iterator[str]:
        yield INTRODUCTION
        yield "| what is wrong | in the file | answer |"
        yield "|---|---|---|"
        for title, answer in answers.items():
            wrong = WRONG[title].spec if title in WRONG else "no such file"
            cells = (title, f"`{wrong}`", str(answer).replace(CONFIG, "..."))
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    return "\n".join(lines()) + "\n"


@pytest.mark.timeout(300)
def test_each_wrong_job_is_refused_or_becomes_invalid_in_words(operator: Operator, namespace: str) -> None:
    before = restarts(operator)
    answers = {}
    for title in TITLES:
        wrong = WRONG[title]
        spec = wrong.spec if wrong.spec.startswith("{") else "{" + wrong.spec + "}"
        head = f"apiVersion: relight.dev/v1alpha1\nkind: TrainingJob\nmetadata: {{name: {slug(title)}}}\n"
        said = refusal(operator.cluster, "apply", f"-n={namespace}", "-f-", stdin=f"{head}spec: {spec}\n")
        if said is None:
            status = Job(operator.cluster, namespace, slug(title)).until_phase("Invalid", 60)
            said = next(c["message"] for c in status["conditions"] if c["type"] == "Invalid")
            answers[title] = Answer(refused=False, message=said)
            assert wrong.path in said
            assert wrong.found in said
            assert wrong.nearest is None or wrong.nearest in said
        else:
            answers[title] = Answer(refused=True, message=said)
            assert "spec." in said
    # kubectl's own answer
    missing = refusal(operator.cluster, "apply", f"-n={namespace}", "-f", "no.yaml")
    assert missing is not None
    answers["missing file"] = Answer(refused=True, message=missing)

    assert items(operator.cluster, "pods", f"-n={namespace}") == []
    assert restarts(operator) == before
    if not isinstance(operator.cluster, Cluster):
        return  # other versions have other words
    if os.environ.get("RELIGHT_WRITE_DOCS") == "1":
        PAGE.write_text(page(answers))
    assert page(answers) == PAGE.read_text()
