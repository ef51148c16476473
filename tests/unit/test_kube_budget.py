"""Evictions take one member of a job at a time, and no training waits for the object that says so."""

from typing import Any

import pytest
from kube_world import KEY, SPEC, World, refuse, scenario

from relight_operator.kube.budget import RETRY_SECONDS, SOON_SECONDS
from relight_operator.kube.client import BUDGETS
from relight_operator.kube.errors import Forbidden, NotFound

pytestmark = pytest.mark.timeout(30)

NONE = {"disruption": {"podDisruptionBudget": "None"}}


def leaves(w: World) -> list[int]:
    return [b["spec"]["minAvailable"] for b in w.client.all("poddisruptionbudgets")]


async def succeeded(w: World) -> None:
    for name in w.pods():
        w.report(name, state="Running", generation=1, port=1, outcome={"kind": "completed", "generation": 1})
    await w.settle()
    assert w.status.phase == "Succeeded"


async def held_by(w: World, owner: dict[str, Any]) -> None:
    metadata = {"name": "digits", "ownerReferences": [{"controller": True, **owner}]}
    await w.client.create(BUDGETS, "ml", {"metadata": metadata, "spec": {"minAvailable": 7}})


@scenario
async def test_a_running_job_has_one_and_its_end_takes_it_away(w: World) -> None:
    await w.formed()
    (made,) = w.client.all("poddisruptionbudgets")
    assert made["spec"]["minAvailable"] == 1
    assert made["spec"]["selector"] == {"matchLabels": {"relight.dev/job": "digits"}}
    assert made["metadata"]["ownerReferences"][0]["uid"] == w.client.named("trainingjobs", "digits")["metadata"]["uid"]
    await succeeded(w)
    assert leaves(w) == []


@scenario
async def test_a_suspended_job_has_none_until_it_goes_on(w: World) -> None:
    await w.formed()
    w.client.edit("trainingjobs", "digits", {"spec": {"suspend": True}, "metadata": {"generation": 2}})
    await w.settle()
    for name in w.pods():
        w.end(name, 75, '{"exitCode": 75}')
    await w.settle()
    assert (w.status.phase, leaves(w)) == ("Suspended", [])
    w.client.edit("trainingjobs", "digits", {"spec": {"suspend": False}, "metadata": {"generation": 3}})
    await w.settle()
    assert leaves(w) == [1]


@scenario
async def test_a_member_alone_may_be_moved(w: World) -> None:
    await w.formed({**SPEC, "nodes": 1})
    assert leaves(w) == []


@scenario
async def test_who_does_not_train_does_not_count(w: World) -> None:
    """A spare that no machine is found for would keep every other member where it is."""
    await w.formed({**SPEC, "spares": 1})
    assert leaves(w) == [1]


@scenario
async def test_a_job_that_has_not_begun_may_be_moved_as_a_whole(w: World) -> None:
    await w.apply()
    await w.settle()
    assert (len(w.pods()), leaves(w)) == (2, [])


@scenario
async def test_it_can_be_declined_and_declined_later(w: World) -> None:
    await w.formed(SPEC | NONE)
    assert leaves(w) == []
    w.client.edit(
        "trainingjobs",
        "digits",
        {"spec": {"disruption": {"podDisruptionBudget": "Auto"}}, "metadata": {"generation": 2}},
    )
    await w.settle()
    assert leaves(w) == [1]
    w.client.edit("trainingjobs", "digits", {"spec": NONE, "metadata": {"generation": 3}})
    w.start()  # and nobody remembers that there is one
    await w.settle()
    assert leaves(w) == []


@scenario
async def test_one_of_another_size_is_made_anew(w: World) -> None:
    await w.formed()
    w.client.edit("poddisruptionbudgets", "digits", {"spec": {"minAvailable": 5}})
    w.start()
    await w.settle()
    assert leaves(w) == [1]


@scenario
async def test_without_one_the_job_runs_all_the_same_and_says_so(w: World) -> None:
    w.client.before = refuse(Forbidden("you may not"), "create", "poddisruptionbudgets")
    await w.formed()
    assert (w.reason("BudgetMissing"), leaves(w)) == ("NotCreated", [])
    assert "BudgetMissing" in {e["reason"] for e in w.client.all("events")}
    w.client.before = lambda *_: None
    await w.settle()
    assert leaves(w) == []  # it is not asked for in each round
    w.now += RETRY_SECONDS
    await w.settle()
    assert (w.reason("BudgetMissing"), leaves(w)) == (None, [1])


@scenario
async def test_that_of_an_earlier_job_is_waited_for_quietly(w: World) -> None:
    await held_by(w, {"kind": "TrainingJob", "name": "digits", "uid": "old"})
    await w.formed()
    assert (w.reason("BudgetMissing"), leaves(w)) == (None, [7])
    w.client.remove("poddisruptionbudgets", "digits")
    w.now += SOON_SECONDS
    await w.settle()
    assert leaves(w) == [1]


@scenario
async def test_somebody_else_s_is_left_alone(w: World) -> None:
    await held_by(w, {"kind": "Deployment", "name": "digits", "uid": "x"})
    await w.formed()
    assert (w.reason("BudgetMissing"), leaves(w)) == ("NotCreated", [7])
    w.client.edit("trainingjobs", "digits", {"spec": NONE, "metadata": {"generation": 2}})
    await w.settle()
    assert (w.reason("BudgetMissing"), leaves(w)) == (None, [7])


@scenario
async def test_a_server_before_1_21_has_it_in_beta(w: World) -> None:
    w.client.before = refuse(
        NotFound("the server could not find the requested resource"), "create", "poddisruptionbudgets", times=1
    )
    await w.formed()
    assert [b["apiVersion"] for b in w.client.all("poddisruptionbudgets")] == ["policy/v1beta1"]


@scenario
async def test_a_job_that_has_ended_is_asked_about_once(w: World) -> None:
    await w.formed()
    await succeeded(w)
    w.start()
    await w.settle()
    before = len(w.client.requests)
    await w.reconciler.reconcile(KEY)
    assert [r for r in w.client.requests[before:] if r[1] == "poddisruptionbudgets"] == []
