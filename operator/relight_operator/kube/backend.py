"""What the parts of the cluster's backend share."""

from collections.abc import Callable
from dataclasses import dataclass, field

from relight_operator.coordinator.mailbox import Mailbox
from relight_operator.kube.client import Client
from relight_operator.kube.machines import Machines
from relight_operator.kube.network import NetworkDefaults
from relight_operator.kube.pods import Coordinator, PodDefaults
from relight_operator.kube.store import Store


@dataclass(frozen=True)
class Backend:
    """`client` refuses writes while this process does not lead. `clock` gives unix seconds."""

    client: Client
    mailbox: Mailbox
    defaults: PodDefaults
    coordinator: Callable[[], Coordinator]  # asked anew for each pod: certificates are renewed
    clock: Callable[[], float]
    network: NetworkDefaults = field(default_factory=NetworkDefaults)
    store: Store = field(default_factory=Store)
    machines: Machines = field(default_factory=Machines)
