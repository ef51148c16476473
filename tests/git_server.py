"""A git server behind a password, over HTTP or HTTPS, and a repository for it."""

import base64
import contextlib
import datetime as dt
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from relight_operator.kube.certs import load_into, new_authority, new_leaf

TOKEN = "s3cr3t-t0ken-0815"
GIT = {
    "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
    "PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "HOME": "/nowhere",
}  # fmt: skip


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, env=GIT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def where_others_read() -> str:
    """All command lines and environments that can be read now."""
    texts = []
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                texts.append((process / name).read_bytes().decode(errors="replace"))
            except OSError:
                continue
    return "\n".join(texts)


class Server(ThreadingHTTPServer):
    """`git http-backend` behind a password; what others could read during each request is kept."""

    def __init__(self, root: Path, address: str) -> None:
        super().__init__((address, 0), Handler)
        self.root = root
        self.seen: list[str] = []
        self.answered = 0
        self.authorizations: list[str] = []  # what clients have shown
        self.redirect_to = ""  # another server, to which all requests are sent
        self.authority = ""  # the certificate of its CA, where it speaks TLS

    def speak_tls(self) -> None:
        now = dt.datetime.now(dt.UTC)
        authority = new_authority(now)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        load_into(context, new_leaf(authority, ["localhost", self.server_address[0]], now))
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.authority = authority.bundle()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.seen.append(where_others_read())
        if shown := self.headers.get("Authorization"):
            self.server.authorizations.append(shown)
        if self.server.redirect_to:
            self.send_response(302)
            self.send_header("Location", f"{self.server.redirect_to}{self.path}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        wanted = "Basic " + base64.b64encode(f"me:{TOKEN}".encode()).decode()
        if self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="x"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        done = subprocess.run(
            ["git", "http-backend"],
            env={
                **GIT, "GIT_PROJECT_ROOT": str(self.server.root), "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path,
                "QUERY_STRING": query, "REQUEST_METHOD": self.command, "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""), "CONTENT_LENGTH": str(len(body)),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""), "REMOTE_USER": "me",
            },
            input=body, capture_output=True, check=True,
        )  # fmt: skip
        head, _, data = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.server.answered += 1

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None: ...


@contextlib.contextmanager
def serving(root: Path, *, tls: bool = False, address: str = "127.0.0.1") -> Iterator[Server]:
    """A server of the repositories in `root`."""
    made = Server(root, address)
    if tls:
        made.speak_tls()
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


def new_repository(path: Path) -> Path:
    """A repository of two commits and a tag."""
    path.mkdir(parents=True)
    git(path, "init", "--quiet", "--initial-branch=main")
    (path / "train.py").write_text("print(1)\n")
    git(path, "add", ".")
    git(path, "commit", "--quiet", "-m", "one")
    git(path, "tag", "v1")
    push(path, "train.py", "print(2)\n")
    return path


def push(repository: Path, name: str, text: str) -> str:
    """Commit a file to the repository's branch; the commit."""
    (repository / name).write_text(text)
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", f"another {name}")
    return git(repository, "rev-parse", "HEAD")
