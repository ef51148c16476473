"""Many strings in little memory."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt


class Names:
    """A list of strings, UTF-8 one after the other in one array.

    A million of Python's own take 100 MB, and loader processes copy them all by merely counting references.
    """

    def __init__(self, data: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> None:
        self.data = data
        self.ends = ends

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        ends = np.cumsum(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)))
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index > 0 else 0
        return self.data[start : self.ends[index]].tobytes().decode("utf-8", "surrogateescape")
