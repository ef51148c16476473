"""The queue hands a key out once, never twice at a time, and never forgets one."""

import asyncio

import pytest

from relight_operator.kube.workqueue import BACKOFF_FIRST_SECONDS, BACKOFF_MAX_SECONDS, WorkQueue

pytestmark = pytest.mark.timeout(20)


def test_a_key_that_is_added_often_is_handed_out_once() -> None:
    async def body() -> None:
        queue = WorkQueue()
        for _ in range(3):
            queue.add("a")
        queue.add("b")
        assert [await queue.take(), await queue.take()] == ["a", "b"]
        assert len(queue) == 0

    asyncio.run(body())


def test_a_key_that_is_being_worked_on_comes_back_afterwards() -> None:
    async def body() -> None:
        queue = WorkQueue()
        queue.add("a")
        await queue.take()
        queue.add("a")
        queue.add("a")
        assert len(queue) == 0
        queue.done("a")
        assert len(queue) == 1
        await queue.take()
        queue.done("a")
        assert len(queue) == 0

    asyncio.run(body())


def test_the_sooner_of_two_delays_counts() -> None:
    async def body() -> None:
        queue = WorkQueue()
        loop = asyncio.get_running_loop()
        began = loop.time()
        queue.add_after("a", 60)
        queue.add_after("a", 0.01)
        queue.add_after("a", 60)
        assert await queue.take() == "a"
        assert loop.time() - began < 10

    asyncio.run(body())


def test_a_round_covers_what_was_to_come_later() -> None:
    async def body() -> None:
        queue = WorkQueue()
        queue.add_after("a", 0.01)
        queue.add("a")
        await queue.take()
        queue.done("a")
        await asyncio.sleep(0.05)
        assert len(queue) == 0

    asyncio.run(body())


def test_the_wait_doubles_up_to_a_limit_and_starts_anew_after_success() -> None:
    async def body() -> None:
        queue = WorkQueue()
        waits = [queue.add_backed_off("a") for _ in range(14)]
        assert waits[:3] == [BACKOFF_FIRST_SECONDS, 2 * BACKOFF_FIRST_SECONDS, 4 * BACKOFF_FIRST_SECONDS]
        assert waits[-1] == BACKOFF_MAX_SECONDS
        queue.forget("a")
        assert queue.add_backed_off("a") == BACKOFF_FIRST_SECONDS
        queue.close()

    asyncio.run(body())


def test_closing_wakes_everybody_and_hands_nothing_out() -> None:
    async def body() -> None:
        queue = WorkQueue()
        takers = [asyncio.create_task(queue.take()) for _ in range(3)]
        await asyncio.sleep(0)
        queue.add_after("a", 0.01)
        queue.close()
        queue.add("b")
        assert await asyncio.gather(*takers) == [None, None, None]

    asyncio.run(body())
