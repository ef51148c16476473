"""What only pods have is validated, named once, and otherwise leaves `relight run` as it is."""

import pytest
from builders import Home, Job, command

pytestmark = pytest.mark.timeout(60)

PODS_ONLY = {
    "image": "registry.example.com/train:7",
    "imagePullSecrets": [{"name": "regcred"}],
    "resources": {"limits": {"nvidia.com/gpu": 1}},
    "sharedMemory": "1Gi",
    "template": {"spec": {"nodeSelector": {"pool": "spot"}}},
}


def test_what_only_pods_have_is_named_in_one_line(home: Home) -> None:
    result = home.run(Job(nodes=1, trainer=command("-c", "pass") | PODS_ONLY))
    assert result.code == 0
    (line,) = [x for x in result.said.splitlines() if "without a cluster" in x]
    fields = "spec.trainer.image, spec.trainer.imagePullSecrets, spec.trainer.resources, spec.trainer.sharedMemory, "
    fields += "spec.trainer.template"
    assert line.endswith(f"not used without a cluster: {fields}")


def test_nothing_is_said_where_a_job_has_none_of_it(home: Home) -> None:
    result = home.run(Job(nodes=1, trainer=command("-c", "pass")))
    assert result.code == 0
    assert "without a cluster" not in result.said
