"""The agent's HTTP client: an answer, a definite no, or nobody to talk to."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from relight_agent.channel import Channel, Refused, Unreachable

pytestmark = pytest.mark.timeout(20)


class Server(ThreadingHTTPServer):
    """Answers every request with `status` and `answer`; remembers what it was asked."""

    daemon_threads = True

    def __init__(self, status: int = 200, answer: bytes = b'{"command": null}') -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.answer = status, answer
        self.asked: list[tuple[str, Any, str | None]] = []
        self.connections: set[Any] = set()
        self.open: list[socket.socket] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.open.append(self.connection)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body, self.headers.get("Authorization")))
        self.server.connections.add(self.client_address)
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.answer)))
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def serving(status: int = 200, answer: bytes = b'{"command": null}') -> Iterator[Server]:
    with Server(status, answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            for connection in server.open:  # a process that ends takes them with it
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def channel(url: str, token_file: str = "") -> Iterator[Channel]:
    it = Channel(url, token_file)
    try:
        yield it
    finally:
        it.close()


def test_one_connection_serves_many_requests() -> None:
    with serving() as server, channel(server.url) as it:
        for number in range(3):
            assert it.post("/v1/report", {"n": number}, timeout=5.0) == {"command": None}
        assert [body for _, body, _ in server.asked] == [{"n": 0}, {"n": 1}, {"n": 2}]
        assert len(server.connections) == 1


def test_the_token_is_read_again_for_each_request(tmp_path: Path) -> None:
    token = tmp_path / "token"
    with serving() as server, channel(server.url, str(token)) as it:
        for text in ("one", "two\n"):
            token.write_text(text)
            it.post("/v1/report", {}, timeout=5.0)
        assert [authorization for _, _, authorization in server.asked] == ["Bearer one", "Bearer two"]


@pytest.mark.parametrize("status", [401, 403])
def test_a_definite_no(status: int) -> None:
    said = b"the token is not this member's"
    with serving(status, said) as server, channel(server.url) as it, pytest.raises(Refused, match=said.decode()):
        it.post("/v1/report", {}, timeout=5.0)


@pytest.mark.parametrize("status", [400, 404, 413, 500, 502, 503])
def test_anything_else_may_be_better_next_time(status: int) -> None:
    with serving(status) as server, channel(server.url) as it:
        with pytest.raises(Unreachable, match=str(status)):
            it.post("/v1/report", {}, timeout=5.0)
        server.status = 200
        assert it.post("/v1/report", {}, timeout=5.0) == {"command": None}


@pytest.mark.parametrize("answer", [b"", b"<html>", b"\xff"])
def test_an_answer_that_is_not_json(answer: bytes) -> None:
    with serving(answer=answer) as server, channel(server.url) as it, pytest.raises(Unreachable, match="not JSON"):
        it.post("/v1/report", {}, timeout=5.0)


@pytest.mark.parametrize("answer", [b"[]", b"null", b'"text"'])
def test_an_answer_that_is_no_object_says_nothing(answer: bytes) -> None:
    with serving(answer=answer) as server, channel(server.url) as it:
        assert it.post("/v1/report", {}, timeout=5.0) == {}


def test_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with channel(url) as it, pytest.raises(Unreachable, match="Refused"):
            it.post("/v1/report", {}, timeout=5.0)


def test_nobody_answers() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        with (
            channel(f"http://127.0.0.1:{deaf.getsockname()[1]}") as it,
            pytest.raises(Unreachable, match=r"[Tt]imed? ?out"),
        ):
            it.post("/v1/report", {}, timeout=0.1)


def test_a_coordinator_that_is_restarted_elsewhere_is_found(tmp_path: Path) -> None:
    address = tmp_path / "coordinator.url"
    with channel(f"file://{address}") as it:
        with pytest.raises(Unreachable):
            it.post("/v1/report", {}, timeout=5.0)
        for _ in range(2):
            with serving() as server:
                address.write_text(server.url + "\n")
                assert it.post("/v1/report", {}, timeout=5.0) == {"command": None}
            with pytest.raises(Unreachable):
                it.post("/v1/report", {}, timeout=1.0)


@pytest.mark.parametrize("url", ["", "nonsense", "http://", "file:///no/such/file", "http://127.0.0.1:999999"])
def test_an_address_that_is_none(url: str) -> None:
    with channel(url) as it, pytest.raises(Unreachable):
        it.post("/v1/report", {}, timeout=1.0)


def test_a_token_that_is_not_there_yet(tmp_path: Path) -> None:
    with (
        serving() as server,
        channel(server.url, str(tmp_path / "none")) as it,
        pytest.raises(Unreachable, match="none"),
    ):
        it.post("/v1/report", {}, timeout=5.0)


def test_what_json_does_not_have_is_not_sent() -> None:
    with serving() as server, channel(server.url) as it:
        with pytest.raises(Unreachable, match="JSON"):
            it.post("/v1/report", {"loss": float("nan")}, timeout=5.0)
        assert not server.asked
