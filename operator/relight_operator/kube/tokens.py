"""Whose pod a token is: first by what the token says of itself, then by a TokenReview.

A token's own claims can be forged, so they never make a yes. They make a no where they name another pod, another
audience or a time that is over: who sends junk gets an answer that the API server has no part in.
"""

import asyncio
import base64
import binascii
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from relight_operator.coordinator.limits import Reason
from relight_operator.coordinator.rates import Rate, Rates
from relight_operator.kube import names
from relight_operator.kube.client import TOKEN_REVIEWS, Client
from relight_operator.kube.errors import KubeError

YES_SECONDS = 60.0
NO_SECONDS = 5.0
MAX_YES = 20_000
MAX_NO = 4_096
AT_ONCE = 8  # reviews that the API server is asked for at the same time
REVIEW_SECONDS = 5.0  # for a review and the wait for its turn
WAITING = 256  # more wait for their turn no longer, but are told to come again
EXPIRED_SECONDS = 60.0  # by which the clocks of this machine and the API server's may differ
MAX_TOKEN_BYTES = 8 * 1024
PEERS = 4096
# Of one address, which may be a machine full of agents after a change of the leader.
OF_A_PEER = Rate(burst=256, per_second=32.0)
# Of one address for one pod: an agent needs one a minute, and one more for each new token.
OF_A_POD = Rate(burst=8, per_second=0.5)

_EXTRA = "authentication.kubernetes.io/"


@dataclass(frozen=True)
class Claims:
    """Whose pod's token it is."""

    namespace: str
    pod: str
    uid: str


class NotReviewed(Exception):
    """The token cannot be checked now."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


def may_be(token: str, member: Claims, now: float) -> bool:
    """Whether the token's own words allow that it is the member's. `now`: unix seconds.

    A pod's token is a JWT (RFC 7519) that names its audience, its end and its pod. Its signature is not looked at.
    """
    said = _payload(token)
    if said is None:
        return False
    audience = said.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    ends, bound = said.get("exp"), said.get("kubernetes.io")
    if names.TOKEN_AUDIENCE not in audiences or not isinstance(ends, int | float) or not isinstance(bound, dict):
        return False
    pod = bound.get("pod")
    if not isinstance(pod, dict) or ends + EXPIRED_SECONDS <= now:
        return False
    return (bound.get("namespace"), pod.get("name"), pod.get("uid")) == (member.namespace, member.pod, member.uid)


def _payload(token: str) -> dict[str, Any] | None:
    parts = token.split(".")
    if len(token) > MAX_TOKEN_BYTES or len(parts) != 3 or not all(parts):
        return None
    try:
        value = json.loads(base64.b64decode(parts[1] + "=" * (-len(parts[1]) % 4), altchars="-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def claims_of(status: Mapping[str, Any]) -> Claims | None:
    """The claims in a TokenReview's status; None where it says no, or the token is no pod's."""
    if not status.get("authenticated") or names.TOKEN_AUDIENCE not in (status.get("audiences") or ()):
        return None
    user = status.get("user") or {}
    account, extra = str(user.get("username") or "").split(":"), user.get("extra") or {}
    pod, uid = (next(iter(extra.get(_EXTRA + key) or ("",))) for key in ("pod-name", "pod-uid"))
    if account[:2] != ["system", "serviceaccount"] or len(account) != 4 or not (pod and uid):
        return None
    return Claims(account[2], pod, uid)


class _Answers:
    """What was said of tokens lately, by their hashes; of at most `limit`: the one that was used longest ago goes."""

    def __init__(self, limit: int, seconds: float) -> None:
        self._limit = limit
        self._seconds = seconds
        self._known: OrderedDict[bytes, tuple[float, Claims | None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def put(self, digest: bytes, claims: Claims | None, now: float) -> None:
        self._known[digest] = now + self._seconds, claims
        self._known.move_to_end(digest)
        if len(self._known) > self._limit:
            self._known.popitem(last=False)

    def get(self, digest: bytes, now: float) -> tuple[Claims | None] | None:
        """None where nothing is known any more."""
        until, claims = self._known.get(digest, (0.0, None))
        if now >= until:
            self._known.pop(digest, None)
            return None
        self._known.move_to_end(digest)
        return (claims,)


class TokenReviewer:
    """Asks the API server about tokens, within bounds. Tokens themselves are not kept.

    What was answered yes and what was answered no are kept apart, so that junk never displaces a good token. `clock`
    is monotonic, `wall` gives unix seconds.
    """

    def __init__(
        self, client: Client, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self._client = client
        self._clock = clock
        self._wall = wall
        self._yes = _Answers(MAX_YES, YES_SECONDS)
        self._no = _Answers(MAX_NO, NO_SECONDS)
        self._asking: dict[bytes, asyncio.Task[Claims | None]] = {}
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._of_a_peer = Rates(OF_A_PEER, PEERS)
        self._of_a_pod = Rates(OF_A_POD, PEERS)

    @property
    def kept(self) -> tuple[int, int]:
        """How many tokens are known to be good, and how many to be none."""
        return len(self._yes), len(self._no)

    async def is_of(self, token: str, member: Claims, peer: str) -> bool:
        """Whether the token is this member's. Raises NotReviewed."""
        if not may_be(token, member, self._wall()):
            return False
        digest, now = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest(), self._clock()
        known = self._yes.get(digest, now) or self._no.get(digest, now)
        if known is not None:
            return known[0] == member
        asking = self._asking.get(digest)  # an agent that has come back may ask before its first question is answered
        if asking is None:
            asking = self._ask_once(token, digest, member, peer)
        try:
            return await asyncio.shield(asking) == member
        except (KubeError, TimeoutError):
            raise NotReviewed(Reason.NOT_CHECKED) from None

    def _ask_once(self, token: str, digest: bytes, member: Claims, peer: str) -> "asyncio.Task[Claims | None]":
        now = self._clock()
        if not self._of_a_pod.take(f"{peer} {member.uid}", now) or not self._of_a_peer.take(peer, now):
            raise NotReviewed(Reason.REVIEW_RATE)
        if len(self._asking) >= AT_ONCE + WAITING:
            raise NotReviewed(Reason.REVIEWS)
        asking = asyncio.create_task(self._ask(token, digest))
        self._asking[digest] = asking
        asking.add_done_callback(lambda done: self._answered(digest, done))
        return asking

    def _answered(self, digest: bytes, asking: "asyncio.Task[Claims | None]") -> None:
        del self._asking[digest]
        if not asking.cancelled():
            asking.exception()  # whoever asked may have gone: it is no news to anybody

    async def _ask(self, token: str, digest: bytes) -> Claims | None:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [names.TOKEN_AUDIENCE]},
        }
        async with asyncio.timeout(REVIEW_SECONDS), self._turn:
            answer = await self._client.create(TOKEN_REVIEWS, None, body)
        claims = claims_of(answer.get("status") or {})
        (self._yes if claims is not None else self._no).put(digest, claims, self._clock())
        return claims
