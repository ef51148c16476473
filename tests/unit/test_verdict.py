"""What the end of a generation means: which failure is the root, and whether the job goes on."""

from typing import Any

import pytest
from sim_views import agent, member, outcome

from relight_agent.exits import CAUSE_CLASS, Cause, Class, ExitCode, Manner
from relight_operator.api.job import RetrySpec
from relight_operator.api.status import Restarts
from relight_operator.core.observed import AgentOutcome
from relight_operator.core.verdict import Again, judge, no_use, root_cause

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


# -- rules


def ruled(*rules: dict[str, Any], **retry: Any) -> RetrySpec:
    return RetrySpec.model_validate({"failures": 2, "window": "1h", "rules": list(rules), **retry})


def rule(match: str | list[int], action: str, **more: Any) -> dict[str, Any]:
    return {"match": {"cause": match} if isinstance(match, str) else {"exitCodes": match}, "action": action, **more}


@pytest.mark.parametrize(
    ("rules", "cause", "code", "reason", "counted"),
    [
        pytest.param([rule([70], "Fail")], Cause.EXCEPTION, 70, "RetryRule", 0, id="fail at once"),
        pytest.param([rule([70], "Fail")], Cause.EXCEPTION, 3, None, 1, id="another code is no match"),
        pytest.param([rule([3, 4], "Fail")], Cause.EXCEPTION, 4, "RetryRule", 0, id="a user's own code"),
        pytest.param([rule("Exception", "Fail")], Cause.EXCEPTION, 3, "RetryRule", 0, id="by cause, whatever the code"),
        pytest.param([rule([137], "Fail")], Cause.OUT_OF_MEMORY, 137, "RetryRule", 0, id="a container's code"),
        pytest.param([rule("OutOfMemory", "Fail", after=2)], Cause.OUT_OF_MEMORY, 77, None, 0, id="not yet"),
        pytest.param([rule("OutOfMemory", "Ignore")], Cause.OUT_OF_MEMORY, 77, None, 0, id="ignored is free"),
        pytest.param([rule("BadData", "Retry")], Cause.BAD_DATA, 65, None, 1, id="what is final is tried again"),
        pytest.param([rule("BadConfig", "Fail")], Cause.BAD_CONFIG, 64, "RetryRule", 0, id="final by rule as well"),
        pytest.param([rule("StorageFailed", "Retry")], Cause.STORAGE_FAILED, 74, None, 1, id="the job pays for the storage"),
        pytest.param([rule("MachineUnhealthy", "Retry")], Cause.MACHINE_UNHEALTHY, 73, None, 1, id="the job pays for machines"),
        pytest.param([rule("MachineUnhealthy", "Fail")], Cause.MACHINE_UNHEALTHY, 73, "RetryRule", 0, id="a bad machine ends it"),
        pytest.param(
            [rule([3], "Retry"), rule("Exception", "Fail")], Cause.EXCEPTION, 3, None, 1, id="the first match decides"
        ),
        pytest.param(
            [rule([3], "Retry"), rule("Exception", "Fail")], Cause.EXCEPTION, 4, "RetryRule", 0, id="the second, for others"
        ),
    ],
)  # fmt: skip
def test_a_rule_decides(rules: list[Any], cause: Cause, code: int, reason: str | None, counted: int) -> None:
    result = verdict(cause, retry=ruled(*rules), code=code)
    assert (result.reason, result.restarts.counted) == (reason, counted)
    if reason:
        assert result.message.startswith("retry.rules[")


def test_a_rule_has_a_budget_of_its_own() -> None:
    retry = ruled(rule("OutOfMemory", "Fail", after=3), failures=0)
    restarts, reasons = Restarts(), []
    for now in (1_000.0, 9_000.0, 9_100.0, 9_200.0):
        result = verdict(Cause.OUT_OF_MEMORY, restarts, retry=retry, now=now)
        restarts = result.restarts
        reasons.append(result.reason)
    assert reasons == [None, None, None, "RetryRule"], "the first is older than the window by then"
    assert result.message == "retry.rules[0]: cause OutOfMemory, 3 times within 1h"
    assert (restarts.counted, restarts.rule_times) == (0, {"cause OutOfMemory": [9_000.0, 9_100.0, 9_200.0]})


def test_a_newer_checkpoint_clears_a_rules_budget_and_an_edit_forgets_it() -> None:
    before = Restarts(rule_times={"cause OutOfMemory": [9_000.0], "cause Stall": [9_000.0]}, checkpoint_step=7)
    retry = ruled(rule("OutOfMemory", "Fail", after=2))
    assert verdict(Cause.OUT_OF_MEMORY, before, retry=retry, checkpoint=7).reason == "RetryRule"
    after = verdict(Cause.OUT_OF_MEMORY, before, retry=retry, checkpoint=8)
    assert (after.reason, after.restarts.rule_times) == (None, {"cause OutOfMemory": [10_000.0]})


def test_what_is_ignored_still_has_to_get_further() -> None:
    retry, restarts = ruled(rule("Exception", "Ignore"), failures=0, noProgressLimit=2), Restarts()
    for reason in (None, "NoProgress"):
        result = verdict(Cause.EXCEPTION, restarts, retry=retry, progressed=False)
        restarts = result.restarts
        assert result.reason == reason


def test_a_rule_that_fails_does_so_in_a_generation_that_has_paid() -> None:
    assert verdict(Cause.STALL, retry=ruled(rule("Stall", "Fail")), again=True).reason == "RetryRule"
    assert verdict(Cause.STALL, retry=ruled(rule("Stall", "Fail", after=2)), again=True).reason is None


# -- no use trying again


@pytest.mark.parametrize(
    ("cause", "manner", "local", "trained", "final"),
    [
        (Cause.EXCEPTION, Manner.PERMANENT, False, True, True),  # an ImportError, wherever and whenever
        (Cause.EXCEPTION, Manner.PERMANENT, True, False, True),
        (Cause.EXCEPTION, Manner.RAISED, True, False, True),  # before the first step, in front of a person
        (Cause.EXCEPTION, Manner.EXITED, True, False, True),
        (Cause.EXCEPTION, Manner.RAISED, True, True, False),
        (Cause.EXCEPTION, Manner.RAISED, False, False, False),  # in a cluster a server may come up meanwhile
        (Cause.EXCEPTION, Manner.EXITED, False, False, False),
        (Cause.EXCEPTION, Manner.DIED, True, False, False),
        (Cause.EXCEPTION, Manner.UNKNOWN, True, False, False),  # a plain command
        (Cause.STORAGE_FAILED, Manner.RAISED, True, False, False),
        (Cause.PEER_LOST, Manner.RAISED, True, False, False),
        (Cause.OUT_OF_MEMORY, Manner.RAISED, True, False, False),
    ],
)
def test_what_no_other_try_can_mend(cause: Cause, manner: Manner, local: bool, trained: bool, final: bool) -> None:
    hopeless = no_use(cause, manner, local=local, trained=trained)
    assert bool(hopeless) is final
    result = verdict(cause, hopeless=hopeless)
    assert result.reason == ("DeterministicFailure" if final else None)
    assert result.message == hopeless
    assert verdict(Cause.EXCEPTION, retry=ruled(rule("Exception", "Retry")), hopeless=hopeless).reason is None


# -- the same failure again


@pytest.mark.parametrize(
    ("first", "second", "cause", "reason"),
    [
        pytest.param(("f", 7), ("f", 7), Cause.EXCEPTION, "DeterministicFailure", id="the same at the same step"),
        pytest.param(("f", 7), ("f", 8), Cause.EXCEPTION, None, id="the same at another step"),
        pytest.param(("f", 7), ("g", 7), Cause.EXCEPTION, None, id="another at the same step"),
        pytest.param(("f", 7), None, Cause.EXCEPTION, None, id="one that says nothing"),
        pytest.param(None, ("f", 7), Cause.EXCEPTION, None, id="the first that says something"),
        pytest.param(("f", 0), ("f", 0), Cause.EXCEPTION, "DeterministicFailure", id="at the first step"),
        pytest.param(("f", 7), ("f", 7), Cause.NON_FINITE_LOSS, "DeterministicFailure", id="a loss that is not finite"),
        pytest.param(("f", 7), ("f", 7), Cause.OUT_OF_MEMORY, None, id="memory is shared with others"),
    ],
)
def test_the_same_exception_at_the_same_step_again(
    first: tuple[str, int] | None, second: tuple[str, int] | None, cause: Cause, reason: str | None
) -> None:
    def again(known: tuple[str, int] | None) -> Again | None:
        return Again(*known) if known else None

    retry = RETRY.model_copy(update={"failures": 9})
    once = verdict(cause, retry=retry, known_by=again(first))
    assert once.reason is None
    twice = verdict(cause, once.restarts, retry=retry, known_by=again(second))
    assert twice.reason == reason
    if reason:
        assert f"the same step, {second[1] if second else ''}" in twice.message


def test_what_is_between_two_equal_exceptions_does_not_hide_them_but_a_rule_does() -> None:
    retry = RETRY.model_copy(update={"failures": 9})
    restarts = verdict(Cause.EXCEPTION, retry=retry, known_by=Again("f", 7)).restarts
    restarts = verdict(Cause.STORAGE_FAILED, restarts, retry=retry).restarts
    assert verdict(Cause.EXCEPTION, restarts, retry=retry, known_by=Again("f", 7)).reason == "DeterministicFailure"
    lenient = ruled(rule("Exception", "Retry"), failures=9)
    assert verdict(Cause.EXCEPTION, restarts, retry=lenient, known_by=Again("f", 7)).reason is None


def failed(slot: int, code: int, at: float, generation: int = 1, **changes: Any):
    return member(slot, agent=agent(outcome=AgentOutcome(generation, "failed", code, at=at, **changes)))


def left(slot: int, at: float, **changes: Any):
    """Ended with 0, and without a result."""
    told = AgentOutcome(1, "completed", 0, at=at, rank=4, **changes)
    return member(slot, agent=agent(outcome=told))


@pytest.mark.parametrize(
    ("members", "lost", "expected"),
    [
        pytest.param([failed(0, 72, 2.0), left(1, 1.0)], False, (1, Cause.EXCEPTION), id="who left is the cause"),
        pytest.param([failed(0, 72, 1.0, left=3)], False, (0, Cause.EXCEPTION), id="a rank beside the one that failed"),
        pytest.param([failed(0, 72, 2.0), left(1, 1.0)], True, (0, Cause.PEER_LOST), id="somebody was lost"),
        pytest.param([failed(0, 70, 2.0), left(1, 1.0)], False, (0, Cause.EXCEPTION), id="somebody failed by himself"),
        pytest.param([failed(0, 72, 2.0), left(1, 9.0)], False, (0, Cause.PEER_LOST), id="it ended after the others"),
        pytest.param(
            [failed(0, 72, 2.0), left(1, 1.0, weights_digest="d" * 64)],
            False,
            (0, Cause.PEER_LOST),
            id="it was through",
        ),
        pytest.param(
            [failed(0, 72, 2.0), left(1, 1.0), member(2, agent=outcome("stopped"))],
            False,
            (0, Cause.PEER_LOST),
            id="somebody stopped",
        ),
    ],
)
def test_a_success_needs_every_rank(members: list[Any], lost: bool, expected: tuple[int, Cause]) -> None:
    root = root_cause(members, 1, lost=lost, opaque=False)
    assert root is not None
    assert (root.member.slot, root.cause) == expected
    if root.cause is Cause.EXCEPTION and root.outcome.exit_code == 70 and root.outcome.message:
        assert "ended with exit code 0 before the others were done" in root.outcome.message
        assert root.outcome.rank in (3, 4)


def test_who_failed_because_of_the_root_is_named() -> None:
    root = root_cause([failed(2, 72, 1.0), failed(0, 72, 3.0), failed(1, 70, 2.0)], 1, lost=False, opaque=False)
    assert root is not None
    assert (root.member.slot, [m.slot for m in root.collateral]) == (1, [0, 2])


GONE = "RuntimeError: [/src/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1 (exit code 1)"
WRONG = "ValueError: no such digit (exit code 1)"


@pytest.mark.parametrize(
    ("members", "options", "expected"),
    [
        pytest.param([], {}, None, id="nobody"),
        pytest.param(
            [failed(0, 1, 1.0, message=GONE), failed(1, 1, 2.0, message=WRONG)],
            {"opaque": True},
            (1, Cause.EXCEPTION),
            id="of two commands the one that did not lose its peer, though it was seen to end later",
        ),
        pytest.param(
            [failed(0, 1, 2.0, message=GONE), failed(1, 1, 1.0, message=GONE)],
            {"opaque": True},
            (1, Cause.EXCEPTION),
            id="of two commands that lost their peer the older",
        ),
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
