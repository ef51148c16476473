"""The warm launcher, its protocol, and worlds formed by it on 127.0.0.1."""

import itertools
import os
import socket
import time

import pytest
from launching import HELPERS, Member, free_port, noted, outcome, wait_until

from relight_agent.exits import ExitCode
from relight_agent.files import JobFile
from relight_agent.processes import is_alive, processes

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with Member(tmp_path_factory.mktemp("shared"), 0, []) as member:
        member.expect("ready")
        yield member


@pytest.fixture
def warm(shared):
    """warm(argv, proc_per_node=1) -> a launcher that runs this; shared by tests that leave it alive."""

    def enter(argv, proc_per_node=1):
        shared.proc_per_node = proc_per_node
        shared.enter(argv)
        return shared

    return enter


# Generations only grow, in the shared launcher's life too.
GENERATIONS = itertools.count(1)


def form(first, second, generation, *, master):
    """Start a world of two, `first` as node rank 0; (folders, seconds from the order to each first all_reduce's end)."""
    port = free_port()
    start = time.monotonic()
    folders = [
        member.run(generation, rank=rank, nodes=2, port=port, host_store=member is master)
        for rank, member in enumerate((first, second))
    ]
    first.started()
    second.started()
    notes = [noted(folder, "formed") for folder in folders]
    assert [(n["rank"], n["world"], n["sum"]) for n in notes] == [(0, 2, 2.0), (1, 2, 2.0)]
    return folders, [n["at"] - start for n in notes]


def test_a_new_member_joins_a_survivor_that_is_the_master(tmp_path):
    with Member(tmp_path, 0, ["reduce.py", "loop"]) as lost, Member(tmp_path, 1, ["reduce.py", "loop"]) as survivor:
        assert lost.expect("ready")["torch"]
        survivor.expect("ready")
        (_, folder), seconds = form(lost, survivor, 1, master=lost)
        print("formed in", seconds)
        lost.kill()  # the store as well
        died = time.monotonic()
        end = outcome(folder)
        assert end.kind == "failed"
        assert end.exit_code == ExitCode.PEER_LOST
        assert end.rank == 1
        assert "reduce.py:" in end.message
        assert survivor.expect("ended")["generation"] == 1
        print("known after", end.at - died)
        with Member(tmp_path, 0, ["reduce.py", "loop"]) as replacement:
            replacement.expect("ready")
            for generation in (2, 3):
                _, seconds = form(replacement, survivor, generation, master=survivor)
                print("formed again in", seconds)
                # The agent ends a generation by its session; neither waits for the other, nor for torch.
                for member in (replacement, survivor):
                    member.kill_session()
                    assert member.expect("ended", timeout=5)["generation"] == generation


def test_workers_differ_in_seed_by_rank_and_generation_and_have_one_thread(warm):
    member = warm(["reduce.py", "return"], proc_per_node=2)
    seeds = []
    for generation in itertools.islice(GENERATIONS, 2):
        folder = member.run(generation, rank=0, nodes=1, port=free_port(), host_store=True)
        member.started()
        notes = [noted(folder, "formed", i) for i in range(2)]
        assert {n["threads"] for n in notes} == {1}
        assert {n["rank"] for n in notes} == {0, 1}
        seeds += [n["seed"] for n in notes]
        member.expect("ended")
    assert len(set(seeds)) == 4


def test_a_taken_store_port_is_told_and_another_order_works(warm):
    member = warm(["reduce.py", "return"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        generation = next(GENERATIONS)
        member.run(generation, rank=0, nodes=1, port=taken.getsockname()[1], host_store=True)
        told = member.expect("store_failed")
        assert told["generation"] == generation
        assert "in use" in told["message"]
        folder = member.run(next(GENERATIONS), rank=0, nodes=1, port=free_port(), host_store=True)
        member.started()
        assert outcome(folder).kind == "completed"


def test_a_store_of_another_run_is_not_joined(tmp_path):
    with Member(tmp_path, 0, ["reduce.py", "return"]) as master, Member(tmp_path, 1, ["reduce.py", "return"]) as other:
        port = free_port()
        master.run(1, rank=0, nodes=2, port=port, host_store=True, run_id="new")
        master.started()
        folder = other.run(1, rank=1, nodes=2, port=port, host_store=False, run_id="old")
        other.started()
        assert other.expect("ended")["status"] == 1
        assert list(folder.outcomes(1)) == []
        assert "WrongStore" in other.stderr.read_text()


def test_nothing_of_a_generation_survives_its_launcher(tmp_path):
    with Member(tmp_path, 0, ["ends.py", "wait"], proc_per_node=2) as member:
        member.expect("ready")
        folder = member.run(1, rank=0, nodes=1, port=free_port(), host_store=True)
        member.started()
        workers = [noted(folder, "waiting", i) for i in range(2)]
        pids = [*workers, member.generation, member.store]
        assert all(is_alive(pid) for pid in pids)
        member.process.kill()
        wait_until(lambda: not any(is_alive(pid) for pid in pids), timeout=5)


def test_the_launcher_ends_everything_when_its_agent_closes_the_channel(tmp_path):
    with Member(tmp_path, 0, ["ends.py", "wait"]) as member:
        folder = member.run(1, rank=0, nodes=1, port=free_port(), host_store=True)
        member.started()
        worker = noted(folder, "waiting")
        member.channel.shutdown(socket.SHUT_RDWR)
        assert member.process.wait(10) == 0
        wait_until(lambda: not any(is_alive(pid) for pid in (worker, member.generation, member.store)), timeout=5)


def test_the_store_outlives_the_workers_until_it_is_closed(warm):
    member = warm(["reduce.py", "return"])
    port = free_port()
    generation = next(GENERATIONS)
    member.run(generation, rank=0, nodes=1, port=port, host_store=True)
    member.started()
    member.expect("ended")
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    member.send({"op": "close_store", "generation": generation + 1})  # another's: nothing happens
    member.send({"op": "close_store", "generation": generation})
    wait_until(lambda: not is_alive(member.store), timeout=5)
    # and with the next generation, closed or not
    member.run(next(GENERATIONS), rank=0, nodes=1, port=port, host_store=True)
    second = member.started()["store_pid"]
    member.expect("ended")
    member.run(next(GENERATIONS), rank=0, nodes=1, port=free_port(), host_store=True)
    member.started()
    assert not is_alive(second)


def test_an_order_ends_the_generation_before_it(warm):
    member = warm(["ends.py", "wait"])
    folder = member.run(next(GENERATIONS), rank=0, nodes=1, port=free_port(), host_store=True)
    member.started()
    first = noted(folder, "waiting")
    folder = member.run(next(GENERATIONS), rank=0, nodes=1, port=free_port(), host_store=True)
    member.started()
    noted(folder, "waiting")
    assert not is_alive(first)


def test_workers_hold_no_socket_that_they_did_not_open(warm):
    member = warm(["reduce.py", "return"])
    folder = member.run(next(GENERATIONS), rank=0, nodes=1, port=free_port(), host_store=True)
    member.started()
    inherited = noted(folder, "formed")["inherited"]
    assert not [link for number, link in inherited.items() if int(number) > 2 and link.startswith("socket:")]


def test_the_generation_is_a_session_apart_from_launcher_and_store(warm):
    member = warm(["ends.py", "wait"], proc_per_node=2)
    folder = member.run(next(GENERATIONS), rank=0, nodes=1, port=free_port(), host_store=True)
    member.started()
    workers = {noted(folder, "waiting", i) for i in range(2)}
    assert set(member.session()) == {member.generation} | workers
    sessions = {p.pid: p.session for p in processes()}
    assert sessions[member.store] == sessions[member.process.pid] != member.generation


def test_the_launch_path_touches_no_device(tmp_path):
    touched = tmp_path / "touched"
    with Member(
        tmp_path,
        0,
        ["reduce.py", "return"],
        program=[str(HELPERS / "touchy_launcher.py")],
        env={"TOUCHED": str(touched)},
    ) as member:
        member.expect("ready")
        folder = member.run(1, rank=0, nodes=1, port=free_port(), host_store=True)
        member.started()
        assert outcome(folder).kind == "completed"
        assert not touched.exists(), touched.read_text()


def test_a_bad_fork_is_said_and_the_cold_start_after_it_works(tmp_path):
    with Member(
        tmp_path,
        0,
        ["reduce.py", "return"],
        program=[str(HELPERS / "touchy_launcher.py")],
        env={"TOUCHED": str(tmp_path / "touched"), "BAD_FORK": "1"},
    ) as member:
        folder = member.run(1, rank=0, nodes=1, port=free_port(), host_store=True)
        member.started()
        end = outcome(folder)
        assert (end.kind, end.exit_code) == ("failed", ExitCode.MACHINE_UNHEALTHY)
        assert end.message.startswith("bad fork:")
        member.expect("ended")
        folder = member.run(2, rank=0, nodes=1, port=free_port(), host_store=True, cold=True)
        start = time.monotonic()
        member.started()
        formed = noted(folder, "formed")
        print("formed cold in", formed["at"] - start)
        assert outcome(folder).kind == "completed"
        assert member.expect("ended")["status"] == 0


def test_sigterm_and_sigint_do_not_end_the_launcher(warm):
    member = warm(["reduce.py", "return"])
    for number in (2, 15):
        os.kill(member.process.pid, number)
    folder = member.run(next(GENERATIONS), rank=0, nodes=1, port=free_port(), host_store=True)
    member.started()
    assert outcome(folder).kind == "completed"


@pytest.mark.parametrize("file", ["rows.csv", "package/code.py"])
def test_a_member_that_waits_reads_code_and_data_ahead_and_stops_when_there_is_something_to_do(tmp_path, file):
    path = tmp_path / "own" / file
    path.parent.mkdir(parents=True)
    os.mkfifo(path)  # storage that never answers

    def is_read():
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False
        return True

    with Member(tmp_path, 0, ["reduce.py", "return"]) as member:
        config = {
            "model": {"type": "digits_cnn"},
            "data": {"type": "csv", "train": "rows.csv"},
            "train": {"duration": "1st"},
        }
        job = JobFile(
            "default", "t", "uid", 0.0, 1, 1, {"kind": "config", "config": config}, "hash", str(tmp_path / "own")
        )
        job.write(member.run_dir / "job.json")
        member.expect("ready")
        wait_until(is_read)
        member.enter(["reduce.py", "return"])
        folder = member.run(1, rank=0, nodes=1, port=free_port(), host_store=True)
        member.started()
        assert outcome(folder).kind == "completed"
        wait_until(lambda: not is_read())
