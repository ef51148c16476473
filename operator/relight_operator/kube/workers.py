"""Reconcilers at work: tasks that take jobs from the queue, and decide when one is looked at again."""

import logging
import time
from collections.abc import Awaitable, Callable

from relight_operator.kube.errors import Conflict, KubeError
from relight_operator.kube.leading import NotLeading
from relight_operator.kube.workqueue import WorkQueue
from relight_operator.metrics import Metrics

_log = logging.getLogger(__name__)


async def work(queue: WorkQueue, reconcile: Callable[[str], Awaitable[float | None]], metrics: Metrics) -> None:
    """Until the queue is closed. `reconcile` gives the seconds until the job is to be looked at again."""
    while (key := await queue.take()) is not None:
        began = time.monotonic()
        try:
            result = await _round(queue, reconcile, key)
        finally:
            queue.done(key)
        metrics.reconciles.labels(result).inc()
        metrics.reconcile_seconds.observe(time.monotonic() - began)


async def _round(queue: WorkQueue, reconcile: Callable[[str], Awaitable[float | None]], key: str) -> str:
    """One round for one job; how it ended, as the metrics say it."""
    try:
        again = await reconcile(key)
    except NotLeading:
        return "not_leading"
    except Conflict:
        # Somebody else wrote in between: what is needed is a fresh look, not patience.
        queue.add_backed_off(key)
        return "conflict"
    except KubeError as error:
        wait = queue.add_backed_off(key)
        if error.retry_after is not None:
            queue.add_after(key, error.retry_after)
        _log.warning("%s: %s: %s; again in %.2f s", key, type(error).__name__, error, wait)
        return "error"
    except Exception:
        # A job that cannot be handled must not take the others along.
        wait = queue.add_backed_off(key)
        _log.exception("%s: again in %.2f s", key, wait)
        return "error"
    queue.forget(key)
    if again is not None:
        queue.add_after(key, again)
        return "again"
    return "done"
