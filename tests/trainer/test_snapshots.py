"""Snapshots: the newest closed slot is whole, whatever happens to the writer."""

import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from relight_trainer.checkpoint import Position, Snapshots, SnapshotsOff, UnsupportedState, unpack

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def folder():
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=where) as path:
        yield Path(path) / "snapshots"


def open_snapshots(folder, uid="job-1", config="abc"):
    return Snapshots(folder, job_uid=uid, config_hash=config)


def state_at(step, size=100):
    return {
        "model": {"w": torch.full((size,), float(step)), "n": torch.tensor(step)},
        "loop": {"step": step, "lr": 1 / (step + 1), "history": ["x" * step]},
    }


def step_of(snapshots):
    """The step of the newest snapshot, all of whose parts must be of that step."""
    state = unpack(snapshots.read())
    step = state["loop"]["step"]
    assert snapshots.newest().step == step
    assert state["model"]["n"].item() == step
    assert (state["model"]["w"] == step).all()
    assert state["loop"] == state_at(step)["loop"]
    return step


def slot_files(folder):
    return {f.name: (f.stat().st_ino, f.stat().st_size) for f in folder.glob("*.safetensors")}


def test_nothing_written_is_nothing_found(folder):
    snapshots = open_snapshots(folder)
    assert snapshots.newest() is None
    with pytest.raises(LookupError):
        snapshots.read()


def test_the_newest_write_is_what_is_read(folder):
    snapshots = open_snapshots(folder)
    for step in range(1, 8):
        snapshots.write(state_at(step), generation=2, step=step)
        assert snapshots.newest() == Position(2, step)
        assert step_of(snapshots) == step
        assert step_of(open_snapshots(folder)) == step  # another process's view


def test_after_the_first_two_writes_the_files_stay_as_they_are(folder):
    snapshots = open_snapshots(folder)
    for step in range(2):
        snapshots.write(state_at(step), generation=1, step=step)
    files = slot_files(folder)
    for step in range(2, 40):  # growing numbers and texts among the state
        snapshots.write(state_at(step), generation=1, step=step)
    assert slot_files(folder) == files
    # Nor does the next generation's process allocate anything.
    after = open_snapshots(folder)
    for step in range(40, 43):
        after.write(state_at(step), generation=2, step=step)
    assert slot_files(folder) == files
    assert step_of(after) == 42


def test_a_new_layout_takes_new_files_and_never_the_newest_state(folder):
    snapshots = open_snapshots(folder)
    for step in range(3):
        snapshots.write(state_at(step), generation=1, step=step)
    old = snapshots.read()
    for step, size in ((3, 100_000), (4, 7), (5, 7), (6, 7)):
        snapshots.write(state_at(step, size), generation=1, step=step)
        assert step_of(snapshots) == step
    assert unpack(old)["loop"]["step"] == 2  # who still reads an old slot reads it whole


def test_a_state_whose_text_outgrows_its_place_is_still_written(folder):
    snapshots = open_snapshots(folder)
    for step in range(3):
        state = state_at(step)
        state["long"] = "y" * (10_000 * step)
        snapshots.write(state, generation=1, step=step)
        assert unpack(snapshots.read())["long"] == state["long"]


def test_layouts_that_come_and_go_take_no_more_room_each_time(folder):
    snapshots = open_snapshots(folder)
    sizes = []
    for step in range(12):
        snapshots.write(state_at(step, 100 + step // 2 % 2), generation=1, step=step)
        sizes.append(slot_files(folder)[f"slot-{step % 2}.safetensors"][1])
    assert max(sizes) - min(sizes) <= 64


def test_a_slot_is_a_safetensors_file(folder):
    snapshots = open_snapshots(folder)
    snapshots.write(state_at(5), generation=1, step=5)
    loaded = safetensors.torch.load_file(folder / "slot-0.safetensors")
    assert torch.equal(loaded["model.w"], torch.full((100,), 5.0))


def test_strides_and_ties_survive_also_when_tensors_move(folder):
    snapshots = open_snapshots(folder)
    for step in range(4):
        weight = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
        flat = torch.randn(12)
        state = {"w": weight, "tied": weight, "a": flat[:8], "b": flat[4:], "wide": torch.ones(1).expand(3)}
        snapshots.write(state, generation=1, step=step)
        restored = unpack(snapshots.read())
        for name, tensor in state.items():
            assert torch.equal(restored[name], tensor)
            assert restored[name].stride() == tensor.stride()
        assert restored["w"].data_ptr() == restored["tied"].data_ptr()
        restored["a"][4] = 77
        assert restored["b"][0] == 77


def test_ties_that_come_undone_are_noticed(folder):
    snapshots = open_snapshots(folder)
    one, two = torch.ones(4), torch.zeros(4)
    snapshots.write({"a": one, "b": one}, generation=1, step=1)
    snapshots.write({"a": one, "b": one}, generation=1, step=2)
    snapshots.write({"a": one, "b": two}, generation=1, step=3)
    assert unpack(snapshots.read())["b"].sum() == 0


def test_parameters_that_require_gradients_can_be_written(folder):
    snapshots = open_snapshots(folder)
    model = torch.nn.Linear(3, 3)
    snapshots.write({"w": model.weight}, generation=1, step=1)
    assert torch.equal(unpack(snapshots.read())["w"], model.weight)


def test_a_later_generation_counts_more_than_a_later_step(folder):
    snapshots = open_snapshots(folder)
    snapshots.write(state_at(90), generation=1, step=90)
    snapshots.write(state_at(40), generation=2, step=40)
    assert snapshots.newest() == Position(2, 40)
    assert step_of(snapshots) == 40


@pytest.mark.parametrize("other", [{"uid": "job-2"}, {"config": "xyz"}])
def test_another_jobs_or_configurations_snapshot_is_not_seen_and_makes_room(folder, other):
    mine = open_snapshots(folder)
    mine.write(state_at(5), generation=9, step=5)
    stranger = open_snapshots(folder, **other)
    assert stranger.newest() is None
    stranger.write(state_at(1), generation=1, step=1)
    stranger.write(state_at(2), generation=1, step=2)
    assert step_of(stranger) == 2
    assert mine.newest() is None


def test_an_open_slot_does_not_count_and_the_one_before_does(folder, monkeypatch):
    snapshots = open_snapshots(folder)
    for step in range(4):
        snapshots.write(state_at(step), generation=1, step=step)

    def cut_short(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("relight_trainer.checkpoint.snapshots._Slot.close", cut_short)
    with pytest.raises(KeyboardInterrupt):
        snapshots.write(state_at(4), generation=1, step=4)
    monkeypatch.undo()
    assert step_of(snapshots) == 3
    assert step_of(open_snapshots(folder)) == 3
    snapshots.write(state_at(5), generation=1, step=5)
    assert step_of(snapshots) == 5


def test_a_state_that_cannot_be_saved_leaves_the_newest_alone(folder):
    snapshots = open_snapshots(folder)
    snapshots.write(state_at(1), generation=1, step=1)
    with pytest.raises(UnsupportedState, match=r"loop\.x"):
        snapshots.write({"loop": {"x": object()}}, generation=1, step=2)
    assert step_of(snapshots) == 1


@pytest.mark.parametrize("room", [0, 1])
def test_without_room_for_two_states_snapshots_are_off_and_nothing_is_held(folder, monkeypatch, room):
    allocated = []

    def full(descriptor, start, length):
        if len(allocated) == room:
            raise OSError(errno.ENOSPC, "No space left on device")
        allocated.append(length)
        os.truncate(descriptor, length)

    monkeypatch.setattr(os, "posix_fallocate", full)
    snapshots = open_snapshots(folder)
    with pytest.raises(SnapshotsOff, match=r"two states of 0\.0 MB do not fit .* larger /dev/shm"):
        snapshots.write(state_at(1), generation=1, step=1)
    assert snapshots.newest() is None
    assert sum(size for _, size in slot_files(folder).values()) == 0


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_reserve_memory_is_written_to_instead(folder, monkeypatch, number):
    def no_such_call(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", no_such_call)
    snapshots = open_snapshots(folder)
    for step in range(3):
        snapshots.write(state_at(step, 1_000_000), generation=1, step=step)
    assert step_of(snapshots) == 2
    for file in folder.glob("*.safetensors"):
        assert file.stat().st_blocks * 512 >= file.stat().st_size, "no memory is promised that is not there"


def test_a_writer_killed_at_any_moment_costs_at_most_the_write_it_was_in(folder):
    result = subprocess.run(
        [sys.executable, __file__, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == "held"


def _kill_writers(folder):
    """Fork a writer, kill it at a random moment, look; again and again."""
    size = 50_000  # long enough copies to be hit in their middle
    rng = random.Random(5)
    furthest = 0
    for generation in range(1, 31):
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            snapshots = open_snapshots(folder)
            step = furthest
            while True:
                step += 1
                snapshots.write(state_at(step % 1000, size), generation=generation, step=step % 1000)
                os.write(tell, bytes([1]))
        written = 0
        while written < 2:
            written += len(os.read(told, 2))
        time.sleep(rng.random() * 0.01)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(tell)
        while chunk := os.read(told, 4096):
            written += len(chunk)
        os.close(told)
        found = step_of(open_snapshots(folder))
        # What the writer saw closed, or the write after, which nobody was told of.
        assert found in {(furthest + written) % 1000, (furthest + written + 1) % 1000}, (found, furthest, written)
        furthest = found
    print("held")


if __name__ == "__main__":
    _kill_writers(Path(sys.argv[1]))
