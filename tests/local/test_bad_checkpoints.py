"""After the loss of every member: damaged checkpoints are passed over and said, and never replaced by a fresh start."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from builders import Home, Job

pytestmark = pytest.mark.timeout(120)

JOB = Job()
STEPS = [20, 40]


@pytest.fixture(scope="session")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state of a job whose machine was switched off behind its second checkpoint."""
    home = Home(tmp_path_factory.mktemp("cut"))
    run = home.start(JOB, "--chaos", "kill-node:0@step:50", "--chaos", "kill-node:1@step:50")
    run.until(lambda s: s.get("phase") == "Recovering", "the loss of all members")
    home.power_cut()
    assert [path.name for path in home.checkpoints()] == [f"step-{step:09d}.g1" for step in STEPS]
    yield home.state
    assert not home.leftovers()


def flip_a_bit(checkpoint: Path, rng: random.Random) -> str:
    shard = max(checkpoint.glob("shard-*"), key=lambda path: path.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    shard.write_bytes(data)
    return "does not match its checksum"


def lose_a_shard(checkpoint: Path, rng: random.Random) -> str:
    rng.choice(sorted(checkpoint.glob("shard-*"))).unlink()
    return "is missing"


def write_half(checkpoint: Path, rng: random.Random) -> str:
    (checkpoint / "manifest.json").unlink()
    shard = rng.choice(sorted(checkpoint.glob("shard-*")))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    return "manifest.json is missing"


@pytest.mark.parametrize("damage", [flip_a_bit, pytest.param(lose_a_shard, marks=pytest.mark.slow), write_half])
def test_the_checkpoint_before_a_damaged_one_is_used_and_that_is_said(
    home: Home, cut: Path, digest: str, random_from_seed: random.Random, damage: Callable[[Path, random.Random], str]
) -> None:
    shutil.copytree(cut, home.state)
    newest = home.checkpoints()[-1]
    why = damage(newest, random_from_seed)
    result = home.run(JOB)
    assert result.code == 0, result.said
    assert result.digest == digest
    assert result.final["checkpoint"]["resumedFromStep"] == STEPS[0]
    notices = result.final["checkpoint"]["notices"]
    assert [n for n in notices if newest.name in n and why in n], notices
    assert why in result.said
    assert result.final["executedSteps"] == JOB.steps + result.final["goodput"]["lostSteps"]


def test_with_no_sound_checkpoint_the_job_ends_and_says_so(
    home: Home, cut: Path, random_from_seed: random.Random
) -> None:
    shutil.copytree(cut, home.state)
    checkpoints = home.checkpoints()
    for checkpoint in checkpoints:
        flip_a_bit(checkpoint, random_from_seed)
    for _ in range(2):  # asked again, it does not forget
        result = home.run(JOB)
        assert result.code == 65, result.said
        assert result.final["phase"] == "Failed"
        assert result.reason == "BadData"
        assert str(checkpoints[0].parent) in result.final["lastFailure"]["message"]
        assert result.final["world"].get("resumedFromStep") is None
        assert "step 1/" not in result.said.split("GenerationFormed", 1)[1]


def test_a_wiped_checkpoint_folder_is_not_taken_for_a_new_job(home: Home, cut: Path) -> None:
    shutil.copytree(cut, home.state)
    shutil.rmtree(home.state / "volumes")
    result = home.run(JOB)
    assert result.code == 65, result.said
    assert result.reason == "BadData"
    assert "a checkpoint of step 40 had been committed" in result.said
