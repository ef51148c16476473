"""Telling one data set from another without reading it: names, sizes, count."""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from relight_trainer.data.errors import DataChanged


def digest(*parts: str | bytes) -> str:
    """16 hexadecimal digits that name `parts`."""
    total = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()


class Known(NamedTuple):
    """What is known of one part of the data."""

    samples: int
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.samples} samples with the fingerprint {self.fingerprint}"


class Identity:
    """The data set in the saved state: loading a state that was made with another one raises DataChanged."""

    def __init__(self, parts: Mapping[str, Known], *, allow_change: bool) -> None:
        self.parts = dict(parts)
        self._state = {name: known._asdict() for name, known in parts.items()}
        self._allow_change = allow_change

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def compared_state(self) -> dict[str, Any]:
        """Nothing: loading compares the ranks' data, and may be told to allow a difference."""
        return {}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        before = {name: Known(known["samples"], known["fingerprint"]) for name, known in state.items()}
        changed = [name for name in sorted(before.keys() | self.parts) if before.get(name) != self.parts.get(name)]
        if changed and not self._allow_change:
            name = changed[0]
            raise DataChanged(
                f"data.{name}: {self.parts.get(name, 'nothing')}; found where the job began with "
                f"{before.get(name, 'nothing')}; allowed: the same data on every member at every start, "
                "or loader.changed_data: allow"
            )
