"""Whether a job that does not run goes on with an edited spec: as a table."""

from typing import Any

import pytest

from relight_operator.again import Way, has_begun, judge, revived
from relight_operator.api.job import JobSpec
from relight_operator.api.status import CheckpointStatus, Goodput, JobStatus, ProgressStatus, SlotStatus

CLAIM = {"persistentVolumeClaim": {"claimName": "ckpt"}}
CORE: dict[str, Any] = {"trainer": {"config": {"optimizer": {"type": "sgd", "lr": 0.1}}}, "checkpoint": CLAIM}
SCRIPT: dict[str, Any] = {
    "trainer": {"script": ["train.py"], "env": [{"name": "LR", "value": "1"}]},
    "checkpoint": CLAIM,
}
BEGUN = JobStatus(goodput=Goodput(executed_steps=7))
DONE = JobStatus(phase="Succeeded", goodput=Goodput(executed_steps=7))


def spec(value: dict[str, Any]) -> JobSpec:
    return JobSpec.model_validate({"nodes": 1, **value}, by_alias=True, by_name=False)


def edited(base: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    head, _, rest = path.partition(".")
    return {**base, head: edited(base.get(head, {}), rest, value) if rest else value}


def config(path: str, value: Any, *allow: str) -> dict[str, Any]:
    new = edited(CORE, f"trainer.config.{path}", value)
    return edited(new, "trainer.config.resume", {"allow": list(allow)}) if allow else new


def env(**values: str) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in values.items()]


@pytest.mark.parametrize(
    ("old", "new", "status", "way", "refused"),
    [
        (CORE, CORE, BEGUN, Way.AS_BEFORE, []),
        (CORE, edited(CORE, "retry.failures", 9), BEGUN, Way.AS_BEFORE, []),
        pytest.param(CORE, config("optimizer.lr", 0.2), JobStatus(phase="Failed"), Way.ANEW, [], id="no step yet"),
        pytest.param(SCRIPT, edited(SCRIPT, "trainer.script", ["b.py"]), JobStatus(), Way.ANEW, [], id="no step of a script"),
        pytest.param(CORE, edited(CORE, "nodes", 2), JobStatus(phase="Failed"), Way.ANEW, [], id="size before the first step"),
        pytest.param(CORE, config("optimizer.lr", 0.2), BEGUN, Way.REFUSED, ["spec.trainer.config.optimizer.lr"], id="not allowed"),
        pytest.param(CORE, config("optimizer.lr", 0.2, "optimizer.lr"), BEGUN, Way.ON, [], id="allowed"),
        pytest.param(CORE, config("optimizer.lr", 0.2, "optimizer"), DONE, Way.ON, [], id="allowed by its section"),
        pytest.param(CORE, config("train.duration", "20ep", "optimizer"), DONE, Way.REFUSED, ["spec.trainer.config.train.duration"], id="another is allowed"),
        pytest.param(CORE, config("train.log_every", 3), BEGUN, Way.ON, [], id="harmless in the configuration"),
        pytest.param(CORE, edited(CORE, "checkpoint.keep", 5), BEGUN, Way.ON, [], id="harmless outside"),
        pytest.param(CORE, edited(CORE, "trainer.image", "mine:2"), BEGUN, Way.ON, [], id="an image"),
        pytest.param(CORE, edited(CORE, "nodes", 2), BEGUN, Way.REFUSED, ["spec.nodes"], id="size"),
        pytest.param(CORE, edited(CORE, "checkpoint", {"hostPath": {"path": "/x"}}), BEGUN, Way.REFUSED, ["spec.checkpoint.hostPath", "spec.checkpoint.persistentVolumeClaim"], id="another place"),
        pytest.param(SCRIPT, edited(SCRIPT, "trainer.script", ["train.py", "-v"]), BEGUN, Way.REFUSED, ["spec.trainer.script"], id="arguments"),
        pytest.param(SCRIPT, edited(SCRIPT, "trainer.env", env(LR="2")), BEGUN, Way.REFUSED, ["spec.trainer.env.LR"], id="a variable"),
        pytest.param(SCRIPT, edited(SCRIPT, "trainer.env", env()), BEGUN, Way.REFUSED, ["spec.trainer.env.LR"], id="a variable less"),
        pytest.param(SCRIPT, edited(SCRIPT, "trainer.env", env(LR="1", WANDB_MODE="offline")), BEGUN, Way.ON, [], id="a harmless variable"),
        pytest.param(CORE, edited(config("train.log_every", 3, "env.LR"), "trainer.env", env(LR="2")), BEGUN, Way.ON, [], id="a variable that is allowed"),
    ],
)  # fmt: skip
def test_an_edited_job(old: Any, new: Any, status: JobStatus, way: Way, refused: list[str]) -> None:
    verdict = judge(spec(old), spec(new), status)
    assert (verdict.way, sorted(verdict.refused)) == (way, refused)


def test_what_would_have_to_be_allowed_is_named_only_where_that_is_enough() -> None:
    longer = config("train.duration", "20ep")
    assert judge(spec(CORE), spec(longer), DONE).allow == ["train.duration"]
    assert judge(spec(CORE), spec(edited(longer, "nodes", 2)), DONE).allow == []
    assert judge(spec(SCRIPT), spec(edited(SCRIPT, "trainer.env", env(LR="2"))), DONE).allow == []


@pytest.mark.parametrize(
    ("status", "begun"),
    [
        (JobStatus(), False),
        (JobStatus(phase="Failed"), False),
        (JobStatus(progress=ProgressStatus(step=0)), False),
        (JobStatus(progress=ProgressStatus(step=3)), True),
        (JobStatus(goodput=Goodput(reached_step=2)), True),
        (JobStatus(checkpoint=CheckpointStatus(step=0)), True),
        (DONE, True),
    ],
)
def test_a_job_has_begun_with_its_first_step(status: JobStatus, begun: bool) -> None:
    assert has_begun(status) is begun


def test_a_revived_job_uses_no_number_of_an_incarnation_twice() -> None:
    after = revived(JobStatus(phase="Failed", slots=[SlotStatus(slot=0, incarnation=2, last_incarnation=4, uid="u")]))
    assert (after.phase, after.slots[0].incarnation, after.slots[0].uid) == ("Pending", 5, None)
