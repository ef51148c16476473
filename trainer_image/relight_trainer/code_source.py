"""`python -m relight_trainer.code_source URL REF FOLDER [--secret FOLDER] ...`: code out of a git repository, pinned.

A token or key stays in the files of its Secret: it is never an argument, a variable of the environment, or in what is
printed. Git asks a credential helper for it, which knows the path of the files and answers for the scheme, host and port of
the URL alone: a submodule or a redirect that names another server gets nothing. Standard library and git only.

A Secret's folder holds what Kubernetes calls them: `username` and `password` (or `token` alone), or `ssh-privatekey` and
`known_hosts`; and `ca.crt` where the server's certificate is of a CA of one's own.
"""

import argparse
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from relight_agent.exits import ExitCode

_SCHEMES = ("https", "http", "ssh", "file")
_SCP = re.compile(r"[\w.-]+@[\w.-]+:[^\s]+")  # git@host:path
_NETWORK = re.compile(
    r"Could not resolve|Connection (refused|timed out|reset)|unable to access|early EOF|timed out", re.IGNORECASE
)
_TIMEOUT = 600.0
_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
_SUBMODULES = "https:ssh"  # their schemes: a token in plain text, or a folder of this machine, is nobody's wish
_PORTS = {"https": ":443", "http": ":80"}
# Git's credential helper: the question comes as lines of key=value, so that no part of a URL can pose as another. A
# prompt for GIT_ASKPASS is one text, in which a user name may look like a host.
_HELPER = r"""#!/bin/sh
[ "$1" = get ] || exit 0
protocol= host=
while IFS= read -r line && [ -n "$line" ]; do
  case "$line" in
    protocol=*) protocol=${line#protocol=} ;;
    host=*) host=$(printf %s "${line#host=}" | tr '[:upper:]' '[:lower:]') ;;
  esac
done
[ "$protocol://${host%"$RELIGHT_PORT"}" = "$RELIGHT_SERVER" ] || exit 0
cd "$RELIGHT_SECRET" || exit 0
if [ -f username ]; then username=$(cat username); else username=token; fi
if [ -f password ]; then password=$(cat password); else password=$(cat token); fi
printf 'username=%s\npassword=%s\n' "$username" "$password"
"""


class WrongSource(Exception):
    """The URL, the revision or the Secret cannot be right."""

    exit_code: ClassVar[ExitCode] = ExitCode.BAD_CONFIG


class Unreachable(Exception):
    """The server did not answer; trying again may help."""

    exit_code: ClassVar[ExitCode] = ExitCode.STORAGE_FAILED


@dataclass(frozen=True)
class Fetched:
    """A checked-out commit."""

    commit: str
    folder: Path


def check_url(url: str, schemes: Sequence[str] = _SCHEMES) -> None:
    """Raises WrongSource where `url` is none of git's over one of `schemes`, or carries a password or token."""
    if _SCP.fullmatch(url):
        return
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in schemes or not rest or re.search(r"\s", url):
        raise WrongSource(
            f'not a git URL: "{_without_password(url)}"; allowed: {", ".join(schemes)}:// or git@host:path'
        )
    user = rest.partition("/")[0].rpartition("@")[0]
    if ":" in user or (user and scheme in _PORTS):  # a token may stand in the place of a user's name
        raise WrongSource(
            f'a user or password stands in the URL "{_without_password(url)}": whoever reads the job reads it, and it may be a '
            "token; put it into a Secret with username and password, or token, and leave it out here"
        )


def check_ref(ref: str) -> None:
    """Raises WrongSource where `ref` cannot be a branch, a tag or a commit."""
    if not ref or ref.startswith("-") or re.search(r"[\s~^:?*\[\\]|\.\.", ref):
        raise WrongSource(f'not a branch, tag or commit: "{ref}"')


def fetch(url: str, ref: str, folder: Path, *, secret: Path | None = None, submodules: bool = True) -> Fetched:
    """Check out `ref` (branch, tag or commit) of `url` into `folder`, which must be empty or new.

    Raises WrongSource, Unreachable.
    """
    check_url(url)
    check_ref(ref)
    if folder.exists() and any(folder.iterdir()):
        raise WrongSource(f"{folder} is not empty")
    folder.mkdir(parents=True, exist_ok=True)
    secret = None if secret is None else secret.absolute()  # git runs in `folder`
    with tempfile.TemporaryDirectory(prefix="relight-git-") as private:
        git = _Git(folder, _environment(Path(private), secret, url), _secrets(secret), _server(url)[0])
        git.run("init", "--quiet")
        git.run("remote", "add", "origin", url)
        git.run("fetch", "--quiet", "--depth", "1", "--no-tags", "origin", "--", ref)
        git.run("checkout", "--quiet", "--detach", "FETCH_HEAD")
        if submodules and (folder / ".gitmodules").exists():
            git.run("submodule", "--quiet", "update", "--init", "--recursive", "--depth", "1", schemes=_SUBMODULES)
        return Fetched(git.run("rev-parse", "HEAD").strip(), folder)


def fetch_patiently(  # as `fetch`
    url: str,
    ref: str,
    folder: Path,
    *,
    secret: Path | None = None,
    submodules: bool = True,
    patience: float,
    say: Callable[[str], None],
) -> Fetched:
    """As `fetch`, asking again for `patience` seconds while the server does not answer."""
    deadline = time.monotonic() + patience
    for attempt in itertools.count():
        try:
            return fetch(url, ref, folder, secret=secret, submodules=submodules)
        except Unreachable as error:
            pause = _RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)]
            if time.monotonic() + pause > deadline:
                raise
            say(f"{error}; asking again in {pause:.0f} s")
            shutil.rmtree(folder, ignore_errors=True)
            time.sleep(pause)
    raise AssertionError("unreachable")


class _Git:
    def __init__(self, folder: Path, environment: Mapping[str, str], secrets: list[str], server: str) -> None:
        """`server`: the one that gets the Secret."""
        self._folder, self._environment, self._secrets, self._server = folder, environment, secrets, server

    def run(self, *arguments: str, schemes: str = "") -> str:
        """What git prints. `schemes`: others than that of the repository itself, with colons between them."""
        environment = {**self._environment, **({"GIT_ALLOW_PROTOCOL": schemes} if schemes else {})}
        try:
            done = subprocess.run(
                ["git", *arguments],
                cwd=self._folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT,
                check=False,
            )
        except FileNotFoundError:
            raise WrongSource("git is not installed in this image") from None
        except subprocess.TimeoutExpired:
            raise Unreachable(f"git {arguments[0]} took longer than {_TIMEOUT:.0f} s") from None
        if done.returncode == 0:
            return done.stdout
        said = _redacted(done.stderr.strip() or f"exit status {done.returncode}", self._secrets)
        network = _NETWORK.search(said) and "returned error: 4" not in said  # 4xx: the server answers, and refuses
        if self._secrets and "could not read Username" in said:
            said += f" (the Secret of the code is shown to {self._server} alone)"
        if schemes and re.search(r"transport '\w+' not allowed", said):
            said += f" (allowed for submodules: {schemes.replace(':', ', ')})"
        raise (Unreachable if network else WrongSource)(f"git {arguments[0]}: {said}")


def _server(url: str) -> tuple[str, str]:
    """Scheme and host of a URL, with the port where it is not the scheme's own; and that port.

    >>> _server("https://Git.example.com:443/x.git"), _server("https://h:8443/x"), _server("git@h:x")
    (('https://git.example.com', ':443'), ('https://h:8443', ':443'), ('ssh://h', ''))
    """
    if _SCP.fullmatch(url):
        return f"ssh://{url.partition('@')[2].partition(':')[0]}", ""
    scheme, _, rest = url.partition("://")
    port = _PORTS.get(scheme, "")
    host = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2].lower()
    return f"{scheme}://{host.removesuffix(port)}", port


def _environment(private: Path, secret: Path | None, url: str) -> dict[str, str]:
    """What git sees: nobody's configuration, no terminal to ask, and the Secret by its path."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "SSL_CERT_FILE", "SSL_CERT_DIR") if name in os.environ}
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    environment = {
        **kept,
        **proxies,
        "HOME": str(private),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_SSH_COMMAND": "ssh -o BatchMode=yes",
        "GIT_ALLOW_PROTOCOL": "ssh" if _SCP.fullmatch(url) else url.partition("://")[0],
    }
    if secret is None:
        return environment
    if (secret / "ca.crt").exists():
        environment["GIT_SSL_CAINFO"] = str(secret / "ca.crt")
    if (secret / "ssh-privatekey").exists():
        return {**environment, "GIT_SSH_COMMAND": _ssh(private, secret)}
    if not any((secret / name).exists() for name in ("password", "token")):
        raise WrongSource(f"{secret} holds none of password, token and ssh-privatekey")
    helper = private / "credentials"
    helper.write_text(_HELPER)
    helper.chmod(0o700)
    (private / ".gitconfig").write_text(f'[credential]\n\thelper = "{helper}"\n')
    server, port = _server(url)
    return {**environment, "RELIGHT_SECRET": str(secret), "RELIGHT_SERVER": server, "RELIGHT_PORT": port}


def _ssh(private: Path, secret: Path) -> str:
    if not (secret / "known_hosts").exists():
        raise WrongSource(
            f"{secret} lacks known_hosts: without it nobody knows whom the key is shown to (ssh-keyscan HOST)"
        )
    key = private / "key"  # ssh refuses a key that others may read, as a mounted Secret's often is
    key.touch(0o600)
    key.write_bytes((secret / "ssh-privatekey").read_bytes().rstrip() + b"\n")
    options = (
        "IdentitiesOnly=yes",
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        f"UserKnownHostsFile={secret / 'known_hosts'}",
    )
    return shlex.join(["ssh", "-i", str(key), *(word for option in options for word in ("-o", option))])


def _secrets(secret: Path | None) -> list[str]:
    files = [secret / name for name in ("password", "token") if (secret / name).exists()] if secret else []
    return [text for file in files if (text := file.read_text().strip())]


def _redacted(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return _without_password(text)


def _without_password(text: str) -> str:
    text = re.sub(r"(https?://)[^/\s@]+@", r"\1***@", text)
    return re.sub(r"(://[^/\s:@]*):[^/\s@]+@", r"\1:***@", text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m relight_trainer.code_source", description="Fetch code from git, pinned."
    )
    parser.add_argument("url")
    parser.add_argument("ref", help="a branch, a tag or a commit")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--secret", type=Path, help="the folder of a Secret's files")
    parser.add_argument("--no-submodules", dest="submodules", action="store_false")
    parser.add_argument("--patience", type=float, default=0.0, help="seconds to ask again while nobody answers")
    given = parser.parse_args(arguments)
    try:
        fetched = fetch_patiently(
            given.url,
            given.ref,
            given.folder,
            secret=given.secret,
            submodules=given.submodules,
            patience=given.patience,
            say=lambda text: print(f"relight: {text}", file=sys.stderr, flush=True),
        )
    except (WrongSource, Unreachable) as error:
        print(f"relight: {error}", file=sys.stderr)
        return error.exit_code
    print(fetched.commit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
