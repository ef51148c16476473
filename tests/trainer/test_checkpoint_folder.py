"""The checkpoint protocol: committed or invisible, damaged ones passed over, zombies shut out."""

import errno
import hashlib
import itertools
import json
import random
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import safetensors.torch
import torch
from exchange import DictExchange

from relight_agent.exits import ExitCode
from relight_trainer.checkpoint import (
    CheckpointFolder,
    ConfigChanged,
    Fenced,
    NoUsableCheckpoint,
    Position,
    StorageFailed,
    UnsupportedState,
)
from relight_trainer.checkpoint import (
    folder as folder_module,
)
from relight_trainer.checkpoint import (
    local_place as local_module,
)
from relight_trainer.checkpoint.local_place import LocalPlace
from relight_trainer.checkpoint.seal import MOST_BYTES, sealed

pytestmark = pytest.mark.timeout(60)


def state_at(step):
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {f"w{i}": torch.randn(7, i + 1, generator=generator) for i in range(6)},
        "optimizer": {"state": {0: {"step": torch.tensor(float(step))}}, "lr": float("inf")},
        "loop": {"step": step, "names": ("a", None)},
    }


def assert_state(state, step):
    expected = state_at(step)
    assert state["loop"] == expected["loop"]
    assert state["optimizer"] == expected["optimizer"]
    assert all(torch.equal(state["model"][k], v) for k, v in expected["model"].items())


class Job:
    """A job's ranks, each with a CheckpointFolder of its own, as threads."""

    def __init__(self, path, *, world=1, uid="job-1", created=100.5, config="abc", keep=3, timeout=20.0):
        self.path = path
        self.world = world
        self.said = []
        self.exchange = DictExchange()
        self.ranks = [
            CheckpointFolder(
                path, job_uid=uid, created=created, config_hash=config, keep=keep, say=self.said.append, timeout=timeout
            )
            for _ in range(world)
        ]

    @property
    def first(self):
        return self.ranks[0]

    def begin(self, generation):
        self.first.begin_generation(generation)
        return self

    def save(self, generation, step, *, final=False, state=None, only=None):
        """Save on all ranks at once; the error of each rank, None where it went well."""

        def one(rank):
            try:
                return self.ranks[rank].save(
                    state(rank) if state else state_at(step),
                    generation=generation,
                    step=step,
                    cursor={"samples": step * 8, "metrics": {"loss": float("nan")}},
                    final=final,
                    rank=rank,
                    world=self.world,
                    exchange=self.exchange,
                )
            except Exception as error:
                return error

        with ThreadPoolExecutor(self.world) as pool:
            return list(pool.map(one, only or range(self.world)))

    def saved(self, generation, step, **kwargs):
        for result in self.save(generation, step, **kwargs):
            if isinstance(result, Exception):
                raise result
        return self

    def names(self):
        return sorted(p.name for p in self.path.iterdir() if p.name != "fence.json")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoints"


def flip(file, bit):
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def newest(job):
    found = job.first.newest()
    return found and found.position


# ---- a good checkpoint


@pytest.mark.parametrize("world", [1, 2, 4, 9])
def test_what_the_ranks_saved_together_is_loaded_whole(path, world):
    job = Job(path, world=world).begin(1).saved(1, 5)
    checkpoint = job.first.newest()
    assert (checkpoint.position, checkpoint.world, checkpoint.final) == (Position(1, 5), world, False)
    assert checkpoint.cursor["samples"] == 40
    assert str(checkpoint.cursor["metrics"]["loss"]) == "nan"
    assert_state(job.first.load(checkpoint), 5)
    assert job.names() == ["step-000000005.g1"]


def test_every_rank_gets_the_committed_checkpoint_and_writes_a_fair_share(path):
    job = Job(path, world=3).begin(1)
    big = {"w": [torch.full((1000 + i,), float(i)) for i in range(30)]}
    results = job.save(1, 2, state=lambda rank: big)
    assert len({r.seal for r in results}) == 1
    assert all(r.path == path / "step-000000002.g1" for r in results)
    sizes = [file.stat().st_size for file in results[0].path.glob("shard-*")]
    assert len(sizes) == 3
    assert max(sizes) < 1.1 * min(sizes)
    tensors = {}
    for file in results[0].path.glob("shard-*"):
        tensors |= safetensors.torch.load_file(file)
    assert len(tensors) == 30


def test_the_manifest_says_what_is_there(path):
    Job(path, world=2).begin(3).saved(3, 7, final=True)
    folder = path / "step-000000007.g3.final"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["schema"] == 1
    assert manifest["order"] == {"created": 100.5, "generation": 3, "step": 7}
    assert (manifest["world"], manifest["final"], manifest["config_hash"], manifest["job_uid"]) == (
        2,
        True,
        "abc",
        "job-1",
    )
    assert manifest["versions"]["torch"] == torch.__version__
    assert set(manifest["files"]) == {f.name for f in folder.iterdir()} - {"manifest.json"}
    for name, record in manifest["files"].items():
        assert record["bytes"] == (folder / name).stat().st_size


def test_saving_the_same_position_again_writes_nothing(path):
    job = Job(path, world=2).begin(1).saved(1, 5)
    before = (path / "step-000000005.g1").stat().st_ino
    job.saved(1, 5)
    assert (path / "step-000000005.g1").stat().st_ino == before
    job.saved(1, 5, final=True)
    assert job.first.newest().final


def test_the_order_is_job_then_generation_then_step(path):
    Job(path, uid="old", created=50.0).begin(9).saved(9, 900)
    job = Job(path).begin(1).saved(1, 40)
    assert newest(job) == (1, 40)
    job.begin(2).saved(2, 30)  # a later generation that fell back behind step 40
    assert newest(job) == (2, 30)


def test_nothing_there_is_none(path):
    assert Job(path).first.newest() is None
    assert Job(path).begin(1).first.newest() is None


def test_a_newer_state_in_memory_spares_the_reading(path, monkeypatch):
    job = Job(path).begin(1).saved(1, 5).begin(2)
    monkeypatch.setattr(folder_module, "problem", lambda *_, **__: pytest.fail("the checkpoint was read"))
    assert job.first.newest(newer_than=Position(1, 5)) is None
    assert job.first.newest(newer_than=Position(1, 8)) is None
    monkeypatch.undo()
    assert job.first.newest(newer_than=Position(1, 4)).position == (1, 5)


def test_a_final_checkpoint_is_better_than_a_snapshot_of_the_same_step(path):
    job = Job(path).begin(1).saved(1, 5, final=True)
    assert job.first.newest(newer_than=Position(1, 5)).final


# ---- damage


FILES = ("manifest.json", "state.json", "shard-0-of-2.safetensors", "shard-1-of-2.safetensors")


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_anywhere_and_the_one_before_is_used(path, tmp_path, name):
    Job(path, world=2).begin(1).saved(1, 5).saved(1, 9)
    bits = 8 * (path / "step-000000009.g1" / name).stat().st_size
    for bit in {0, bits - 1, *random.Random(name).sample(range(bits), 25)}:
        copy = tmp_path / f"copy-{bit}"
        shutil.copytree(path, copy)
        flip(copy / "step-000000009.g1" / name, bit)
        job = Job(copy, world=2).begin(2)
        checkpoint = job.first.newest()
        assert checkpoint.position == (1, 5)
        assert_state(job.first.load(checkpoint), 5)
        (said,) = job.said
        assert said.startswith(f"checkpoint step-000000009.g1: {name} ")
        assert job.names() == ["corrupt-step-000000009.g1", "step-000000005.g1"]


def truncate(folder):
    file = folder / "shard-1-of-2.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (truncate, r"shard-1-of-2.safetensors has \d+ bytes instead of \d+"),
        (lambda folder: (folder / "shard-0-of-2.safetensors").unlink(), r"shard-0-of-2.safetensors is missing"),
        (lambda folder: (folder / "state.json").unlink(), r"state.json is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), r"manifest.json is missing"),
        (lambda folder: (folder / "manifest.json").write_text(""), r"manifest.json is not JSON"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), r"manifest.json has no checksum"),
        (lambda folder: [f.unlink() for f in folder.iterdir()], r"manifest.json is missing"),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_and_said_and_the_one_before_is_used(path, damage, why):
    Job(path, world=2).begin(1).saved(1, 5).saved(1, 9)
    damage(path / "step-000000009.g1")
    job = Job(path).begin(2)
    assert newest(job) == (1, 5)
    assert len(job.said) == 1
    assert re.search(rf"step-000000009.g1: {why}; .* kept as corrupt-step-000000009.g1", job.said[0])
    assert newest(job) == (1, 5)
    assert len(job.said) == 1


def test_a_half_written_folder_is_no_candidate_and_is_cleared_away(path):
    job = Job(path).begin(1).saved(1, 5)
    shutil.copytree(path / "step-000000005.g1", path / "tmp-step-000000009.g1-1234")
    assert newest(job) == (1, 5)
    assert job.begin(2).names() == ["step-000000005.g1"]


def test_all_damaged_is_an_end_that_names_each_and_never_a_fresh_start(path):
    Job(path).begin(1).saved(1, 5).saved(1, 9)
    flip(path / "step-000000005.g1" / "shard-0-of-1.safetensors", 1000)
    (path / "step-000000009.g1" / "state.json").unlink()
    job = Job(path).begin(2)
    with pytest.raises(NoUsableCheckpoint) as error:
        job.first.newest()
    assert error.value.exit_code == ExitCode.BAD_DATA
    text = str(error.value)
    assert "step-000000009.g1: state.json is missing" in text
    assert "step-000000005.g1: shard-0-of-1.safetensors does not match its checksum" in text
    assert "delete the folder to start from scratch" in text
    # Nor the next time, when both have been set aside.
    with pytest.raises(NoUsableCheckpoint, match=r"corrupt-step-000000009\.g1"):
        Job(path).begin(3).first.newest()
    # A state in memory is still good enough.
    assert Job(path).begin(4).first.newest(newer_than=Position(3, 2)) is None


def test_storage_that_cannot_be_read_is_not_called_damage(path, monkeypatch):
    job = Job(path).begin(1).saved(1, 5)

    def broken(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(folder_module, "problem", broken)
    with pytest.raises(StorageFailed, match="Input/output error") as error:
        job.first.newest()
    assert error.value.exit_code == ExitCode.STORAGE_FAILED
    monkeypatch.undo()
    assert newest(job) == (1, 5)


def sealed_again(body, **changes):
    """A manifest with other content and the right checksum."""
    return sealed(body["kind"], {k: v for k, v in body.items() if k not in ("kind", "seal")} | changes)


def deep(levels):
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        (lambda folder: (folder / "fence.json").read_text(), "manifest.json holds a fence, not a checkpoint manifest"),
        (lambda _: json.dumps(sealed("", {})), "manifest.json holds a , not a checkpoint manifest"),
        (lambda _: deep(100_000), "manifest.json is nested too deeply"),
        (lambda _: json.dumps(sealed("checkpoint manifest", {})), "manifest.json is damaged: schema: Field required"),
        (lambda _: " " * (MOST_BYTES + 1), "manifest.json has more than 67108864 bytes"),
    ],
    ids=["fence", "no kind", "deep", "empty", "long"],
)
def test_a_file_of_another_kind_in_the_manifests_place_is_set_aside(path, manifest, why):
    Job(path).begin(1).saved(1, 5).saved(1, 9)
    (path / "step-000000009.g1" / "manifest.json").write_text(manifest(path))
    job = Job(path).begin(2)

    assert newest(job) == (1, 5)
    assert why in job.said[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"order": {"created": "x", "generation": 1, "step": 9}},
        {"order": {"created": 1.0, "generation": 1, "step": -1}},
        {"files": {"../../elsewhere": {"bytes": 1, "sha256": "0" * 64}}},
        {"files": {"state.json": {"bytes": -1, "sha256": "0" * 64}}},
        {"files": []},
        {"cursor": {"$tuple": 3}},
        {"cursor": [1]},
        {"world": True},
        {"beside": []},
    ],
    ids=lambda changes: json.dumps(changes)[:30],
)
def test_a_manifest_whose_fields_have_other_types_is_set_aside(path, changes):
    Job(path).begin(1).saved(1, 5).saved(1, 9)
    file = path / "step-000000009.g1" / "manifest.json"
    file.write_text(json.dumps(sealed_again(json.loads(file.read_text()), **changes)))
    job = Job(path).begin(2)

    assert newest(job) == (1, 5)
    assert "step-000000009.g1: manifest.json is damaged" in job.said[0]


def test_a_state_that_cannot_be_read_has_a_name_and_a_way_out(path):
    Job(path).begin(1).saved(1, 5)
    folder = path / "step-000000005.g1"
    state = json.dumps({"views": [], "state": {"$tensor": 7}}).encode()
    (folder / "state.json").write_bytes(state)
    body = json.loads((folder / "manifest.json").read_text())
    body["files"]["state.json"] = {"bytes": len(state), "sha256": hashlib.sha256(state).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(sealed_again(body)))
    job = Job(path).begin(2)

    with pytest.raises(
        NoUsableCheckpoint, match=r"step-000000005\.g1 has its right checksums, and its state cannot be read"
    ):
        job.first.load(job.first.newest())


MUTATIONS = {
    "flip": lambda random, data: data[: (i := random.randrange(len(data)))] + bytes([data[i] ^ 1 << random.randrange(8)]) + data[i + 1 :],
    "cut": lambda random, data: data[: random.randrange(len(data))],
    "insert": lambda random, data: data[: (i := random.randrange(len(data)))] + random.randbytes(3) + data[i:],
    "double": lambda _, data: data + data,
    "zero": lambda random, data: data[: (i := random.randrange(len(data)))] + bytes(len(data) - i),
}  # fmt: skip


@pytest.mark.parametrize("count", [150, pytest.param(5000, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_no_changed_byte_is_ever_loaded(path, tmp_path, count):
    """Whatever happens to the files of the newest checkpoint: it is loaded as it was saved, or the one before is used."""
    Job(path).begin(1).saved(1, 5).saved(1, 9)
    random_ = random.Random(count)
    for i in range(count):
        copy = tmp_path / f"copy-{i}"
        shutil.copytree(path, copy)
        file = copy / "step-000000009.g1" / random_.choice(["manifest.json", "state.json", "shard-0-of-1.safetensors"])
        before = file.read_bytes()
        file.write_bytes(MUTATIONS[random_.choice(list(MUTATIONS))](random_, before))
        if file.read_bytes() != before:
            job = Job(copy).begin(2)
            checkpoint = job.first.newest()
            assert checkpoint.position in ((1, 5), (1, 9))
            assert_state(job.first.load(checkpoint), checkpoint.position.step)
        shutil.rmtree(copy)


# ---- another configuration, another version


def test_another_configuration_is_refused_and_left_alone(path):
    Job(path).begin(1).saved(1, 5)
    job = Job(path, uid="job-2", created=200.0, config="xyz").begin(1)
    with pytest.raises(ConfigChanged, match=r"another configuration \(abc instead of xyz\)") as error:
        job.first.newest()
    assert error.value.exit_code == ExitCode.BAD_CONFIG
    assert job.names() == ["step-000000005.g1"]


def test_a_harmless_or_allowed_change_of_the_configuration_is_told_and_gone_on_from(path):
    def job(config, generation):
        made = Job(path, config=f"hash {config}")
        made.first._config = made.first._identity = config
        return made.begin(generation)

    old = {"optimizer": {"lr": 0.1}, "train": {"log_every": 10, "seed": 1}}
    job(old, 1).saved(1, 5)

    harmless = job({**old, "train": {"log_every": 20, "seed": 1}}, 2)
    assert newest(harmless) == (1, 5)
    assert harmless.said == ["step-000000005.g1: the configuration has changed since: train.log_every: 10 -> 20"]

    with pytest.raises(
        ConfigChanged, match=r"optimizer.lr: 0.1 -> 0.2; allow it with resume.allow: \[optimizer.lr\], or"
    ):
        job({**old, "optimizer": {"lr": 0.2}}, 3).first.newest()

    assert newest(job({**old, "optimizer": {"lr": 0.2}, "resume": {"allow": ["optimizer.lr"]}}, 4)) == (1, 5)
    with pytest.raises(ConfigChanged, match="none"):  # a checkpoint whose configuration nobody knows
        Job(path, config="").begin(5).first.newest()


def test_a_newer_relights_checkpoint_is_refused_and_left_alone(path):
    Job(path).begin(1).saved(1, 5)
    file = path / "step-000000005.g1" / "manifest.json"
    body = json.loads(file.read_text())
    file.write_text(json.dumps(sealed_again(body, schema=2)))
    job = Job(path)
    with pytest.raises(ConfigChanged, match="schema 2"):
        job.first.newest()
    assert job.names() == ["step-000000005.g1"]


# ---- zombies


def test_a_zombie_may_not_save_once_a_newer_generation_has_begun(path):
    zombie = Job(path, world=2).begin(1).saved(1, 5)
    Job(path).begin(2)
    for error in zombie.save(1, 7):
        assert isinstance(error, Fenced)
        assert error.exit_code == ExitCode.PEER_LOST
        assert "generation 2 has begun" in str(error)
    with pytest.raises(Fenced):
        zombie.begin(1)
    assert zombie.names() == ["step-000000005.g1"]


def test_a_zombie_of_a_deleted_job_of_the_same_name_may_not_save_either(path):
    zombie = Job(path, uid="old", created=50.0).begin(7).saved(7, 5)
    Job(path).begin(1)
    assert isinstance(zombie.save(7, 6)[0], Fenced)


def test_a_zombie_overtaken_while_it_writes_commits_nothing(path, monkeypatch):
    zombie = Job(path, world=2).begin(1).saved(1, 5)
    write = local_module.write_file

    def overtaken(file, parts):
        if file.name == "manifest.json":
            Job(path).begin(2)
            file.parent.mkdir(exist_ok=True)  # as if the new generation had not seen the folder yet
        return write(file, parts)

    monkeypatch.setattr(local_module, "write_file", overtaken)
    assert all(isinstance(error, Fenced) for error in zombie.save(1, 7))
    assert zombie.names() == ["step-000000005.g1"]


@pytest.mark.parametrize("step", [3, 7])  # older and newer than what generation 2 found
def test_what_a_zombie_slipped_past_the_fence_is_never_read(path, monkeypatch, step):
    zombie = Job(path).begin(1).saved(1, 5)
    job = Job(path).begin(2)
    monkeypatch.setattr(CheckpointFolder, "_refuse_if_fenced", lambda *_: None)  # its check came just before the fence
    zombie.saved(1, step)
    monkeypatch.undo()
    assert newest(job) == (1, 5)
    shutil.rmtree(path / "step-000000005.g1")
    assert newest(job) is None
    assert any("generation 1 wrote it after generation 2 had begun" in said for said in job.said)
    job.saved(2, 6)
    job.begin(3)
    assert newest(job) == (2, 6)


def test_what_older_generations_committed_in_time_stays_usable_through_many_fences(path):
    job = Job(path).begin(1).saved(1, 5)
    for generation in range(2, 6):
        job.begin(generation)
    assert newest(job) == (1, 5)
    assert job.said == []


def test_a_damaged_fence_is_said_and_written_anew(path):
    job = Job(path).begin(1).saved(1, 5)
    flip(path / "fence.json", 80)
    assert newest(job) == (1, 5)
    assert "fence.json is damaged" in job.said[0]
    job.begin(2)
    job.said.clear()
    assert newest(job) == (1, 5)
    assert job.said == []


# ---- storage that fails, ranks that fail


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("file", ["shard-0-of-3", "shard-2-of-3", "state.json", "manifest.json"])
def test_a_failed_write_on_any_rank_fails_all_and_costs_nothing_older(path, monkeypatch, file, code):
    job = Job(path, world=3).begin(1).saved(1, 5)
    write = local_module.write_file

    def failing(target, parts):
        if target.name.startswith(file):
            target.write_bytes(b"half")
            raise OSError(code, "the disk says no")
        return write(target, parts)

    monkeypatch.setattr(local_module, "write_file", failing)
    errors = job.save(1, 9)
    assert len(errors) == 3
    for error in errors:
        assert isinstance(error, StorageFailed)
        assert error.exit_code == ExitCode.STORAGE_FAILED
        assert "the disk says no" in str(error)
    assert job.names() == ["step-000000005.g1"]
    monkeypatch.undo()
    job.saved(1, 10)
    assert newest(job) == (1, 10)


def test_a_failed_fsync_of_the_folder_is_a_failed_save(path, monkeypatch):
    job = Job(path, world=2).begin(1).saved(1, 5)

    def failing(_):
        raise OSError(errno.EIO, "fsync failed")

    monkeypatch.setattr(local_module, "fsync_folder", failing)
    assert all(isinstance(error, StorageFailed) for error in job.save(1, 9))
    monkeypatch.undo()
    assert newest(job) == (1, 5)


def test_a_folder_that_the_machines_do_not_share_is_named_as_such(path, tmp_path):
    job = Job(path, world=2).begin(1)
    (tmp_path / "elsewhere").mkdir()
    job.ranks[1]._place = LocalPlace(tmp_path / "elsewhere")
    for error in job.save(1, 5):
        assert isinstance(error, StorageFailed)
        assert "is the folder shared?" in str(error)
    assert job.names() == []


def test_ranks_with_different_states_write_nothing(path):
    job = Job(path, world=3).begin(1)
    errors = job.save(1, 5, state=lambda rank: {"w": torch.zeros(3 + (rank == 1))})
    for error in errors:
        assert isinstance(error, UnsupportedState)
        assert "ranks [1] from rank 0" in str(error)
    assert job.names() == []


def test_a_state_that_cannot_be_saved_on_one_rank_fails_all(path):
    job = Job(path, world=2).begin(1)
    errors = job.save(1, 5, state=lambda rank: {"w": torch.zeros(1), "x": object() if rank else 1})
    assert all(isinstance(error, UnsupportedState) for error in errors)
    assert str(errors[0]).startswith("rank 1: x: cannot save")
    assert job.names() == []


def test_a_lost_rank_leaves_no_checkpoint_and_no_rubbish(path):
    job = Job(path, world=3, timeout=0.2).begin(1)
    errors = job.save(1, 5, only=[0, 1])
    assert all(isinstance(error, TimeoutError) for error in errors)
    assert job.names() == []


# ---- retention


def test_the_newest_are_kept_and_the_final_one_always(path):
    job = Job(path, keep=3).begin(1).saved(1, 1, final=True)
    for step in range(2, 9):
        job.saved(1, step)
    assert job.names() == ["step-000000001.g1.final", *(f"step-00000000{n}.g1" for n in (6, 7, 8))]


def test_two_are_kept_whatever_is_asked_for(path):
    job = Job(path, keep=0).begin(1)
    for step in range(1, 5):
        job.saved(1, step)
    assert job.names() == ["step-000000003.g1", "step-000000004.g1"]


def test_a_damaged_one_does_not_count_among_those_kept(path):
    job = Job(path, keep=2).begin(1).saved(1, 1).saved(1, 2)
    (path / "step-000000002.g1" / "state.json").unlink()
    job.saved(1, 3)
    assert "step-000000001.g1" in job.names()
    job.saved(1, 4)
    assert "step-000000001.g1" not in job.names()


def test_what_cannot_be_deleted_is_said_and_costs_nothing_else(path, monkeypatch):
    job = Job(path, keep=2).begin(1).saved(1, 1).saved(1, 2)

    def stuck(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(local_module.shutil, "rmtree", stuck)
    job.saved(1, 3)
    assert any("could not be deleted" in said for said in job.said)
    monkeypatch.undo()
    assert newest(job) == (1, 3)
    assert job.begin(2).names() == ["step-000000002.g1", "step-000000003.g1"]


def test_another_jobs_checkpoint_of_the_same_name_is_not_lost(path):
    Job(path, uid="old", created=50.0).begin(1).saved(1, 5)
    job = Job(path).begin(1).saved(1, 5)
    assert job.first.newest().created == 100.5
    flip(path / "step-000000005.g1" / "state.json", 9)
    assert job.first.newest().created == 50.0


def test_shares_are_balanced_for_any_sizes():
    from relight_trainer.checkpoint.shards import split

    rng = random.Random(3)
    for world, count in itertools.product((1, 2, 5), (0, 1, 7, 40)):
        sizes = [rng.randrange(1000) for _ in range(count)]
        parts = split(sizes, world)
        assert sorted(i for part in parts for i in part) == list(range(count))
        loads = [sum(sizes[i] for i in part) for part in parts]
        assert max(loads) - min(loads) <= max(sizes, default=0)
