"""The coordinator's HTTP side: reports in, commands out."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

from aiohttp import web
from pydantic import ValidationError

from relight_operator.coordinator.mailbox import Mailbox
from relight_operator.coordinator.wire import MAX_BODY_BYTES, WAIT_SECONDS, Report, command_body

Verdict = Literal["yes", "no", "unknown"]
Authenticate = Callable[[str, Report], Awaitable[Verdict]]


def create_app(mailbox: Mailbox, authenticate: Authenticate, may_answer: Callable[[], bool]) -> web.Application:
    """`authenticate(token, report)` says whether the token belongs to that very member; "unknown" is a 503.

    `may_answer`: whether this coordinator may speak at all (it leads, and its lease is valid); else 503.
    """

    async def receive(request: web.Request) -> Report:
        if not may_answer():
            raise web.HTTPServiceUnavailable(text="this coordinator does not lead now")
        try:
            report = Report.model_validate_json(await request.read())
        except ValidationError as error:
            raise web.HTTPBadRequest(text=_first(error)) from None
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        verdict = await authenticate(token, report)
        if verdict == "no":
            raise web.HTTPForbidden(text="the token is not this member's")
        if verdict == "unknown":
            raise web.HTTPServiceUnavailable(text="the token cannot be checked now")
        return report

    async def report_handler(request: web.Request) -> web.Response:
        report = await receive(request)
        return web.json_response({"taken": mailbox.post(report)})

    async def wait_handler(request: web.Request) -> web.Response:
        report = await receive(request)
        mailbox.post(report)
        try:
            command = await mailbox.wait(report, WAIT_SECONDS)
        except asyncio.CancelledError:  # see runner_of
            mailbox.hang_up(report)
            raise
        if command is None or not may_answer():
            raise web.HTTPServiceUnavailable(text="nothing is known of this job yet")
        return web.json_response(command_body(command))

    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.router.add_post("/v1/report", report_handler)
    app.router.add_post("/v1/wait", wait_handler)
    return app


def runner_of(app: web.Application, *, shutdown_timeout: float) -> web.AppRunner:
    """What serves `create_app`'s: the handler of a request is cancelled when whoever has made it hangs up."""
    return web.AppRunner(app, access_log=None, shutdown_timeout=shutdown_timeout, handler_cancellation=True)


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(p) for p in problem['loc'])}: {problem['msg']}"
