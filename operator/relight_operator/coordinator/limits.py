"""What the coordinator takes from those who connect to it, and the words for what it refuses.

Every refusal has a `Reason`, which is the label of the metric `relight_coordinator_refused_total`.
"""

from dataclasses import dataclass
from enum import StrEnum, unique

from relight_operator.coordinator.wire import MAX_BODY_BYTES

KIB = 1024


@unique
class Reason(StrEnum):
    """Why the coordinator has closed a connection, or has refused a request."""

    PEER_RATE = "PeerRate"  # one address has opened connections too often
    PEER_CONNECTIONS = "PeerConnections"  # one address has too many connections without a valid token
    STRANGERS = "Strangers"  # there are too many connections without a valid token
    CONNECTIONS = "Connections"  # there are too many connections in all
    POD_CONNECTIONS = "PodConnections"  # one pod has opened too many; its oldest is closed
    TLS = "TLS"  # the handshake failed or took too long
    NO_TOKEN = "NoToken"  # noqa: S105  # no valid token was shown in time
    IDLE = "Idle"  # an agent has been silent for too long, or has sent half a request
    TOO_LARGE = "TooLarge"  # a head or a body
    NOT_A_REPORT = "NotAReport"  # the body is no valid report
    NOT_THE_MEMBERS = "NotTheMembers"  # the token is not this member's, by its own claims or by the API server's word
    NOT_CHECKED = "NotChecked"  # the token cannot be checked now: the API server does not answer
    REVIEW_RATE = "ReviewRate"  # one address asks for too many checks of tokens
    REVIEWS = "Reviews"  # too many checks of tokens wait for the API server
    POD_RATE = "PodRate"  # one pod says too much; its reports wait


@dataclass(frozen=True)
class Limits:
    """Times in seconds. A *stranger* is a connection on which no valid token has been shown yet.

    An address may be that of a whole machine, where the cluster's network hides those of pods: the bounds of one
    address leave room for a machine full of agents that all come back at once.
    """

    connections: int = 8192
    strangers: int = 512
    strangers_of_one_peer: int = 64
    connections_of_one_pod: int = 4
    handshake: float = 5.0
    show_token: float = 10.0  # from the connection to a valid token: handshake, head, body and check
    body: float = 10.0  # of a further request, from its head
    idle: float = 60.0  # between requests, or messages of a stream; agents send one at least every 20 s
    head_bytes: int = 16 * KIB
    body_bytes: int = MAX_BODY_BYTES
    opened_at_once: int = 256  # connections of one peer, before `opened_per_second` holds
    opened_per_second: float = 32.0
    reports_at_once: int = 100  # of one pod, before `reports_per_second` holds
    reports_per_second: float = 20.0
    peers: int = 4096  # addresses and pods whose rates are known; who has been quiet for longest is forgotten

    @property
    def request_bytes(self) -> int:
        """What may come in before a request is complete."""
        return self.head_bytes + self.body_bytes
