"""DNS for the cluster's Services: answers A questions from what the API server says at that moment.

`python dns.py KUBECONFIG ADDRESS`; names outside the cluster's domain do not exist here. Standard library only.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import socketserver
import ssl
import struct
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

DOMAIN = "cluster.local"
TYPE_A, CLASS_IN = 1, 1
NO_ERROR, SERVER_FAILURE, NO_SUCH_NAME = 0, 2, 3
TTL = 1  # seconds: members come and go


class Api:
    """Reads Services and Endpoints by name."""

    def __init__(self, kubeconfig: Path) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        self.address = urlsplit(cluster["server"]).netloc
        self.token = config["users"][0]["user"]["token"]
        self.tls = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())

    def find(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        # a list, because that is what Kubernetes' own role for DNS allows
        path = f"/api/v1/namespaces/{quote(namespace)}/{kind}?fieldSelector=metadata.name%3D{quote(name)}"
        connection = http.client.HTTPSConnection(self.address, context=self.tls, timeout=5)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self.token}"})
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise ConnectionError(f"{path}: {response.status}")
        items = json.loads(body)["items"]
        return items[0] if items else None


def lookup(api: Api, name: str) -> list[str] | None:
    """The addresses of `[hostname.]service.namespace.svc.cluster.local`, or None when there is no such name."""
    suffix = f".svc.{DOMAIN}"
    if not name.endswith(suffix):
        return None
    labels = name.removesuffix(suffix).split(".")
    if len(labels) not in {2, 3}:
        return None
    service_name, namespace = labels[-2:]
    service = api.find("services", namespace, service_name)
    if service is None:
        return None
    cluster_ip = service["spec"].get("clusterIP", "")
    if cluster_ip != "None":
        return [cluster_ip] if len(labels) == 2 else None
    endpoints = api.find("endpoints", namespace, service_name) or {}
    found = endpoint_addresses(endpoints, service["spec"].get("publishNotReadyAddresses", False))
    chosen = [address for address, hostname in found if len(labels) == 2 or hostname == labels[0]]
    return chosen or None


def endpoint_addresses(endpoints: dict[str, Any], not_ready_too: bool) -> list[tuple[str, str]]:
    """(address, hostname) of each endpoint."""
    keys = ("addresses", "notReadyAddresses") if not_ready_too else ("addresses",)
    return sorted(
        {
            (entry["ip"], entry.get("hostname", ""))
            for subset in endpoints.get("subsets") or []
            for key in keys
            for entry in subset.get(key) or []
        }
    )


def question_of(query: bytes) -> tuple[str, int, bytes]:
    """(name in lower case, type, the raw question section). Raises ValueError on what is not one plain question."""
    if len(query) < 17 or query[2] & 0x80 or query[4:6] != b"\0\1":
        raise ValueError("not a question")
    labels, at = [], 12
    while (length := query[at]) != 0:
        if length > 63:
            raise ValueError("a compressed name in a question")
        labels.append(query[at + 1 : at + 1 + length].decode("ascii").lower())
        at += 1 + length
        if at + 4 >= len(query):
            raise ValueError("the question is cut")
    (kind,) = struct.unpack_from("!H", query, at + 1)
    return ".".join(labels), kind, query[12 : at + 5]


def answer(query: bytes, code: int, question: bytes, addresses: list[str]) -> bytes:
    """A response with recursion available, as resolvers expect it."""
    flags = 0x8400 | (query[2] & 1) << 8 | 0x0080 | code
    header = query[:2] + struct.pack("!HHHHH", flags, 1, len(addresses), 0, 0)
    records = [b"\xc0\x0c" + struct.pack("!HHIH", TYPE_A, CLASS_IN, TTL, 4) + socket.inet_aton(a) for a in addresses]
    return header + question + b"".join(records)


def respond(api: Api, query: bytes) -> bytes | None:
    try:
        name, kind, question = question_of(query)
    except (ValueError, IndexError, UnicodeDecodeError):
        return None
    try:
        addresses = lookup(api, name)
    except (OSError, http.client.HTTPException, ValueError):
        return answer(query, SERVER_FAILURE, question, [])
    if addresses is None:
        return answer(query, NO_SUCH_NAME, question, [])
    return answer(query, NO_ERROR, question, addresses if kind == TYPE_A else [])


class Server(socketserver.ThreadingUDPServer):
    allow_reuse_address = True
    daemon_threads = True


def main() -> None:
    api = Api(Path(sys.argv[1]))

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            query, sock = self.request
            response = respond(api, query)
            if response is not None:
                sock.sendto(response, self.client_address)

    with Server((sys.argv[2], 53), Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
