"""Putting a forked process right, seen from a process of its own."""

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.timeout(60)


def python(code, **env):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_libraries_held_to_one_thread_at_import_get_theirs_later():
    assert python(
        """
        from relight_trainer import launcher, hygiene
        launcher.preload()
        import os, torch, threadpoolctl
        print(os.environ["OMP_NUM_THREADS"], hygiene.threads_of_this_process(), torch.get_num_threads())
        hygiene.set_threads(2)
        blas = [p["num_threads"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]
        print(torch.get_num_threads(), *blas)
        """,
        OMP_NUM_THREADS="3",
    ) == ["3", "1", "1", "2", "2"]


def test_a_user_s_module_in_the_working_folder_is_not_taken_for_the_library_s(tmp_path):
    (tmp_path / "fractions.py").write_text("raise SystemExit('the wrong one')")
    code = (
        "from relight_trainer import launcher; launcher.hygiene.leave_working_folder_out_of_path(); launcher.preload()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_a_socket_s_number_stays_taken_when_it_is_cut():
    assert python(
        """
        import os, socket
        from relight_trainer.hygiene import cut_inherited_sockets
        ours, theirs = socket.socketpair()
        number = ours.fileno()
        cut_inherited_sockets()
        print(os.readlink(f"/proc/self/fd/{number}"))
        """
    ) == ["/dev/null"]
