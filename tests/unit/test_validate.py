"""`relight validate`: what a wrong file is answered. Each answer names the field, what was found and what is allowed."""

import contextlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relight_operator.api.job import TrainingJob
from relight_operator.api.validate import load_job, read_job
from relight_operator.cli.validate import validate_command
from relight_operator.errors import InvalidJob

EXAMPLE = Path(__file__).parents[2] / "examples/digits.yaml"
HEAD = "apiVersion: relight.dev/v1alpha1\nkind: TrainingJob\nmetadata: {name: digits}\n"
GOOD = HEAD + "spec: {nodes: 2, trainer: {config: {}}}\n"


def validate(*args: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(validate_command, args, input=stdin)


@dataclass(frozen=True)
class Wrong:
    spec: str
    path: str
    found: str
    allowed: str
    nearest: str | None = None


CONFIG = "trainer: {config: {model: {type: digits_cnn}}}"
WRONG = {
    "nested typo": Wrong("{trainer: {config: {model: {typ: digits_cnn}}}}", "spec.trainer.config.model.typ", '"typ"', "type, width", "type"),
    "wrong type": Wrong(f'{{nodes: "2", {CONFIG}}}', "spec.nodes", '"2"', "a whole number"),
    "nodes 0": Wrong(f"{{nodes: 0, {CONFIG}}}", "spec.nodes", "0", "1 or more"),
    "two of config, script, command": Wrong(
        "{trainer: {config: {}, script: [train.py]}}", "spec.trainer", '["config", "script"]', "config, script, module, command"
    ),
    "none of config, script, command": Wrong("{trainer: {env: []}}", "spec.trainer", "[]", "config, script, module, command"),
    "reserved env": Wrong(
        "{trainer: {config: {}, env: [{name: MASTER_ADDR, value: a}]}}", "spec.trainer.env[0].name", '"MASTER_ADDR"', "any name but"
    ),
    "bad image": Wrong('{trainer: {image: "a b", config: {}}}', "spec.trainer.image", '"a b"', "registry.example.com/trainer:0.1"),
    "bad pull secret": Wrong(
        "{trainer: {imagePullSecrets: [{nam: a, name: b}], config: {}}}", "spec.trainer.imagePullSecrets[0].nam", '"nam"', "name", "name"
    ),
    "bad amount": Wrong(
        "{trainer: {config: {}, resources: {limits: {memory: 64GB}}}}", "spec.trainer.resources.limits.memory", '"64GB"', "64Gi"
    ),
    "fraction": Wrong(
        "{trainer: {config: {}, resources: {requests: {cpu: 0.5}}}}", "spec.trainer.resources.requests.cpu", "0.5", "fractions in quotes"
    ),
    "resource without a domain": Wrong(
        "{trainer: {config: {}, resources: {limits: {gpu: 8}}}}", "spec.trainer.resources.limits.gpu", '"gpu"', "nvidia.com/gpu", "nvidia.com/gpu"
    ),
    "resource with a wrong domain": Wrong(
        "{trainer: {config: {}, resources: {limits: {NVIDIA/gpu: 8}}}}", 'spec.trainer.resources.limits["NVIDIA/gpu"]', '"NVIDIA/gpu"', "domain", "nvidia.com/gpu"
    ),
    "part of a GPU": Wrong(
        '{trainer: {config: {}, resources: {limits: {nvidia.com/gpu: "0.5"}}}}', 'spec.trainer.resources.limits["nvidia.com/gpu"]', '"0.5"', "whole"
    ),
    "more asked for than may be used": Wrong(
        "{trainer: {config: {}, resources: {limits: {memory: 1Gi}, requests: {memory: 1025Mi}}}}",
        "spec.trainer.resources.requests.memory", '"1025Mi"', "1Gi or less",
    ),
    "fewer GPUs asked for than the limit": Wrong(
        "{trainer: {config: {}, resources: {limits: {nvidia.com/gpu: 2}, requests: {nvidia.com/gpu: 1}}}}",
        'spec.trainer.resources.requests["nvidia.com/gpu"]', '"1"', "2",
    ),
    "no shared memory": Wrong("{trainer: {config: {}, sharedMemory: 0}}", "spec.trainer.sharedMemory", "0", "more than 0"),
    "negative amount": Wrong("{trainer: {config: {}, sharedMemory: -1Gi}}", "spec.trainer.sharedMemory", '"-1Gi"', "64Gi"),
    "toleration misspelt": Wrong(
        "{trainer: {config: {}, template: {spec: {toleration: []}}}}", "spec.trainer.template.spec.toleration", "[]", "Kubernetes", "tolerations"
    ),
    "grace period in the template": Wrong(
        "{trainer: {config: {}, template: {spec: {terminationGracePeriodSeconds: 5}}}}",
        "spec.trainer.template.spec.terminationGracePeriodSeconds", "5", "spec.disruption.gracePeriod",
    ),
    "environment in the template": Wrong(
        "{trainer: {config: {}, template: {spec: {containers: [{name: agent, env: []}]}}}}",
        "spec.trainer.template.spec.containers[0].env", "[]", "spec.trainer.env",
    ),
    "a container beside the workers'": Wrong(
        "{trainer: {config: {}, template: {spec: {containers: [{name: proxy}]}}}}",
        "spec.trainer.template.spec.containers[0].name", '"proxy"', "restartPolicy: Always",
    ),
    "a volume of ours": Wrong(
        "{trainer: {config: {}, template: {spec: {volumes: [{name: shm, emptyDir: {}}]}}}}",
        "spec.trainer.template.spec.volumes[0].name", '"shm"', "any name but",
    ),
    "an init container of ours": Wrong(
        "{trainer: {config: {}, template: {spec: {initContainers: [{name: fetch-code}]}}}}",
        "spec.trainer.template.spec.initContainers[0].name", '"fetch-code"', "any name but",
    ),
    "a mount over ours": Wrong(
        "{trainer: {config: {}, template: {spec: {containers: [{name: agent, volumeMounts: [{name: x, mountPath: /dev/}]}]}}}}",
        "spec.trainer.template.spec.containers[0].volumeMounts[0].mountPath", '"/dev/"', "/dev/shm",
    ),
    "the metrics' port": Wrong(
        "{trainer: {config: {}, template: {spec: {containers: [{name: agent, ports: [{containerPort: 9090}]}]}}}}",
        "spec.trainer.template.spec.containers[0].ports[0].containerPort", "9090", "any port but 9090",
    ),
    "volumes that are no list": Wrong(
        "{trainer: {config: {}, template: {spec: {volumes: {}}}}}", "spec.trainer.template.spec.volumes", "{}", "a list"
    ),
    "a toleration that is a word": Wrong(
        "{trainer: {config: {}, template: {spec: {tolerations: [spot]}}}}", "spec.trainer.template.spec.tolerations[0]", '"spot"', "a mapping"
    ),
    "the container given twice": Wrong(
        "{trainer: {config: {}, template: {spec: {containers: [{name: agent}, {name: agent}]}}}}",
        "spec.trainer.template.spec.containers[1].name", '"agent"', "one of them",
    ),
    "a mount in disguise": Wrong(
        "{trainer: {config: {}, template: {spec: {containers: [{name: agent, volumeMounts: [{name: x, mountPath: //var/run/./relight/token}]}]}}}}",
        "spec.trainer.template.spec.containers[0].volumeMounts[0].mountPath", '"//var/run/./relight/token"', "any path but",
    ),
    "a field of ours misspelt": Wrong(
        "{trainer: {config: {}, template: {spec: {nodename: x}}}}", "spec.trainer.template.spec.nodename", '"x"', "Kubernetes", "nodeName"
    ),
    "a label of ours": Wrong(
        "{trainer: {config: {}, template: {metadata: {labels: {relight.dev/job: x}}}}}",
        'spec.trainer.template.metadata.labels["relight.dev/job"]', '"x"', "any but relight.dev/*",
    ),
    "a pod's name": Wrong(
        "{trainer: {config: {}, template: {metadata: {name: x}}}}", "spec.trainer.template.metadata.name", '"name"', "annotations, labels"
    ),
    "bad duration": Wrong(f"{{retry: {{window: 5min}}, {CONFIG}}}", "spec.retry.window", '"5min"', "90s, 10m, 1h30m"),
    "negative retry": Wrong(f"{{retry: {{failures: -1}}, {CONFIG}}}", "spec.retry.failures", "-1", "0 or more"),
    "a taint that is any taint": Wrong(
        f'{{disruption: {{watchTaints: ["*"]}}, {CONFIG}}}', "spec.disruption.watchTaints[0]", '"*"', "example.com/maintenance"
    ),
    "a dead machine at once": Wrong(
        f"{{disruption: {{deadMachine: {{unreachableFor: 0s}}}}, {CONFIG}}}", "spec.disruption.deadMachine.unreachableFor", '"0s"', "more than 0s"
    ),
    "no snapshots": Wrong(
        f"{{checkpoint: {{hostPath: {{path: /c}}, snapshot: {{every: 0}}}}, {CONFIG}}}", "spec.checkpoint.snapshot.every", "0", "Auto, or a whole number, 1 or more"
    ),
    "snapshots automatically": Wrong(
        f"{{checkpoint: {{hostPath: {{path: /c}}, snapshot: {{every: auto}}}}, {CONFIG}}}", "spec.checkpoint.snapshot.every", '"auto"', "Auto, or a whole number, 1 or more"
    ),
    "unknown model": Wrong(
        "{trainer: {config: {model: {type: digit_cnn}}}}", "spec.trainer.config.model.type", '"digit_cnn"', "digits_cnn", "digits_cnn"
    ),
    "wrong argument of a model": Wrong(
        "{trainer: {config: {model: {type: digits_cnn, widht: 8}}}}", "spec.trainer.config.model.widht", '"widht"', "type, width", "width"
    ),
    "RANK in env": Wrong(
        'trainer: {script: [a.py], env: [{name: A, value: b}, {name: RANK, value: "0"}]}', "spec.trainer.env[1].name", '"RANK"', "any name but"
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_answered_with_path_found_allowed_and_nearest(wrong: Wrong, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    spec = wrong.spec if wrong.spec.startswith("{") else "{" + wrong.spec + "}"
    file.write_text(f"{HEAD}spec: {spec}\n")

    result = validate(str(file))

    assert result.exit_code == 64
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    (line,) = [x for x in result.stderr.splitlines() if x.startswith(str(file))]
    assert line.startswith(f"{file}:4: {wrong.path}: ")
    assert f"; found {wrong.found}; " in line
    assert wrong.allowed in line.partition("allowed: ")[2]
    assert wrong.nearest is None or f'did you mean "{wrong.nearest}"?' in line

    (problem,) = json.loads(validate("-o", "json", str(file)).stdout)["files"][0]["problems"]
    assert problem["path"] == wrong.path
    assert problem["line"] == 4
    assert problem.get("found") == wrong.found
    assert problem.get("nearest") == wrong.nearest
    assert wrong.allowed in problem["allowed"]


def test_a_missing_file_is_answered_with_its_path_and_64(tmp_path: Path) -> None:
    file = tmp_path / "no.yaml"
    result = validate(str(file))
    assert result.exit_code == 64
    assert f"{file}: cannot be read: No such file or directory" in result.stderr
    assert "Traceback" not in result.output


def test_the_installed_command_ends_with_64_and_no_traceback(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(GOOD.replace("nodes: 2", "nodes: 0"))
    command = [sys.executable, "-c", "from relight_operator.cli.main import main; main()", "validate", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 64
    assert "spec.nodes: out of range; found 0; allowed: 1 or more" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_example_is_valid_and_said_in_words() -> None:
    result = validate(str(EXAMPLE))
    assert result.exit_code == 0
    assert result.stdout == (
        f"{EXAMPLE}: TrainingJob digits is valid "
        "(2 nodes x 1 process, digits_cnn on digits for 15 epochs, a checkpoint every 100 steps)\n"
        "  a step: 64 samples = 2 workers x 1 micro-batch x 32 samples; lr 0.1\n"
        "  not tried: opening the data and building the model (--deep does both, and takes one step on the CPU)\n"
    )
    assert f"relight run {EXAMPLE}" in result.stderr


def test_standard_input_and_several_files_are_checked_together(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: b")
    result = validate("-", str(bad), stdin=GOOD)
    assert result.exit_code == 64
    assert "stdin: TrainingJob digits is valid (2 nodes x 1 process" in result.stdout
    assert f"relight validate {bad}" in result.stderr
    answer = json.loads(validate("-o", "json", "-", str(bad), stdin=GOOD).stdout)
    assert [f["valid"] for f in answer["files"]] == [True, False]
    assert answer["valid"] is False


def test_all_problems_are_said_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        HEAD
        + """\
spec:
  nodes: 0
  data: []
  trainer:
    script: [5]
    config:
      modl: {}
      train: {lr: 5}
  retry: {backoff: {initial: 1}, failures: true}
"""
    )
    with pytest.raises(InvalidJob) as caught:
        load_job(file)
    assert [(p.line, p.path) for p in caught.value.problems] == [
        (5, "spec.nodes"),
        (6, "spec.data"),
        (7, "spec.trainer"),
        (8, "spec.trainer.script[0]"),
        (10, "spec.trainer.config.modl"),
        (11, "spec.trainer.config.train.lr"),
        (12, "spec.retry.failures"),
        (12, "spec.retry.backoff.initial"),
    ]


def rule(rules: str) -> str:
    return GOOD.replace("nodes: 2", "retry: {rules: [" + rules + "]}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not one document; found nothing"),
        ("---\n---\n# only this\n", "not one document; found nothing"),
        (GOOD + "---\n" + GOOD, 'found 2 documents: "TrainingJob", "TrainingJob"'),
        (GOOD + "---\napiVersion: v1\nkind: Pod\n", 'found 2 documents: "TrainingJob", "Pod"'),
        ("[1]", "not a TrainingJob; found [1]; allowed: a mapping"),
        ("kind: TrainingJb\n" + GOOD.replace("kind: TrainingJob\n", ""), 'did you mean "TrainingJob"?'),
        (GOOD.replace("v1alpha1", "v1"), 'apiVersion: not a known value; found "relight.dev/v1"'),
        ("apiVersion: relight.dev/v1alpha1\nspec: {nodes: 0}", "kind: missing; allowed: TrainingJob"),
        (GOOD.replace("{name: digits}", "{name: " + "a" * 41 + "}"), "at most 40 characters"),
        (GOOD.replace("{name: digits}", "{name: n}"), "found false; allowed: a text, in quotes"),
        (HEAD + "spec:", "spec: wrong type; found null; allowed: a mapping"),
        (HEAD, "spec: missing"),
        (GOOD.replace("nodes: 2", "nodes:"), "spec.nodes: empty; found null"),
        (GOOD.replace("nodes: 2", "nodes: 1001"), "found 1001; allowed: 1000 or less"),
        (GOOD.replace("nodes: 2", "nodes: 65"), "too small for nodes 65 x procPerNode 1 = 65 workers; found 64; allowed: 65 or more"),
        (HEAD + "spec: {nodes: 9, trainer: {config: {}, resources: {limits: {nvidia.com/gpu: 8}}}}", "too small for nodes 9 x procPerNode 8 = 72 workers"),
        (HEAD + "spec: {trainer: {config: {}, resources: {requests: {nvidia.com/gpu: 2}}}}", 'limits["nvidia.com/gpu"]: missing; allowed: 2, as in requests'),
        (GOOD.replace("nodes: 2", "retry: {backoff: {initial: 6m}}"), 'found "6m"; allowed: 5m (the maximum) or less'),
        (GOOD.replace("nodes: 2", "health: {heartbeat: 31m}"), 'found "31m"; allowed: 30m (noProgress) or less'),
        (GOOD.replace("nodes: 2", "health: {startup: 0s}"), 'found "0s"; allowed: more than 0s'),
        (GOOD.replace("nodes: 2", "health: {onStall: restart}"), 'did you mean "Restart"? allowed: Restart, Report, Fail'),
        (GOOD.replace("nodes: 2", "checkpoint: {uri: 's3a://b/p'}"), 'spec.checkpoint.uri: not a checkpoint location; found "s3a://b/p"; did you mean "s3://b/p"?'),
        (GOOD.replace("nodes: 2", "checkpoint: {uri: 's3://k:s@b/p'}"), "spec.checkpoint.uri: no credentials here"),
        (GOOD.replace("nodes: 2", "checkpoint: {uri: 'file:///p', interval: {}}"), "at least one of these is wanted"),
        (GOOD.replace("nodes: 2", "checkpoint: {uri: 'file:///p', interval: {time: 0s}}"), "allowed: more than 0s"),
        (GOOD.replace("nodes: 2", "checkpoint: {uri: 'file:///p', keep: 1}"), "found 1; allowed: 2 or more"),
        (GOOD.replace("nodes: 2", "checkpoint: {hostPath: {path: a}}"), "allowed: /absolute/path"),
        (rule("{match: {exitCodes: [75]}, action: Fail}"), "spec.retry.rules[0].match.exitCodes[0]: no failure (stopped for a disruption, state saved); found 75; allowed: the exit code of a failure"),
        (rule("{match: {exitCodes: [79]}, action: Retry}"), "exitCodes[0]: never retried (ranks hold different values where all must hold the same)"),
        (rule("{match: {exitCodes: [0]}, action: Fail}"), "no failure (training completed); found 0"),
        (rule("{match: {exitCodes: [256]}, action: Fail}"), "found 256; allowed: 1 to 255"),
        (rule("{match: {cause: OutOfMemry}, action: Fail}"), 'spec.retry.rules[0].match.cause: not a known cause; found "OutOfMemry"; did you mean "OutOfMemory"?'),
        (rule("{match: {cause: Evicted}, action: Ignore}"), 'no failure of the job: it costs nothing anyway; found "Evicted"'),
        (rule("{match: {}, action: Fail}"), "spec.retry.rules[0].match: exactly one of these is wanted; found []; allowed: exitCodes, cause"),
        (rule("{match: {cause: Stall}, action: FailJob}"), 'spec.retry.rules[0].action: not a known value; found "FailJob"'),
        (rule("{match: {cause: Stall}, action: Ignore, after: 2}"), "spec.retry.rules[0].after: only for action Fail; found 2; allowed: no such field"),
        (rule("{match: {exitCodes: [3, 64]}, action: Ignore}"), 'spec.retry.rules[0].action: not for a failure that is final; found "Ignore"; allowed: Fail or Retry'),
        (rule("{match: {cause: BadData}, action: Ignore}"), "not for a failure that is final"),
        (rule("{match: {cause: Stall}, action: Retry}, {match: {exitCodes: [71]}, action: Fail}"), 'spec.retry.rules[1].match: never matches: rules[0] takes them before it; found "exit code 71"'),
        (rule("{match: {cause: Stall}, action: Retry}, {match: {cause: Stall}, action: Fail}"), "spec.retry.rules[1].match: never matches"),
        (rule("{match: {cause: Exception}, action: Retry}, {match: {exitCodes: [3]}, action: Fail}"), "spec.retry.rules[1].match: never matches"),
        (GOOD.replace("nodes: 2", "retry: {avoidMachines: {for: 0s}}"), 'spec.retry.avoidMachines.for: out of range; found "0s"; allowed: more than 0s'),
        (GOOD.replace("nodes: 2", "retry: {avoidMachines: {afterFailures: 0}}"), "spec.retry.avoidMachines.afterFailures: out of range; found 0; allowed: 1 or more"),
        (GOOD.replace("nodes: 2", "nodes: 2, elastic: {minNodes: 1}"), "spec.elastic.maxNodes: missing"),
        (GOOD.replace("nodes: 2", "nodes: 2, elastic: {minNodes: 3, maxNodes: 2}"), "spec.elastic.minNodes: more than maxNodes; found 3; allowed: 2 or less"),
        (GOOD.replace("nodes: 2", "nodes: 2, elastic: {minNodes: 3, maxNodes: 5}"), "spec.nodes: outside elastic's bounds; found 2; allowed: 3 to 5"),
        (GOOD.replace("nodes: 2", "nodes: 2, elastic: {minNodes: 1, maxNodes: 65}"), "too small for elastic.maxNodes 65 x procPerNode 1 = 65 workers"),
        (GOOD.replace("nodes: 2", "nodes: 2, elastic: {minNodes: 1, maxNodes: 2, replacementTimeout: 15m}"), "spec.disruption.holdSurvivors: survivors would be released before they may go on as fewer"),
        (HEAD + "spec: {nodes: 2, elastic: {minNodes: 1, maxNodes: 4}, trainer: {config: {train: {virtual_ranks: 2}}}}", "train.virtual_ranks: fewer than elastic.maxNodes 4 x procPerNode 1 = 4 workers; found 2; allowed: auto, 4 or more"),
        (HEAD + "spec: {nodes: 2, procPerNode: 2, trainer: {config: {train: {virtual_ranks: 3}}}}", "train.virtual_ranks: fewer than nodes 2 x procPerNode 2 = 4 workers; found 3; allowed: auto, 4 or more"),
        (HEAD + "spec: {nodes: 2, elastic: {minNodes: 1, maxNodes: 2}, trainer: {script: [a.py]}}", "spec.elastic.batch: the batch of an own script"),
        (HEAD + "spec: {nodes: 1000, spares: 1, trainer: {script: [a.py]}}", "spec.spares: too many beside nodes 1000: 1000 members at most; found 1; allowed: 0 or less"),
        (GOOD.replace("nodes: 2", "disruption: {holdSurvivors: 0s}"), "allowed: more than 0s"),
    ],
)  # fmt: skip
def test_other_wrong_files(text: str, message: str) -> None:
    result = validate("-", stdin=text)
    assert result.exit_code == 64
    assert message in result.stderr


@pytest.mark.parametrize(
    "rules",
    [
        "{match: {exitCodes: [64]}, action: Fail}, {match: {cause: OutOfMemory}, action: Fail, after: 2}",
        "{match: {exitCodes: [64, 65]}, action: Retry}",
        "{match: {exitCodes: [3]}, action: Fail}, {match: {cause: Exception}, action: Retry}",
        "{match: {exitCodes: [70]}, action: Fail}, {match: {cause: Exception}, action: Ignore}",
        "{match: {cause: MachineUnhealthy}, action: Fail, after: 3}",
    ],
)
def test_rules_that_say_something(rules: str) -> None:
    assert validate("-", stdin=rule(rules)).exit_code == 0


def test_credentials_that_were_found_are_not_repeated() -> None:
    result = validate("-", stdin=GOOD.replace("nodes: 2", "checkpoint: {uri: 's3://key:hush@bucket/path'}"))
    assert result.exit_code == 64
    assert "hush" not in result.output + result.stderr


def test_a_bare_configuration_is_taken_from_standard_input() -> None:
    result = validate("-", stdin="train: {duration: 3ep}\n")
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "stdin: a valid trainer configuration")
    wrong = validate("-", "--set", "train.seed=x", stdin="train: {durationn: 3ep}\n")
    assert wrong.exit_code == 64
    assert 'stdin: config.train.durationn: unknown field; found "durationn"; did you mean "duration"?' in wrong.stderr
    assert "config.train.seed" in wrong.stderr
    assert "TrainingJob digits is valid" in validate("-", stdin=GOOD).stdout


@pytest.mark.parametrize(
    "path",
    [
        "managedBy", "data", "scheduling", "ttlSecondsAfterFinished", "cleanPods",
        "trainer.configMapRef", "trainer.resources.claims",
        "checkpoint.resume",
    ],
)  # fmt: skip
def test_a_field_of_the_api_that_is_not_built_yet_is_refused_as_such(path: str) -> None:
    *above, name = path.split(".")
    value = "{" + name + ": 1}"
    for key in reversed(above):
        value = "{" + key + ": " + value + "}"
    with pytest.raises(InvalidJob) as caught:
        _load(f"{HEAD}spec: {value}")
    assert [p.message for p in caught.value.problems if p.path == f"spec.{path}"] == ["not supported yet"]


def test_a_file_full_of_mistakes_is_answered_briefly() -> None:
    text = HEAD + "spec:\n  trainer:\n    config:\n" + "".join(f"      key{i}: 1\n" for i in range(200))
    result = validate("-", stdin=text)
    assert result.exit_code == 64
    assert len(result.stderr.splitlines()) == 52
    assert "... and 150 more" in result.stderr
    assert "200 problems" in result.stderr


def test_arguments_in_thousands_are_refused_at_once() -> None:
    with pytest.raises(InvalidJob) as caught:
        _load(f"{HEAD}spec: {{trainer: {{command: [{'1,' * 9000}]}}}}")
    assert "at most 1024" in str(caught.value.problems)


def test_what_a_server_adds_to_an_object_is_read_and_left_alone() -> None:
    job = _load(
        GOOD.replace(
            "{name: digits}",
            "{name: digits, uid: u, generation: 1, resourceVersion: '7', managedFields: [{manager: kubectl}]}",
        )
        + "status: {phase: Running}\n"
    )
    assert job.metadata.uid == "u"
    assert "status" not in job.dump()
    assert "managedFields" not in job.dump()["metadata"]


def test_a_valid_job_comes_through_its_own_dump() -> None:
    job = load_job(EXAMPLE)
    assert _load(json.dumps(job.dump())) == job


WORDS = st.sampled_from(
    ["spec", "nodes", "trainer", "config", "kind", "TrainingJob", "metadata", "name", "on", "1e-3", ".nan", "<<", "&a", "*a", "!!int", "- ",
     ": ", "{", "}", "[", "]", ",", "\n", "  ", "'", '"', "|", "---", "\ud83d", "\x07", "\t", "#", "0x", "9" * 80, "1" * 5000, "%", "@"]
)  # fmt: skip


def _load(text: str) -> TrainingJob:
    return read_job(text.encode("utf-8", "surrogatepass"))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(WORDS | st.text(max_size=3), max_size=40).map("".join))
def test_any_text_ends_in_a_job_or_in_problems_never_in_a_traceback(text: str) -> None:
    _job_or_problems(text.encode("utf-8", "surrogatepass"))
    _job_or_problems((GOOD + "\n" + text).encode("utf-8", "surrogatepass"))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_end_in_a_job_or_in_problems(data: bytes) -> None:
    _job_or_problems(data)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "name", "time", "nodes", "train", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
SPECS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        (
            "suspend",
            "nodes",
            "procPerNode",
            "trainer",
            "checkpoint",
            "retry",
            "disruption",
            "activeDeadlineSeconds",
            "elastic",
            "spares",
        ),
        VALUES,
    ),
)
CONFIGS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("model", "data", "train", "optimizer", "schedule", "evaluate"), VALUES)
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SPECS, CONFIGS)
def test_any_values_in_any_field_end_in_a_job_or_in_problems(
    spec: dict[str, object], config: dict[str, object]
) -> None:
    document = {"apiVersion": "relight.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "a"}}
    _job_or_problems(json.dumps({**document, "spec": spec}).encode())
    _job_or_problems(json.dumps({**document, "spec": {"trainer": {"config": config}}}).encode())


def _job_or_problems(data: bytes) -> None:
    with contextlib.suppress(InvalidJob):
        read_job(data)
        return
    with pytest.raises(InvalidJob) as caught:
        read_job(data)
    assert caught.value.problems
    assert str(caught.value).encode()  # can be printed
    json.dumps([p.dump() for p in caught.value.problems], allow_nan=False)
