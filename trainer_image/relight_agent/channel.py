"""The agent's side of the coordinator: JSON over HTTP(S), token and CA re-read for each request."""

import email.utils
import http.client
import json
import ssl
import time
import urllib.parse
from pathlib import Path
from typing import Any, Dict, Optional

CONNECT_TIMEOUT_SECONDS = 2.0
MAX_ANSWER_BYTES = 1 << 20


class Refused(Exception):
    """The coordinator said a definite no (401, 403)."""


class Unreachable(Exception):
    """No coordinator, or one that cannot answer now (503): try again."""


class Channel:
    """One kept-alive connection; not for use by two threads at a time."""

    def __init__(self, url: str, token_file: str = "", ca_file: str = "") -> None:
        self._url = url
        self._token_file = token_file
        self._ca_file = ca_file
        self._connection: Optional[http.client.HTTPConnection] = None
        self._connected_to = ""
        self.ahead: Optional[float] = None  # seconds by which our clock is before the other's, as it said last

    def post(self, path: str, body: Dict[str, Any], *, timeout: float) -> Dict[str, Any]:
        """The answer's JSON object. Raises Refused or Unreachable, nothing else."""
        try:
            url = self._resolve()
            headers = {"Content-Type": "application/json"}
            if self._token_file:
                headers["Authorization"] = "Bearer " + Path(self._token_file).read_text(encoding="ascii").strip()
            data = json.dumps(body, allow_nan=False).encode()
            connection = self._connect(url)
            if connection.sock is not None:
                connection.sock.settimeout(timeout)
            connection.request("POST", path, data, headers)
            response = connection.getresponse()
            self._compare_clocks(response.getheader("Date"))
            answer = response.read(MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise Unreachable(f"{type(error).__name__}: {error}") from error
        if response.status in (401, 403):
            raise Refused(answer.decode("utf-8", "replace")[:200])
        if response.status != 200:
            self.close()
            raise Unreachable(f"HTTP {response.status}")
        try:
            value = json.loads(answer)
        except ValueError as error:
            raise Unreachable("the answer is not JSON") from error
        return value if isinstance(value, dict) else {}

    def _compare_clocks(self, date: Optional[str]) -> None:
        try:
            self.ahead = time.time() - email.utils.parsedate_to_datetime(date or "").timestamp()
        except (TypeError, ValueError):
            pass  # no such header, or not a date

    def _resolve(self) -> str:
        """A `file://` address names a file that holds the address: a coordinator may come back at another port."""
        if self._url.startswith("file://"):
            return Path(self._url[len("file://") :]).read_text(encoding="ascii").strip()
        return self._url

    def _connect(self, url: str) -> http.client.HTTPConnection:
        if self._connection is not None and self._connected_to == url and self._connection.sock is not None:
            return self._connection
        self.close()
        parts = urllib.parse.urlsplit(url)
        if not parts.hostname:
            raise ValueError(f"not an address: {url!r}")
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=self._ca_file or None)
            connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=CONNECT_TIMEOUT_SECONDS, context=context
            )
        else:
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=CONNECT_TIMEOUT_SECONDS)
        connection.connect()
        self._connection, self._connected_to = connection, url
        return connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
