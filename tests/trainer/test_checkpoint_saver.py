"""A storage that is slow or fails costs checkpoints, never the training, and never the checkpoints before."""

import errno
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from exchange import DictExchange
from torch.distributed import TCPStore

from relight_agent.exits import ExitCode
from relight_trainer.checkpoint import CheckpointFolder, Fenced, Saver, StorageFailed, UnsupportedState, room
from relight_trainer.checkpoint.local_place import LocalPlace
from relight_trainer.checkpoint.shards import Content
from relight_trainer.peers import StoreExchange

pytestmark = pytest.mark.timeout(60)


class Ranks:
    """The ranks of a job, each with a model of its own that is equal on all; their storage can be held up or broken."""

    def __init__(self, path, monkeypatch, *, world=3, slow=2.0, client=None):
        self.path, self.world = path, world
        self.go = threading.Event()
        self.go.set()
        self.fails: OSError | None = None
        self.said = []
        self.weights = [torch.zeros(40) for _ in range(world)]
        self.tied = [
            {"a": w, "b": w, "c": torch.zeros(3, 2, 2, 2).to(memory_format=torch.channels_last)} for w in self.weights
        ]
        one = DictExchange()
        client = client or (lambda: one)
        self.folders = [
            CheckpointFolder(path, job_uid="u", created=1.0, config_hash="h", keep=2, timeout=20) for _ in range(world)
        ]
        self.savers = [
            Saver(
                folder,
                client(),
                agree=client(),
                rank=rank,
                world=world,
                timeout=20,
                say=lambda t, r=rank: self.said.append((r, t)),
                slow=slow,
            )
            for rank, folder in enumerate(self.folders)
        ]
        self.folders[0].begin_generation(1)
        self.pool = ThreadPoolExecutor(world)
        for folder in self.folders:
            monkeypatch.setattr(folder._place, "write", self._held_up(folder._place.write))

    def _held_up(self, write):
        def held_up(*args):
            assert self.go.wait(20)
            if self.fails is not None:
                raise self.fails
            return write(*args)

        return held_up

    def all(self, act):
        return list(self.pool.map(act, range(self.world)))

    def due(self, step, state=None):
        def one(rank):
            self.weights[rank].fill_(float(step))
            taken = (lambda: state(rank)) if state else (lambda: {"model": self.tied[rank]})
            result = self.savers[rank].due(taken, generation=1, step=step, cursor={"step": step})
            self.weights[rank].fill_(-1.0)  # training goes on
            return result

        return self.all(one)

    def newest(self):
        folder = CheckpointFolder(self.path, job_uid="u", created=1.0, config_hash="h", say=self.said.append)
        found = folder.newest()
        state = folder.load(found)["model"]
        assert (state["a"] == found.position.step).all()
        assert state["a"].data_ptr() == state["b"].data_ptr()
        assert state["c"].is_contiguous(memory_format=torch.channels_last)
        return found.position.step

    def memory(self):
        """Where each rank's copies lie."""
        return [{i: t.data_ptr() for i, t in saver._memory.items()} for saver in self.savers]

    def texts(self):
        return [text for _, text in self.said]


@pytest.fixture
def ranks(tmp_path, monkeypatch):
    made = Ranks(tmp_path / "c", monkeypatch)
    yield made
    made.go.set()
    for saver in made.savers:
        if saver._running is not None:
            saver._running._thread.join()
    made.pool.shutdown()


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_quick_storage_is_written_to_at_once(ranks):
    saved = ranks.due(5)
    assert [c.position.step for c in saved] == [5, 5, 5]
    assert ranks.newest() == 5
    assert ranks.all(lambda r: ranks.savers[r].poll()) == [None] * 3
    assert ranks.said == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.ESTALE])
def test_a_storage_that_fails_is_told_and_training_goes_on(ranks, code):
    ranks.due(5)
    ranks.due(6)
    ranks.fails = OSError(code, "the disk says no")
    for step in (7, 8, 9):
        assert ranks.due(step) == [None] * 3
    assert ranks.newest() == 6
    assert [p.name for p in sorted(ranks.path.glob("step-*"))] == ["step-000000005.g1", "step-000000006.g1"]
    assert len([t for t in ranks.texts() if "training goes on without the checkpoint of step 7: " in t]) == 3
    assert all("the disk says no" in t for t in ranks.texts())
    ranks.fails = None
    ranks.due(10)
    assert ranks.newest() == 10
    assert not list(ranks.path.glob("tmp-*"))


def test_the_last_save_of_a_training_fails_loudly(ranks):
    ranks.fails = OSError(errno.ENOSPC, "No space left on device")

    def final(rank):
        with pytest.raises(StorageFailed, match="No space left") as error:
            ranks.savers[rank].now({"model": ranks.tied[rank]}, generation=1, step=9, cursor={}, final=True)
        return error.value.exit_code

    assert ranks.all(final) == [ExitCode.STORAGE_FAILED] * 3


def slowed(ranks):
    for saver in ranks.savers:
        saver._slow = 0.0
    ranks.due(1)
    assert [r for r, t in ranks.said if "from now on they are written beside the training" in t] == [0]
    ranks.said.clear()
    return ranks


def test_a_slow_storage_is_written_to_beside_the_training(ranks):
    slowed(ranks).go.clear()
    assert ranks.due(2) == [None] * 3  # returns though the storage stands still
    assert ranks.all(lambda r: ranks.savers[r].poll()) == [None] * 3
    assert ranks.newest() == 1
    assert ranks.due(3) == [None] * 3
    assert [t for _, t in ranks.said] == [
        "the storage is slow: no checkpoint of step 3, the one before is still being written"
    ] * 3
    ranks.go.set()
    until(lambda: all(saver._running.done for saver in ranks.savers))
    assert [c.position.step for c in ranks.all(lambda r: ranks.savers[r].poll())] == [2] * 3
    assert ranks.newest() == 2  # the state as it was then, though the weights have changed since
    ranks.due(4)
    assert [c.position.step for c in ranks.all(lambda r: ranks.savers[r].wait())] == [4] * 3
    assert ranks.newest() == 4


def test_a_large_state_is_never_waited_for(ranks):
    for saver in ranks.savers:
        saver._large = 160  # bytes of the weights alone; the state has more
    ranks.go.clear()
    assert ranks.due(1) == [None] * 3
    ranks.go.set()
    assert [c.position.step for c in ranks.all(lambda r: ranks.savers[r].wait())] == [1] * 3
    assert ranks.newest() == 1
    assert ranks.said == []


def test_where_memory_is_short_even_a_large_state_is_written_at_once(ranks, monkeypatch):
    wanted = []
    monkeypatch.setattr(room, "fits", wanted.append)
    for saver in slowed(ranks).savers:
        saver._large, saver._local_world = 160, 2
        saver.prepare(lambda: {"model": ranks.tied[0]})
        assert saver._memory == {}
    assert [c.position.step for c in ranks.due(2)] == [2] * 3
    assert set(wanted) == {(160 + 96) * 2 // 3}  # two of three shares


def test_room_for_copies_is_made_before_they_are_due(ranks):
    for rank, saver in enumerate(ranks.savers):
        saver._large = 160
        saver.prepare(lambda rank=rank: {"model": ranks.tied[rank]})
        saver._making_room.join()
    before = ranks.memory()
    assert any(before)
    ranks.due(1)
    ranks.all(lambda r: ranks.savers[r].wait())
    assert ranks.memory() == before
    assert ranks.newest() == 1


def test_the_memory_of_a_copy_is_used_again_where_it_fits(ranks):
    slowed(ranks).due(2)
    ranks.all(lambda r: ranks.savers[r].wait())
    before = ranks.memory()
    assert any(before)
    ranks.due(3)
    ranks.all(lambda r: ranks.savers[r].wait())
    assert ranks.memory() == before
    assert ranks.newest() == 3
    ranks.due(4, lambda rank: {"model": {**ranks.tied[rank], "c": torch.full((5, 2), 4.0)}})
    ranks.all(lambda r: ranks.savers[r].wait())
    folder = CheckpointFolder(ranks.path, job_uid="u", created=1.0, config_hash="h")
    assert (folder.load(folder.newest())["model"]["c"] == 4.0).all()


def test_a_store_that_a_thread_waits_on_holds_nobody_up(tmp_path, monkeypatch):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def client():
        return StoreExchange(TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False))

    ranks = slowed(Ranks(tmp_path / "c", monkeypatch, world=2, client=client))
    monkeypatch.setattr(ranks.folders[1]._place, "write", LocalPlace(tmp_path / "c").write)
    ranks.go.clear()
    ranks.due(2)
    until(lambda: list(tmp_path.glob("c/tmp-*/shard-1-of-2.safetensors")))
    began = time.monotonic()
    ranks.due(3)  # while rank 1's thread waits for rank 0
    assert time.monotonic() - began < 5
    ranks.go.set()
    assert [c.position.step for c in ranks.all(lambda r: ranks.savers[r].wait())] == [2, 2]
    ranks.pool.shutdown()


def test_a_save_at_once_waits_for_the_one_beside(ranks):
    slowed(ranks).go.clear()
    ranks.due(2)
    threading.Timer(0.05, ranks.go.set).start()

    def final(rank):
        ranks.weights[rank].fill_(3.0)
        return ranks.savers[rank].now({"model": ranks.tied[rank]}, generation=1, step=3, cursor={}, final=True)

    assert [c.final for c in ranks.all(final)] == [True] * 3
    assert sorted(p.name for p in ranks.path.glob("step-*")) == ["step-000000002.g1", "step-000000003.g1.final"]


def test_a_failure_beside_the_training_is_told_and_costs_nothing_older(ranks):
    slowed(ranks).fails = OSError(errno.EIO, "Input/output error")
    ranks.due(2)
    assert ranks.all(lambda r: ranks.savers[r].wait()) == [None] * 3
    assert len([t for t in ranks.texts() if t.startswith("training goes on without the checkpoint of step 2")]) == 3
    assert ranks.newest() == 1


def test_a_fenced_writer_ends_whether_it_wrote_beside_or_not(ranks):
    slowed(ranks).due(2)
    ranks.all(lambda r: ranks.savers[r].wait())
    CheckpointFolder(ranks.path, job_uid="u", created=1.0, config_hash="h").begin_generation(2)
    ranks.due(3)

    def fenced(rank):
        with pytest.raises(Fenced):
            ranks.savers[rank].wait()

    ranks.all(fenced)


def test_a_state_that_cannot_be_saved_on_one_rank_ends_all(ranks):
    slowed(ranks).due(2, lambda rank: {"model": ranks.tied[rank], "x": object() if rank == 1 else 1})

    def unsupported(rank):
        with pytest.raises(UnsupportedState, match="x: cannot save"):
            ranks.savers[rank].wait()

    ranks.all(unsupported)


def test_a_rank_holds_its_own_share_alone():
    state = {"model": {f"w{i}": torch.full((1000,), float(i)) for i in range(9)}}
    whole = [b"".join(bytes(p) for p in Content(state).shard(rank, 3)) for rank in range(3)]
    held = [Content(state).hold(rank, 3, {}) for rank in range(3)]
    assert [sum(t.numel() for t in content._held.values()) for content in held] == [3000] * 3
    for tensor in state["model"].values():
        tensor.zero_()
    assert [b"".join(bytes(p) for p in content.shard(rank, 3)) for rank, content in enumerate(held)] == whole
