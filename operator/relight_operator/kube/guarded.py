"""An aiohttp session for kopf whose answers `decode` has read: what kopf parses afterwards can be parsed, and is small.

Kopf parses pages and watch events by itself and without a guard: one object that is nested too deep would end the watch
of all objects of its kind.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any, Self, cast
from urllib.parse import urlsplit

import aiohttp
import kopf

from relight_operator.kube import decode
from relight_operator.kube.client import IN_A_THREAD_BYTES, KEPT

MAX_LINE_BYTES = 16 << 20  # of a watch event; a server stores no more than a few megabytes

_log = logging.getLogger(__name__)


def credentials(found: Any) -> Any:
    """What `found`, a kopf.ConnectionInfo, says, with a session that guards what it reads: a kopf.AiohttpSession.

    To be called in the loop that will use it.
    """
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=found.as_ssl_context()),
        headers=found.as_http_headers(),
        proxy=found.proxy_url,
        trust_env=found.trust_env,
    )
    return kopf.AiohttpSession(
        server=found.server,
        priority=found.priority,
        default_namespace=found.default_namespace,
        expiration=found.expiration,
        aiohttp_session=cast("aiohttp.ClientSession", _Session(session)),
    )


def keep_of(url: str) -> decode.Keep:
    """What is kept of the objects that a request to `url` shows. A Status, or a bookmark, is small by itself."""
    plural = urlsplit(url).path.rpartition("/")[2]
    kept = next((k for resource, k in KEPT.items() if resource.plural == plural), lambda whole: whole)

    def keep(body: dict[str, Any]) -> Any:
        if body.get("kind") == "Status":
            return body
        return {**{k: body[k] for k in ("apiVersion", "kind") if k in body}, **kept(body)}

    return keep


class _Session:
    """As much of an aiohttp.ClientSession as kopf uses."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def request(self, **asked: Any) -> "_Response":
        return _Response(await self._session.request(**asked), keep_of(str(asked["url"])))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


class _Response:
    """As much of an aiohttp.ClientResponse as kopf uses."""

    def __init__(self, response: aiohttp.ClientResponse, keep: decode.Keep) -> None:
        self._response = response
        self._keep = keep

    async def json(self) -> Any:
        data = await self._response.read()
        try:
            return await asyncio.to_thread(decode.read, data, self._keep)
        except decode.Unreadable as error:
            if self._response.status < 400:
                raise aiohttp.ClientPayloadError(str(error)) from None  # kopf asks again
            raise json.JSONDecodeError(str(error), "", 0) from None  # kopf takes the text instead

    @property
    def content(self) -> "_Events":
        return _Events(self._response.content, self._keep)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._response.release()
        await self._response.wait_for_close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._response, name)


class _Events:
    """The body of a watch. A line that is too long or no JSON is left out: the next list has its object."""

    def __init__(self, content: aiohttp.StreamReader, keep: decode.Keep) -> None:
        self._content = content
        self._keep = keep

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        async for line in lines(self._content.iter_chunked(size)):
            try:
                event = (
                    await asyncio.to_thread(decode.read, line, self._keep)
                    if len(line) > IN_A_THREAD_BYTES
                    else decode.read(line, self._keep)
                )
            except decode.Unreadable as error:
                _log.warning("an event of a watch cannot be read: %s", error)
                decode.lost["events"] += 1
                continue
            yield json.dumps(event).encode() + b"\n"


async def lines(chunks: AsyncIterator[bytes], most: int = MAX_LINE_BYTES) -> AsyncIterator[bytes]:
    """The lines in `chunks`, without those of more than `most` bytes."""
    parts, length = list[bytes](), 0
    async for chunk in chunks:
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            if length + len(end) <= most and (line := b"".join((*parts, end))).strip():
                yield line
            parts, length = [], 0
        length += len(rest)
        if length <= most:
            parts.append(rest)
        else:
            parts = []
    if parts and length <= most and (line := b"".join(parts)).strip():
        yield line
