"""The trainer's metrics: the run's own numbers, read while it runs, and never in its way."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import pytest
import worlds
from launching import Member
from prometheus_client.parser import text_string_to_metric_families
from test_train_exact import job, result
from tests.testbed.cache import cache_root

from relight_trainer import train
from relight_trainer.context import WorkerContext
from relight_trainer.session import Cursor, Session

pytestmark = pytest.mark.timeout(120)

AfterStep = Callable[[Session], None]


def program(name: str) -> str:
    """A program of Debian's prometheus, from PATH or where the testbed keeps its own; skips where there is none."""
    cached = sorted(cache_root().glob(f"debian-*/usr/bin/{name}"))
    found = shutil.which(name) or (str(cached[-1]) if cached else None)
    if found is None:
        pytest.skip(f"{name} is not installed: it comes with Debian's prometheus, which the testbed brings")
    return found


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def wait_for(condition: Callable[[], Any], seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def scrape(port: int) -> str:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()


def scrape_when_up(port: int) -> str:
    def answer() -> str | None:
        try:
            return scrape(port)
        except OSError:
            return None

    return wait_for(answer)


OF_MACHINE = ("relight_member_", "relight_gpu_")
OF_TIME = ("relight_train_phase_",)


def series(text: str, prefixes: tuple[str, ...] = ()) -> dict[str, float]:
    """Relight's series by name, labels included as they are written: those with a prefix, else those of neither kind."""
    found = {}
    for family in text_string_to_metric_families(text):
        for s in family.samples:
            known = s.name.startswith((*OF_MACHINE, *OF_TIME))
            if s.name.startswith(prefixes) if prefixes else s.name.startswith("relight_") and not known:
                labels = ",".join(f'{k}="{v}"' for k, v in s.labels.items())
                found[s.name + (f"{{{labels}}}" if labels else "")] = s.value
    return found


def trained(context: WorkerContext, after_step: AfterStep) -> Any:
    """The outcome of a training in which `after_step` is called at the end of each step."""
    step_done = Session.step_done

    def step_done_and_look(self: Session, cursor: Cursor) -> None:
        step_done(self, cursor)
        after_step(self)

    Session.step_done = step_done_and_look  # type: ignore[method-assign]
    return train.run(context)


def scraped(context: WorkerContext, ports: list[int], die_after: int = -1) -> Any:
    """(outcome, of each step: what was scraped, and what the session says)."""
    port = ports[context.rank]
    os.environ["RELIGHT_METRICS_PORT"] = str(port)
    seen: list[tuple[str, Cursor]] = []

    def look(session: Session) -> None:
        seen.append((scrape_when_up(port), session.cursor))
        if session.cursor.step == die_after:
            os._exit(9)

    return trained(context, look), seen


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Twelve steps of two members with checkpoints at 5 and 10: (folder, unix time before it, answers of the ranks)."""
    root = tmp_path_factory.mktemp("run")
    before = time.time()
    return root, before, worlds.run(scraped, free_ports(2), root=root, job=job(root))


def test_the_values_are_the_runs_own(run: Any) -> None:
    root, before, [(_, seen), (_, seen_by_rank_1)] = run
    assert len(seen) == len(seen_by_rank_1) == 12
    last_seconds = 0.0
    for step, (text, cursor) in enumerate(seen, 1):
        values = series(text)
        seconds = values.pop('relight_train_step_duration_seconds_sum{node_rank="0"}')
        assert last_seconds < seconds < time.time() - before
        last_seconds = seconds
        saved_at = values.pop("relight_checkpoint_last_success_timestamp_seconds", None)
        saved = step // 5 * 5
        assert (saved_at is not None) == (saved > 0)
        if saved_at is not None:
            manifest = next((root / "checkpoints").glob(f"step-*{saved}.g1")) / "manifest.json"
            assert 0 <= saved_at - manifest.stat().st_mtime < 5
        assert cursor.samples == step * 64
        assert values == {
            "relight_train_step": step,
            "relight_train_total_steps": 12,
            "relight_train_samples_total": step * 64,
            "relight_train_loss": float(cursor.metrics["loss"]),
            **({"relight_checkpoint_last_step": saved} if saved else {}),
            'relight_train_generation{node_rank="0"}': 1,
            'relight_snapshot_last_step{node_rank="0"}': step,
            'relight_train_step_duration_seconds_count{node_rank="0"}': step,
        }


def test_what_is_the_jobs_comes_from_rank_0_alone(run: Any) -> None:
    *_, [_, (_, seen)] = run
    for step, (text, _) in enumerate(seen, 1):
        values = series(text)
        assert values.pop('relight_train_step_duration_seconds_sum{node_rank="1"}') > 0
        assert values == {
            'relight_train_generation{node_rank="1"}': 1,
            'relight_snapshot_last_step{node_rank="1"}': step,
            'relight_train_step_duration_seconds_count{node_rank="1"}': step,
        }


def test_promtool_finds_nothing_to_say(run: Any) -> None:
    promtool = program("promtool")
    *_, [(_, seen), _] = run
    text = seen[-1][0]
    assert text.count("# HELP relight_") == text.count("# TYPE relight_") >= 9 + 1 + 4
    checked = subprocess.run([promtool, "check", "metrics"], input=text, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_every_member_tells_what_it_uses_and_where_its_time_goes(run: Any) -> None:
    *_, answers = run
    for rank, (_, seen) in enumerate(answers):
        texts = [text for text, _ in seen]
        first, last = (series(texts[i], OF_TIME) for i in (0, -1))
        phases = ("data", "forward", "backward", "optimizer", "communication", "checkpoint", "evaluation", "other")
        assert set(last) == {
            f'relight_train_phase_seconds_total{{node_rank="{rank}",phase="{phase}"}}' for phase in phases
        }
        assert all(last[name] >= first[name] >= 0 for name in last)
        grown = {name.split('"')[3] for name in last if last[name] > first[name]}
        assert grown >= {"data", "forward", "backward", "optimizer", "communication", "checkpoint"}
        machine = series(texts[-1], OF_MACHINE)
        assert machine[f'relight_member_memory_bytes{{node_rank="{rank}"}}'] > 0
        assert machine[f'relight_member_cpu_seconds_total{{node_rank="{rank}"}}'] > 0


def threads(context: WorkerContext) -> Any:
    """(outcome, names of the threads there were during training)."""
    seen: set[str] = set()
    outcome = trained(context, lambda _: seen.update(t.name for t in threading.enumerate()))
    return outcome, seen


@pytest.mark.parametrize("value", [None, "", "0"])
def test_off_unless_there_is_a_port(tmp_path: Path, value: str | None) -> None:
    environment = {} if value is None else {"RELIGHT_METRICS_PORT": value}
    [(_, seen)] = worlds.run(threads, root=tmp_path, job=job(tmp_path, steps=2), ranks=1, **environment)
    assert "MainThread" in seen
    assert "metrics" not in seen


def test_one_worker_of_a_member_serves_and_the_weights_are_the_same_as_without(run: Any, tmp_path: Path) -> None:
    [port] = free_ports(1)
    with_port, without = tmp_path / "with", tmp_path / "without"
    for folder in (with_port, without):
        folder.mkdir()
    options = {"ranks": 2, "local_ranks": 2}
    ends = worlds.run(threads, root=with_port, job=job(with_port), **options, RELIGHT_METRICS_PORT=str(port))
    assert ["metrics" in names for _, names in ends] == [True, False]
    whole = result(worlds.run(train.run, root=without, job=job(without), **options))
    assert result([outcome for outcome, _ in ends]) == whole
    assert result([outcome for outcome, _ in run[2]]) == whole


def test_the_next_generation_serves_on_the_same_port_at_once_and_counts_its_own_samples(tmp_path: Path) -> None:
    ports = free_ports(1)
    options: dict[str, Any] = {"root": tmp_path, "job": job(tmp_path), "ranks": 1}
    assert worlds.run(scraped, ports, 4, generation=1, **options) == ["died"]  # its connections linger in TIME_WAIT
    [(outcome, seen)] = worlds.run(scraped, ports, generation=2, **options)
    assert outcome.kind == "completed"
    assert [cursor.step for _, cursor in seen] == list(range(5, 13))
    for text, cursor in seen:
        values = series(text)
        assert values['relight_train_generation{node_rank="0"}'] == 2
        assert values["relight_train_step"] == cursor.step
        assert values["relight_train_samples_total"] == (cursor.step - 4) * 64


OWN_SCRIPT = """
import time
import torch
from prometheus_client import Gauge
from relight_trainer import client

reward = Gauge("reward", "The script's own.")
run = client.start(model=torch.nn.Linear(2, 1), init=True)
for _ in run.steps([torch.ones(2)] * 100_000, epochs=1):
    reward.set(run.step + 0.5)
    run.log(loss=run.step / 2)
    time.sleep(0.01)
"""


def test_workers_of_a_warm_launcher_serve_an_own_script_and_hand_the_port_on(tmp_path: Path) -> None:
    script = tmp_path / "own.py"
    script.write_text(OWN_SCRIPT)
    port, *masters = free_ports(3)
    with Member(tmp_path, 0, [str(script)], env={"RELIGHT_METRICS_PORT": str(port)}) as member:
        member.expect("ready")
        reached = 0.0
        for generation, master in enumerate(masters, 1):
            # The second is ordered while the first one trains, and serves.
            member.run(generation, rank=0, nodes=1, port=master, host_store=True)
            member.started()

            def further(generation: int = generation, reached: float = reached) -> dict[str, float] | None:
                with contextlib.suppress(OSError):
                    values = series(scrape(port))
                    of_it = values['relight_train_generation{node_rank="0"}'] == generation
                    return values if of_it and values["relight_train_step"] > reached else None
                return None

            values = wait_for(further)
            reached = values["relight_train_step"]
            assert abs(2 * values["relight_train_loss"] - reached) <= 1  # logged in mid-step
            assert "relight_train_samples_total" not in values  # a list has no batch size
            assert "\nreward " in scrape(port)


def patient(context: WorkerContext, port: int, released: str) -> Any:
    """What was said until the metrics could be scraped."""
    from relight_trainer import metrics

    metrics.PATIENCE_SECONDS = 0.3
    os.environ["RELIGHT_METRICS_PORT"] = str(port)
    steps_without = 0

    def look(session: Session) -> None:
        nonlocal steps_without
        if session.cursor.step < 4:
            steps_without += 1
        elif session.cursor.step == 4:
            wait_for(lambda: session._notices)
            Path(released).touch()
            scrape_when_up(port)

    outcome = trained(context, look)
    progress = context.folder.progress()
    assert progress is not None
    return outcome.kind, steps_without, progress.notices


def test_a_port_in_use_is_said_once_and_taken_when_it_is_free(tmp_path: Path) -> None:
    released = tmp_path / "released"
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with worlds.world(
            patient, port, str(released), root=tmp_path, job=job(tmp_path, checkpoints=False), ranks=1
        ) as running:
            wait_for(released.exists)
            other.close()
            [answer] = running.join()
    said = f"metrics: port {port} cannot be used (Address already in use); training goes on without them"
    assert answer == ("completed", 3, [said])


def without_the_library(context: WorkerContext) -> Any:
    for name in [n for n in sys.modules if n.startswith(("prometheus_client", "relight_trainer.metrics"))]:
        del sys.modules[name]
    sys.modules["prometheus_client"] = None  # type: ignore[assignment]  # what the import system takes for not there
    outcome = train.run(context)
    progress = context.folder.progress()
    assert progress is not None
    return outcome.kind, progress.notices


def test_an_image_without_the_library_trains_and_says_so(tmp_path: Path) -> None:
    [(kind, [notice])] = worlds.run(
        without_the_library, root=tmp_path, job=job(tmp_path, steps=2), ranks=1, RELIGHT_METRICS_PORT="9"
    )
    assert kind == "completed"
    assert notice.startswith("metrics are off: ")
    assert "prometheus_client" in notice


@contextlib.contextmanager
def prometheus(folder: Path, targets: list[int]) -> Iterator[Callable[[str], dict[str, float]]]:
    """A Prometheus that scrapes `targets`; gives its answer to a query, by target and labels."""
    binary = program("prometheus")
    [port] = free_ports(1)
    job_config = {
        "job_name": "digits",
        "scrape_interval": "200ms",
        "scrape_timeout": "200ms",
        "static_configs": [{"targets": [f"127.0.0.1:{t}" for t in targets]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps({"scrape_configs": [job_config]}))
    arguments = [
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]

    def query(expression: str) -> dict[str, float]:
        try:
            with urlopen(f"http://127.0.0.1:{port}/api/v1/query?query={quote(expression)}", timeout=10) as answer:
                rows = json.load(answer)["data"]["result"]
        except OSError:  # still starting
            return {}
        return {row["metric"]["instance"].rpartition(":")[2]: float(row["value"][1]) for row in rows}

    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([binary, *arguments], stdout=log, stderr=log, env={**os.environ, "GOMAXPROCS": "1"})
    try:
        yield query
    finally:
        process.kill()
        process.wait()


def held(context: WorkerContext, ports: list[int], go_on: str) -> Any:
    """Training that stays at step 7 until the file `go_on` is there."""
    os.environ["RELIGHT_METRICS_PORT"] = str(ports[context.rank])

    def look(session: Session) -> None:
        if session.cursor.step == 7:
            wait_for(Path(go_on).exists, 60)

    outcome = trained(context, look)
    return outcome.kind


def test_a_real_prometheus_scrapes_every_member_and_stores_the_runs_numbers(tmp_path: Path) -> None:
    ports = free_ports(2)
    first, second = map(str, ports)
    go_on = tmp_path / "go-on"
    with (
        prometheus(tmp_path, ports) as query,
        worlds.world(held, ports, str(go_on), root=tmp_path, job=job(tmp_path)) as running,
    ):
        wait_for(lambda: query("relight_train_step == 7") and query("up") == {first: 1, second: 1}, 60)
        wait_for(lambda: query("relight_snapshot_last_step == 7") == {first: 7, second: 7})
        assert query("relight_train_step") == {first: 7}
        assert query("relight_train_samples_total") == {first: 7 * 64}
        assert query("relight_checkpoint_last_step") == {first: 5}
        [age] = query("time() - relight_checkpoint_last_success_timestamp_seconds").values()
        assert 0 <= age < 60
        go_on.touch()
        assert running.join() == ["completed"] * 2
