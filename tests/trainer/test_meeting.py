"""Forming a world: who does not come is named, who comes from another world meets nobody, and what is not shared is found."""

import multiprocessing
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore

from relight_agent.exits import ExitCode
from relight_agent.files import JobFile
from relight_agent.preflight import state_bytes
from relight_trainer import restore
from relight_trainer.checkpoint import CheckpointFolder, Fenced, StorageFailed
from relight_trainer.peers import Silent, meet
from relight_trainer.restore import NotShared

pytestmark = pytest.mark.timeout(120)
SHORT = timedelta(seconds=1)
MEMBERS = [{"machine": f"gpu-{i}", "address": f"10.0.0.{i}", "slot": i} for i in range(2)]


@pytest.fixture
def store():
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def test_who_does_not_come_is_named_with_its_machine(store) -> None:
    with pytest.raises(Silent) as caught:
        meet(store, 0, 4, MEMBERS, timeout=SHORT)
    assert str(caught.value) == (
        "waited 1 s for rank 1 (gpu-0, 10.0.0.0), rank 2 (gpu-1, 10.0.0.1), rank 3 (gpu-1, 10.0.0.1): "
        "not come to form the world"
    )
    assert caught.value.exit_code is ExitCode.PEER_LOST
    with pytest.raises(Silent, match=r"waited 1 s for rank 1: not come"):
        meet(PrefixStore("b", store), 0, 2, timeout=SHORT)


def test_who_comes_is_waited_for(store) -> None:
    store.set("1", "here")
    meet(store, 0, 2, MEMBERS)


def test_a_worker_of_another_run_meets_nobody_at_the_same_address(monkeypatch) -> None:
    """A zombie whose master's port has been given to a newer generation."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
    context = multiprocessing.get_context("spawn")
    runs = [("job-2-b", 0), ("job-2-b", 1), ("job-1-a", 1)]  # the third is the zombie, of the same rank as the second
    with context.Pool(3) as pool:
        given = [({**environment, "TORCHELASTIC_RUN_ID": run, "RANK": str(rank)},) for run, rank in runs]
        found = pool.starmap(_form, given)
    assert found == [2.0, 2.0, "Silent"]


def _form(environment: dict[str, str]) -> float | str:
    import os

    from relight_trainer import peers

    os.environ.update(environment, GLOO_SOCKET_IFNAME="lo")
    peers.meet.__defaults__ = ((), timedelta(seconds=20 if environment["TORCHELASTIC_RUN_ID"] == "job-2-b" else 1))
    try:
        peers.form(torch.device("cpu"))
    except Silent:
        return "Silent"
    one = torch.ones(1)
    dist.all_reduce(one)
    return one.item()


def folder(path, generation: int | None = None) -> CheckpointFolder:
    made = CheckpointFolder(path, job_uid="u", created=1.0, config_hash="h", say=lambda _: None)
    if generation is not None:
        made.begin_generation(generation)
    return made


@pytest.mark.parametrize(
    ("generation", "code"), [(1, ExitCode.BAD_CONFIG), (4, ExitCode.MACHINE_UNHEALTHY)], ids=["at first", "later"]
)
def test_a_folder_that_is_not_shared_is_found_before_the_first_step(tmp_path, monkeypatch, generation, code) -> None:
    monkeypatch.setattr(restore, "SEEN_SECONDS", 0.3)
    folder(tmp_path / "a", generation)
    restore._see(folder(tmp_path / "a"), generation)
    (tmp_path / "b").mkdir()
    with pytest.raises(NotShared, match="is not shared") as caught:
        restore._see(folder(tmp_path / "b"), generation)
    assert caught.value.exit_code is code


def test_an_older_generation_in_the_folder_is_not_the_present_one(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(restore, "SEEN_SECONDS", 0.0)
    folder(tmp_path, 3)
    assert folder(tmp_path).has_begun(3)
    assert not folder(tmp_path).has_begun(4)


def save(checkpoints: CheckpointFolder, generation: int, step: int) -> None:
    checkpoints.save(
        {"model": {"w": torch.ones(100)}}, generation=generation, step=step, cursor={}, final=False, rank=0, world=1,
        exchange=_Alone(),
    )  # fmt: skip


class _Alone:
    def put(self, key, value) -> None: ...

    def get(self, key, timeout):
        raise LookupError(key)


def test_a_fence_that_a_zombie_has_put_back_is_put_up_again(tmp_path) -> None:
    """It was stopped in the middle of beginning its generation, and went on there after the next had begun."""
    zombie = folder(tmp_path, 1)
    old = (tmp_path / "fence.json").read_bytes()
    present = folder(tmp_path, 2)
    (tmp_path / "fence.json").write_bytes(old)
    save(present, 2, 10)
    with pytest.raises(Fenced):
        save(zombie, 1, 11)
    assert folder(tmp_path).newest().position == (2, 10)


def test_the_size_of_a_state_is_read_from_the_newest_checkpoint(tmp_path) -> None:
    job = JobFile("default", "job", "u", 1.0, 1, 1, {"kind": "script", "argv": ["x"]}, "h")
    assert state_bytes(tmp_path, job) == 0
    checkpoints = folder(tmp_path, 1)
    save(checkpoints, 1, 5)
    [written] = tmp_path.glob("step-*")
    whole = sum(p.stat().st_size for p in written.iterdir() if p.name != "manifest.json")
    assert state_bytes(tmp_path, job) == whole > 400
    assert not issubclass(NotShared, StorageFailed)
