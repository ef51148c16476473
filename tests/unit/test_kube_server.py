"""Who an agent is: only a token of that very pod speaks for a member."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from kube_fake import FakeClient

from relight_operator.coordinator.mailbox import Mailbox
from relight_operator.coordinator.wire import Report
from relight_operator.kube.backend import Backend
from relight_operator.kube.client import Body, Resource
from relight_operator.kube.errors import Unavailable
from relight_operator.kube.pods import Coordinator, PodDefaults
from relight_operator.kube.server import Authenticator, Claims, TokenReviewer, claims_of

pytestmark = pytest.mark.timeout(20)


def review(pod: str = "digits-1-0", uid: str = "u", namespace: str = "ml", **changes: Any) -> dict[str, Any]:
    status = {
        "authenticated": True,
        "audiences": ["relight.dev/coordinator"],
        "user": {
            "username": f"system:serviceaccount:{namespace}:default",
            "extra": {
                "authentication.kubernetes.io/pod-name": [pod],
                "authentication.kubernetes.io/pod-uid": [uid],
            },
        },
    }
    return {**status, **changes}


class Reviews(FakeClient):
    """A server that answers every TokenReview with `status`."""

    def __init__(self, status: dict[str, Any]) -> None:
        super().__init__()
        self.status = status
        self.asked: list[str] = []

    async def create(
        self, resource: Resource, namespace: str | None, body: Mapping[str, Any], *, dry_run: bool = False
    ) -> Body:
        self.before("create", resource.plural, "")
        self.asked.append(body["spec"]["token"])
        assert body["spec"]["audiences"] == ["relight.dev/coordinator"]
        await asyncio.sleep(0)
        return {"status": self.status}


def report(**changes: Any) -> Report:
    said: dict[str, Any] = {
        "protocol": 1, "job": "ml/digits", "job_uid": "job", "slot": 1, "incarnation": 0, "uid": "u", "boot_id": "b",
        "seq": 1, "state": "Ready",
    }  # fmt: skip
    return Report.model_validate({**said, **changes})


def authenticator(client: FakeClient) -> tuple[Authenticator, Backend]:
    backend = Backend(
        client=client, mailbox=Mailbox(lambda: 5.0, lambda _: None), defaults=PodDefaults(image="x"),
        coordinator=lambda: Coordinator("", ""), clock=lambda: 5.0,
    )  # fmt: skip
    backend.store.put_job({"metadata": {"namespace": "ml", "name": "digits", "uid": "job", "resourceVersion": "1"}})
    return Authenticator(backend, TokenReviewer(client, clock=lambda: 0.0)), backend


@pytest.mark.parametrize(
    ("status", "said", "verdict"),
    [
        pytest.param(review(), {}, "yes", id="its own"),
        pytest.param(review(pod="digits-0-0"), {}, "no", id="another slot's"),
        pytest.param(review(uid="v"), {}, "no", id="an earlier pod's of that name"),
        pytest.param(review(namespace="other"), {}, "no", id="another namespace's"),
        pytest.param(review(), {"incarnation": 1}, "no", id="claims another incarnation"),
        pytest.param(review(), {"job_uid": "old"}, "no", id="an earlier job of that name"),
        pytest.param(review(), {"job": "ml/other"}, "no", id="no such job"),
        pytest.param({"authenticated": False}, {}, "no", id="not authenticated"),
        pytest.param(review(audiences=["https://kubernetes.default.svc"]), {}, "no", id="made for another audience"),
        pytest.param(review(user={"username": "admin"}), {}, "no", id="a person's"),
    ],
)
def test_a_token_speaks_for_its_own_pod_only(status: dict[str, Any], said: dict[str, Any], verdict: str) -> None:
    auth, _ = authenticator(Reviews(status))
    assert asyncio.run(auth("token", report(**said))) == verdict


def test_no_token_is_a_no_without_asking() -> None:
    client = Reviews(review())
    auth, _ = authenticator(client)
    assert asyncio.run(auth("", report())) == "no"
    assert client.asked == []


def test_a_reviewer_that_cannot_answer_is_no_definite_no() -> None:
    client = Reviews(review())
    auth, _ = authenticator(client)

    def down(*_: str) -> None:
        raise Unavailable("down")

    client.before = down
    assert asyncio.run(auth("token", report())) == "unknown"
    client.before = lambda *_: None
    assert asyncio.run(auth("token", report())) == "yes"


def test_who_was_heard_when_is_kept() -> None:
    auth, backend = authenticator(Reviews(review()))
    asyncio.run(auth("token", report()))
    assert backend.heard == {"u": 5.0}


def test_one_token_is_asked_about_once_a_minute() -> None:
    async def body() -> None:
        now = [0.0]
        client = Reviews(review())
        reviewer = TokenReviewer(client, clock=lambda: now[0])
        await asyncio.gather(*(reviewer.claims("a") for _ in range(5)))
        now[0] = 59.0
        assert await reviewer.claims("a") == Claims("ml", "digits-1-0", "u")
        assert client.asked == ["a"]
        now[0] = 60.0
        await reviewer.claims("a")
        assert client.asked == ["a", "a"]

    asyncio.run(body())


def test_a_no_is_not_believed_for_long() -> None:
    async def body() -> None:
        now = [0.0]
        client = Reviews({"authenticated": False})
        reviewer = TokenReviewer(client, clock=lambda: now[0])
        assert await reviewer.claims("a") is None
        client.status = review()
        now[0] = 5.0
        assert await reviewer.claims("a") is not None

    asyncio.run(body())


def test_a_token_that_is_no_pods_has_no_claims() -> None:
    assert claims_of(review(user={"username": "system:serviceaccount:ml:default", "extra": {}})) is None
