"""The coordinator's listening socket: every connection passes `Connections` before a byte of it is read.

aiohttp's own sites hand a connection over after its TLS handshake, with 256 KiB of buffer and no bound on how many there
are. Here sockets are accepted one by one, and what comes in on them is counted.
"""

import asyncio
import errno
import logging
import resource
import socket
import ssl
from asyncio.sslproto import SSLProtocol
from contextlib import suppress

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from relight_operator.coordinator.connections import Connection, Connections
from relight_operator.coordinator.limits import Reason

TLS_BUFFER_BYTES = 16 * 1024  # the most that a TLS record holds (RFC 8446, 5.1)
BACKLOG = 1024
SWEEP_SECONDS = 0.5  # how late an overdue connection may be closed
LINGER_SECONDS = 1.0  # for which the rest of a refused request is read, so that its sender gets the answer
CLOSE_SECONDS = 2.0  # for the closing words of TLS
ACCEPT_AT_ONCE = 16  # before others have their turn
OTHER_FILES = 256  # open files of this process that are no connections of agents
NO_FILES_SECONDS = 1.0  # without a file descriptor to be had, until the next try

CONNECTIONS = web.AppKey("connections", Connections)
OPEN = web.AppKey("open", dict)

_log = logging.getLogger(__name__)


class _OwnFaults(logging.Filter):
    """Drops what aiohttp logs, with a traceback, of each request that is not HTTP: anybody could fill the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_http_log = logging.getLogger(f"{__name__}.http")
_http_log.addFilter(_OwnFaults())


def connection_of(request: web.Request) -> Connection:
    """The one on which the request has come in."""
    connection: Connection = request.app[OPEN][request.protocol]
    return connection


def use_small_tls_buffers() -> None:
    """Let each TLS connection of this process have a buffer of one record, in place of 256 KiB.

    `asyncio.sslproto` reads into the buffer in a loop until nothing is left, so a smaller one only takes more turns.
    The module is not documented: `test_a_tls_connection_has_a_small_buffer` fails where a Python has no such attribute.
    """
    SSLProtocol.max_size = TLS_BUFFER_BYTES


def allow_open_files(wanted: int) -> int:
    """Raise this process's soft limit of open files to `wanted`, or as far as it may go; the limit then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed


class _Watched(asyncio.Protocol):
    """Between a transport and aiohttp's protocol: counts what comes in, and can end the connection at any time."""

    def __init__(self, endpoint: "Endpoint", handler: "web.RequestHandler") -> None:
        self._endpoint = endpoint
        self._handler = handler
        self.transport: asyncio.Transport | None = None
        self.connecting: asyncio.Task[None] | None = None
        self.connection: Connection | None = None

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()
        elif self.connecting is not None:  # in the handshake
            self.connecting.cancel()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        assert self.connection is not None
        self.transport = transport
        self._endpoint.open[self._handler] = self.connection
        self._handler.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        assert self.connection is not None
        self._endpoint.connections.received(self.connection, len(data))
        if self.connection.open:
            self._handler.data_received(data)

    def eof_received(self) -> None:
        self._handler.eof_received()

    def pause_writing(self) -> None:
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._handler.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        assert self.connection is not None
        self._endpoint.connections.remove(self.connection)
        self._handler.connection_lost(exc)
        self._endpoint.open.pop(self._handler, None)


class Endpoint:
    """Serves an app of `server.create_app`, from `start` to `stop`; over TLS with a context.

    The handler of a request is cancelled when whoever has made it hangs up.
    """

    def __init__(self, app: web.Application, *, tls: ssl.SSLContext | None = None, shutdown_timeout: float) -> None:
        self.connections = app[CONNECTIONS]
        self.open: dict[web.RequestHandler, Connection] = {}
        app[OPEN] = self.open
        self._tls = tls
        self._runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=shutdown_timeout,
            handler_cancellation=True,
            lingering_time=LINGER_SECONDS,
            logger=_http_log,
        )
        self._socket: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._connecting: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, once it has been started."""
        assert self._socket is not None
        host, port = self._socket.getsockname()[:2]
        return str(host), int(port)

    async def start(self, host: str = "", port: int = 0) -> None:
        """`host`: "" for every address of the machine. Raises OSError where it cannot listen."""
        wanted = self.connections.limits.connections + OTHER_FILES
        if (allowed := allow_open_files(wanted)) < wanted:
            _log.warning("this process may open %d files: with more agents than that, some wait", allowed)
        if self._tls is not None:
            use_small_tls_buffers()
        await self._runner.setup()
        self._socket = _listening(host, port)
        self._tasks = {asyncio.create_task(self._accept(self._socket)), asyncio.create_task(self._sweep())}

    async def stop(self) -> None:
        for task in (*self._tasks, *self._connecting):
            task.cancel()
        if others := {*self._tasks, *self._connecting}:
            await asyncio.wait(others)
        if self._socket is not None:
            self._socket.close()
        await self._runner.cleanup()
        self.connections.close_all()

    async def _accept(self, listening: socket.socket) -> None:
        loop, said, taken = asyncio.get_running_loop(), False, 0
        while True:
            try:
                accepted, address = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno not in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                    continue  # it was gone before it was taken
                if not said:
                    _log.error("no connection of an agent can be taken now: %s", error)
                said = True
                await asyncio.sleep(NO_FILES_SECONDS)
                continue
            self._take(accepted, str(address[0]))
            taken += 1
            if taken % ACCEPT_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _take(self, accepted: socket.socket, peer: str) -> None:
        server = self._runner.server
        assert server is not None
        watched = _Watched(self, server())
        watched.connection = self.connections.admit(peer, watched.close)
        if watched.connection is None:
            accepted.close()
            return
        watched.connecting = asyncio.create_task(self._connect(accepted, watched, watched.connection))
        self._connecting.add(watched.connecting)
        watched.connecting.add_done_callback(self._connecting.discard)

    async def _connect(self, accepted: socket.socket, watched: _Watched, connection: Connection) -> None:
        limits = self.connections.limits
        timeouts = (
            {} if self._tls is None
            else {"ssl_handshake_timeout": limits.handshake, "ssl_shutdown_timeout": CLOSE_SECONDS}
        )  # fmt: skip
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: watched, accepted, ssl=self._tls, **timeouts
            )
        except OSError:  # ssl.SSLError is one
            if connection.open:
                self.connections.refused(Reason.TLS)
        finally:
            if watched.transport is None:
                self.connections.remove(connection)
                with suppress(OSError):
                    accepted.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.connections.close_overdue()


def _listening(host: str, port: int) -> socket.socket:
    listening: socket.socket | None = None
    if not host and socket.has_dualstack_ipv6():
        with suppress(OSError):  # a kernel with IPv6 turned off
            listening = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG)
    if listening is None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    listening.setblocking(False)
    return listening
