"""The parts of the testbed that need no cluster."""

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.testbed import cache, dns
from tests.testbed.configs import User, token_file

# `dig web.default.svc.cluster.local A`, as bytes on the wire
QUERY = (
    b"\x12\x34\x01\x20\x00\x01\x00\x00\x00\x00\x00\x00\x03Web\x07default\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01"
)


class Api(dns.Api):
    """Answers from a table in place of an API server."""

    def __init__(self, objects: dict[tuple[str, str, str], dict[str, Any]]) -> None:
        self.objects = objects

    def find(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        return self.objects.get((kind, namespace, name))


def headless(*, not_ready_too: bool = False) -> Api:
    endpoints = {
        "subsets": [
            {"addresses": [{"ip": "10.0.0.2", "hostname": "b"}, {"ip": "10.0.0.1", "hostname": "a"}]},
            {"notReadyAddresses": [{"ip": "10.0.0.3"}]},
        ]
    }
    spec = {"clusterIP": "None", "publishNotReadyAddresses": not_ready_too}
    return Api({("services", "default", "web"): {"spec": spec}, ("endpoints", "default", "web"): endpoints})


def test_a_query_is_read_and_answered_on_the_wire() -> None:
    name, kind, question = dns.question_of(QUERY)
    assert (name, kind) == ("web.default.svc.cluster.local", 1)
    assert dns.respond(headless(), QUERY) == (
        b"\x12\x34\x85\x80\x00\x01\x00\x02\x00\x00\x00\x00"
        + question
        + b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x01\x00\x04\x0a\x00\x00\x01"
        + b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x01\x00\x04\x0a\x00\x00\x02"
    )


def test_a_question_for_ipv6_gets_an_empty_answer_not_a_no() -> None:
    response = dns.respond(headless(), QUERY[:-3] + b"\x1c\x00\x01")
    assert response is not None
    assert (response[3] & 0x0F, response[6:8]) == (dns.NO_ERROR, b"\0\0")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("web.default.svc.cluster.local", ["10.0.0.1", "10.0.0.2"]),
        ("b.web.default.svc.cluster.local", ["10.0.0.2"]),
        ("c.web.default.svc.cluster.local", None),
        ("other.default.svc.cluster.local", None),
        ("default.svc.cluster.local", None),
        ("example.com", None),
    ],
)
def test_names_of_a_headless_service(name: str, found: list[str] | None) -> None:
    assert dns.lookup(headless(), name) == found


def test_members_that_are_not_ready_are_named_where_the_service_says_so() -> None:
    assert dns.lookup(headless(not_ready_too=True), "web.default.svc.cluster.local") == [
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.3",
    ]


@given(st.binary(max_size=64))
def test_garbage_gets_no_answer_or_a_refusal_and_never_an_error(query: bytes) -> None:
    response = dns.respond(Api({}), query)
    assert response is None or response[3] & 0x0F == dns.NO_SUCH_NAME


def test_users_groups_stand_in_one_column() -> None:
    (row,) = csv.reader([token_file([User("node", "secret", ("a", "b"))])])
    assert row == ["secret", "node", "node", "a,b"]


def an_image(key: str, built: list[str]) -> Path:
    def build(folder: Path) -> None:
        built.append(key)
        (folder / "image").write_text(key)

    return cache.cached(f"image-{key}", build, keep=2)


def test_what_is_cached_is_built_once_and_old_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELIGHT_TESTBED_CACHE", str(tmp_path))
    built: list[str] = []
    for age, key in enumerate("abc"):
        os.utime(an_image(key, built), (age, age))
    assert an_image("c", built).joinpath("image").read_text() == "c"
    assert built == ["a", "b", "c"]
    assert sorted(path.name for path in tmp_path.glob("image-*")) == ["image-b", "image-c"]


def test_what_was_asked_for_a_moment_ago_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELIGHT_TESTBED_CACHE", str(tmp_path))
    for key in "abc":
        an_image(key, [])
    assert sorted(path.name for path in tmp_path.glob("image-*")) == ["image-a", "image-b", "image-c"]


def test_what_is_asked_for_while_old_ones_go_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELIGHT_TESTBED_CACHE", str(tmp_path))
    for age, key in enumerate("ab"):
        os.utime(an_image(key, []), (age, age))
    claimed = cache.locked

    @contextmanager
    def asked_for_just_before(path: Path) -> Iterator[None]:
        if path.name == "image-a":
            os.utime(tmp_path / "image-a")
        with claimed(path):
            yield

    monkeypatch.setattr(cache, "locked", asked_for_just_before)
    an_image("c", [])
    assert sorted(path.name for path in tmp_path.glob("image-*")) == ["image-a", "image-b", "image-c"]


def test_what_a_killed_builder_left_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELIGHT_TESTBED_CACHE", str(tmp_path))
    (tmp_path / ".image-a-half").mkdir()
    an_image("a", [])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".locks", "image-a"]


def test_a_build_that_failed_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELIGHT_TESTBED_CACHE", str(tmp_path))

    def build(folder: Path) -> None:
        (folder / "half").touch()
        raise ValueError("no space")

    with pytest.raises(ValueError, match="no space"):
        cache.cached("image-a", build)
    assert [path.name for path in tmp_path.iterdir()] == [".locks"]
