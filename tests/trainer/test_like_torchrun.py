"""All that a script can see of its process, as a worker of Relight and as a real worker of torchrun.

What must differ is listed here with its reason, and in docs/trainingjob.md. Everything else must be equal.
"""

import json
import os
import py_compile
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from launching import HELPERS, Member, free_port, outcome, wait_until

pytestmark = pytest.mark.timeout(180)

KINDS = ("forked", "parked", "cold")
ARGUMENTS = ("a", "b c", "--flag=1")
# Of what is compared, what cannot be equal, or must not be; None: known to have no fixed value.
DIFFERENT = {
    "signal handlers": "SIGTERM and SIGINT are the agent's: neither ends a worker",
    "signals": "those two, and the signals of faulthandler",
    "faulthandler": "a worker that crashes, or stalls, writes its stacks",
    "leads its session": "a generation has one session, which is what its agent ends",
    "frames below": "the script is called by the launcher's code",
    "depth": "the script is called by the launcher's code",
    "torch seed": "Relight seeds what torchrun leaves to chance: by the generation and the rank",
    "torch numbers": "seeded",
    "random numbers": "seeded",
    "numpy numbers": "seeded",
    "frozen objects": "what the launcher has imported is out of the collector's sight, so that its pages stay shared",
    "modules": "more is imported",
    "meta path": "torch's compiler is imported when it is first used",
    "loggers": "torch's elastic agent runs in an ancestor of a worker, and its loggers are there",
    "descriptors": "see the test of descriptors",
    "environment": "see the test of variables",
}
# Variables whose values are each run's own, and those whose values differ for a reason.
VALUES = {
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_ERROR_FILE",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING",  # 3: with torchrun's 1, collectives that are aborted end as if they had succeeded
}
# What a worker's variables have besides torchrun's.
MORE = {
    "RELIGHT_COMMITTED_STEP",
    "RELIGHT_GENERATION",
    "RELIGHT_GENERATION_DIR",
    "RELIGHT_JOB_FILE",
    "RELIGHT_RUN_DIR",
    "RELIGHT_SLOT",
    "RELIGHT_UID",
}


def environment():
    """The same for both: one that says neither how many threads there are, nor anything of RELIGHT_."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("RELIGHT_", "OMP_"))}
    return {**mine, "PYTHONUNBUFFERED": "1"}


def torchrun(argv, workers):
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            str(workers),
            "--master-port",
            str(free_port()),
            *argv,
        ],
        cwd=HELPERS,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def relight(kind, folder, argv, workers, *, module=False):
    """The outcomes of the workers, once all have ended, and what they have printed."""
    entry = "module" if module else "script"
    with Member(folder, 0, argv, kind=entry, proc_per_node=workers, base=environment()) as member:
        member.expect("ready")
        if kind == "parked":
            member.send({"op": "park", "proc_per_node": workers})
            wait_until(lambda: len(member.below()) > workers)
        order = member.run(1, rank=0, nodes=1, port=free_port(), host_store=True, cold=kind == "cold")
        member.started()
        try:
            ends = [outcome(order, i) for i in range(workers)]
            return ends, member.stderr.read_text()
        finally:
            member.kill_session()


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What rank 1 of 2 sees, by the way in which it was started."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("torchrun", *KINDS)}

    def look(kind):
        argv = ["probe.py", str(folders[kind]), *ARGUMENTS]
        if kind == "torchrun":
            done = torchrun(argv, 2)
            assert done.returncode == 0, done.stderr
        else:
            ends, said = relight(kind, folders[kind], argv, 2)
            assert [end.kind for end in ends] == ["completed", "completed"], (ends, said)
        return json.loads((folders[kind] / "1.json").read_text())

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(folders, pool.map(look, folders), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_sees_what_a_worker_of_torchrun_sees(seen, kind):
    expected, found = seen["torchrun"], seen[kind]
    expected["argv"][1] = found["argv"][1]  # the folder that the answers go to
    assert expected.keys() == found.keys()
    unlike = {what: (expected[what], found[what]) for what in expected if expected[what] != found[what]}
    assert {what: pair for what, pair in unlike.items() if what not in DIFFERENT} == {}


def test_what_may_differ_does(seen):
    """An exception that no way of starting needs any more is to be taken off the list."""
    expected = seen["torchrun"]
    assert {what for what in DIFFERENT if all(seen[kind][what] == expected[what] for kind in KINDS)} == set()


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_has_torchrun_s_variables_and_no_others_but_those_listed(seen, kind):
    expected, found = seen["torchrun"]["environment"], seen[kind]["environment"]
    assert found.keys() - expected.keys() == MORE
    assert expected.keys() - found.keys() == set()
    assert {name for name in expected if expected[name] != found[name]} <= VALUES


@pytest.mark.parametrize("kind", KINDS)
def test_only_signals_that_are_the_agent_s_or_show_stacks_are_handled_otherwise(seen, kind):
    expected, found = seen["torchrun"], seen[kind]
    other = {name for name, handler in found["signal handlers"].items() if handler != expected["signal handlers"][name]}
    assert other == {"SIGINT", "SIGTERM"}
    assert found["signals"]["SigIgn"] == expected["signals"]["SigIgn"]
    assert found["signals"]["SigBlk"] == expected["signals"]["SigBlk"]
    caught = set(found["signals"]["SigCgt"]) - set(expected["signals"]["SigCgt"])
    # ILL, ABRT, BUS, FPE, USR1, SEGV, TERM and the agent's own real-time signal.
    assert caught == {4, 6, 7, 8, 10, 11, 15, 41}


@pytest.mark.parametrize("kind", KINDS)
def test_the_only_descriptors_left_open_are_pipes_to_the_elastic_agent_and_the_file_of_stacks(seen, kind):
    found = {target for number, target in seen[kind]["descriptors"].items() if int(number) > 2}
    files = {target for target in found if not target.startswith(("pipe:", "/dev/null", "/proc/"))}
    assert [Path(target).name for target in files] == ["stack-1"]
    assert len(found - files) <= 8
    assert not any("socket" in target for target in found)


@pytest.mark.parametrize("kind", KINDS)
def test_loggers_are_torch_s_own_elastic_agent_s_at_their_usual_levels(seen, kind):
    expected, found = seen["torchrun"]["loggers"], seen[kind]["loggers"]
    more = {name: found[name][0] for name in found if found[name] != expected.get(name)}
    assert set(more.values()) <= {20, 30}
    assert [n for n in more if not n.startswith(("torch.distributed.", "torchelastic-"))] == []
    assert expected.keys() - found.keys() == set()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_missing_of_what_torchrun_s_worker_has_imported(seen, kind):
    assert set(seen["torchrun"]["modules"]) - set(seen[kind]["modules"]) == set()


def test_a_single_worker_has_no_variable_for_threads_either(tmp_path):
    """As torchrun does it. torch's own threads are Relight's to say: one, or a step's sums would depend on the machine."""
    ends, said = relight("forked", tmp_path, ["probe.py", str(tmp_path)], 1)
    assert ends[0].kind == "completed", said
    found = json.loads((tmp_path / "0.json").read_text())
    assert "OMP_NUM_THREADS" not in found["environment"]
    assert found["torch threads"] == 1


@pytest.mark.parametrize("kind", ["forked", "cold"])
def test_a_module_is_run_as_python_m_does(kind, tmp_path):
    folders = [tmp_path / "torchrun", tmp_path / kind]
    for folder in folders:
        folder.mkdir()
    assert torchrun(["-m", "probe", str(folders[0]), "--only-see"], 1).returncode == 0
    ends, said = relight(kind, tmp_path, ["probe", str(folders[1]), "--only-see"], 1, module=True)
    assert ends[0].kind == "completed", said
    expected, found = (json.loads((folder / "0.json").read_text()) for folder in folders)
    assert found["argv"][0] == expected["argv"][0]
    for what in ("main", "path[0]", "path", "pickled", "process name"):
        assert found[what] == expected[what]


@pytest.mark.parametrize("form", ["folder", "archive", "compiled"])
def test_a_script_may_be_a_folder_an_archive_or_compiled(form, tmp_path):
    """As for `python`."""
    source = HELPERS / "probe.py"
    path = tmp_path / {"folder": "it", "archive": "it.bin", "compiled": "it.pyc"}[form]
    if form == "folder":
        path.mkdir()
        (path / "__main__.py").write_text(source.read_text())
    elif form == "archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(source, "__main__.py")
    else:
        py_compile.compile(str(source), cfile=str(path), doraise=True)
    seen = []
    for kind in ("torchrun", "forked"):
        out = tmp_path / kind
        out.mkdir()
        if kind == "torchrun":
            done = torchrun([str(path), str(out), "--only-see"], 1)
            assert done.returncode == 0, done.stderr
        else:
            ends, said = relight(kind, tmp_path, [str(path), str(out), "--only-see"], 1)
            assert ends[0].kind == "completed", said
        seen.append(json.loads((out / "0.json").read_text()))
    for what in ("main", "path[0]", "pickled", "process name"):
        assert seen[0][what] == seen[1][what]


WAYS = {
    "return": ("completed", None),
    "exit": ("completed", None),
    "exit 0": ("completed", None),
    "exit with words": ("failed", None),
    "exit 3": ("failed", 3),
    "raise": ("failed", None),
    "raise with a hook": ("failed", None),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_done_at_a_script_s_end_is_done_in_torchrun_s_order(way, tmp_path):
    kind, status = WAYS[way]
    files = [tmp_path / "torchrun", tmp_path / "relight"]
    torchrun(["probe_end.py", str(files[0]), way], 1)
    with Member(tmp_path, 0, ["probe_end.py", str(files[1]), way], base=environment()) as member:
        member.expect("ready")
        order = member.run(1, rank=0, nodes=1, port=free_port(), host_store=True)
        member.started()
        end = outcome(order)
        assert (end.kind, end.exit_status) == (kind, status)
        member.expect("ended")
        said = member.stderr.read_text()
    assert files[1].read_text() == files[0].read_text()
    assert ("the words" in said) == (way == "exit with words")
    assert ("ValueError: words of the user" in said) == (way == "raise")
