"""Which checkpoints are kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from relight_trainer.checkpoint.manifest import Checkpoint

LEAST_KEPT = 2  # the newest could turn out damaged


@dataclass(frozen=True)
class Best:
    """The `keep` checkpoints at which `metric`, as it was logged last, was highest (`max`) or lowest (`min`)."""

    metric: str
    mode: Literal["max", "min"] = "max"
    keep: int = 1


def retired(sound: Sequence[Checkpoint], *, keep: int, best: Best | None = None) -> list[Checkpoint]:
    """Those of the `sound` checkpoints that nothing keeps.

    Kept are the newest `keep` (two at least), every final one, and the best ones; of equals, the newer.
    """
    ordered = sorted(sound, key=lambda c: c.order, reverse=True)
    kept = {c.seal for c in ordered[: max(keep, LEAST_KEPT)]} | {c.seal for c in ordered if c.final}
    if best is not None:
        sign = 1 if best.mode == "max" else -1
        ranked = [(sign * value, c.order, c.seal) for c in ordered if (value := metric(c, best.metric)) is not None]
        kept |= {seal for _, _, seal in sorted(ranked, reverse=True)[: best.keep]}
    return [c for c in ordered if c.seal not in kept]


def metric(checkpoint: Checkpoint, name: str) -> float | None:
    """A metric of a checkpoint's cursor; None where it has none that is a finite number."""
    try:
        value = float(checkpoint.cursor["metrics"][name])
    except (KeyError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
