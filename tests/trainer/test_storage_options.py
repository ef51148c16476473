"""Credentials of the object store: from the job's Secret, for its bucket alone, and in nothing that anybody reads."""

import traceback
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from relight_agent.files import JobFile
from relight_trainer.checkpoint.errors import StorageFailed, WrongStorageOptions
from relight_trainer.checkpoint.place import place_of
from relight_trainer.observe.mirror import Mirror
from relight_trainer.storage_options import options, redacted

KEY, SECRET = "AKIA-planted", "s3cr3t/planted+1"
pytestmark = pytest.mark.timeout(30)


class Keyed(MemoryFileSystem):
    """A store that wants a key, and whose errors repeat what they were given, as some servers' do."""

    protocol = "keyed"
    cachable = False

    def __init__(self, key=None, secret=None, endpoint_url=None, anon=False, client_kwargs=None, **more):
        super().__init__(**more)
        self.given = {"key": key, "secret": secret, "anon": anon, "client_kwargs": client_kwargs}

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("keyed://", "memory://"))

    def _check(self):
        if (self.given["key"], self.given["secret"]) != (KEY, SECRET):
            try:
                raise PermissionError(f"403: {self.given}")
            except PermissionError as error:
                raise OSError("the server has refused") from error

    def cat_file(self, path, **more):
        self._check()
        return super().cat_file(path, **more)

    def info(self, path, **more):
        self._check()
        return super().info(path, **more)

    def find(self, path, **more):
        self._check()
        return super().find(path, **more)

    def _open(self, path, mode="rb", **more):
        self._check()
        return super()._open(path, mode, **more)

    def exists(self, path, **more):
        self._check()
        return super().exists(path, **more)


fsspec.register_implementation("keyed", Keyed, clobber=True)


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts the keys of a Secret into the environment of a job whose checkpoints are at keyed://bucket."""
    entry = {"kind": "config", "config": {}}
    file = JobFile("ml", "x", "u", 1.0, 1, 1, entry, "c", checkpoint_dir=f"keyed://bucket/{tmp_path.name}")
    file.write(tmp_path / "job.json")
    monkeypatch.setenv("RELIGHT_JOB_FILE", str(tmp_path / "job.json"))

    def put(**keys: str) -> str:
        for name, text in keys.items():
            monkeypatch.setenv(f"RELIGHT_STORAGE_{name}", text)
        return file.checkpoint_dir

    return put


def test_checkpoints_are_written_and_read_with_the_keys_of_the_secret(secret) -> None:
    place = place_of(secret(key=KEY, secret=f"{SECRET}\n"))  # files often end in a newline
    begun = place.begin("step-1")
    size, _ = place.write(begun, "state.json", [b"abc"])
    assert size == 3
    assert bytes(place.read("step-1/state.json", 100)) == b"abc"


@pytest.mark.parametrize("wrong", ["wr0ng-planted", 'wr0ng "planted" é', "wr0ng/planted+2"])
def test_a_wrong_key_that_the_store_repeats_is_in_no_exception_and_no_traceback(
    secret, tmp_path: Path, wrong: str
) -> None:
    place = place_of(secret(key=wrong, secret="another-planted"))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a").write_text("a")
    for attempt in (
        lambda: place.names("step-"),
        lambda: place.read("x", 100),
        lambda: place.write("step-1", "state.json", [b"abc"]),
        lambda: Mirror(tmp_path / "logs", str(place)).fetch("a"),
    ):
        with pytest.raises(StorageFailed) as raised:
            attempt()
        shown = "".join(traceback.format_exception(raised.value))
        assert "planted" not in shown
        assert "the server has refused" in shown


def test_without_a_secret_an_error_is_what_the_library_raised(secret) -> None:
    place = place_of(secret())
    with pytest.raises(OSError, match="the server has refused") as raised:
        place.read("x", 100)
    assert isinstance(raised.value.__cause__, PermissionError)


def test_another_bucket_gets_nothing(secret) -> None:
    url = secret(key=KEY, secret=SECRET)
    assert options(url) == {"key": KEY, "secret": SECRET}
    for other in ("keyed://bucket-of-others/x", "memory://bucket/x", "/ckpt", "keyed://user@bucket/x"):
        assert options(other) == {}


def test_outside_of_a_job_there_are_none(secret, monkeypatch: pytest.MonkeyPatch) -> None:
    url = secret(key=KEY)
    monkeypatch.delenv("RELIGHT_JOB_FILE")
    assert options(url) == {}


def test_objects_and_booleans_are_what_they_look_like_and_keys_are_text(secret) -> None:
    url = secret(anon="true", client_kwargs='{"verify": false}', key="12345", secret="{no json")
    assert options(url) == {"anon": True, "client_kwargs": {"verify": False}, "key": "12345", "secret": "{no json"}


def test_a_key_that_the_store_does_not_know_is_refused_with_the_right_one(secret) -> None:
    with pytest.raises(WrongStorageOptions, match=r"secretRef.*key secrt, .*did you mean secret\?") as raised:
        place_of(secret(secrt=SECRET))
    assert SECRET not in str(raised.value)
    assert raised.value.exit_code == 64


def test_a_key_file_is_hidden_in_all_its_parts() -> None:
    environment = {
        "RELIGHT_STORAGE_token": '{"private_key": "-----BEGIN-----\\nabcdefghijklmnopqrstuv\\n", "id": "planted-id"}',
        "RELIGHT_STORAGE_endpoint_url": "https://minio.example.com",
        "RELIGHT_STORAGE_key": "abc",
    }
    said = "abc of planted-id at https://minio.example.com: bad line abcdefghijklmnopqrstuv"
    assert redacted(said, environment) == "abc of *** at https://minio.example.com: bad line ***"
