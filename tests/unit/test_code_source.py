"""Code from git: pinned, and its token is nowhere that others can read."""

import base64
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.git_server import TOKEN, Server, git, new_repository, push, serving

from relight_operator.api.job import API_VERSION, KIND, CodeSpec, TrainingJob
from relight_operator.api.status import JobStatus
from relight_operator.api.validate import parse_job
from relight_operator.errors import InvalidJob, InvalidUsage
from relight_operator.local import code, environment
from relight_operator.local.state import StateFolder
from relight_trainer.code_source import Unreachable, WrongSource, check_url, fetch, main


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return new_repository(tmp_path / "served" / "code.git")


@pytest.fixture
def server(repository: Path) -> Iterator[Server]:
    with serving(repository.parent) as made:
        yield made


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
        (f"https://{TOKEN}@host/x.git", "put it into a Secret"),
        (f"https://{TOKEN}@host:8443/x.git", "it may be a token"),
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
    "url", ["https://host/x.git", "https://host/a@b.git", "git@host:me/x.git", "ssh://git@host:22/x", "file:///x"]
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


def job(url: str, **git_source: Any) -> TrainingJob:
    source = {"url": url, **git_source}
    value = {"metadata": {"name": "x"}, "spec": {"trainer": {"script": ["train.py"]}, "code": {"git": source}}}
    return TrainingJob.model_validate(value, by_alias=True, by_name=False)


def test_without_a_cluster_the_first_start_fixes_the_commit(tmp_path: Path, repository: Path, secret: Path) -> None:
    first = git(repository, "rev-parse", "main")
    folder = StateFolder(tmp_path / "state")
    folder.path.mkdir()
    with serving(repository.parent, tls=True) as server:
        (secret / "ca.crt").write_text(server.authority)
        url = f"https://localhost:{server.server_port}/code.git"
        stored = folder.create(job(url, ref="main", secretRef={"name": "git-cred"}), JobStatus())
        with pytest.raises(InvalidUsage, match="--secret git-cred=FOLDER"):
            code.ensure(folder, stored, {})
        assert folder.load() == stored

        stored = code.ensure(folder, stored, environment.paths_of("--secret", [f"git-cred={secret}"]))
        assert stored.status.code is not None
        assert stored.status.code.commit == first
        push(repository, "train.py", "print(3)\n")
        answered = server.answered
        assert code.ensure(folder, stored, {}) == stored  # it is there: nobody is asked
        assert server.answered == answered

        shutil.rmtree(folder.path / code.FOLDER)
        assert code.ensure(folder, stored, {"git-cred": secret}) == stored
        assert (folder.path / code.FOLDER / "train.py").read_text() == "print(2)\n"
        assert git(folder.path / code.FOLDER, "rev-parse", "HEAD") == first
        assert not any(TOKEN in seen for seen in server.seen)
    kept = [file for file in folder.path.rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()]
    assert kept == []


def test_who_does_not_answer_is_asked_again_for_a_while(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pauses: list[float] = []

    def comes_back(pause: float) -> None:
        pauses.append(pause)
        if len(pauses) == 2:
            repository.rename(tmp_path / "served" / "back.git")

    missing = tmp_path / "served" / "back.git"
    monkeypatch.setattr("relight_trainer.code_source._NETWORK", re.compile("does not appear"))
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=comes_back)
    monkeypatch.setattr("relight_trainer.code_source.time", clock)
    assert main([f"file://{missing}", "main", str(tmp_path / "code"), "--patience", "60"]) == 0
    assert pauses == [1.0, 2.0]
    assert "asking again in 1 s" in capfd.readouterr().err


def test_submodules_are_left_out_where_that_is_asked_for(tmp_path: Path, repository: Path) -> None:
    push(repository, ".gitmodules", '[submodule "x"]\n\tpath = x\n\turl = file:///nowhere\n')
    git(repository, "update-index", "--add", "--cacheinfo", f"160000,{git(repository, 'rev-parse', 'HEAD')},x")
    git(repository, "commit", "--quiet", "-m", "a submodule that is nowhere")
    with pytest.raises(WrongSource, match="'file' not allowed"):
        fetch(f"file://{repository}", "main", tmp_path / "with")
    assert main([f"file://{repository}", "main", str(tmp_path / "without"), "--no-submodules"]) == 0


def with_submodule(repository: Path, url: str, commit: str) -> None:
    push(repository, ".gitmodules", f'[submodule "lib"]\n\tpath = lib\n\turl = {url}\n')
    git(repository, "update-index", "--add", "--cacheinfo", f"160000,{commit},lib")
    git(repository, "commit", "--quiet", "-m", "a submodule")


def trusting(secret: Path, servers: Sequence[Server]) -> Path:
    (secret / "ca.crt").write_text("".join(s.authority for s in servers))
    return secret


def test_the_token_is_shown_to_the_server_of_the_url_alone(tmp_path: Path, repository: Path, secret: Path) -> None:
    library = new_repository(tmp_path / "served" / "lib.git")
    commit = git(library, "rev-parse", "HEAD")
    with serving(repository.parent, tls=True) as server, serving(repository.parent, tls=True) as other:
        trusting(secret, (server, other))
        url = f"https://localhost:{server.server_port}/code.git"
        with_submodule(repository, f"https://localhost:{other.server_port}/lib.git", commit)
        with pytest.raises(WrongSource, match="could not read Username") as error:
            fetch(url, "main", tmp_path / "other", secret=secret)
        assert other.seen, "the other server was asked"
        assert other.authorizations == []
        assert f"is shown to https://localhost:{server.server_port} alone" in str(error.value)

        with_submodule(repository, f"https://LOCALHOST:{server.server_port}/lib.git", commit)
        fetch(url, "main", tmp_path / "same", secret=secret)
        assert (tmp_path / "same" / "lib" / "train.py").read_text() == "print(2)\n"


def test_a_redirect_to_another_server_gets_no_token(tmp_path: Path, repository: Path, secret: Path) -> None:
    with serving(repository.parent, tls=True) as server, serving(repository.parent, tls=True) as other:
        trusting(secret, (server, other))
        server.redirect_to = f"https://localhost:{other.server_port}"
        with pytest.raises(WrongSource):
            fetch(f"https://localhost:{server.server_port}/code.git", "main", tmp_path / "code", secret=secret)
        assert other.seen, "the other server was asked"
        assert other.authorizations == []


@pytest.mark.parametrize("disguise", ["localhost:{port}'", "me@localhost:{port}"])
def test_a_user_name_that_looks_like_the_right_server_gets_no_token(
    tmp_path: Path, repository: Path, secret: Path, disguise: str
) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    with serving(repository.parent, tls=True) as server, serving(repository.parent, tls=True) as other:
        trusting(secret, (server, other))
        user = disguise.format(port=server.server_port).replace(":", "%3A").replace("@", "%40")
        with_submodule(repository, f"https://{user}@localhost:{other.server_port}/code.git", commit)
        with pytest.raises(WrongSource):
            fetch(f"https://localhost:{server.server_port}/code.git", "main", tmp_path / "code", secret=secret)
        assert other.authorizations, "the user name in the submodule's own URL was shown"
        assert not any(TOKEN in base64.b64decode(a.split()[-1]).decode() for a in other.authorizations)


def test_submodules_in_plain_text_or_of_this_machine_are_refused(
    tmp_path: Path, repository: Path, secret: Path
) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    with serving(repository.parent, tls=True) as server, serving(repository.parent) as plain:
        trusting(secret, (server,))
        url = f"https://localhost:{server.server_port}/code.git"
        for submodule in (f"http://127.0.0.1:{plain.server_port}/code.git", f"file://{repository}"):
            with_submodule(repository, submodule, commit)
            scheme = submodule.partition(":")[0]
            with pytest.raises(WrongSource, match=rf"(?s)'{scheme}' not allowed.*allowed for submodules: https, ssh"):
                fetch(url, "main", tmp_path / scheme, secret=secret)
        assert plain.seen == []


@pytest.mark.parametrize(
    ("git_source", "words"),
    [
        ({"url": "http://host/x.git"}, "allowed: https, ssh:// or git@host:path"),
        ({"url": "file:///x"}, "allowed: https, ssh"),
        ({"url": f"https://me:{TOKEN}@host/x.git"}, "put it into a Secret"),
        ({"url": f"https://{TOKEN}@host/x.git"}, "put it into a Secret"),
        ({"url": "https://host/x.git", "ref": "--upload-pack=x"}, "not a name that git takes"),
        ({"url": "https://host/x.git", "ref": "a..b"}, "not a name that git takes"),
        ({"url": "https://host/x.git", "branch": "main"}, "unknown field"),
        ({}, r"spec\.code\.git\.url: missing"),
    ],
)
def test_a_job_takes_code_by_https_and_ssh_alone(git_source: dict[str, str], words: str) -> None:
    spec = {"trainer": {"config": {}}, "code": {"git": git_source}}
    with pytest.raises(InvalidJob, match=words) as error:
        parse_job({"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "x"}, "spec": spec})
    assert TOKEN not in str(error.value)


def test_a_whole_commit_needs_no_server_to_be_known() -> None:
    for ref, fixed in (("a" * 40, True), ("b" * 64, True), ("main", False), ("a" * 39, False), ("A" * 40, False)):
        made = CodeSpec.model_validate({"git": {"url": "git@host:x.git", "ref": ref}}, by_alias=True, by_name=False)
        assert made.git.names_a_commit is fixed, ref
