"""Each answer of an API server is exactly one class of error."""

from typing import Any

import pytest

from relight_operator.kube import errors
from relight_operator.kube.errors import KubeError, Retryable, error_of


def status(reason: str = "", message: str = "", cause: str = "") -> dict[str, Any]:
    details = {"causes": [{"reason": cause}]} if cause else {}
    return {"kind": "Status", "reason": reason, "message": message, "details": details}


@pytest.mark.parametrize(
    ("code", "body", "klass"),
    [
        pytest.param(401, status("Unauthorized"), errors.Unauthorized, id="401"),
        pytest.param(403, status("Forbidden", "cannot create resource"), errors.Forbidden, id="403 RBAC"),
        pytest.param(403, status("Forbidden", "exceeded quota: q, requested: pods=1"), errors.QuotaExceeded, id="403 quota"),
        pytest.param(403, status("Forbidden", "failed quota: q: must specify cpu"), errors.QuotaExceeded, id="403 failed quota"),
        pytest.param(403, status("Forbidden", 'violates PodSecurity "restricted:latest": hostPath'), errors.PodSecurity, id="403 PSA"),
        pytest.param(403, status("Forbidden", "x", "NamespaceTerminating"), errors.NamespaceTerminating, id="403 terminating"),
        pytest.param(403, status("Forbidden", "because it is being terminated"), errors.NamespaceTerminating, id="403 old terminating"),
        pytest.param(404, status("NotFound"), errors.NotFound, id="404"),
        pytest.param(409, status("AlreadyExists"), errors.AlreadyExists, id="409 exists"),
        pytest.param(409, status("Conflict"), errors.Conflict, id="409 conflict"),
        pytest.param(409, None, errors.Conflict, id="409 bare"),
        pytest.param(410, status("Expired"), errors.Gone, id="410"),
        pytest.param(400, status("BadRequest"), errors.Invalid, id="400"),
        pytest.param(422, status("Invalid"), errors.Invalid, id="422"),
        pytest.param(413, "too large", errors.Invalid, id="413"),
        pytest.param(408, None, errors.Unavailable, id="408"),
        pytest.param(429, status("TooManyRequests"), errors.TooManyRequests, id="429"),
        pytest.param(500, status("InternalError"), errors.Unavailable, id="500"),
        pytest.param(503, b"<html>", errors.Unavailable, id="503"),
        pytest.param(0, None, errors.Unavailable, id="no answer"),
    ],
)  # fmt: skip
def test_an_answer_is_one_class(code: int, body: Any, klass: type[KubeError]) -> None:
    assert type(error_of(code, body)) is klass


def test_every_code_that_is_no_success_has_a_class_below_the_root() -> None:
    classes = {code: type(error_of(code)) for code in [0, *range(300, 600)]}
    assert KubeError not in classes.values()
    assert all(issubclass(c, KubeError) for c in classes.values())


def test_what_may_succeed_later_is_retryable_and_nothing_else() -> None:
    retryable = {code for code in range(400, 600) if isinstance(error_of(code), Retryable)}
    assert retryable == {408, 429, *range(500, 600)}


def test_retry_after_is_kept() -> None:
    assert error_of(429, retry_after="7").retry_after == 7.0
    assert error_of(429, retry_after="Wed, 21 Oct 2015 07:28:00 GMT").retry_after is None
