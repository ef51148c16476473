"""Checkpoints in object stores: the rules of a folder, where nothing can be renamed."""

import errno
import importlib.util
import os
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest
import torch
from exchange import DictExchange
from fsspec.implementations.dirfs import DirFileSystem

from relight_trainer.checkpoint import (
    Best,
    CheckpointFolder,
    ConfigChanged,
    Fenced,
    NoUsableCheckpoint,
    Position,
    StorageFailed,
)
from relight_trainer.checkpoint.object_place import ObjectPlace
from relight_trainer.checkpoint.retention import retired

pytestmark = pytest.mark.timeout(60)


class Job:
    """A job's ranks as threads, each with a CheckpointFolder of its own."""

    def __init__(self, place, *, world=1, created=100.5, config="abc", keep=3, best=None):
        self.said = []
        self.world = world
        self.exchange = DictExchange()
        self.place = place
        self.ranks = []
        for _ in range(world):
            folder = CheckpointFolder(
                "memory://unused", job_uid="u", created=created, config_hash=config, keep=keep, best=best,
                say=self.said.append, timeout=10.0,
            )  # fmt: skip
            folder._place = place
            self.ranks.append(folder)

    def begin(self, generation):
        self.ranks[0].begin_generation(generation)
        return self

    def save(self, generation, step, *, final=False, metrics=None):
        def one(rank):
            try:
                return self.ranks[rank].save(
                    {"w": torch.full((50,), float(step)), "v": [torch.arange(9.0) for _ in range(4)]},
                    generation=generation,
                    step=step,
                    cursor={"metrics": metrics or {}},
                    final=final,
                    rank=rank,
                    world=self.world,
                    exchange=self.exchange,
                )
            except Exception as error:
                return error

        with ThreadPoolExecutor(self.world) as pool:
            return list(pool.map(one, range(self.world)))

    def saved(self, generation, step, **more):
        for result in self.save(generation, step, **more):
            if isinstance(result, Exception):
                raise result
        return self

    def newest(self, **more):
        found = self.ranks[0].newest(**more)
        if found is None:
            return None
        assert (self.ranks[0].load(found)["w"] == found.position.step).all()
        return found.position

    def files(self):
        return sorted(self.place._files())

    def steps(self):
        return sorted({name.partition("/")[0] for name in self.files() if name.startswith("step-")})


PEERS = os.environ.get("RELIGHT_TEST_PEERS", "")
if PEERS:
    sys.path.append(PEERS)
NO_S3 = importlib.util.find_spec("s3fs") is None or importlib.util.find_spec("moto") is None


@pytest.fixture(scope="module")
def bucket():
    """A bucket of a real S3 server's double, over HTTP."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # those of a server before this one, at another port
        fsspec.filesystem("s3").makedirs("bucket", exist_ok=True)  # the double keeps its own from server to server
        yield "s3://bucket"
    server.stop()


@pytest.fixture(
    params=["memory", "directory", pytest.param("s3", marks=pytest.mark.skipif(NO_S3, reason="needs s3fs and moto"))]
)
def place(request, tmp_path):
    if request.param == "s3":
        return ObjectPlace.at(f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}/job")
    if request.param == "memory":
        return ObjectPlace.at(f"memory://bucket-{uuid.uuid4().hex}/runs/job")
    store = DirFileSystem(str(tmp_path), fsspec.filesystem("file", auto_mkdir=True))
    return ObjectPlace(store, "runs/job", "dir://runs/job")


def flip(place, name):
    data = bytearray(place.read(name, 1 << 30))
    data[len(data) // 2] ^= 4
    place.put(name, bytes(data))


def test_what_is_saved_is_read_by_another_process_of_the_job(place):
    Job(place, world=3).begin(1).saved(1, 5).saved(1, 9)
    job = Job(place).begin(2)
    assert job.newest() == (1, 9)
    assert job.newest(newer_than=Position(1, 9)) is None
    assert job.said == []
    assert [f for f in job.files() if f.startswith("step-000000009.g1/")] == [
        f"step-000000009.g1/{name}"
        for name in ("manifest.json", *(f"shard-{r}-of-3.safetensors" for r in range(3)), "state.json")
    ]


def test_a_url_is_a_place():
    url = f"memory://bucket-{uuid.uuid4().hex}/a/b"
    folder = CheckpointFolder(url, job_uid="u", created=1.0, config_hash="h")
    folder.begin_generation(1)
    assert folder.newest() is None
    assert str(folder._place) == url


def test_a_store_without_its_package_is_told_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(StorageFailed, match="gs://bucket/x cannot be reached: install gcsfs in the image"):
        CheckpointFolder("gs://bucket/x", job_uid="u", created=1.0, config_hash="h")
    with pytest.raises(StorageFailed, match="nonsense://x cannot be reached"):
        CheckpointFolder("nonsense://x", job_uid="u", created=1.0, config_hash="h")


def test_file_urls_are_folders(tmp_path):
    folder = CheckpointFolder(f"file://{tmp_path}/ckpt", job_uid="u", created=1.0, config_hash="h")
    folder.begin_generation(1)
    assert (tmp_path / "ckpt" / "fence.json").exists()


def test_without_its_manifest_a_checkpoint_is_nothing_and_is_swept_away(place):
    job = Job(place).begin(1).saved(1, 5).saved(1, 9)
    place._fs.rm_file(place._at("step-000000009.g1/manifest.json"))
    assert job.newest() == (1, 5)
    assert job.said == []
    job.begin(2)
    assert job.steps() == ["step-000000005.g1"]


@pytest.mark.parametrize("file", ["state.json", "shard-0-of-1.safetensors", "manifest.json"])
def test_a_damaged_one_is_set_aside_and_the_one_before_is_used(place, file):
    job = Job(place).begin(1).saved(1, 5).saved(1, 9)
    flip(place, f"step-000000009.g1/{file}")
    assert job.newest() == (1, 5)
    assert "step-000000009.g1: " in job.said[0]
    assert job.said[0].endswith("kept as corrupt-step-000000009.g1.json")
    job.said.clear()
    assert job.begin(2).newest() == (1, 5)
    assert job.said == []
    assert "step-000000009.g1/state.json" in job.files()  # kept
    # The same position again: a new name, for the old one's files are still there.
    job.saved(2, 9)
    assert job.newest() == (2, 9)


def test_a_missing_or_short_file_is_damage_too(place):
    job = Job(place).begin(1).saved(1, 5).saved(1, 9).saved(1, 12)
    place._fs.rm_file(place._at("step-000000012.g1/state.json"))
    place.put("step-000000009.g1/shard-0-of-1.safetensors", b"short")
    assert job.newest() == (1, 5)
    assert "state.json is missing" in job.said[0]
    assert "has 5 bytes instead of" in job.said[1]


def test_with_only_damaged_ones_nothing_starts_from_scratch(place):
    job = Job(place).begin(1).saved(1, 5)
    flip(place, "step-000000005.g1/state.json")
    for _ in range(2):
        with pytest.raises(NoUsableCheckpoint, match=r"step-000000005\.g1"):
            job.newest()


def test_zombies_are_shut_out(place):
    zombie = Job(place, world=2).begin(1).saved(1, 5)
    job = Job(place).begin(2)
    assert all(isinstance(error, Fenced) for error in zombie.save(1, 7))
    assert job.steps() == ["step-000000005.g1"]
    with pytest.raises(Fenced):
        zombie.begin(1)


@pytest.mark.parametrize("step", [3, 7])
def test_what_a_zombie_slipped_past_the_fence_is_never_read(place, monkeypatch, step):
    zombie = Job(place).begin(1).saved(1, 5)
    job = Job(place).begin(2)
    monkeypatch.setattr(CheckpointFolder, "_refuse_if_fenced", lambda *_: None)
    zombie.saved(1, step)
    monkeypatch.undo()
    assert job.newest() == (1, 5)
    assert any(f"fenced-step-00000000{step}.g1.json" in name for name in job.files()) == (step == 7)


def test_another_configuration_is_refused(place):
    Job(place).begin(1).saved(1, 5)
    with pytest.raises(ConfigChanged):
        Job(place, created=200.0, config="xyz").begin(1).newest()


def test_the_newest_and_the_final_are_kept(place):
    job = Job(place, keep=2).begin(1).saved(1, 1, final=True)
    for step in range(2, 6):
        job.saved(1, step)
    assert job.steps() == ["step-000000001.g1.final", "step-000000004.g1", "step-000000005.g1"]


# ---- a store that fails


class Flaky:
    """A filesystem whose changes fail from the n-th on, as `error`; `log` names each change."""

    CHANGES = ("pipe_file", "rm_file", "open")

    def __init__(self, real, after=None, error=None):
        self._real, self.after, self.error, self.log = real, after, error, []

    def __getattr__(self, name):
        real = getattr(self._real, name)
        if name not in self.CHANGES:
            return real

        def change(path, *args, **kwargs):
            self.log.append(f"{name} {path.rpartition('/')[2]}")
            if self.after is not None and len(self.log) > self.after:
                raise self.error
            return real(path, *args, **kwargs)

        return change


class Died(BaseException):
    pass


def test_a_writer_that_dies_anywhere_leaves_what_loads_and_the_manifest_comes_last():
    seen = set()
    for after in range(20):
        place = ObjectPlace.at(f"memory://bucket-{uuid.uuid4().hex}/job")
        job = Job(place, keep=2).begin(1).saved(1, 1).saved(1, 2).saved(1, 3)
        place._fs = flaky = Flaky(place._fs, after, Died())
        try:
            job.saved(1, 4)
            died = False
        except Died:
            died = True
        place._fs = flaky._real
        later = Job(place).begin(2)
        found = later.newest()
        assert found in {(1, 3), (1, 4)}
        committed = "pipe_file manifest.json" in flaky.log[:after]
        assert found == (1, 4 if committed else 3)
        assert later.said == []
        assert len(later.steps()) >= 2  # the newest two are never touched
        seen.add(found)
        if not died:
            break
    assert seen == {(1, 3), (1, 4)}
    order = [entry for entry in flaky.log if not entry.startswith("rm_file")]
    assert order == ["open shard-0-of-1.safetensors", "open state.json", "pipe_file manifest.json"]
    retiring = flaky.log[len(order) :]
    assert retiring[0] == "rm_file manifest.json"  # what is half deleted is no candidate


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), RuntimeError("503 SlowDown"), TimeoutError("store")]
)
def test_a_refusal_fails_the_save_on_all_ranks_and_costs_nothing_older(place, error):
    job = Job(place, world=2).begin(1).saved(1, 5).saved(1, 6)
    real = place._fs
    for after in range(3):
        place._fs = Flaky(real, after, error)
        errors = job.save(1, 9 + after)
        assert all(isinstance(e, StorageFailed) for e in errors), errors
        place._fs = real
        assert job.newest() == (1, 6)
    job.saved(1, 20)
    assert job.newest() == (1, 20)


# ---- retention


def best_job(place, values, *, mode="max", keep=2, count=2):
    job = Job(place, keep=keep, best=Best("accuracy", mode, count)).begin(1)
    for step, value in enumerate(values, 1):
        job.saved(1, step, metrics={} if value is None else {"accuracy": value})
    return [int(name[5:14]) for name in job.steps()]


def test_the_best_are_kept_beside_the_newest(place):
    assert best_job(place, ["0.5", "0.9", "0.7", "0.8", "0.1", "0.2"]) == [2, 4, 5, 6]


def test_the_lowest_can_be_the_best_and_the_newer_of_equals_is():
    def place():
        return ObjectPlace.at(f"memory://bucket-{uuid.uuid4().hex}")

    assert best_job(place(), ["3", "1", "2", "1", "9", "9"], mode="min", count=1) == [4, 5, 6]
    assert best_job(place(), ["nan", None, "inf", "0.1", "x", "y"], count=1) == [4, 5, 6]
    assert best_job(place(), ["9", "1", "1", "1"], count=0) == [3, 4]


def test_retention_is_a_function_of_what_is_there():
    assert retired([], keep=3) == []
