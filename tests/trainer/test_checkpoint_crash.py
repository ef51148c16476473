"""A process that dies at any point of a save leaves a checkpoint that loads: the one before, or the new one.

Each point is a call that changes the disk. The tests fork at each from a helper process (this file as a program), for a
process that has run threads must not be forked.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from exchange import DictExchange

from relight_trainer.checkpoint import CheckpointFolder

CHANGES = ("open", "write", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir")


@pytest.mark.timeout(200)
@pytest.mark.parametrize("world", [1, 2])
def test_a_crash_at_every_step_of_a_save_leaves_a_loadable_checkpoint(world):
    result = subprocess.run(
        [sys.executable, __file__, str(world)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    points = json.loads(result.stdout)
    assert len(points) >= 20
    steps = [point["step"] for point in points]
    assert set(steps) == {3, 4}
    assert steps == sorted(steps)  # once committed, committed
    assert all(point["said"] == [] for point in points)  # a crash is no damage
    committing = steps.index(4) - 1
    done = [point["call"] for point in points]
    # Through to the disk before it gets its name, and the name after that.
    assert done[committing].startswith("rename tmp-step-000000004")
    assert done.index("fsync manifest.json") < committing
    assert done.index("fsync tmp-step-000000004.g1", done.index("fsync manifest.json")) < committing
    assert done[committing + 1 :].index("fsync checkpoints") < 3
    data = ("write shard", "write state", "fsync shard", "fsync state")
    last_data = max(i for i, call in enumerate(done) if call.startswith(data))
    assert last_data < done.index("write manifest.json")


def _name_of(target):
    name = (Path(f"/proc/self/fd/{target}").readlink() if isinstance(target, int) else Path(target)).name
    return name.rsplit("-", 1)[0] if name.startswith(("tmp-", "trash-")) else name


def _crash_at(point, report):
    """Die before the `point`-th change of the disk; a write dies half done."""
    count = 0
    lock = threading.Lock()

    def wrapped(name, real):
        def call(*args, **kwargs):
            nonlocal count
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **kwargs)
            with lock:
                count += 1
                if count == point:
                    os.pwrite(report, f"{name} {_name_of(args[0])}".encode(), 0)
                    if name == "write":
                        real(args[0], args[1][: len(args[1]) // 2])
                    os._exit(9)
            return real(*args, **kwargs)

        return call

    for name in CHANGES:
        setattr(os, name, wrapped(name, getattr(os, name)))


def _save(path, world, step):
    exchange = DictExchange()

    def one(rank):
        CheckpointFolder(path, job_uid="u", created=1.0, config_hash="h", keep=2).save(
            {"w": [torch.full((50,), float(step)) for _ in range(3)]},
            generation=1,
            step=step,
            cursor={},
            final=False,
            rank=rank,
            world=world,
            exchange=exchange,
        )

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(1, world)]
    for thread in threads:
        thread.start()
    one(0)
    for thread in threads:
        thread.join()


def _main(world):
    results = []
    with tempfile.TemporaryDirectory() as base, tempfile.TemporaryFile() as report:
        for point in range(1, 500):
            path = Path(base) / str(point) / "checkpoints"
            CheckpointFolder(path, job_uid="u", created=1.0, config_hash="h").begin_generation(1)
            for step in (1, 2, 3):
                _save(path, 1, step)
            os.truncate(report.fileno(), 0)
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    _crash_at(point, report.fileno())
                    _save(path, world, 4)
                    code = 0
                finally:
                    os._exit(code)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if status == 0:
                break
            assert status == 9, status
            said = []
            after = CheckpointFolder(path, job_uid="u", created=1.0, config_hash="h", say=said.append)
            after.begin_generation(2)
            checkpoint = after.newest()
            assert all((w == checkpoint.position.step).all() for w in after.load(checkpoint)["w"])
            assert not [p for p in path.iterdir() if p.name.startswith(("tmp-", "trash-"))]
            call = os.pread(report.fileno(), 1000, 0).decode()
            results.append({"call": call, "step": checkpoint.position.step, "said": said})
    print(json.dumps(results))


if __name__ == "__main__":
    _main(int(sys.argv[1]))
