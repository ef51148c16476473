"""Credentials of the checkpoints' object store: what the Secret of `checkpoint.secretRef` says, by fsspec's own names.

Each key is in the environment behind `RELIGHT_STORAGE_`. It is used for the bucket of the job's checkpoints alone, and what
a store's library says is cleaned of the values before anybody sees it.
"""

import contextlib
import inspect
import json
import os
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any, Self

from relight_agent.files import JobFile
from relight_agent.reserved import STORAGE
from relight_trainer.checkpoint.errors import StorageFailed, WrongStorageOptions
from relight_trainer.strict import nearest

# Where a store is, not who may use it: these stay readable in messages.
_PUBLIC = frozenset({"endpoint_url", "account_name", "account_host", "project", "anon", "use_ssl", "default_location"})
_SHORTEST = 4  # shorter ones would blot out every other word


def options(url: str, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The arguments of the filesystem of `url`; none for another bucket than that of the job's checkpoints.

    A value that is a JSON object is one (a service account's key file, `client_kwargs`), `true` and `false` are booleans.
    Raises WrongStorageOptions for a name that the store's library does not know, ImportError where there is no library.
    """
    given = _given(environment)
    if not given or not _is_the_jobs(url, environment):
        return {}
    import fsspec

    scheme = url.partition("://")[0]
    known = _names(fsspec.get_filesystem_class(scheme))
    for name in given:
        if name not in known:
            near = nearest(name, known)
            hint = f"; did you mean {near}?" if near else ""
            raise WrongStorageOptions(
                f"spec.checkpoint.secretRef: the Secret has a key {name}, which is no option of {scheme}://{hint}"
            )
    return {name: _value(text) for name, text in given.items()}


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """`text` without the values of the Secret, plain and as in a URL."""
    for value in sorted(_secrets(environment), key=len, reverse=True):
        for form in {value, urllib.parse.quote(value, safe=""), urllib.parse.quote_plus(value), repr(value)[1:-1]}:
            text = text.replace(form, "***")
    return text


@contextlib.contextmanager
def discreet() -> Iterator[None]:
    """What is raised in here shows no value of the Secret: not in its own words, nor in those of its causes."""
    try:
        yield
    except Exception as error:
        words = list[str]()
        link: BaseException | None = error
        while link is not None and len(words) < 32:
            words.append(f"{link} {link.args}")
            link = link.__cause__ or link.__context__
        if all(text == redacted(text) for text in words):
            raise
        said = redacted(f"{type(error).__name__}: {error}")
        hidden = FileNotFoundError(said) if isinstance(error, FileNotFoundError) else StorageFailed(said)
    else:
        return
    raise hidden from None


class Discreet:
    """An fsspec filesystem, or a file of one, each of whose calls is `discreet`."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            with discreet():
                made = found(*args, **kwargs)
            return Discreet(made) if name == "open" else made

        return call

    def __enter__(self) -> Self:
        with discreet():
            self._inner.__enter__()
        return self

    def __exit__(self, *error: object) -> Any:
        with discreet():
            return self._inner.__exit__(*error)


def _given(environment: Mapping[str, str]) -> dict[str, str]:
    """By the names in the Secret. Files often end in a newline, which no key or token has."""
    return {
        name.removeprefix(STORAGE): text.strip("\r\n") for name, text in environment.items() if name.startswith(STORAGE)
    }


def _is_the_jobs(url: str, environment: Mapping[str, str]) -> bool:
    try:
        location = JobFile.load(environment["RELIGHT_JOB_FILE"]).checkpoint_dir
    except (KeyError, OSError, ValueError):
        return False
    ours, theirs = urllib.parse.urlsplit(location), urllib.parse.urlsplit(url)
    return bool(ours.scheme) and (ours.scheme, ours.netloc) == (theirs.scheme, theirs.netloc)


def _names(filesystem: type) -> set[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name
        for base in filesystem.__mro__
        if "__init__" in vars(base) and base is not object
        for name, parameter in inspect.signature(base.__init__).parameters.items()  # type: ignore[misc]
        if parameter.kind in kinds and name not in {"self", "asynchronous", "loop"}
    }


def _value(text: str) -> Any:
    if text in {"true", "false"}:
        return text == "true"
    if text.lstrip().startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text)
    return text


def _secrets(environment: Mapping[str, str]) -> set[str]:
    found = set[str]()
    for name, text in _given(environment).items():
        if name in _PUBLIC:
            continue
        found |= {text, *_leaves(_value(text))}
    return {text for text in found if len(text) >= _SHORTEST}


def _leaves(value: Any) -> Iterator[str]:
    """The texts in a JSON value, and each long line of them: a private key is quoted line by line."""
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            pending += one.values()
        elif isinstance(one, list):
            pending += one
        elif isinstance(one, str):
            yield one
            yield from (line for line in one.splitlines() if len(line) > 16)
