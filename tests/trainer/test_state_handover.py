"""A restore sends a state to the ranks that lack it, of that only what they have not built the same, and compares it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from hypothesis import given
from hypothesis import strategies as st
from test_train_exact import job
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from relight_trainer import client, loading
from relight_trainer.checkpoint import Snapshots, pack, unpack
from relight_trainer.checkpoint.container import entries_of
from relight_trainer.checkpoint.packed import Difference, Own, Packed, difference
from relight_trainer.context import WorkerContext
from relight_trainer.handover import hand_over
from relight_trainer.peers import Peers
from relight_trainer.routes import routes

pytestmark = pytest.mark.timeout(120)


# Who sends to whom.


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=12), st.sampled_from([1, 2, 4]))
def test_routes_reach_everybody_once_and_only_who_holds_it_sends(machines: list[list[bool]], local_world: int) -> None:
    holds = [held for machine in machines for held in machine]
    if not any(holds):
        holds[0] = True
    have = {rank for rank, held in enumerate(holds) if held}
    survivors = set(have)
    crossings: dict[int, int] = {}
    for now in routes(holds, local_world):
        busy = [rank for route in now for rank in route]
        assert len(busy) == len(set(busy)), "a rank does one thing at a time"
        for source, target in now:
            assert source in have
            assert target not in have
            if source // local_world != target // local_world:
                crossings[target // local_world] = crossings.get(target // local_world, 0) + 1
        have |= {target for _, target in now}
    assert have == set(range(len(holds)))
    assert all(count == 1 for count in crossings.values()), "a machine is sent the state once"
    assert not {m for m in crossings if any(rank // local_world == m for rank in survivors)}


def test_several_holders_share_the_work() -> None:
    assert routes([True] * 4 + [False] * 4, 1) == [[(0, 4), (1, 5), (2, 6), (3, 7)]]
    # One sender of each machine first.
    assert routes([True, True, True, True, False, False, False, False], 2) == [[(0, 4), (2, 6)], [(4, 5), (6, 7)]]
    assert routes([True, True], 2) == []


# What is the same.


def state(seed: int = 0, **loop: Any) -> dict[str, Any]:
    torch.manual_seed(seed)
    weight, whole = torch.randn(300, 200), torch.arange(100.0)
    return {
        "model": {"weight": weight, "tied": weight, "every_second": whole[::2], "flags": torch.tensor([True, False])},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "lr": 0.1},
        "loop": {"step": 3, "metrics": {"loss": "0.5"}, **loop},
    }


def digests(of: dict[str, Any]) -> dict[str, str]:
    return Packed(pack(of)).digests


def test_equal_states_have_equal_digests_whatever_they_are_packed_into() -> None:
    first, second = state(), state()
    second["model"]["every_second"] = torch.full((100,), 7.0)[::2].copy_(first["model"]["every_second"])
    assert digests(first) == digests(second), "what lies between the values is no value"
    own = {"metrics": {"loss": "0.7"}, "last_batch": "of rank 1"}
    assert digests(first) == digests(state(**own)), "each rank logs its own, and is fed its own"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda s: s["model"]["weight"][7, 7].mul_(-1), ("model", "weight")),
        (lambda s: s["model"]["every_second"][3].add_(1), ("model", "every_second")),
        (lambda s: s["model"]["flags"].logical_not_(), ("model", "flags")),
        (lambda s: s["optimizer"]["state"][0]["step"].add_(1), ("optimizer", "state[0].step")),
        (lambda s: s["optimizer"].update(lr=0.2), ("optimizer", "")),
        (lambda s: s["loop"].update(step=4), ("loop", "")),
        (lambda s: s["model"].update(more=torch.zeros(1)), ("model", "")),
    ],
)
def test_the_first_difference_is_named(change: Any, where: tuple[str, str]) -> None:
    other = state()
    change(other)
    found = difference([digests(state()), digests(state()), digests(other)])
    assert found == Difference(2, *where)


@given(st.lists(st.integers(0, 200_000), max_size=6), st.data())
def test_runs_are_the_memory_of_what_is_wanted(sizes: list[int], data: st.DataObject) -> None:
    packed = Packed(pack({"a": {str(i): torch.randint(0, 256, (n,), dtype=torch.uint8) for i, n in enumerate(sizes)}}))
    wanted = data.draw(st.lists(st.booleans(), min_size=len(packed.entries), max_size=len(packed.entries)))
    expected = b"".join(bytes(e) for e, w in zip(packed.entries.values(), wanted, strict=True) if w)
    assert b"".join(map(bytes, packed.runs(wanted))) == expected


def test_a_state_of_another_form_shares_what_has_the_same_bytes() -> None:
    torch.manual_seed(0)
    weight = torch.randn(300, 200)
    packed = Packed(pack({"model": {"weight": weight, "new": torch.randn(300, 200)}}))
    own = Own(lambda: {"model": {"weight": weight.clone(), "new": torch.zeros(300, 200), "odd": torch.zeros(3)}})
    assert own.same("model.weight", packed.digests["model.weight"]) is not None
    assert own.same("model.new", packed.digests["model.new"]) is None
    assert own.same("model.absent", "") is None
    lazy = Own(lambda: {"model": nn.LazyLinear(3).state_dict()})
    assert lazy.same("model.weight", packed.digests["model.weight"]) is None


# What may lie in memory that changes afterwards.


class Keeps(nn.Module):
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *_: Any, **__: Any) -> None:
        self.kept = state_dict[f"{prefix}kept"]


class Extra(nn.Linear):
    def set_extra_state(self, state: Any) -> None:
        self.extra = state


def test_only_what_copies_what_it_loads_is_lent_memory() -> None:
    plain = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.SyncBatchNorm(2), nn.LSTM(2, 2), nn.Embedding(2, 2))
    hooked = nn.Linear(2, 2)
    hooked.register_load_state_dict_pre_hook(lambda *_: None)
    objects = {
        "plain": plain, "keeps": nn.Sequential(Keeps()), "extra": Extra(2, 2), "hooked": hooked, "lazy": nn.LazyLinear(2),
        "optimizer": torch.optim.Adam(plain.parameters()),
    }  # fmt: skip
    assert loading.that_copy(objects) == {"plain"}


def test_lent_memory_is_not_copied_and_other_memory_is() -> None:
    data = pack({"model": {"w": torch.ones(1000)}, "optimizer": {"w": torch.ones(1000)}})
    found = unpack(data, lent={"model"})
    entries = entries_of(data)[1]
    entries["model.w"][:] = bytes(4000)
    entries["optimizer.w"][:] = bytes(4000)
    assert found["model"]["w"].sum() == 0
    assert found["optimizer"]["w"].sum() == 1000


# The same between processes.


def build(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(500, 1000), nn.ReLU(), nn.Linear(1000, 2))
    model[0].requires_grad_(False)
    return model, torch.optim.SGD(model[2].parameters(), lr=0.1, momentum=0.9)


FROZEN = 4 * 500 * 1000  # bytes of the frozen weight
TRAINED = 2 * (4 * 1000 * 2 + 4 * 2)  # of what trains, and its momentum


def training(context: WorkerContext, seed: int, victim: int, step: int) -> Any:
    """Train to step 8, but die as `victim` once `step` is done; (sent, received, resumed from, digest)."""
    model, optimizer = build(seed)
    run = client.start(init=True, model=model, optimizer=optimizer)
    replica = run.wrap(model)
    torch.manual_seed(5)
    data = TensorDataset(torch.randn(64, 500), torch.randint(0, 2, (64,)))
    for inputs, labels in run.steps(DataLoader(data, batch_size=8), epochs=1):
        if context.rank == victim and run.step == step:
            os._exit(9)
        optimizer.zero_grad()
        nn.functional.cross_entropy(replica(inputs), labels).backward()
        optimizer.step()
    assert run._session is not None
    progress = run._session.progress
    outcome = client.outcome()
    assert outcome is not None
    assert outcome.result is not None
    return progress.sent_bytes, progress.received_bytes, progress.resumed_from, outcome.result["weightsDigest"]


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("same", [True, False])
def test_survivors_are_sent_nothing_and_a_replacement_what_it_lacks(tmp_path: Path, ranks: int, same: bool) -> None:
    (tmp_path / "whole").mkdir()
    whole = worlds.run(training, 1, -1, 0, root=tmp_path / "whole", job=job(tmp_path, checkpoints=False), ranks=ranks)
    the_job = job(tmp_path, checkpoints=False)
    victim = ranks - 1
    worlds.run(training, 1, victim, 5, root=tmp_path, job=the_job, ranks=ranks)
    shutil.rmtree(tmp_path / f"slot-{victim}")
    answers = worlds.run(training, 1 if same else 2, -1, 0, root=tmp_path, job=the_job, generation=2, ranks=ranks)
    sent, received, resumed_from, ends = zip(*answers, strict=True)
    assert set(resumed_from) == {5}
    assert set(ends) == {whole[0][3]}
    assert received[:-1] == (0,) * (ranks - 1), "survivors read their own memory"
    lacked = received[victim]
    assert sum(sent) == lacked
    if same:
        assert TRAINED <= lacked < TRAINED + 10_000, "biases and counters besides"
    else:
        assert FROZEN + TRAINED <= lacked < FROZEN + TRAINED + 10_000


def test_ranks_of_a_machine_read_its_snapshot_and_a_new_machine_is_sent_it_once(tmp_path: Path) -> None:
    options = {"ranks": 4, "local_ranks": 2}
    the_job = job(tmp_path, checkpoints=False)
    worlds.run(training, 1, 2, 5, root=tmp_path, job=the_job, **options)
    shutil.rmtree(tmp_path / "slot-1")
    answers = worlds.run(training, 2, -1, 0, root=tmp_path, job=the_job, generation=2, **options)
    sent, received, resumed_from, ends = zip(*answers, strict=True)
    assert len(set(ends)) == len(set(resumed_from)) == 1
    assert received[:2] == (0, 0)
    assert received[2] == received[3] >= FROZEN
    assert sent == (received[2], 0, received[3], 0), "the second rank of the new machine hears it from the first"


def test_ranks_that_begin_equal_are_sent_nothing(tmp_path: Path) -> None:
    answers = worlds.run(given_state, root=tmp_path, job=job(tmp_path, checkpoints=False), ranks=3)
    assert answers == [(0, 0, True)] * 3, answers


def given_state(context: WorkerContext) -> Any:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    own = {"model": {"weight": torch.ones(300, 300), "large": torch.zeros(1_000_000)}}
    data = pack(own)
    held = (lambda: data) if context.rank == 1 else None
    handed = hand_over(Peers(), held, Own(lambda: own), local_world=1)
    return handed.sent, handed.received, pack(handed.packed.unpacked()) == data


def change_a_byte(root: Path, name: str) -> None:
    """In the newest snapshot of a member, in the last value of an entry."""
    snapshots = Snapshots(root / "snapshots", job_uid="u1", config_hash="c1")
    newest = snapshots.newest()
    for mark in (root / "snapshots").glob("slot-*.json"):
        found = json.loads(mark.read_text())
        if newest is not None and found["step"] == newest.step:
            slot = mark.with_suffix(".safetensors")
            data = bytearray(slot.read_bytes())
            entries_of(data)[1][name][-1] ^= 1
            slot.write_bytes(data)


@pytest.mark.parametrize("ranks", [2, 3])
def test_snapshots_of_one_step_that_differ_end_the_job_by_name(tmp_path: Path, ranks: int) -> None:
    the_job = job(tmp_path, checkpoints=False)
    worlds.run(training, 1, 0, 5, root=tmp_path, job=the_job, ranks=ranks)
    change_a_byte(tmp_path / "slot-1", "model.0.weight")
    answers = worlds.run(training, 1, -1, 0, root=tmp_path, job=the_job, generation=2, ranks=ranks)
    assert all(str(answer).startswith("RanksDiffer: the snapshot of step ") for answer in answers), answers
    assert all("rank 1, object model, tensor 0.weight differs from rank 0's" in answer for answer in answers)
