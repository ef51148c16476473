"""Slow members: by how much they hold up the others, and how often that is told."""

from dataclasses import replace

import pytest
from prometheus_client import generate_latest
from sim_views import NOW, after, busy, member, reasons, running, seen

from relight_operator.api.status import JobStatus
from relight_operator.core.observed import AgentPace
from relight_operator.core.plan import plan
from relight_operator.core.stragglers import slow
from relight_operator.metrics import Metrics


def paces(*own: float, step: float = 1.0) -> dict[int, AgentPace]:
    return {i: AgentPace(1, rank=i, own=o, step=step) for i, o in enumerate(own)}


@pytest.mark.parametrize(
    ("own", "before", "expected"),
    [
        pytest.param([0.5, 0.5, 0.5, 0.5], [], {}, id="all alike"),
        pytest.param([0.5, 0.5, 0.9, 0.5], [], {2: 0.4}, id="one is slow"),
        pytest.param([0.5, 0.55, 0.6, 0.5], [], {}, id="a little"),
        pytest.param([0.1, 0.9], [], {1: 0.8}, id="of two"),
        pytest.param([0.9, 0.5, 0.5, 0.9, 0.5], [], {0: 0.4, 3: 0.4}, id="two of five"),
        pytest.param([0.9, 0.9, 0.9, 0.5], [], {}, id="most: that is how it is"),
        pytest.param([0.5, 0.5, 0.65], [], {}, id="not slow enough to be told"),
        pytest.param([0.5, 0.5, 0.68], [2], {2: 0.18}, id="not well enough to be forgotten"),
        pytest.param([0.5, 0.5, 0.55], [2], {}, id="well again"),
        pytest.param([0.001, 0.001, 0.03], [], {}, id="thirty times the others, and nothing of a step"),
        pytest.param([0.7, 0.7, 0.9], [], {}, id="a share of a step, but hardly more than the others"),
        pytest.param([0.5], [], {}, id="alone"),
        pytest.param([0.5, 0.5, 5.0], [], {2: 1.0}, id="never more than all of it"),
    ],
)
def test_the_share_of_a_step_that_a_slow_member_costs(
    own: list[float], before: list[int], expected: dict[int, float]
) -> None:
    assert slow(paces(*own), before) == pytest.approx(expected)


def job(*own: float | None, status: JobStatus | None = None, generation: int = 1) -> object:
    views = [
        member(i, agent=busy(pace=None if o is None else AgentPace(generation, rank=i, own=o, step=1.0)))
        for i, o in enumerate(own)
    ]
    return seen(status or running(), *views)


def test_an_episode_is_told_once_with_machine_and_rank_and_ends() -> None:
    slow_one = job(0.3, 0.8)
    assert reasons(plan(slow_one, NOW)) == ["Straggler"]
    status = after(slow_one)
    (found,) = status.stragglers
    assert (found.slot, found.node_rank, found.rank, found.machine, found.share) == (1, 1, 1, "m", "0.50")
    words = "rank 1, node rank 1 on m, is slow: the others wait for it for 50 % of each step"
    assert [(c.status, c.message) for c in status.conditions if c.type == "Straggling"] == [("True", words)]
    assert reasons(plan(job(0.3, 0.7, status=status), NOW + 30)) == []
    well = after(job(0.3, 0.3, status=status), NOW + 60)
    assert well.stragglers == []
    assert [c.status for c in well.conditions if c.type == "Straggling"] == ["False"]


@pytest.mark.parametrize("own", [(None, None), (0.3, None)], ids=["nobody", "one of two"])
def test_what_is_not_measured_stays_as_it_is(own: tuple[float | None, ...]) -> None:
    status = after(job(0.3, 0.8))
    assert after(job(*own, status=status), NOW + 30).stragglers == status.stragglers
    assert after(job(0.3, 0.3, status=status, generation=7), NOW + 30).stragglers == status.stragglers


def test_a_member_that_has_been_replaced_is_another() -> None:
    status = after(job(0.3, 0.8))
    status.slots[1].uid = "u9"
    assert status.world is not None
    status.world.members[1].uid = "u9"
    views = [member(0, agent=busy()), replace(member(1, "u9"), agent=busy())]
    assert after(seen(status, *views)).stragglers == []


def test_the_metric_names_node_rank_and_machine_and_ends_with_the_job() -> None:
    body = {"status": after(job(0.3, 0.8)).dump()}
    metrics = Metrics(lambda: {"default/digits": body})
    line = 'relight_straggler_share{name="digits",namespace="default",node="m",node_rank="1"} 0.5\n'
    assert line in generate_latest(metrics.registry).decode()
    body["status"]["phase"] = "Succeeded"
    assert "relight_straggler_share{" not in generate_latest(metrics.registry).decode()
