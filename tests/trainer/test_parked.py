"""Workers that wait for their generation: the ones that then run it, and in nothing unlike those forked for it."""

import os
import signal

import pytest
import torch
from launching import HELPERS, Member, free_port, noted, outcome, wait_until

from relight_agent.files import JobFile, write_json
from relight_agent.processes import is_alive, processes
from relight_trainer import parked
from relight_trainer.learned_imports import FILE

pytestmark = pytest.mark.timeout(120)


def below(pid):
    return [p.pid for p in processes() if p.parent == pid and p.state not in "ZX"]


def park(member, workers=None):
    """(the process that waits with them, the parked workers), once they are there."""
    workers = workers or member.proc_per_node
    member.send({"op": "park", "proc_per_node": workers})
    [host] = wait_until(lambda: [pid for pid in below(member.process.pid) if os.getsid(pid) == pid])
    return host, wait_until(lambda: found if len(found := below(host)) == workers else None)


def run(member, generation=1, **options):
    folder = member.run(generation, rank=0, nodes=1, port=free_port(), host_store=True, **options)
    member.started()
    return folder


def seen(member, folder):
    return [noted(folder, "seen", i) for i in range(member.proc_per_node)]


def test_parked_workers_run_the_next_generation_and_see_what_forked_ones_see(tmp_path):
    with Member(tmp_path, 0, ["tells.py"], proc_per_node=2) as member:
        member.expect("ready")
        forked = seen(member, run(member, 1))
        member.expect("ended")
        host, workers = park(member)
        folder = run(member, 2)
        taken = seen(member, folder)
        assert member.generation == host
        assert [worker["pid"] for worker in taken] == workers
        assert [outcome(folder, i).kind for i in range(2)] == ["completed", "completed"]
        assert member.expect("ended")["status"] == 0
    differs = {"RELIGHT_GENERATION", "RELIGHT_GENERATION_DIR", "TORCHELASTIC_RUN_ID", "MASTER_PORT"}
    for there, here in zip(forked, taken, strict=True):
        for one, generation in ((there["told"], "1"), (here["told"], "2")):
            environment = one["environment"]
            assert environment["RELIGHT_GENERATION"] == generation
            assert "gen" in environment["TORCHELASTIC_ERROR_FILE"]
            for name in differs | {"TORCHELASTIC_ERROR_FILE"}:
                del environment[name]
        assert here["told"].pop("seed") != there["told"].pop("seed")
        assert here["told"] == there["told"]


def test_a_world_of_parked_workers_is_formed(tmp_path):
    with Member(tmp_path, 0, ["reduce.py", "return"], proc_per_node=2) as member:
        member.expect("ready")
        park(member)
        folder = run(member)
        assert [noted(folder, "formed", i)["sum"] for i in range(2)] == [2.0, 2.0]
        assert member.expect("ended")["status"] == 0


def test_an_order_for_another_number_of_workers_is_run_by_forked_ones(tmp_path):
    with Member(tmp_path, 0, ["tells.py"]) as member:
        member.expect("ready")
        host, workers = park(member, 3)
        [one] = seen(member, run(member))
        assert one["pid"] not in workers
        assert member.generation != host
        assert not any(map(is_alive, [host, *workers]))


def test_a_cold_order_is_not_run_by_parked_workers(tmp_path):
    with Member(tmp_path, 0, ["tells.py"]) as member:
        member.expect("ready")
        host, workers = park(member)
        [one] = seen(member, run(member, cold=True))
        assert one["pid"] not in workers
        assert not any(map(is_alive, [host, *workers]))


def test_where_a_parked_worker_has_died_the_generation_forks_its_own(tmp_path):
    with Member(tmp_path, 0, ["tells.py"], proc_per_node=2) as member:
        member.expect("ready")
        host, workers = park(member)
        os.kill(workers[1], signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, workers)))
        folder = run(member)
        assert member.generation == host
        assert not {one["pid"] for one in seen(member, folder)} & set(workers)
        assert member.expect("ended")["status"] == 0


def test_where_the_process_that_waits_has_died_another_runs_the_generation(tmp_path):
    with Member(tmp_path, 0, ["tells.py"]) as member:
        member.expect("ready")
        host, workers = park(member)
        os.kill(host, signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, [host, *workers])))
        [one] = seen(member, run(member))
        assert one["pid"] not in workers
        assert member.expect("ended")["status"] == 0


def test_a_parked_worker_that_dies_in_its_generation_ends_it(tmp_path):
    with Member(tmp_path, 0, ["ends.py", "wait"], proc_per_node=2) as member:
        member.expect("ready")
        _, workers = park(member)
        folder = run(member)
        assert [noted(folder, "waiting", i) for i in range(2)] == workers
        os.kill(workers[0], signal.SIGKILL)
        assert member.expect("ended")["status"] == 1
        assert not is_alive(workers[1])


@pytest.mark.parametrize("end", ["kill", "close"])
def test_nothing_that_is_parked_survives_its_launcher(tmp_path, end):
    with Member(tmp_path, 0, ["tells.py"], proc_per_node=2) as member:
        member.expect("ready")
        host, workers = park(member)
        if end == "kill":
            member.process.kill()
        else:
            member.channel.close()
        assert member.process.wait(10) is not None
        wait_until(lambda: not any(map(is_alive, [host, *workers])), timeout=5)


def test_workers_are_parked_once_and_not_beside_a_generation(tmp_path):
    with Member(tmp_path, 0, ["ends.py", "wait"]) as member:
        member.expect("ready")
        before = park(member)
        member.send({"op": "park", "proc_per_node": 1})
        folder = run(member)
        assert (member.generation, [noted(folder, "waiting")]) == before
        member.send({"op": "park", "proc_per_node": 1})
        member.send({"op": "close_store", "generation": 1})
        wait_until(lambda: not is_alive(member.store))  # what was said before has been heard
        assert below(member.process.pid) == [member.generation]


@pytest.fixture
def library(tmp_path):
    """library(name, code): a module that members with PYTHONPATH=tmp_path/lib can import."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "storage").mkdir()

    def write(name, code):
        (tmp_path / "lib" / f"{name}.py").write_text(code)
        return name

    return write


def member_of(tmp_path, names, **options):
    """A member whose script tells which of `names` it has found imported, and whose job keeps its checkpoints in `storage`."""
    member = Member(tmp_path, 0, ["tells.py", *names], env={"PYTHONPATH": str(tmp_path / "lib")}, **options)
    entry = {"kind": "script", "argv": ["tells.py", *names]}
    storage = str(tmp_path / "storage")
    job = JobFile(
        "default", "t", "uid", 0.0, 2, member.proc_per_node, entry, "hash", str(HELPERS), checkpoint_dir=storage
    )
    job.write(member.run_dir / "job.json")
    return member


def test_a_parked_worker_imports_what_others_have_come_to_need_since(tmp_path, library):
    imported = tmp_path / "imported"
    mark = f"open({str(imported)!r}, 'w').close()"
    names = [
        library("learned_first", ""),
        library("learned_bad", "raise RuntimeError('no licence')"),
        library(
            "learned_last", "import os\nos.environ['SET_BY_A_LIBRARY'] = os.environ['RELIGHT_UID'] = 'here'\n" + mark
        ),
    ]
    with member_of(tmp_path, names) as member:
        member.expect("ready")
        write_json(tmp_path / "storage" / FILE, names)  # the launcher has looked before
        park(member)
        wait_until(imported.exists)
        [one] = seen(member, run(member))
        assert one["modules"] == ["learned_first", "learned_last"]
        environment = one["told"]["environment"]
        assert (environment["SET_BY_A_LIBRARY"], environment["RELIGHT_UID"]) == ("here", "uid-0")
        assert "learned_bad not imported ahead: RuntimeError: no licence" in member.stderr.read_text()


def test_an_order_waits_for_no_more_than_the_import_that_has_begun(tmp_path, library):
    names = [library("learned_slow", f"open({str(tmp_path / 'begun')!r}, 'w').close()\nimport time\ntime.sleep(1)")]
    names.append(library("learned_never", "import time\ntime.sleep(600)"))
    with member_of(tmp_path, names) as member:
        member.expect("ready")
        write_json(tmp_path / "storage" / FILE, names)
        park(member)
        wait_until((tmp_path / "begun").exists)
        folder = member.run(1, rank=0, nodes=1, port=free_port(), host_store=True)
        member.started()
        assert noted(folder, "seen", timeout=30)["modules"] == ["learned_slow"]


def test_storage_that_hangs_holds_no_order_up(tmp_path, library):
    os.mkfifo(tmp_path / "storage" / FILE)
    with member_of(tmp_path, []) as member:
        member.expect("ready")
        _, workers = park(member)
        [one] = seen(member, run(member))
        assert [one["pid"]] == workers
        assert member.expect("ended")["status"] == 0


LAUNCHER = """\
import runpy, time
from pathlib import Path
from relight_trainer import parked
def open_device(local_rank):
    Path({began!r}).touch()
    time.sleep({seconds})
    raise RuntimeError("the device is busy")
parked.open_device = open_device
runpy.run_module("relight_trainer.launcher", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def busy_device(tmp_path):
    """busy_device(seconds) -> (a member whose device cannot be opened, and takes so long to say it; a file that tells of a try)."""

    def member(seconds):
        began, program = tmp_path / "began", tmp_path / "launcher.py"
        program.write_text(LAUNCHER.format(began=str(began), seconds=seconds))
        return Member(tmp_path, 0, ["tells.py"], program=[str(program)]), began

    return member


def test_where_no_device_can_be_opened_ahead_the_generation_forks_its_own(busy_device):
    member, began = busy_device(0)
    with member:
        member.expect("ready")
        member.send({"op": "park", "proc_per_node": 1})
        wait_until(began.exists)
        wait_until(lambda: "the device is busy" in member.stderr.read_text())
        folder = run(member)
        assert noted(folder, "seen")
        assert member.expect("ended")["status"] == 0


def test_a_device_that_cannot_be_opened_is_for_the_worker_to_tell_once_there_is_a_generation(busy_device):
    member, began = busy_device(2)
    with member:
        member.expect("ready")
        _, workers = park(member)
        wait_until(began.exists)
        folder = member.run(1, rank=0, nodes=1, port=free_port(), host_store=True)
        member.started()
        wait_until(lambda: folder.pid(0))
        assert folder.pid(0) == workers[0]  # it can be looked at before it can speak
        assert noted(folder, "seen")["pid"] == workers[0]
        assert outcome(folder).kind == "completed"


@pytest.mark.parametrize(
    ("rank", "job", "expected"),
    [
        (1, {"entry": {"kind": "config"}, "gpus": 2}, ["tensor on cuda:1", "synchronize 1"]),
        (2, {"entry": {"kind": "config"}, "gpus": 2}, []),  # no such device: its worker will say so
        (1, {"entry": {"kind": "config"}}, []),
        (1, {"entry": {"kind": "script", "argv": ["a.py"]}, "gpus": 2}, []),  # it may choose its devices itself
    ],
)
def test_the_core_s_device_is_opened_and_no_other(tmp_path, monkeypatch, rank, job, expected):
    """By torch's functions' doubles: no GPU is here."""
    calls = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda *_, device: calls.append(f"tensor on {device}"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append(f"synchronize {device}"))
    path = tmp_path / "job.json"
    monkeypatch.setenv("RELIGHT_JOB_FILE", str(path))
    JobFile("default", "t", "uid", 0.0, 1, 2, config_hash="hash", **job).write(path)
    parked.open_device(rank)
    assert calls == expected
