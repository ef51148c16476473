"""What another user of this machine can make, read or prepare is not believed, and holds nothing of the job's."""

import hashlib
import json
import os
import stat
from dataclasses import asdict
from pathlib import Path

import pytest
from builders import Home, Job, command

from relight_agent.files import Outcome
from relight_operator.errors import StateError
from relight_operator.local import private
from relight_operator.local.state import StateFolder

pytestmark = pytest.mark.timeout(120)
SHM = Path("/dev/shm")


def plant(root: Path, member: str) -> None:
    """The outcome of a worker that has never run."""
    folder = root / member / "gen-1"
    folder.mkdir(parents=True)
    result = {"weightsDigest": "0" * 64, "metrics": {"accuracy": "0.999"}}
    outcome = asdict(Outcome("completed", 0, 100, result=result, at=1e12))
    (folder / "outcome-0.json").write_text(json.dumps(outcome))


def test_what_a_stranger_has_prepared_in_shared_memory_is_not_believed(home: Home, tmp_path: Path) -> None:
    """Once the folder's name could be computed from the state folder's, and a failed job was told to be done."""
    digest = hashlib.sha256(os.fsencode(home.state.resolve())).hexdigest()[:12]
    known = SHM / f"relight-{os.getuid()}-{digest}"
    recorded = SHM / f"relight-test-{digest}"
    home.state.mkdir(parents=True, mode=0o755)
    (home.state / private.RECORD).write_text(json.dumps(str(recorded)))
    try:
        for root in (known, recorded):
            plant(root, "small-0-0")
            root.chmod(0o755)
        script = tmp_path / "dies.py"
        script.write_text("import os\nos._exit(3)\n")
        job = Job(nodes=1, trainer={"script": [str(script)]}).with_spec(retry={"failures": 0})
        result = home.run(job)
        assert known.exists()
        assert recorded.exists(), "what is not ours is not deleted either"
    finally:
        for root in (known, recorded):
            for path in sorted(root.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            root.rmdir()
    assert result.code != 0
    assert result.final["phase"] == "Failed"
    assert "result" not in result.final


def test_members_keep_their_memory_in_a_folder_that_is_new_private_and_unguessable(home: Home) -> None:
    seen = []
    for _ in range(2):
        run = home.start(Job(nodes=1, trainer=command("-c", "import time; time.sleep(30)")), "--fresh")
        run.until(lambda _: private.run_root(home.state).exists() and home.processes(), "the member is there")
        root = private.run_root(home.state)
        assert stat.S_IMODE(root.lstat().st_mode) == 0o700
        assert len(root.name) >= len("relight-") + 32
        seen.append(root)
        run.interrupt()
        run.wait()
        assert not root.exists()
    assert seen[0] != seen[1]


def test_files_of_the_job_are_its_owners_alone_in_a_folder_that_all_may_read(home: Home) -> None:
    home.state.mkdir(parents=True)
    home.state.chmod(0o755)
    trainer = command("-c", "pass")
    trainer["env"] = [{"name": "PASSWORD", "value": "hunter2"}]
    result = home.run(Job(nodes=1, trainer=trainer))
    assert result.code == 0, result.said
    holding = [p for p in home.state.rglob("*") if p.is_file() and b"hunter2" in p.read_bytes()]
    assert {p.name for p in holding} == {"job.json", "job-file.json"}
    for path in holding:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for name in ("members", "secret"):
        assert not stat.S_IMODE((home.state / name).stat().st_mode) & 0o077, name


@pytest.mark.parametrize("kind", ["link", "open to a group", "open to all", "a file", "another user's"])
def test_a_recorded_folder_that_is_not_ours_is_left_alone(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, target = tmp_path / "state", tmp_path / "relight-target"
    state.mkdir()
    target.mkdir(mode=0o700)
    private.make(state, tmp_path / "relight-made")
    made = private.run_root(state)
    assert private.is_ours(made)
    assert private.choose(state) == made, "an earlier runner's members may live in it"
    made.rmdir()
    if kind == "link":
        made.symlink_to(target)
    elif kind == "a file":
        made.touch(0o600)
    else:
        made.mkdir()
        made.chmod({"open to a group": 0o750, "open to all": 0o777}.get(kind, 0o700))
    if kind == "another user's":
        mine = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert private.choose(state) != made
    with pytest.raises(StateError, match="made by somebody else"):
        private.make(state, made)
    private.discard(state)
    assert os.path.lexists(made)
    assert target.exists()


def test_a_state_folder_that_others_can_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(StateError, match="chmod o-w"), StateFolder(tmp_path).exclusively():
        pass
    tmp_path.chmod(0o755)
    with StateFolder(tmp_path).exclusively():
        pass
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(StateError, match="belongs to user"), StateFolder(tmp_path).exclusively():
        pass
    assert not (tmp_path / "job.json").exists()
