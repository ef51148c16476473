"""Who an agent is: only a token of that very pod speaks for a member. What the check of tokens costs has bounds."""

import asyncio
import base64
import itertools
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kube_fake import FakeClient

from relight_operator.coordinator.limits import Reason
from relight_operator.coordinator.wire import Report
from relight_operator.kube import tokens
from relight_operator.kube.client import Body, Resource
from relight_operator.kube.errors import Unavailable
from relight_operator.kube.server import Authenticator
from relight_operator.kube.store import Store
from relight_operator.kube.tokens import Claims, NotReviewed, TokenReviewer, claims_of, may_be

pytestmark = pytest.mark.timeout(20)

NOW = 1.7e9
MEMBER = Claims("ml", "digits-1-0", "u")
PEER = "10.0.0.7"
OURS = ["relight.dev/coordinator"]


def payload(**changes: Any) -> dict[str, Any]:
    """What the API server puts into a pod's token."""
    bound = {
        "namespace": "ml",
        "pod": {"name": "digits-1-0", "uid": "u"},
        "serviceaccount": {"name": "default", "uid": "s"},
    }
    said = {"aud": OURS, "exp": NOW + 3600, "iat": NOW, "iss": "https://kubernetes.default.svc", "kubernetes.io": bound}
    return {**said, **changes}


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def token(signature: str = "signed", **changes: Any) -> str:
    head = encoded(b'{"alg":"RS256","kid":"k"}')
    return f"{head}.{encoded(json.dumps(payload(**changes)).encode())}.{encoded(signature.encode())}"


def review(pod: str = "digits-1-0", uid: str = "u", namespace: str = "ml", **changes: Any) -> dict[str, Any]:
    status = {
        "authenticated": True,
        "audiences": OURS,
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
    """A server that answers every TokenReview with `status`, once `gate` is open."""

    def __init__(self, status: dict[str, Any]) -> None:
        super().__init__()
        self.status = status
        self.asked: list[str] = []
        self.now = 0
        self.at_once = 0
        self.arrived = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def create(
        self, resource: Resource, namespace: str | None, body: Mapping[str, Any], *, dry_run: bool = False
    ) -> Body:
        self.before("create", resource.plural, "")
        self.asked.append(body["spec"]["token"])
        assert body["spec"]["audiences"] == OURS
        self.arrived.set()
        self.now += 1
        self.at_once = max(self.at_once, self.now)
        await asyncio.sleep(0)
        await self.gate.wait()
        self.now -= 1
        return {"status": self.status}


def report(**changes: Any) -> Report:
    said: dict[str, Any] = {
        "protocol": 1, "job": "ml/digits", "job_uid": "job", "slot": 1, "incarnation": 0, "uid": "u", "boot_id": "b",
        "seq": 1, "state": "Ready",
    }  # fmt: skip
    return Report.model_validate({**said, **changes})


def reviewer(client: FakeClient, now: list[float] | None = None) -> TokenReviewer:
    at = now or [0.0]
    return TokenReviewer(client, clock=lambda: at[0], wall=lambda: NOW)


def authenticator(client: FakeClient) -> tuple[Authenticator, Store]:
    store = Store()
    store.put_job({"metadata": {"namespace": "ml", "name": "digits", "uid": "job", "resourceVersion": "1"}})
    return Authenticator(store, reviewer(client)), store


@pytest.mark.parametrize(
    ("status", "said", "verdict"),
    [
        pytest.param(review(), {}, None, id="its own"),
        pytest.param(review(pod="digits-0-0"), {}, Reason.NOT_THE_MEMBERS, id="another slot's"),
        pytest.param(review(uid="v"), {}, Reason.NOT_THE_MEMBERS, id="an earlier pod's of that name"),
        pytest.param(review(namespace="other"), {}, Reason.NOT_THE_MEMBERS, id="another namespace's"),
        pytest.param(review(), {"incarnation": 1}, Reason.NOT_THE_MEMBERS, id="claims another incarnation"),
        pytest.param(review(), {"job_uid": "old"}, Reason.NOT_THE_MEMBERS, id="an earlier job of that name"),
        pytest.param(review(), {"job": "ml/other"}, Reason.NOT_THE_MEMBERS, id="no such job"),
        pytest.param({"authenticated": False}, {}, Reason.NOT_THE_MEMBERS, id="not authenticated"),
        pytest.param(
            review(audiences=["https://kubernetes.default.svc"]), {}, Reason.NOT_THE_MEMBERS, id="another audience"
        ),
        pytest.param(review(user={"username": "admin"}), {}, Reason.NOT_THE_MEMBERS, id="a person's"),
    ],
)
def test_a_token_speaks_for_its_own_pod_only(
    status: dict[str, Any], said: dict[str, Any], verdict: Reason | None
) -> None:
    auth, _ = authenticator(Reviews(status))
    assert asyncio.run(auth(token(), report(**said), PEER)) == verdict


BOUND = payload()["kubernetes.io"]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"aud": ["https://kubernetes.default.svc"]}, id="another audience"),
        pytest.param({"aud": None}, id="no audience"),
        pytest.param({"exp": NOW - 61}, id="expired"),
        pytest.param({"exp": "later"}, id="expires at no time"),
        pytest.param({"kubernetes.io": {**BOUND, "namespace": "other"}}, id="another namespace"),
        pytest.param({"kubernetes.io": {**BOUND, "pod": {"name": "digits-0-0", "uid": "u"}}}, id="another pod's name"),
        pytest.param({"kubernetes.io": {**BOUND, "pod": {"name": "digits-1-0", "uid": "v"}}}, id="another pod's uid"),
        pytest.param({"kubernetes.io": {"namespace": "ml"}}, id="bound to no pod"),
        pytest.param({"kubernetes.io": "ml"}, id="bound to nothing"),
    ],
)
def test_a_token_that_says_itself_that_it_is_not_the_members_costs_no_review(changes: dict[str, Any]) -> None:
    client = Reviews(review())
    auth, _ = authenticator(client)
    assert asyncio.run(auth(token(**changes), report(), PEER)) is Reason.NOT_THE_MEMBERS
    assert client.asked == []


def test_a_token_in_its_last_minute_by_a_clock_that_is_ahead_is_reviewed() -> None:
    assert may_be(token(exp=NOW - 59), MEMBER, NOW)
    assert may_be(token(aud="relight.dev/coordinator"), MEMBER, NOW)


JUNK = ["", "junk", "a.b", "..", "a..c", "a.b.c", f"a.{encoded(b'[]')}.c", f"a.{encoded(b'{}')}.c", f"a.{encoded(b'{')}.c",
        f"a.{encoded(b'[' * 3000)}.c", f"a.{encoded(b'9' * 5000)}.c", "a.\udc80.c", f"a.{encoded(b'x' * 9000)}.c", "a.é.c", "a.b=.c"]  # fmt: skip


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
def test_what_is_no_token_costs_no_review(junk: str) -> None:
    client = Reviews(review())
    auth, _ = authenticator(client)
    assert asyncio.run(auth(junk, report(), PEER)) is Reason.NOT_THE_MEMBERS
    assert client.asked == []


@given(st.text() | st.binary().map(lambda data: f"a.{encoded(data)}.c"))
def test_nothing_that_is_sent_as_a_token_makes_the_check_fail(text: str) -> None:
    assert not may_be(text, MEMBER, NOW)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.sampled_from(["aud", "kubernetes.io"]), _json)
def test_claims_of_any_shape_are_a_no(key: str, value: Any) -> None:
    assert not may_be(token(**{key: value}), MEMBER, NOW)


def test_a_reviewer_that_cannot_answer_is_no_definite_no() -> None:
    client = Reviews(review())
    auth, _ = authenticator(client)

    def down(*_: str) -> None:
        raise Unavailable("down")

    client.before = down
    assert asyncio.run(auth(token(), report(), PEER)) is Reason.NOT_CHECKED
    client.before = lambda *_: None
    assert asyncio.run(auth(token(), report(), PEER)) is None


def test_a_reviewer_that_does_not_answer_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "REVIEW_SECONDS", 0.05)

    async def body() -> None:
        client = Reviews(review())
        client.gate.clear()
        auth, _ = authenticator(client)
        assert await auth(token(), report(), PEER) is Reason.NOT_CHECKED
        client.gate.set()
        assert await auth(token(), report(), PEER) is None

    asyncio.run(body())


def test_a_job_that_goes_while_its_token_is_reviewed_is_a_no() -> None:
    async def body() -> None:
        client = Reviews(review())
        client.gate.clear()
        auth, store = authenticator(client)
        asking = asyncio.create_task(auth(token(), report(), PEER))
        await client.arrived.wait()
        store.forget_job("ml/digits")
        client.gate.set()
        assert await asking is Reason.NOT_THE_MEMBERS

    asyncio.run(body())


def test_one_token_is_asked_about_once_a_minute() -> None:
    async def body() -> None:
        now = [0.0]
        client = Reviews(review())
        it = reviewer(client, now)
        assert all(await asyncio.gather(*(it.is_of(token(), MEMBER, PEER) for _ in range(5))))
        now[0] = 59.0
        assert await it.is_of(token(), MEMBER, PEER)
        assert len(client.asked) == 1
        now[0] = 60.0
        await it.is_of(token(), MEMBER, PEER)
        assert len(client.asked) == 2

    asyncio.run(body())


def test_a_no_is_not_believed_for_long() -> None:
    async def body() -> None:
        now = [0.0]
        client = Reviews({"authenticated": False})
        it = reviewer(client, now)
        assert not await it.is_of(token(), MEMBER, PEER)
        client.status = review()
        assert not await it.is_of(token(), MEMBER, PEER)
        now[0] = 5.0
        assert await it.is_of(token(), MEMBER, PEER)

    asyncio.run(body())


def test_an_asker_that_goes_does_not_take_the_question_from_another() -> None:
    async def body() -> None:
        client = Reviews(review())
        client.gate.clear()
        it = reviewer(client)
        first, second = (asyncio.create_task(it.is_of(token(), MEMBER, PEER)) for _ in range(2))
        await client.arrived.wait()
        first.cancel()
        await asyncio.sleep(0)
        client.gate.set()
        assert await second
        assert len(client.asked) == 1

    asyncio.run(body())


async def flood(it: TokenReviewer, number: int, *, peer: str | None = None, pods: int = 1) -> list[bool | Reason]:
    """Forged tokens: each claims to be the pod's that it is shown for."""

    async def one(i: int) -> bool | Reason:
        member = Claims("ml", f"p-{i % pods}", f"u-{i % pods}")
        bound = {"namespace": "ml", "pod": {"name": member.pod, "uid": member.uid}}
        try:
            return await it.is_of(
                token(signature=f"forged {i}", **{"kubernetes.io": bound}), member, peer or f"peer {i}"
            )
        except NotReviewed as error:
            return error.reason

    return await asyncio.gather(*(one(i) for i in range(number)))


def test_one_address_has_few_forged_tokens_of_a_pod_reviewed() -> None:
    async def body() -> None:
        client = Reviews({"authenticated": False})
        it = reviewer(client)
        said = await flood(it, 3000, peer="10.6.6.6")
        assert len(client.asked) == tokens.OF_A_POD.burst
        assert set(said) == {False, Reason.REVIEW_RATE}
        client.status = review()
        assert await it.is_of(token(), MEMBER, PEER), "another address is asked about"

    asyncio.run(body())


def test_one_address_has_a_bounded_number_of_forged_tokens_of_all_pods_reviewed() -> None:
    async def body() -> None:
        client = Reviews({"authenticated": False})
        said = await flood(reviewer(client), 3000, peer="10.6.6.6", pods=1000)
        assert len(client.asked) == tokens.OF_A_PEER.burst
        assert said.count(Reason.REVIEW_RATE) == 3000 - len(client.asked)

    asyncio.run(body())


def test_the_api_server_is_asked_few_questions_at_once_and_few_wait() -> None:
    async def body() -> None:
        client = Reviews({"authenticated": False})
        said = await flood(reviewer(client), 3000)
        assert client.at_once == tokens.AT_ONCE
        assert len(client.asked) == tokens.AT_ONCE + tokens.WAITING
        assert said.count(Reason.REVIEWS) == 3000 - len(client.asked)

    asyncio.run(body())


def test_junk_never_displaces_a_good_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_NO", 50)

    async def body() -> None:
        client = Reviews(review())
        it = reviewer(client)
        assert await it.is_of(token(), MEMBER, PEER)
        client.status = {"authenticated": False}
        for batch in itertools.repeat(100, 5):
            await flood(it, batch)
        asked = len(client.asked)
        assert it.kept == (1, 50)
        assert await it.is_of(token(), MEMBER, PEER)
        assert len(client.asked) == asked, "it is still known"

    asyncio.run(body())


def test_of_good_tokens_the_one_that_was_used_longest_ago_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_YES", 2)

    async def body() -> None:
        client = Reviews(review())
        it = reviewer(client)
        texts = [token(signature=str(i)) for i in range(3)]
        for text in (texts[0], texts[1], texts[0], texts[2]):
            assert await it.is_of(text, MEMBER, PEER)
        assert it.kept == (2, 0)
        assert len(client.asked) == 3
        assert await it.is_of(texts[0], MEMBER, PEER)
        assert len(client.asked) == 3
        assert await it.is_of(texts[1], MEMBER, PEER)
        assert len(client.asked) == 4

    asyncio.run(body())


def test_a_token_that_is_no_pods_has_no_claims() -> None:
    assert claims_of(review(user={"username": "system:serviceaccount:ml:default", "extra": {}})) is None
