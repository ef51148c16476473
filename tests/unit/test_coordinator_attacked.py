"""The coordinator's socket under attack: half-sent heads and bodies, junk, floods. Members beside it notice nothing."""

import asyncio
import datetime as dt
import functools
import json
import logging
import ssl
import tracemalloc
from asyncio.sslproto import SSLProtocol
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from relight_operator.api.status import JobStatus, MemberStatus, SlotStatus, WorldStatus
from relight_operator.coordinator.endpoint import TLS_BUFFER_BYTES, Endpoint, allow_open_files
from relight_operator.coordinator.limits import KIB, Limits, Reason
from relight_operator.coordinator.mailbox import Mailbox
from relight_operator.coordinator.server import create_app
from relight_operator.coordinator.wire import Report
from relight_operator.kube import certs

pytestmark = pytest.mark.timeout(30)

JOB = "default/digits"
ATTACKER, OTHER = "127.0.0.66", "127.0.0.67"


@functools.cache
def authority() -> certs.Authority:
    return certs.new_authority(dt.datetime.now(dt.UTC))


@functools.cache
def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certs.load_into(context, certs.new_leaf(authority(), ["localhost"], dt.datetime.now(dt.UTC)))
    return context


def client_context() -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority().bundle())


class Peer:
    """A connection to the coordinator, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with suppress(ConnectionError):
            await self.writer.drain()

    async def post(self, path: str, uid: str = "u0", **changes: Any) -> None:
        await self.send(request(path, uid, **changes))

    async def answer(self) -> tuple[int, bytes]:
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line)
        return int(head.split()[1]), await self.reader.readexactly(length)

    async def closed(self) -> bytes:
        """Everything that comes until the connection is closed."""
        data = b""
        with suppress(ConnectionError):
            while more := await self.reader.read(4096):
                data += more
        return data


def body(uid: str = "u0", seq: int = 1, **changes: Any) -> bytes:
    said = {"protocol": 1, "job": JOB, "jobUid": "j", "slot": int(uid[1:]), "incarnation": 0, "uid": uid, "bootId": "b",
            "seq": seq, "state": "Ready", "port": 1234}  # fmt: skip
    return json.dumps({**said, **changes}).encode()


def request(path: str, uid: str = "u0", token: str | None = None, **changes: Any) -> bytes:
    data = body(uid, **changes)
    token = f"token-of-{uid}" if token is None else token
    head = f"POST {path} HTTP/1.1\r\nHost: c\r\nAuthorization: Bearer {token}\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


class Coordinator:
    def __init__(self) -> None:
        self.refused: Counter[Reason] = Counter()
        self.mailbox = Mailbox(lambda: 1000.0, lambda _: None)
        self.endpoint: Endpoint
        self.tls = False
        self._peers: list[Peer] = []

    async def authenticate(self, token: str, report: Report, _: str) -> Reason | None:
        return None if token == f"token-of-{report.uid}" else Reason.NOT_THE_MEMBERS

    def publish(self, generation: int = 1) -> None:
        members = [MemberStatus(rank=0, slot=0, uid="u0", address="127.0.0.1")]
        world = WorldStatus(
            generation=generation, run_id="r", master_slot=0, master_address="127.0.0.1", master_port=1, members=members
        )
        self.mailbox.publish(JOB, "j", JobStatus(phase="Starting", slots=[SlotStatus(slot=0, uid="u0")], world=world))

    async def connect(self, source: str = "127.0.0.1", *, hello: bool = True) -> Peer:
        """`hello`: with TLS, where that is spoken."""
        tls: dict[str, Any] = {"ssl": client_context(), "server_hostname": "localhost"} if self.tls and hello else {}
        reader, writer = await asyncio.open_connection(*self.endpoint.address, local_addr=(source, 0), **tls)
        peer = Peer(reader, writer)
        self._peers.append(peer)
        return peer

    async def hang_up(self) -> None:
        for peer in self._peers:
            peer.writer.transport.abort()

    async def waiting(self, uid: str = "u0") -> Peer:
        """A member that holds a wait."""
        peer = await self.connect()
        await peer.post("/v1/wait", uid, after="run:1")
        while self.mailbox.heard(JOB, uid) is None:  # noqa: ASYNC110  # no event for it
            await asyncio.sleep(0.001)
        return peer


@asynccontextmanager
async def coordinator(limits: Limits | None = None, *, tls: bool = False) -> AsyncIterator[Coordinator]:
    it = Coordinator()
    it.tls = tls

    def refused(reason: Reason) -> None:
        it.refused[reason] += 1

    app = create_app(it.mailbox, it.authenticate, lambda: True, limits=limits, refused=refused)
    it.endpoint = Endpoint(app, tls=server_context() if tls else None, shutdown_timeout=0.1)
    await it.endpoint.start("127.0.0.1")
    it.publish()
    try:
        yield it
    finally:
        await it.hang_up()
        await it.endpoint.stop()


def run(test: Callable[[Coordinator], Awaitable[None]], limits: Limits | None = None, *, tls: bool = False) -> None:
    async def main() -> None:
        async with coordinator(limits, tls=tls) as it:
            await test(it)

    asyncio.run(main())


HURRIED = Limits(handshake=0.3, show_token=0.3, body=0.3, idle=0.6)

HALVES = {
    "nothing": b"",
    "half a line": b"POST /v1/wa",
    "half a head": b"POST /v1/wait HTTP/1.1\r\nHost: c\r\nAuthor",
    "half a body": request("/v1/wait")[:-5],
    "no body": request("/v1/wait").split(b"\r\n\r\n")[0] + b"\r\n\r\n",
    "half a chunk": b"POST /v1/wait HTTP/1.1\r\nHost: c\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n{",
}


@pytest.mark.parametrize("tls", [False, True], ids=["http", "tls"])
@pytest.mark.parametrize("half", HALVES)
def test_a_request_that_is_never_finished_is_closed_in_time(half: str, tls: bool) -> None:
    async def test(it: Coordinator) -> None:
        peer = await it.connect()
        await peer.send(HALVES[half])
        assert await peer.closed() == b""
        assert it.refused == {Reason.NO_TOKEN: 1}
        assert it.endpoint.connections.strangers == 0

    run(test, HURRIED, tls=tls)


@pytest.mark.parametrize("hello", [b"", b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 600])
def test_a_handshake_that_is_never_finished_is_closed_in_time(hello: bytes) -> None:
    async def test(it: Coordinator) -> None:
        peer = await it.connect(hello=False)
        await peer.send(hello)
        await peer.closed()
        assert sum(it.refused.values()) == 1
        assert it.endpoint.connections.strangers == 0

    run(test, HURRIED, tls=True)


def test_bytes_that_come_one_by_one_do_not_give_a_stranger_more_time() -> None:
    async def test(it: Coordinator) -> None:
        peer = await it.connect()
        drip = asyncio.create_task(_drip(peer))
        await peer.closed()
        drip.cancel()
        assert it.refused == {Reason.NO_TOKEN: 1}

    run(test, HURRIED)


async def _drip(peer: Peer) -> None:
    for byte in request("/v1/wait") * 100:
        await peer.send(bytes([byte]))
        await asyncio.sleep(0.02)


def test_a_member_that_sends_half_a_second_request_is_closed_and_one_that_waits_is_not() -> None:
    async def test(it: Coordinator) -> None:
        held = await it.waiting()
        peer = await it.connect()
        await peer.post("/v1/report", "u1")
        assert (await peer.answer())[0] == 200
        await peer.send(request("/v1/report", "u1", seq=2)[:-5])
        assert await peer.closed() == b""
        assert it.refused == {Reason.IDLE: 1}
        await asyncio.sleep(HURRIED.idle)
        it.publish(generation=2)
        assert b'"run:2"' in (await held.answer())[1]

    run(test, HURRIED)


@pytest.mark.parametrize("tls", [False, True], ids=["http", "tls"])
def test_heads_and_bodies_without_an_end_are_not_read_for_long(tls: bool) -> None:
    async def test(it: Coordinator) -> None:
        for start, more in [
            (b"POST /v1/wait HTTP/1.1\r\n", b"X-More: " + b"x" * 4000 + b"\r\n"),
            (b"POST /v1/wait HTTP/1.1\r\nX: ", b"x" * 4096),
            (b"POST /v1/wait HTTP/1.1\r\nHost: c\r\nTransfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + b" " * 4096 + b"\r\n"),
            (b"POST /v1/wait HTTP/1.1\r\nHost: c\r\nContent-Length: 1000000000\r\n\r\n", b" " * 4096),
        ]:  # fmt: skip
            peer = await it.connect()
            await peer.send(start)
            sent = 0
            while not peer.reader.at_eof() and not peer.writer.is_closing() and sent < 50_000_000:
                await peer.send(more)
                await asyncio.sleep(0)
                sent += len(more)
            assert sent < 50_000_000
        assert it.endpoint.connections.strangers == 0

    run(test, tls=tls)


def test_fifteen_hundred_half_sent_heads_displace_no_member_and_keep_none_out() -> None:
    limits = Limits(opened_at_once=10_000)

    async def test(it: Coordinator) -> None:
        held = await it.waiting()
        for i in range(1500):
            attacker = await it.connect(ATTACKER if i % 2 else OTHER)
            await attacker.send(HALVES["half a head"])
        assert it.endpoint.connections.strangers <= 2 * limits.strangers_of_one_peer
        newcomer = await it.connect()
        await newcomer.post("/v1/report", "u1")
        assert (await newcomer.answer())[0] == 200
        it.publish(generation=2)
        assert b'"run:2"' in (await held.answer())[1]
        assert it.refused[Reason.PEER_CONNECTIONS] >= 1500 - 2 * limits.strangers_of_one_peer

    run(test, limits)


def test_an_address_that_opens_connections_in_a_loop_is_turned_away() -> None:
    async def test(it: Coordinator) -> None:
        for _ in range(30):
            with suppress(OSError):
                await it.connect(ATTACKER)
        newcomer = await it.connect()
        await newcomer.post("/v1/report")
        assert (await newcomer.answer())[0] == 200
        assert it.refused[Reason.PEER_RATE] >= 15

    run(test, Limits(opened_at_once=10, opened_per_second=0.1))


def test_a_connection_whose_token_is_refused_gets_no_second_try() -> None:
    async def test(it: Coordinator) -> None:
        for sent, code in [
            (request("/v1/report", token="junk"), b"403"),
            (request("/v1/report", state="Happy"), b"400"),
            (request("/v1/nothing"), b"404"),
            (request("/v1/report", job="x" * 70_000), b"413"),
        ]:
            peer = await it.connect()
            await peer.send(sent)
            assert (await peer.closed()).startswith(b"HTTP/1.1 " + code)
        assert it.endpoint.connections.strangers == 0
        assert it.refused == {Reason.NOT_THE_MEMBERS: 1, Reason.NOT_A_REPORT: 1, Reason.TOO_LARGE: 1}

    run(test)


def test_a_pod_has_few_connections_and_its_newest_stay() -> None:
    async def test(it: Coordinator) -> None:
        peers = []
        for seq in range(6):
            peers.append(await it.connect())
            await peers[-1].post("/v1/report", seq=seq)
            assert (await peers[-1].answer())[0] == 200
        for peer in peers[:2]:
            assert await peer.closed() == b""
        for peer in peers[2:]:
            await peer.post("/v1/report", seq=9)
            assert (await peer.answer())[0] == 200
        assert it.refused == {Reason.POD_CONNECTIONS: 2}

    run(test)


def test_a_pod_that_says_too_much_waits_and_another_does_not() -> None:
    async def test(it: Coordinator) -> None:
        chatty, quiet = await it.connect(), await it.connect()
        for seq in range(7):  # by the first, the pod is known
            await chatty.post("/v1/report", seq=seq)
        for _ in range(6):
            await chatty.answer()
        last = asyncio.create_task(chatty.answer())
        await quiet.post("/v1/report", "u1")
        assert (await quiet.answer())[0] == 200
        assert not last.done()
        last.cancel()
        assert it.refused == {Reason.POD_RATE: 1}

    run(test, Limits(reports_at_once=5, reports_per_second=0.1))


def test_what_is_not_http_is_refused_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    junk = [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"A" * 9000, b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"\x00" * 64,
            b"POST /v1/wait HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/wait HTTP/1.1\r\n x\r\n\r\n"]  # fmt: skip

    async def test(it: Coordinator) -> None:
        for data in junk:
            peer = await it.connect()
            await peer.send(data + b"\r\n\r\n")
            await peer.closed()

    with caplog.at_level(logging.INFO):
        run(test)
    assert [r for r in caplog.records if r.exc_info or r.levelno >= logging.ERROR] == []


def test_a_tls_connection_has_a_small_buffer() -> None:
    """With the 256 KiB that asyncio sets aside, 20 connections hold more than 5 MiB."""
    number = 20

    async def test(it: Coordinator) -> None:
        await it.connect()  # what the first one needs
        tracemalloc.start()
        before = tracemalloc.take_snapshot()
        for _ in range(number):
            await it.connect()
        while it.endpoint.connections.strangers < number + 1:  # noqa: ASYNC110  # no event for it
            await asyncio.sleep(0.001)
        found = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*sslproto.py")])
        grown = sum(s.size_diff for s in found.compare_to(before.filter_traces([tracemalloc.Filter(True, "*sslproto.py")]), "filename"))  # fmt: skip
        tracemalloc.stop()
        # The clients live in this process too, and each connection has an end there.
        assert 2 * number * TLS_BUFFER_BYTES <= grown < 2 * number * 2 * TLS_BUFFER_BYTES

    run(test, tls=True)
    assert SSLProtocol.max_size == 16 * KIB


def test_this_process_may_open_as_many_files_as_it_may_have_connections() -> None:
    assert allow_open_files(64) == 64


def test_who_comes_while_the_endpoint_stops_is_closed() -> None:
    async def test(it: Coordinator) -> None:
        half = await it.connect(hello=False)
        held = await it.waiting()
        await it.endpoint.stop()
        await half.closed()
        await held.closed()
        assert list(it.endpoint.connections) == []

    run(test, tls=True)
