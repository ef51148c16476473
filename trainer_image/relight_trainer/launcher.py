"""The warm launcher: imports everything once, then forks the store and the workers of each generation.

It runs no tensor operation, touches no device and has one thread, or what it forks would be broken. The protocol with
the agent is in docs/architecture.md, "Launcher protocol".
"""

import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import platform
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from relight_agent.processes import die_with_parent, ended_children, kill_all
from relight_trainer import hygiene, learned_imports
from relight_trainer.learned_imports import Learner, Others

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

WARM = ("torch", "torch.distributed", "relight_trainer.generation", "relight_trainer.parked")
# In a user's own image only torch is sure to be there.
WARM_IF_INSTALLED = ("relight_trainer.train", "relight_trainer.client", "relight_trainer.metrics")
LEARNED_OFF = "RELIGHT_LEARNED_OFF"  # set where what others have learned cannot be imported here
WARM_UP_SECONDS = 0.5  # without an order: then there is time for more than imports


def preload() -> float:
    """Import what workers need, with libraries held to one thread; the seconds it took."""
    start = time.monotonic()
    learned = [] if LEARNED_OFF in os.environ else learned_imports.of_others()  # by a fork, while that is cheap
    gc.disable()  # nearly all of what is made stays, and to look for the rest again and again is a tenth of the time
    with hygiene.forkable():
        for name in WARM:
            importlib.import_module(name)
        for name in WARM_IF_INSTALLED:
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(name)
    from relight_trainer.late_dynamo import stand_in

    stand_in()
    for name in learned:
        learned_imports.learn(name)
    # Shared pages stay shared: the collector of a forked worker leaves alone what was there before the fork.
    gc.collect()
    gc.freeze()
    gc.enable()
    return time.monotonic() - start


class Child(NamedTuple):
    generation: int
    pid: int


class Host(NamedTuple):
    """The elastic agent of a generation to come, with its workers parked."""

    pid: int
    workers: int
    orders: "Connection[Any, Any]"


class Launcher:
    """Serves one agent over `channel` until that closes."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        self._pid = os.getpid()
        self._workers: Child | None = None
        self._store: Child | None = None
        self._host: Host | None = None
        self._flush: int | None = None  # the pid of a child that saves the member's snapshot
        self._imports = Learner(self._fork)
        self._others = Others(self._fork)
        self._warm_up: int | None = None  # the pid of a child that reads ahead
        self._waits = True  # for its first order, and nothing has been read ahead yet

    def serve(self, imported_seconds: float) -> None:
        import torch

        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        self._say(
            "ready",
            torch=torch.__version__,
            python=platform.python_version(),
            cuda=torch.version.cuda or torch.version.hip or "",
            imported_seconds=imported_seconds,
        )
        received = b""
        while True:
            asked = self._others.asked
            wanted: list[Any] = [self._channel, self._wake, *asked]
            ready, _, _ = select.select(wanted, [], [], self._patience())
            if not ready and self._waits:
                self._waits, self._warm_up = False, self._fork(_read_ahead)
            elif not ready and self._has_to_learn() is not None and self._imports.go_on():
                self._park_again()
            if new := self._others.go_on(answered=any(descriptor in ready for descriptor in asked)):
                self._tell_host({"imports": new})
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    self._wake.recv(4096)
            self._reap()
            if self._channel in ready:
                data = self._channel.recv(65536)
                if not data:
                    return
                *lines, received = (received + data).split(b"\n")
                for line in lines:
                    self._obey(json.loads(line))

    def _patience(self) -> float | None:
        """Seconds to wait for orders before something else is done; None for ever."""
        if self._waits:
            return WARM_UP_SECONDS
        waits = (self._has_to_learn(), self._others.wait())
        return min((seconds for seconds in waits if seconds is not None), default=None)

    def _has_to_learn(self) -> float | None:
        return self._imports.wait(training=self._workers is not None)

    def close(self) -> None:
        self._end_workers()
        self._end_host()
        self._end_store()

    def _say(self, event: str, **fields: Any) -> None:
        self._channel.sendall(json.dumps({"event": event, **fields}).encode() + b"\n")

    def _obey(self, message: dict[str, Any]) -> None:
        match message:
            case {"op": "run"}:
                self._run(message)
            case {"op": "park", "proc_per_node": int(workers)}:
                self._park(workers)
            case {"op": "flush"}:
                self._flush = self._fork(_flush)
            case {"op": "close_store", "generation": generation}:
                if self._store is not None and self._store.generation == generation:
                    self._end_store()
            case _:
                print(f"relight launcher: not understood: {message}", file=sys.stderr, flush=True)

    def _run(self, message: dict[str, Any]) -> None:
        from relight_trainer import generation
        from relight_trainer.store import listen, serve

        order = generation.Order.from_message(message)
        self._end_workers()
        self._end_store()
        self._end_warm_up()
        self._imports.folder = order.env.get("RELIGHT_RUN_DIR")
        if order.host_store:
            try:
                listener = listen(order.master_address, order.master_port)
            except OSError as error:
                self._say("store_failed", generation=order.generation, message=str(error))
                return
            with listener:
                self._store = Child(order.generation, self._fork(lambda: serve(listener, order.run_id)))

        def workers() -> int:
            os.setsid()
            if cold:
                generation.exec_cold(order)
            return generation.run(order, start_method="fork")

        cold = order.cold or self._imports.spoiled
        host = self._host_for(0 if cold else order.proc_per_node, message)
        self._workers = Child(order.generation, self._fork(workers) if host is None else host)
        store_pid = self._store.pid if self._store is not None else None
        self._say("started", generation=order.generation, pid=self._workers.pid, store_pid=store_pid)

    def _park(self, workers: int) -> None:
        """Have workers ready for the next order; with the first of them it is too late."""
        from relight_trainer import parked

        if self._workers is not None or self._host is not None or self._imports.spoiled:
            return
        orders, tell = multiprocessing.Pipe(duplex=False)

        def host() -> int:
            tell.close()
            return parked.host(orders, workers)

        self._host = Host(self._fork(host), workers, tell)
        orders.close()
        self._others.begin()

    def _park_again(self) -> None:
        """More has been imported here than those have who wait."""
        if self._host is not None:
            workers = self._host.workers
            self._end_host()
            self._park(workers)

    def _host_for(self, workers: int, message: dict[str, Any]) -> int | None:
        """The pid of the process that waits with so many workers, and has been told `message`; None where there is none."""
        host = self._host
        if host is None or host.workers != workers or not self._tell_host(message):
            self._end_host()
            return None
        self._others.end()
        host.orders.close()
        self._host = None
        return host.pid

    def _tell_host(self, message: dict[str, Any]) -> bool:
        """Whether it is there to hear it."""
        if self._host is None:
            return False
        try:
            self._host.orders.send_bytes(json.dumps(message).encode())
        except OSError:  # it has ended just now
            return False
        return True

    def _fork(self, run: Callable[[], int]) -> int:
        """The pid of a child that ends with what `run` returns."""
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._be_child(run)
        return pid

    def _be_child(self, run: Callable[[], int]) -> NoReturn:
        status = 1
        try:
            die_with_parent(self._pid)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for ours in (self._channel, self._wake, self._waker):
                ours.close()
            if self._host is not None:
                self._host.orders.close()
            status = run()
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _reap(self) -> None:
        for pid, status in ended_children():
            self._ended(pid, status)

    def _ended(self, pid: int, status: int) -> None:
        if self._imports.ended(pid, status):
            return
        if pid == self._warm_up:
            self._warm_up = None
        elif self._host is not None and pid == self._host.pid:
            self._others.end()
            self._host.orders.close()
            self._host = None
        elif pid == self._flush:
            self._flush = None
            self._say("flushed", status=status)
        elif self._workers is not None and self._workers.pid == pid:
            ended, self._workers = self._workers, None
            self._say("ended", generation=ended.generation, status=status)
        elif self._store is not None and self._store.pid == pid:
            ended, self._store = self._store, None
            print(
                f"relight launcher: the store of generation {ended.generation} ended by itself ({status})",
                file=sys.stderr,
                flush=True,
            )

    def _end_store(self) -> None:
        if self._store is not None:
            os.kill(self._store.pid, signal.SIGKILL)
            os.waitpid(self._store.pid, 0)
            self._store = None

    def _end_warm_up(self) -> None:
        self._waits = False
        if self._warm_up is not None:
            os.kill(self._warm_up, signal.SIGKILL)  # reaped with the others: it may hang in its storage
            self._warm_up = None

    def _end_workers(self) -> None:
        """A generation that the agent has not ended: its session goes, and no `ended` follows."""
        if self._workers is not None:
            _end_session(self._workers.pid)
            self._workers = None

    def _end_host(self) -> None:
        if self._host is not None:
            self._others.end()
            _end_session(self._host.pid)
            self._host.orders.close()
            self._host = None


def _end_session(leader: int) -> None:
    """Of a child, which may not have begun its session yet, and may have been reaped. Workers lead groups of their own."""
    kill_all(lambda seen: {p.pid for p in seen if p.session == leader})
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(leader, signal.SIGKILL)
        os.waitpid(leader, 0)


def _read_ahead() -> int:
    from relight_trainer import warm_up

    return warm_up.main()


def _flush() -> int:
    from relight_trainer import flush

    return flush.main()


def main() -> int:
    die_with_parent(os.getppid())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the agent alone decides; it closes the channel or kills
    hygiene.leave_working_folder_out_of_path()
    imported_seconds = preload()
    if not learned_imports.can_fork() and LEARNED_OFF not in os.environ:
        os.environ[LEARNED_OFF] = "1"
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606
    if (threads := hygiene.threads_of_this_process()) != 1:
        print(f"relight launcher: {threads} threads after the imports: cannot fork workers", file=sys.stderr)
        return 1
    channel = socket.socket(fileno=int(os.environ["RELIGHT_LAUNCHER_FD"]))
    channel.set_inheritable(False)
    launcher = Launcher(channel)
    try:
        launcher.serve(imported_seconds)
    except (BrokenPipeError, ConnectionResetError):
        pass
    finally:
        launcher.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
