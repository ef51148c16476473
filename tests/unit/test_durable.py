"""Writing through to the storage, and file systems that cannot."""

import errno
import fcntl
import os
import re
from pathlib import Path

import pytest

from relight_agent import durable
from relight_agent.files import fsync_folder, write_json
from relight_operator.errors import StateError
from relight_operator.local.state import StateFolder

pytestmark = pytest.mark.timeout(30)


def answer(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_the_call_is_gone_on_with(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, number)
    write_json(tmp_path / "a.json", 1, durable=True)
    assert (tmp_path / "a.json").read_text() == "1"
    assert not fsync_folder(tmp_path)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_every_other_answer_is_an_error_that_names_the_path(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, number)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
        fsync_folder(tmp_path)
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path))
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
        write_json(tmp_path / "a.json", 1, durable=True)
    assert caught.value.filename == str(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


def test_where_the_call_works_it_is_made(tmp_path: Path) -> None:
    assert fsync_folder(tmp_path)
    with (tmp_path / "file").open("w") as file:
        assert durable.sync(file.fileno(), tmp_path / "file")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
def test_a_state_folder_without_locks_is_refused_with_a_way_out(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StateError) as caught, StateFolder(tmp_path).exclusively():
        pass
    assert str(caught.value) == (
        f"{tmp_path / 'runner.lock'} cannot be locked ({os.strerror(number)}): name a folder on a local disk with --state-dir"
    )
