"""Many strings in little memory."""

from collections.abc import Iterable

import numpy as np


class Names:
    """A list of strings, UTF-8 one after the other in one array.

    A million of Python's own take 100 MB, and loader processes copy them all by merely counting references.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self.data = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index > 0 else 0
        return self.data[start : self._ends[index]].tobytes().decode("utf-8", "surrogateescape")
