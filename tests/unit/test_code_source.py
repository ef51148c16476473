"""Code from git: pinned, and its token is nowhere that others can read."""

import base64
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from relight_trainer.code_source import Unreachable, WrongSource, check_url, fetch, main

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

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.seen: list[str] = []
        self.answered = 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.seen.append(where_others_read())
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


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of two commits and a tag."""
    path = tmp_path / "served" / "code.git"
    path.mkdir(parents=True)
    git(path, "init", "--quiet", "--initial-branch=main")
    (path / "train.py").write_text("print(1)\n")
    git(path, "add", ".")
    git(path, "commit", "--quiet", "-m", "one")
    git(path, "tag", "v1")
    (path / "train.py").write_text("print(2)\n")
    git(path, "commit", "--quiet", "-am", "two")
    return path


@pytest.fixture
def server(repository: Path) -> Iterator[Server]:
    made = Server(repository.parent)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.mkdir()
    (path / "username").write_text("me")
    (path / "password").write_text(TOKEN + "\n")
    return path


@pytest.mark.parametrize("ref", ["main", "v1", "commit"])
def test_a_revision_is_checked_out_and_named_by_its_commit(tmp_path: Path, repository: Path, ref: str) -> None:
    wanted = git(repository, "rev-parse", {"commit": "main~1"}.get(ref, ref))

    fetched = fetch(f"file://{repository}", wanted if ref == "commit" else ref, tmp_path / "code")

    assert fetched.commit == wanted
    assert (tmp_path / "code" / "train.py").read_text() == f"print({2 if ref == 'main' else 1})\n"


def test_the_token_is_nowhere_that_others_read(
    tmp_path: Path, server: Server, secret: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{server.server_port}/code.git"

    code = main([url, "main", str(tmp_path / "code"), "--secret", str(secret)])

    out, err = capfd.readouterr()
    assert (code, err) == (0, "")
    assert server.answered >= 2
    assert any("git fetch" in seen.replace("\0", " ") for seen in server.seen), "the sampling sees git at work"
    assert not any(TOKEN in seen for seen in server.seen)
    assert TOKEN not in out
    kept = [file for file in (tmp_path / "code").rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()]
    assert kept == []
    assert (tmp_path / "code" / "train.py").exists()


def test_a_wrong_token_is_refused_in_words_and_not_repeated(tmp_path: Path, server: Server, secret: Path) -> None:
    (secret / "password").write_text("wr0ng-t0ken")
    url = f"http://127.0.0.1:{server.server_port}/code.git"
    with pytest.raises(WrongSource, match="Authentication failed") as error:
        fetch(url, "main", tmp_path / "code", secret=secret)
    assert "wr0ng-t0ken" not in str(error.value)
    with pytest.raises(WrongSource, match=r"terminal prompts disabled|could not read Username"):
        fetch(url, "main", tmp_path / "other")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"https://me:{TOKEN}@host/x.git", "put it into a Secret"),
        (f"http://:{TOKEN}@host/x.git", "put it into a Secret"),
        ("ftp://host/x", "not a git URL"),
        ("x.git", "not a git URL"),
        ("--upload-pack=touch /tmp/x", "not a git URL"),
        ("ext::sh -c true", "not a git URL"),
    ],
)
def test_a_wrong_url_is_refused_and_a_password_in_it_not_repeated(url: str, words: str) -> None:
    with pytest.raises(WrongSource, match=words) as error:
        check_url(url)
    assert TOKEN not in str(error.value)
    assert error.value.exit_code == 64


@pytest.mark.parametrize(
    "url", ["https://host/x.git", "https://me@host/x.git", "git@host:me/x.git", "ssh://git@host:22/x", "file:///x"]
)
def test_git_urls_are_taken(url: str) -> None:
    check_url(url)


def test_what_is_not_there_is_told(tmp_path: Path, repository: Path, secret: Path) -> None:
    with pytest.raises(WrongSource, match="nowhere"):
        fetch(f"file://{repository}", "nowhere", tmp_path / "a")
    with pytest.raises(WrongSource, match="not a branch, tag or commit"):
        fetch(f"file://{repository}", "--upload-pack=x", tmp_path / "b")
    with pytest.raises(WrongSource, match="is not empty"):
        fetch(f"file://{repository}", "main", repository)
    with pytest.raises(Unreachable):
        fetch("http://127.0.0.1:1/x.git", "main", tmp_path / "c")
    (secret / "password").unlink()
    with pytest.raises(WrongSource, match="none of password, token and ssh-privatekey"):
        fetch(f"file://{repository}", "main", tmp_path / "d", secret=secret)
    (secret / "ssh-privatekey").write_text("key")
    with pytest.raises(WrongSource, match="lacks known_hosts"):
        fetch("git@host:x", "main", tmp_path / "e", secret=secret)
