"""What the end of a generation means: which failure is the root, and whether the job goes on."""

from typing import Any

import pytest
from sim_views import agent, member, outcome

from relight_agent.exits import CAUSE_CLASS, Cause, Class, ExitCode
from relight_operator.api.job import RetrySpec
from relight_operator.api.status import Restarts
from relight_operator.core.observed import AgentOutcome
from relight_operator.core.verdict import judge, root_cause

RETRY = RetrySpec.model_validate({"failures": 2, "window": "1h", "noProgressLimit": 3})


def verdict(cause: Cause, restarts: Restarts | None = None, **changes: Any):
    given: dict[str, Any] = {"progressed": True, "checkpoint": None, "now": 10_000.0, **changes}
    retry = given.pop("retry", RETRY)
    return judge(cause, CAUSE_CLASS[cause], restarts or Restarts(), retry, **given)


@pytest.mark.parametrize(
    ("cause", "reason", "counted", "failures", "disruptions"),
    [
        pytest.param(Cause.BAD_CONFIG, "BadConfig", 0, 1, 0, id="final: at once"),
        pytest.param(Cause.BAD_DATA, "BadData", 0, 1, 0, id="final: bad data too"),
        pytest.param(Cause.EXCEPTION, None, 1, 1, 0, id="counted"),
        pytest.param(Cause.OUT_OF_MEMORY, None, 1, 1, 0, id="out of memory is counted"),
        pytest.param(Cause.STORAGE_FAILED, None, 0, 1, 0, id="storage is counted apart"),
        pytest.param(Cause.PEER_LOST, None, 0, 1, 0, id="collateral costs no retry"),
        pytest.param(Cause.MACHINE_UNHEALTHY, None, 0, 0, 1, id="a machine's fault is a disruption"),
    ],
)
def test_what_one_failure_costs(
    cause: Cause, reason: str | None, counted: int, failures: int, disruptions: int
) -> None:
    result = verdict(cause)
    assert result.reason == reason
    assert (result.restarts.counted, result.restarts.failures, result.restarts.disruptions) == (
        counted,
        failures,
        disruptions,
    )
    assert result.restarts.total == 1
    assert result.restarts.by_cause == {str(cause): 1}


@pytest.mark.parametrize(
    ("times", "changes", "reason", "counted"),
    [
        pytest.param([9_000.0], {}, None, 2, id="within the budget"),
        pytest.param([9_000.0, 9_500.0], {}, "RetriesExhausted", 3, id="one more than the budget"),
        pytest.param([1.0, 2.0], {}, None, 1, id="older than the window"),
        pytest.param([1.0, 9_500.0], {}, None, 2, id="one older than the window"),
        pytest.param([9_000.0, 9_500.0], {"checkpoint": 8}, None, 1, id="a newer checkpoint clears the count"),
        pytest.param([9_000.0, 9_500.0], {"checkpoint": 7}, "RetriesExhausted", 3, id="the same checkpoint does not"),
        pytest.param(
            [9_000.0, 9_500.0],
            {"checkpoint": 8, "retry": RETRY.model_copy(update={"reset_on_progress": False})},
            "RetriesExhausted",
            3,
            id="resetOnProgress false",
        ),
        pytest.param([9_000.0, 9_500.0], {"again": True}, None, 2, id="of a generation that has paid"),
    ],
)
def test_retry_budget(times: list[float], changes: dict[str, Any], reason: str | None, counted: int) -> None:
    before = Restarts(counted_times=times, counted=len(times), checkpoint_step=7)
    result = verdict(Cause.EXCEPTION, before, **changes)
    assert (result.reason, result.restarts.counted) == (reason, counted)
    assert before.counted_times == times, "the counters that were given are left alone"


def test_storage_has_a_budget_of_its_own() -> None:
    both = Restarts(counted_times=[9_000.0, 9_500.0], storage_times=[9_000.0])
    assert verdict(Cause.STORAGE_FAILED, both).reason is None
    both = Restarts(storage_times=[9_000.0, 9_500.0])
    assert verdict(Cause.EXCEPTION, both).reason is None
    assert verdict(Cause.STORAGE_FAILED, both).reason == "StorageFailed"


@pytest.mark.parametrize("cause", [Cause.EXCEPTION, Cause.PEER_LOST, Cause.MACHINE_UNHEALTHY, Cause.STORAGE_FAILED])
def test_no_progress_ends_what_the_budget_would_not(cause: Cause) -> None:
    retry = RETRY.model_copy(update={"failures": 50})
    restarts = Restarts()
    for i in range(3):
        result = verdict(cause, restarts, progressed=False, retry=retry, now=10_000.0 + i)
        assert result.reason == ("NoProgress" if i == 2 else None)
        restarts = result.restarts
    assert verdict(cause, restarts, progressed=True, retry=retry).restarts.without_progress == 0


def test_backoff_doubles_up_to_its_maximum() -> None:
    retry = RetrySpec.model_validate({"failures": 9, "backoff": {"initial": "5s", "max": "30s"}})
    restarts, waits = Restarts(), []
    for i in range(5):
        result = verdict(Cause.EXCEPTION, restarts, retry=retry, now=10_000.0 + i)
        restarts = result.restarts
        waits.append(result.backoff)
    assert waits == [5.0, 10.0, 20.0, 30.0, 30.0]


def failed(slot: int, code: int, at: float, generation: int = 1):
    return member(slot, agent=agent(outcome=AgentOutcome(generation, "failed", code, at=at)))


@pytest.mark.parametrize(
    ("members", "options", "expected"),
    [
        pytest.param([], {}, None, id="nobody"),
        pytest.param([member(0), member(1, agent=None)], {}, None, id="nobody has failed"),
        pytest.param([member(0, agent=outcome("stopped"))], {}, None, id="a stop is no failure"),
        pytest.param([failed(0, 70, 5.0, generation=7)], {}, None, id="another generation's"),
        pytest.param([failed(0, 72, 1.0), failed(1, 70, 2.0)], {}, (1, Cause.EXCEPTION), id="class before age"),
        pytest.param([failed(0, 77, 1.0), failed(1, 64, 2.0)], {}, (1, Cause.BAD_CONFIG), id="final before counted"),
        pytest.param([failed(0, 70, 2.0), failed(1, 78, 1.0)], {}, (1, Cause.NON_FINITE_LOSS), id="then the older"),
        pytest.param([failed(1, 70, 1.0), failed(0, 70, 1.0)], {}, (0, Cause.EXCEPTION), id="then the lower slot"),
        pytest.param([failed(0, 3, 1.0)], {}, (0, Cause.EXCEPTION), id="a stranger's exit code"),
        pytest.param([failed(0, 70, 1.0)], {"lost": True}, (0, Cause.EXCEPTION), id="a loss hides no failure"),
        pytest.param(
            [failed(0, 1, 1.0)], {"lost": True, "opaque": True}, (0, Cause.PEER_LOST), id="a command beside a loss"
        ),
        pytest.param([failed(0, 1, 1.0)], {"opaque": True}, (0, Cause.EXCEPTION), id="a command without a loss"),
        pytest.param(
            [failed(0, 64, 1.0)],
            {"lost": True, "opaque": True},
            (0, Cause.BAD_CONFIG),
            id="final is final beside a loss",
        ),
    ],
)
def test_root_cause(members: list[Any], options: dict[str, bool], expected: tuple[int, Cause] | None) -> None:
    root = root_cause(members, 1, lost=options.get("lost", False), opaque=options.get("opaque", False))
    assert (root and (root.member.slot, root.cause)) == expected


def test_every_code_has_a_class_that_the_verdict_knows() -> None:
    for code in ExitCode:
        root = root_cause([failed(0, code, 1.0)], 1, lost=False, opaque=False)
        assert root is not None
        assert root.klass in Class
