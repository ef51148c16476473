"""The coordinator's HTTP side: reports in, commands out."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web
from pydantic import ValidationError

from relight_operator.coordinator.connections import Connection, Connections
from relight_operator.coordinator.endpoint import CONNECTIONS, connection_of
from relight_operator.coordinator.limits import Limits, Reason
from relight_operator.coordinator.mailbox import Mailbox
from relight_operator.coordinator.wire import WAIT_SECONDS, Report, command_body

Authenticate = Callable[[str, Report, str], Awaitable[Reason | None]]


def create_app(
    mailbox: Mailbox,
    authenticate: Authenticate,
    may_answer: Callable[[], bool],
    *,
    limits: Limits | None = None,
    refused: Callable[[Reason], None] = lambda _: None,
) -> web.Application:
    """`authenticate(token, report, peer)` is None where the token belongs to that very member.

    Else it is the reason: NOT_THE_MEMBERS is a 403, and what says that the token cannot be checked now is a 503.
    `may_answer`: whether this coordinator may speak at all (it leads, and its lease is valid); else 503. `refused` is
    called for each request that is refused and each connection that is closed. `Endpoint` serves the app.
    """
    limits = limits or Limits()
    connections = Connections(limits, time.monotonic, refused)
    app = web.Application(client_max_size=limits.body_bytes, middlewares=[_within_limits])
    app[CONNECTIONS] = connections
    desk = _Desk(mailbox, authenticate, may_answer, connections)
    app.router.add_post("/v1/report", desk.report)
    app.router.add_post("/v1/wait", desk.wait)
    return app


@web.middleware
async def _within_limits(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Only who has shown a valid token may make another request on the same connection."""
    connections, connection = request.app[CONNECTIONS], connection_of(request)
    connections.began(connection)
    answer: web.StreamResponse
    try:
        answer = await handler(request)
    except web.HTTPException as error:
        if not connection.pod:
            error.force_close()
        raise
    finally:
        connections.ended(connection)
    return answer


@dataclass(frozen=True)
class _Desk:
    """Takes what agents say."""

    mailbox: Mailbox
    authenticate: Authenticate
    may_answer: Callable[[], bool]
    connections: Connections

    async def report(self, request: web.Request) -> web.Response:
        report = await self._receive(request)
        return web.json_response({"taken": self.mailbox.post(report)})

    async def wait(self, request: web.Request) -> web.Response:
        report = await self._receive(request)
        self.mailbox.post(report)
        self.connections.holds(connection_of(request))
        try:
            command = await self.mailbox.wait(report, WAIT_SECONDS)
        except asyncio.CancelledError:  # its agent has hung up: see Endpoint
            self.mailbox.hang_up(report)
            raise
        if command is None or not self.may_answer():
            raise web.HTTPServiceUnavailable(text="nothing is known of this job yet")
        return web.json_response(command_body(command))

    async def _receive(self, request: web.Request) -> Report:
        connection = connection_of(request)
        await self._take_turn(connection)
        if not self.may_answer():
            raise web.HTTPServiceUnavailable(text="this coordinator does not lead now")
        try:
            data = await request.read()
        except web.HTTPRequestEntityTooLarge:
            self.connections.refused(Reason.TOO_LARGE)
            raise
        try:
            report = Report.model_validate_json(data)
        except ValidationError as error:
            self.connections.refused(Reason.NOT_A_REPORT)
            raise web.HTTPBadRequest(text=_first(error)) from None
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        await self._identify(connection, token, report)
        return report

    async def _take_turn(self, connection: Connection) -> None:
        """A pod that says too much waits. Nothing may come between a token's check and what is done on it."""
        if connection.pod and (seconds := self.connections.delay(connection.pod)) > 0:
            self.connections.holds(connection)
            await asyncio.sleep(seconds)
            self.connections.began(connection)

    async def _identify(self, connection: Connection, token: str, report: Report) -> None:
        reason = await self.authenticate(token, report, connection.peer)
        if reason is Reason.NOT_THE_MEMBERS:
            self.connections.refused(reason)
            raise web.HTTPForbidden(text="the token is not this member's")
        if reason is not None:
            self.connections.refused(reason)
            raise web.HTTPServiceUnavailable(text="the token cannot be checked now")
        self.connections.identify(connection, report.uid)


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(p) for p in problem['loc'])}: {problem['msg']}"
