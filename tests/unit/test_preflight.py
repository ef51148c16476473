"""What a machine is looked at for before its member trains: what is said, whose fault it is, and that it costs little."""

import ctypes
import errno
import json
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_agent_alone import UNREACHABLE, end_of, start_agent

from relight_agent import preflight
from relight_agent.agent import Agent
from relight_agent.exits import ExitCode
from relight_agent.files import JobFile
from relight_agent.identity import Identity
from relight_agent.preflight import Unfit

pytestmark = pytest.mark.timeout(60)
GIB = 1 << 30


def identity(folder: Path, *, incarnation: int = 0, **job: Any) -> Identity:
    (folder / "run").mkdir(exist_ok=True)
    file = JobFile(
        namespace="default", name="job", uid="u", created=0.0, nodes=1, entry={"kind": "command", "argv": ["true"]},
        config_hash="h", **{"proc_per_node": 1, **job},
    )  # fmt: skip
    return Identity(
        job=file, job_file="", slot=0, incarnation=incarnation, uid="me", run_dir=str(folder / "run"), address="127.0.0.1",
        coordinator_url=UNREACHABLE, token_file="", ca_file="", termination_log=str(folder / "end.json"),
    )  # fmt: skip


def looked(me: Identity) -> list[str]:
    said: list[str] = []
    preflight.look(me, said.append)
    return said


def unfit(me: Identity) -> tuple[ExitCode, str]:
    with pytest.raises(Unfit) as caught:
        looked(me)
    return caught.value.code, str(caught.value)


def fill(folder: Path, *, free: int, monkeypatch: pytest.MonkeyPatch, total: int = 64 * GIB) -> None:
    """Let `folder` be on a file system of that size: a real one where this may mount one, else by what is asked of it."""
    usage = SimpleNamespace(total=total, used=total - free, free=free)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for a member whose `run` is on a tmpfs of 256 KiB."""
    (tmp_path / "run").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path / "run")]
    mounted = os.getuid() == 0 and shutil.which("mount") and subprocess.run(mount, check=False).returncode == 0
    if not mounted:
        fill(tmp_path / "run", free=256 << 10, total=256 << 10, monkeypatch=monkeypatch)
    yield tmp_path
    if mounted:
        subprocess.run(["umount", str(tmp_path / "run")], check=True)


def test_a_machine_with_nothing_wrong_is_left_as_it_was(tmp_path: Path) -> None:
    me = identity(tmp_path, checkpoint_dir=str(tmp_path / "checkpoints" / "default" / "job"))
    assert looked(me) == []
    assert {p.name for p in tmp_path.rglob("*")} == {"checkpoints", "default", "job", "run"}
    assert looked(identity(tmp_path, checkpoint_dir="s3://bucket/default/job")) == []


def test_a_memory_too_small_for_anything_is_the_configurations(tiny: Path) -> None:
    code, message = unfit(identity(tiny))
    assert code is ExitCode.BAD_CONFIG
    assert "holds 256.0 KiB in all: a member needs 1.0 MiB there" in message
    assert message.endswith("raise trainer.sharedMemory")


def test_a_memory_that_others_have_filled_is_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "run", free=4096, monkeypatch=monkeypatch)
    code, message = unfit(identity(tmp_path))
    assert (code, message.split(": ")[1]) == (ExitCode.MACHINE_UNHEALTHY, "4.0 KiB of 64.0 GiB are left")


def refuse(monkeypatch: pytest.MonkeyPatch, folder: Path, number: int) -> None:
    """From now on nothing can be synced below `folder`."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith(str(folder)):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize(
    ("number", "first", "later"),
    [
        pytest.param(errno.EACCES, ExitCode.BAD_CONFIG, ExitCode.MACHINE_UNHEALTHY, id="forbidden"),
        pytest.param(errno.ENOSPC, ExitCode.STORAGE_FAILED, None, id="full"),
        pytest.param(errno.EIO, ExitCode.STORAGE_FAILED, None, id="ill"),
        pytest.param(errno.EROFS, ExitCode.STORAGE_FAILED, None, id="read-only"),
    ],
)
def test_whose_fault_a_checkpoint_folder_is(
    number: int, first: ExitCode, later: ExitCode | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = tmp_path / "storage"
    refuse(monkeypatch, storage, number)
    code, message = unfit(identity(tmp_path, checkpoint_dir=str(storage)))
    assert code is first
    assert message.startswith(f"checkpoints cannot be written to {storage}: {os.strerror(number)}")
    replacement = identity(tmp_path, incarnation=2, checkpoint_dir=str(storage))
    if later is not None:
        assert unfit(replacement)[0] is later
    else:
        assert looked(replacement) == [f"{message}; training goes on meanwhile"]
    assert list(storage.iterdir()) == [], "what was tried out is removed"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
@pytest.mark.parametrize("incarnation", [0, 1])
def test_storage_that_cannot_flush_a_folder_is_used_and_named(
    number: int, incarnation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = tmp_path / "storage"
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    (said,) = looked(identity(tmp_path, incarnation=incarnation, checkpoint_dir=str(storage)))
    assert said == (
        f"{storage}: this file system cannot flush a folder to the disk; a power cut there can lose the newest checkpoint"
    )
    assert list(storage.iterdir()) == []


def test_a_replacement_does_not_wait_for_storage_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, real = threading.Event(), os.fsync
    storage = tmp_path / "storage"

    def fsync(descriptor: int) -> None:
        if str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith(str(storage)):
            answers.wait(30)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(preflight, "STORAGE_SECONDS", 0.1)
    (told,) = looked(identity(tmp_path, incarnation=2, checkpoint_dir=str(storage)))
    assert told == f"{storage} has not answered within 0.1 s: checkpoints will be late; training goes on meanwhile"
    answers.set()
    for thread in threading.enumerate():
        if thread.name == "storage":
            thread.join()
    assert list(storage.iterdir()) == []


def test_a_folder_in_memory_that_cannot_be_written_is_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, tmp_path / "run", errno.EIO)
    assert unfit(identity(tmp_path))[0] is ExitCode.MACHINE_UNHEALTHY


def checkpoint(folder: Path, step: int, size: int, config_hash: str = "h") -> None:
    path = folder / f"step-{step:09}.g1"
    path.mkdir(parents=True)
    files = {"state.json": {"bytes": 24, "crc32": "0"}, "state-0.safetensors": {"bytes": size, "crc32": "0"}}
    (path / "manifest.json").write_text(json.dumps({"config_hash": config_hash, "files": files}))
    os.utime(path, (step, step))


@pytest.mark.parametrize(
    ("size", "config_hash", "said"),
    [
        (3 * GIB, "h", True),
        (2 * GIB - 24, "h", False),
        (3 * GIB, "another job's", False),
    ],
)
def test_where_the_size_of_the_state_is_known_two_of_them_are_to_fit(
    size: int, config_hash: str, said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = tmp_path / "storage"
    checkpoint(storage, 5, 64 * GIB)
    checkpoint(storage, 10, size, config_hash)
    fill(tmp_path / "run", free=4 * GIB, monkeypatch=monkeypatch)
    warnings = looked(identity(tmp_path, checkpoint_dir=str(storage)))
    assert [w.split(":")[0] for w in warnings] == (["snapshots will be off"] if said else [])


# -- GPUs, by what NVIDIA's library answers


class Nvml:
    """Each GPU's (total, used) at each look; None for one that does not tell."""

    def __init__(self, *looks: list[tuple[int, int] | None]) -> None:
        self._looks = list(looks)
        self._now: list[tuple[int, int] | None] = []

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        self._now = self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]
        count._obj.value = len(self._now)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:  # noqa: N802
        handle._obj.value = index + 1
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: ctypes.c_void_p, memory: Any) -> int:  # noqa: N802
        told = self._now[(handle.value or 0) - 1]
        if told is None:
            return 3  # NVML_ERROR_NOT_SUPPORTED
        memory._obj.total, memory._obj.used = told
        return 0


FREE, BUSY, LITTLE = (80 * GIB, GIB), (80 * GIB, 60 * GIB), (80 * GIB, 20 * GIB)


@pytest.mark.parametrize(
    ("looks", "message", "warning"),
    [
        pytest.param([[FREE, FREE]], "", "", id="free"),
        pytest.param([[FREE]], "1 of 2 GPUs are here", "", id="too few"),
        pytest.param([[None, None]], "", "", id="shares that do not tell"),
        pytest.param([[FREE, BUSY]], "memory is held by somebody else after 0 s: GPU 1: 60.0 GiB of 80.0 GiB", "", id="held"),
        pytest.param([[BUSY, BUSY], [FREE, BUSY], [FREE, FREE]], "", "", id="reclaimed while we wait"),
        pytest.param([[FREE, LITTLE]], "", "memory is held by somebody else: GPU 1: 20.0 GiB", id="a little"),
    ],
)  # fmt: skip
def test_gpus_are_there_and_their_memory_is_free(
    looks: list[Any], message: str, warning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "_nvml", lambda: Nvml(*looks))
    said: list[str] = []
    patience = 5.0 if len(looks) > 1 else 0.3
    if message:
        with pytest.raises(Unfit) as caught:
            preflight.gpus(2, said.append, patience=patience)
        assert (caught.value.code, str(caught.value)) == (ExitCode.MACHINE_UNHEALTHY, message)
    else:
        preflight.gpus(2, said.append, patience=patience)
        assert len(said) == bool(warning)
        assert all(s.startswith(warning) for s in said)


def test_without_nvidias_library_the_devices_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_nvml", lambda: None)
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    preflight.gpus(2, print, dev=str(tmp_path))
    with pytest.raises(Unfit, match="2 of 3 GPUs are here"):
        preflight.gpus(3, print, dev=str(tmp_path))


def test_a_job_without_gpus_asks_nobody_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_nvml", lambda: pytest.fail("it was asked"))
    assert looked(identity(tmp_path)) == []


@pytest.mark.parametrize(
    ("ahead", "said"),
    [
        (0.0, None),
        (4.9, None),
        (-4.9, None),
        (400.2, "400 s ahead of"),
        (-3600.0, "3600 s behind"),
    ],
)
def test_a_clock_that_is_wrong_is_said(ahead: float, said: str | None) -> None:
    text = preflight.skew(ahead)
    assert (text is None) if said is None else (text is not None and said in text)


# -- the agent


def test_an_agent_in_a_tiny_memory_ends_and_says_why(tiny: Path) -> None:
    agent = Agent(identity(tiny))
    agent._look()
    agent._on_event(*agent._events.get(timeout=5))
    assert agent._exit is not None
    assert agent._exit[0] == ExitCode.BAD_CONFIG
    assert "raise trainer.sharedMemory" in agent._exit[1]


def test_an_agent_without_a_place_for_checkpoints_ends_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    agent = start_agent(tmp_path, UNREACHABLE, checkpoint_dir=str(tmp_path / "file" / "default" / "job"))
    assert agent.wait(20) == ExitCode.BAD_CONFIG
    message = end_of(tmp_path)["message"]
    assert message.startswith(f"checkpoints cannot be written to {tmp_path}/file/default/job: Not a directory (as user")


def test_storage_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent(identity(tmp_path, checkpoint_dir="/checkpoints/default/job"))
    monkeypatch.setattr(agent, "_look_by", 0.0)
    agent._watch_preflight()
    assert agent._exit is not None
    code, message = agent._exit
    assert code == ExitCode.STORAGE_FAILED
    assert "does /checkpoints/default/job answer?" in message


def test_a_member_is_ready_only_once_it_has_been_looked_at(tmp_path: Path) -> None:
    agent = Agent(identity(tmp_path))
    agent._become_ready()
    assert agent._reporter.body()["state"] == "Starting"
    agent._on_event("fit", None)
    assert agent._reporter.body()["state"] == "Ready"
