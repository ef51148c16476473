"""Which exceptions are recognised when they come again, and which tell nothing."""

import socket
import time

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relight_trainer.failures import exit_status, recognise
from relight_trainer.fingerprint import MAX_TEXT, steady


class NoSuchDigit(ValueError): ...


class EndpointConnectionError(Exception): ...


def raised(kind=NoSuchDigit, text="eleven"):
    try:
        raise kind(text)
    except BaseException as error:
        return error


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("<Net object at 0x7f4c9d4cd400>", "<Net object at 0x7F10>", id="addresses"),
        pytest.param("died (pid 4711)", "died (pid 12)", id="pids"),
        pytest.param("eleven, on rank 0", "eleven, on rank 13", id="ranks"),
        pytest.param("device cuda:0", "device cuda:7", id="devices"),
        pytest.param("in /tmp/tmpx1_a/a.bin: bad", "in /tmp/tmp__q/b.bin: bad", id="temporary paths"),
        pytest.param("in '/scratch/7/a.bin'", "in '/scratch/8/a.bin'", id="temporary paths of its own"),
        pytest.param("from 10.0.0.1:4711", "from 10.0.3.7:29500", id="hosts"),
        pytest.param("at 2026-11-27 16:40:01.123", "at 2027-01-01T00:00:00Z", id="instants"),
        pytest.param("after 12.5 s", "after 13 s", id="durations"),
        pytest.param(
            "run 3f2504e0-4f89-11d3-9a0c-0305e82c3301", "run 9b2504e0-4f89-41d3-9a0c-0305e82c3399", id="identifiers"
        ),
    ],
)
def test_what_differs_from_one_process_to_the_next_does_not_count(
    one: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/scratch")
    assert steady(one) == steady(other)
    assert len({recognise(raised(text=t)) for t in (one, other)} - {""}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [("index 5 is out of bounds", "index 6 is out of bounds"), ("shape [3, 4]", "shape [3, 5]"), ("a", "b")],
)
def test_what_the_data_says_counts(one: str, other: str) -> None:
    assert recognise(raised(text=one)) != recognise(raised(text=other))


def test_type_and_place_count() -> None:
    assert recognise(raised(ValueError)) != recognise(raised(TypeError))

    def elsewhere() -> BaseException:
        try:
            raise NoSuchDigit("eleven")
        except NoSuchDigit as error:
            return error

    assert recognise(raised()) != recognise(elsewhere())
    assert len(recognise(raised())) == 16


@pytest.mark.parametrize(
    "kind", [ConnectionResetError, FileNotFoundError, socket.timeout, EndpointConnectionError, TimeoutError]
)
def test_what_the_world_outside_brought_about_may_have_passed(kind: type[BaseException]) -> None:
    assert not recognise(raised(kind))


def test_a_script_that_ends_with_a_text_says_the_same_again_and_one_that_ends_with_a_number_says_too_little() -> None:
    assert recognise(raised(SystemExit, "error: --data-dir is required")) != ""
    assert recognise(raised(SystemExit, 3)) == ""  # type: ignore[arg-type]


# Each piece, many times over, makes some pattern begin everywhere and fail at the end.
PIECES = [
    "a.svc",
    "a.",
    ".svc-",
    "localhost",
    "rank ",
    "rank",
    "0x",
    "0",
    "1.",
    "1 ",
    " ",
    "f0",
    "/tmp",
    "-",
    "é.svc.",
    "9:9",
    ":",
]


@pytest.mark.timeout(60)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=4), st.sampled_from(["", ":", ":x", "!", "g"]))
@example(["a.svc"], ":x")
@settings(max_examples=80, deadline=None)
def test_the_time_that_a_text_takes_is_linear_in_its_length(pieces: list[str], end: str) -> None:
    text = ("".join(pieces) * MAX_TEXT)[: MAX_TEXT - len(end)] + end
    began = time.process_time()
    steady(text)
    # Milliseconds; what is quadratic takes seconds, what is cubic hours.
    assert time.process_time() - began < 0.3


@pytest.mark.parametrize("text", ["store.job-0.svc.cluster.local:29500", "localhost:4711", "my-db.svc:1"])
def test_names_of_hosts_are_left_out_with_their_ports(text: str) -> None:
    assert steady(f"cannot reach http://{text}/x") == "cannot reach http://<host>/x"


def test_a_cause_from_outside_counts_as_such() -> None:
    error = raised(text="cannot read the batch")
    error.__cause__ = raised(ConnectionResetError, "by the store")
    assert recognise(error) == ""


def test_a_long_text_costs_little() -> None:
    text = "tensor([" + "0x7f " * 10_000_000
    assert len(steady(text)) <= 2 * MAX_TEXT
    assert recognise(raised(text=text))


def test_torchs_own_errors_are_recognised() -> None:
    def wrong() -> BaseException:
        try:
            torch.ones(2, 3) @ torch.ones(2, 3)
        except RuntimeError as error:
            return error
        raise AssertionError

    assert recognise(wrong()) == recognise(wrong()) != ""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SystemExit(3), 3),
        (SystemExit(64), None),
        (SystemExit("usage"), None),
        (SystemExit(None), None),
        (SystemExit(300), None),
        (ValueError(3), None),
    ],
)
def test_the_status_that_a_script_ends_with(error: BaseException, status: int | None) -> None:
    assert exit_status(error) == status
