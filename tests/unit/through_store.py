"""The classifier's questions, asked of pods as the store keeps them: what it drops, the classifier cannot read."""

from typing import Any

from relight_operator.kube import classifier
from relight_operator.kube.classifier import PendingReason
from relight_operator.kube.store import Store


def stored(pod: dict[str, Any]) -> dict[str, Any]:
    """`pod` as a round sees it."""
    store = Store()
    body = {**pod, "metadata": {"namespace": "ml", "uid": "u", **pod["metadata"]}}
    store.put_pod_of("ml/digits", body, 0.0)
    (record,) = store.pods("ml/digits").values()
    return record.body


def member_end(pod: dict[str, Any], **known: Any) -> Any:
    return classifier.member_end(stored(pod), **known)


def slot_view(pod: dict[str, Any], **known: Any) -> Any:
    return classifier.slot_view(stored(pod), **known)


def pending_reason(pod: dict[str, Any]) -> PendingReason | None:
    return classifier.pending_reason(stored(pod))
