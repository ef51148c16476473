"""Process members: created once, whatever happened to the runner before."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from relight_agent.exits import Cause
from relight_agent.files import JobFile, write_json
from relight_operator.local.members import ProcessMembers, _tail, kill_leftovers

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    members = tmp_path / "members"
    members.mkdir()
    yield members
    kill_leftovers(members)


def backend(folder: Path, changed: asyncio.Event | None = None, now: float = 1e9) -> ProcessMembers:
    """Members that wait for a coordinator which never comes."""
    job = JobFile(
        namespace="default", name="job", uid="u", created=0.0, nodes=1, proc_per_node=1,
        entry={"kind": "command", "argv": ["true"]}, config_hash="h",
    )  # fmt: skip
    job.write(folder.parent / "job.json")
    environment = {
        "RELIGHT_JOB_FILE": str(folder.parent / "job.json"),
        "RELIGHT_COORDINATOR_URL": "http://127.0.0.1:9",
    }
    on_change = changed.set if changed is not None else lambda: None
    return ProcessMembers(folder, folder.parent / "run", environment, b"secret", on_change, clock=lambda: now)


def test_a_member_is_started_once(folder: Path) -> None:
    async def scenario() -> None:
        members = backend(folder)
        first = members.create("job", 0, 0)
        assert members.create("job", 0, 0) is first
        assert len(members.all()) == 1
        members.close()

    asyncio.run(scenario())


def test_a_living_member_is_adopted_and_its_end_is_seen(folder: Path) -> None:
    async def scenario() -> None:
        before = backend(folder)
        member = before.create("job", 0, 0)
        before.close()  # the runner has gone, its member lives

        changed = asyncio.Event()
        after = backend(folder, changed)
        after.adopt("job")
        (adopted,) = after.all()
        assert (adopted.uid, adopted.pid, adopted.end) == (member.uid, member.pid, None)
        assert after.create("job", 0, 0) is adopted

        assert member.pid is not None
        os.kill(member.pid, signal.SIGKILL)
        await changed.wait()
        assert adopted.end is not None
        assert adopted.end.cause is Cause.MACHINE_LOST
        after.close()

    asyncio.run(scenario())


def test_a_member_that_ended_unseen_has_ended_for_the_next_runner(folder: Path) -> None:
    async def scenario() -> None:
        before = backend(folder)
        member = before.create("job", 0, 0)
        before.close()
        kill_leftovers(folder)

        after = backend(folder)
        after.adopt("job")
        (adopted,) = after.all()
        assert adopted.uid == member.uid
        assert adopted.end is not None
        after.close()

    asyncio.run(scenario())


def test_an_end_is_told_by_the_runners_clock_which_does_not_jump(folder: Path) -> None:
    async def scenario() -> None:
        changed = asyncio.Event()
        members = backend(folder, changed, now=5.0)
        member = members.create("job", 0, 0)
        members.kill_all()
        await changed.wait()
        assert member.end is not None
        assert member.end.at == 5.0
        members.close()

    asyncio.run(scenario())


def test_a_start_that_fails_is_tried_again(folder: Path) -> None:
    async def scenario() -> None:
        members = backend(folder)
        (folder / "job-0-0" / "lock").mkdir(parents=True)  # as good as a full disk
        with pytest.raises(OSError, match="lock"):
            members.create("job", 0, 0)
        (folder / "job-0-0" / "lock").rmdir()
        assert members.create("job", 0, 0).pid is not None
        members.close()

    asyncio.run(scenario())


def test_a_log_of_any_size_is_read_at_its_end_only(folder: Path) -> None:
    log = folder / "log"
    with log.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(0, os.SEEK_END)
        file.write(b"\nthe last line")
    assert _tail(log).endswith("the last line")


def test_a_member_written_down_but_never_started_is_started_under_its_uid(folder: Path) -> None:
    """The runner died between naming a member and starting it: nobody may take that for a member that lives."""

    async def scenario() -> None:
        (folder / "job-0-0").mkdir()
        write_json(folder / "job-0-0" / "member.json", {"uid": "named", "slot": 0, "incarnation": 0})
        (folder / "job-0-0" / "lock").touch()

        members = backend(folder)
        members.adopt("job")
        assert members.all() == []
        member = members.create("job", 0, 0)
        assert (member.uid, member.end) == ("named", None)
        assert member.pid is not None
        members.close()

    asyncio.run(scenario())


def test_each_slot_is_a_machine_of_its_own(folder: Path) -> None:
    async def scenario() -> None:
        members = backend(folder)
        created = [members.create("job", slot, incarnation) for slot, incarnation in ((0, 0), (1, 0), (1, 1))]
        assert [m.machine for m in created] == ["slot-0", "slot-1", "slot-1"]
        members.close()

    asyncio.run(scenario())
