"""The coordinator over real HTTP: what it takes, what it refuses, what it answers."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession, ClientTimeout

from relight_operator.api.status import JobStatus, MemberStatus, SlotStatus, WorldStatus
from relight_operator.coordinator import server
from relight_operator.coordinator.endpoint import Endpoint
from relight_operator.coordinator.limits import Reason
from relight_operator.coordinator.mailbox import Mailbox
from relight_operator.coordinator.server import create_app
from relight_operator.coordinator.wire import MAX_BODY_BYTES, Report
from relight_operator.core.observed import AgentPace, AgentStall, RankStack

pytestmark = pytest.mark.timeout(20)

JOB = "default/digits"
TOKEN = "token-of-u0"


class Coordinator:
    """A coordinator on a free port, and how it is spoken to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.woken: list[str] = []
        self.mailbox = Mailbox(lambda: self.now, self.woken.append)
        self.leads = True
        self.trouble: Reason | None = None
        self.url = ""
        self.session: ClientSession
        self._seq = itertools.count(1)

    async def authenticate(self, token: str, report: Report, _: str) -> Reason | None:
        return self.trouble or (None if token == f"token-of-{report.uid}" else Reason.NOT_THE_MEMBERS)

    def publish(self, status: JobStatus) -> None:
        self.mailbox.publish(JOB, "j", status)

    def body(self, **changes: Any) -> dict[str, Any]:
        body = {
            "protocol": 1, "job": JOB, "jobUid": "j", "slot": 0, "incarnation": 0, "uid": "u0", "bootId": "b",
            "seq": next(self._seq), "state": "Ready", "port": 1234,
        }  # fmt: skip
        return {**body, **changes}

    async def post(
        self, path: str, body: Any = None, *, data: bytes | None = None, token: str | None = TOKEN
    ) -> tuple[int, Any]:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        content = {"data": data} if data is not None else {"json": body}
        async with self.session.post(self.url + path, headers=headers, **content) as answer:
            return answer.status, await (answer.json() if answer.status == 200 else answer.text())

    async def report(self, **changes: Any) -> tuple[int, Any]:
        return await self.post("/v1/report", self.body(**changes))

    async def wait(self, **changes: Any) -> tuple[int, Any]:
        return await self.post("/v1/wait", self.body(**changes))


@asynccontextmanager
async def coordinator() -> AsyncIterator[Coordinator]:
    it = Coordinator()
    endpoint = Endpoint(create_app(it.mailbox, it.authenticate, lambda: it.leads), shutdown_timeout=0.1)
    await endpoint.start("127.0.0.1")
    host, port = endpoint.address
    it.url = f"http://{host}:{port}"
    try:
        async with ClientSession(timeout=ClientTimeout(10)) as it.session:
            yield it
    finally:
        await endpoint.stop()


def run(test: Callable[[Coordinator], Awaitable[None]]) -> None:
    async def main() -> None:
        async with coordinator() as it:
            await test(it)

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # what it waits for has no event
        await asyncio.sleep(0.005)


def status(*, generation: int = 0, phase: str = "Starting", **more: Any) -> JobStatus:
    world = WorldStatus(
        generation=generation, run_id="r", master_slot=0, master_address="127.0.0.1", master_port=1,
        members=[MemberStatus(rank=0, slot=0, uid="u0", address="127.0.0.1")],
    )  # fmt: skip
    return JobStatus(phase=phase, slots=[SlotStatus(slot=0, uid="u0")], world=world if generation else None, **more)


def test_a_report_is_taken_once_and_an_older_one_is_dropped() -> None:
    async def test(it: Coordinator) -> None:
        assert await it.report(seq=5, furthestStep=50) == (200, {"taken": True})
        assert await it.report(seq=5, furthestStep=51) == (200, {"taken": False})
        assert await it.report(seq=4, furthestStep=40) == (200, {"taken": False})
        heard = it.mailbox.heard(JOB, "u0")
        assert heard is not None
        assert heard.furthest_step == 50
        assert await it.report(seq=6, furthestStep=60) == (200, {"taken": True})
        # Another life of the agent counts from the beginning.
        assert await it.report(seq=1, bootId="c", furthestStep=1) == (200, {"taken": True})
        assert it.mailbox.heard(JOB, "u1") is None
        assert it.mailbox.heard("default/other", "u0") is None

    run(test)


def test_ages_are_counted_back_from_the_moment_of_the_report() -> None:
    async def test(it: Coordinator) -> None:
        outcome = {"generation": 1, "kind": "failed", "exitCode": 70, "age": 2.5}
        await it.report(terminatingAge=1.5, outcome=outcome)
        heard = it.mailbox.heard(JOB, "u0")
        assert heard is not None
        assert heard.outcome is not None
        assert (heard.terminating_at, heard.outcome.at) == (998.5, 997.5)

    run(test)


def test_what_members_say_of_their_workers_that_make_no_progress_comes_through() -> None:
    async def test(it: Coordinator) -> None:
        stall = {"generation": 2, "rank": 3, "section": "train", "step": 7, "age": 12.5}
        one = {"rank": 3, "section": "train", "step": 7, "age": 13.0, "state": "T", "doing": "", "frames": ["a in b"]}
        pace = {"generation": 2, "rank": 3, "own": 0.5, "step": 0.75}
        assert (await it.report(stall=stall, stacks={"id": "dump:2.1", "ranks": [one]}, pace=pace))[0] == 200
        heard = it.mailbox.heard(JOB, "u0")
        assert heard is not None
        assert heard.stall == AgentStall(2, 3, "train", 7, since=987.5)
        assert (heard.stacks_id, heard.heard_at) == ("dump:2.1", 1000.0)
        assert heard.stacks == (RankStack(3, "train", 7, 13.0, "T", "", ("a in b",)),)
        assert heard.pace == AgentPace(2, 3, 0.5, 0.75)
        await it.report()
        heard = it.mailbox.heard(JOB, "u0")
        assert heard is not None
        assert (heard.stall, heard.stacks_id, heard.stacks, heard.pace) == (None, "", (), None)
        too_much = {"id": "x", "ranks": [{**one, "frames": ["f"] * 5}]}
        assert (await it.report(stacks=too_much))[0] == 400

    run(test)


def test_only_news_wake_the_reconciler() -> None:
    async def test(it: Coordinator) -> None:
        await it.report(state="Running", terminatingAge=1.0)
        await it.report(state="Running", terminatingAge=2.0, timings={"agent": 1.0})
        await it.report(state="Running", terminatingAge=2.5, pace={"generation": 1, "rank": 0, "own": 0.1, "step": 0.2})
        assert it.woken == [JOB]
        await it.report(state="Running", terminatingAge=3.0, furthestStep=1)
        assert it.woken == [JOB, JOB]

    run(test)


@pytest.mark.parametrize("path", ["/v1/report", "/v1/wait"])
@pytest.mark.parametrize("token", [None, "", "token-of-u1"])
def test_a_token_that_is_not_the_members_own_is_a_definite_no(path: str, token: str | None) -> None:
    async def test(it: Coordinator) -> None:
        it.publish(status())
        assert (await it.post(path, it.body(), token=token))[0] == 403
        assert it.mailbox.heard(JOB, "u0") is None

    run(test)


def test_a_token_that_cannot_be_checked_is_not_a_no() -> None:
    async def test(it: Coordinator) -> None:
        it.trouble = Reason.NOT_CHECKED
        assert (await it.report())[0] == 503
        assert it.mailbox.heard(JOB, "u0") is None

    run(test)


def test_who_does_not_lead_says_nothing() -> None:
    async def test(it: Coordinator) -> None:
        it.publish(status(generation=1))
        it.leads = False
        assert (await it.report())[0] == 503
        assert (await it.wait())[0] == 503

    run(test)


def test_a_huge_body_is_refused() -> None:
    async def test(it: Coordinator) -> None:
        code, _ = await it.post("/v1/report", data=b'{"job": "' + b"x" * MAX_BODY_BYTES + b'"}')
        assert code == 413
        assert (await it.report())[0] == 200

    run(test)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"protocol": 1}', b"[" * 5000, b'"' + b"\\u0000" * 100 + b'"'],
    ids=["empty", "half", "list", "null", "binary", "incomplete", "deep", "nul"],
)
def test_what_is_no_report_is_a_bad_request(data: bytes) -> None:
    async def test(it: Coordinator) -> None:
        code, said = await it.post("/v1/report", data=data)
        assert code == 400
        assert len(said) < 500

    run(test)


WRONG: list[dict[str, Any]] = [
    {"slot": -1}, {"slot": 10**6}, {"seq": -1}, {"seq": 2**60}, {"state": "Happy"}, {"job": "nameless"},
    {"uid": "u" * 65}, {"terminatingAge": -1.0}, {"terminatingAge": 1e300}, {"port": 65536}, {"protocol": 0},
    {"furthestStep": 1.5}, {"timings": {str(i): 1.0 for i in range(9)}}, {"outcome": {"generation": 1, "kind": "odd"}},
    {"outcome": {"generation": 1, "kind": "completed", "weightsDigest": "xyz"}},
    {"progress": {"generation": 1, "step": 1, "metrics": {f"m{i}": "1" for i in range(33)}}},
    {"progress": {"generation": 1, "step": 1, "notices": ["n" * 1025]}},
    {"progress": {"generation": 1, "step": -1}},
]  # fmt: skip


@pytest.mark.parametrize("changes", WRONG, ids=lambda c: str(c)[:40])
def test_a_value_out_of_bounds_is_a_bad_request_that_names_the_field(changes: dict[str, Any]) -> None:
    async def test(it: Coordinator) -> None:
        code, said = await it.report(**changes)
        assert code == 400
        assert said.startswith(next(iter(changes)))
        assert it.mailbox.heard(JOB, "u0") is None

    run(test)


@pytest.mark.parametrize("word", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_numbers_that_json_does_not_have_do_not_come_in(word: bytes) -> None:
    async def test(it: Coordinator) -> None:
        data = b'{"protocol":1,"job":"default/digits","jobUid":"j","slot":0,"incarnation":0,"uid":"u0","bootId":"b","seq":1,'
        assert (await it.post("/v1/report", data=data + b'"state":"Ready","terminatingAge":' + word + b"}"))[0] == 400

    run(test)


def test_metrics_that_are_not_finite_come_in_as_text() -> None:
    async def test(it: Coordinator) -> None:
        assert (await it.report(progress={"generation": 1, "step": 1, "metrics": {"loss": "nan"}}))[0] == 200
        heard = it.mailbox.heard(JOB, "u0")
        assert heard is not None
        assert heard.progress is not None
        assert heard.progress.metrics == {"loss": "nan"}

    run(test)


def test_what_a_newer_agent_says_besides_is_ignored() -> None:
    async def test(it: Coordinator) -> None:
        assert (await it.report(protocol=2, mood="good", progress={"generation": 1, "step": 1, "speed": 3}))[0] == 200

    run(test)


def test_nothing_is_said_of_a_job_whose_status_has_not_been_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "WAIT_SECONDS", 0.05)

    async def test(it: Coordinator) -> None:
        assert (await it.wait())[0] == 503
        assert (await it.report()) == (200, {"taken": True})
        assert not it.mailbox.knows(JOB)

    run(test)


def test_a_wait_is_answered_as_soon_as_the_command_is_another() -> None:
    async def test(it: Coordinator) -> None:
        it.publish(status())
        assert await it.wait() == (200, {"command": {"id": "wait:0", "op": "wait", "generation": 0}})
        held = asyncio.create_task(it.wait(after="wait:0"))
        while (report := it.mailbox.report(JOB, "u0")) is None or report.after != "wait:0":  # noqa: ASYNC110  # no event for it
            await asyncio.sleep(0.001)
        it.publish(status(phase="Pending"))  # nothing new for this agent
        assert not held.done()
        it.publish(status(generation=1))
        code, answer = await held
        assert code == 200
        assert answer["command"]["id"] == "run:1"
        assert answer["command"]["world"]["members"][0]["uid"] == "u0"
        assert answer["command"]["committedStep"] is None

    run(test)


def test_a_wait_ends_with_the_same_command_when_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "WAIT_SECONDS", 0.05)

    async def test(it: Coordinator) -> None:
        it.publish(status(generation=1))
        code, answer = await it.wait(after="run:1")
        assert code == 200
        assert answer["command"]["id"] == "run:1"

    run(test)


def test_commands_follow_status() -> None:
    async def test(it: Coordinator) -> None:
        for published, command, more in [
            (status(generation=2, stop="interrupt-1"), "stop:interrupt-1", {}),
            (status(generation=2, phase="Succeeded"), "exit:Succeeded", {"code": 0}),
            (status(generation=2, phase="Failed"), "exit:Failed", {"code": 70}),
        ]:
            it.publish(published)
            _, answer = await it.wait()
            assert answer["command"]["id"] == command
            assert more.items() <= answer["command"].items()
        # Another member holds the slot, or a later incarnation of it.
        it.publish(JobStatus(slots=[SlotStatus(slot=0, incarnation=1)]))
        _, answer = await it.wait()
        assert answer["command"] == {"id": "exit:superseded", "op": "exit", "generation": 0, "code": 76}

    run(test)


def test_who_hangs_up_in_a_wait_is_noticed_until_it_is_heard_again() -> None:
    async def test(it: Coordinator) -> None:
        def hung_up_at() -> float | None:
            heard = it.mailbox.heard(JOB, "u0")
            return heard.hung_up_at if heard is not None else None

        async def hang_up() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await it.wait(after=command["id"])
            await until(lambda: hung_up_at() is not None)

        it.publish(status(generation=1))
        command = (await it.wait())[1]["command"]
        assert hung_up_at() is None, "it has its answer"
        await hang_up()
        assert hung_up_at() == 1000.0
        it.woken.clear()
        await it.report()
        assert (hung_up_at(), it.woken) == (None, [JOB])
        await hang_up()
        assert hung_up_at() == 1000.0
        await it.report(bootId="c")
        assert hung_up_at() is None

    run(test)


def test_an_old_wait_that_breaks_says_nothing_while_a_newer_one_is_held() -> None:
    async def test(it: Coordinator) -> None:
        it.publish(status(generation=1))

        def hung_up() -> bool:
            heard = it.mailbox.heard(JOB, "u0")
            return heard is not None and heard.hung_up_at is not None

        async def wait() -> asyncio.Task[Any]:
            body = it.body(after=command["id"])
            task = asyncio.create_task(it.post("/v1/wait", body))
            await until(lambda: (r := it.mailbox.report(JOB, "u0")) is not None and r.seq == body["seq"])
            return task

        command = (await it.wait())[1]["command"]
        first = await wait()
        second = await wait()
        it.mailbox.hang_up(Report.model_validate(it.body(seq=2)))
        assert not hung_up()
        first.cancel()
        second.cancel()
        await until(hung_up)

    run(test)


def test_nothing_is_kept_for_jobs_that_are_gone() -> None:
    """5,000 jobs are made and deleted; their agents spoke, waited and hung up, some after the job was gone."""
    mailbox = Mailbox(lambda: 1.0, lambda _: None)

    async def main() -> None:
        for number in range(5000):
            job, uid = f"default/job-{number % 50}", f"uid-{number}"
            said = {"protocol": 1, "job": job, "jobUid": uid, "slot": 0, "incarnation": 0, "uid": "u0", "bootId": "b", "seq": 1, "state": "Ready"}  # fmt: skip
            report = Report.model_validate(said)
            mailbox.publish(job, uid, status())
            mailbox.listening_since(job, uid)
            mailbox.post(report)
            waiting = asyncio.create_task(mailbox.wait(report.model_copy(update={"after": "wait:0"}), hold=20.0))
            await asyncio.sleep(0)
            mailbox.drop(job)
            assert await waiting is None
            mailbox.hang_up(report)
            mailbox.forget(job, {"u0"})
            assert mailbox.heard(job, "u0") is None
            assert mailbox.command(report) is None

    asyncio.run(main())
    assert len(mailbox) == 0


def test_a_job_inherits_nothing_from_one_of_the_same_name() -> None:
    now = [1.0]
    mailbox = Mailbox(lambda: now[0], lambda _: None)
    old = Report.model_validate({"protocol": 1, "job": JOB, "jobUid": "old", "slot": 0, "incarnation": 0, "uid": "u0", "bootId": "b", "seq": 1, "state": "Ready"})  # fmt: skip
    mailbox.publish(JOB, "old", status(generation=1))
    mailbox.post(old)
    now[0] = 2.0
    assert mailbox.listening_since(JOB, "new") == 2.0
    assert not mailbox.knows(JOB)
    assert mailbox.heard(JOB, "u0") is None
    mailbox.publish(JOB, "new", status(generation=1))
    assert mailbox.command(old) is None, "an agent of the former job is not answered from the new one's status"
    assert mailbox.listening_since(JOB, "new") == 2.0
