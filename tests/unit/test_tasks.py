"""The building blocks of asyncio: growing waits, shared work, signals."""

import asyncio
import os
import signal
from contextlib import suppress

import pytest

from dispatcher import tasks
from dispatcher.tasks import Backoff, SingleFlight, stop_on_signals


async def test_each_wait_is_twice_the_one_before_up_to_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []

    async def note(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", note)
    backoff = Backoff(0.5, 3.0)
    for _ in range(5):
        await backoff.wait()
    backoff.reset()
    await backoff.wait()
    assert waits == [0.5, 1.0, 2.0, 3.0, 3.0, 0.5]


class SlowCount:
    """Counts how often it is started; returns, or fails, once it is let go."""

    def __init__(self, error: Exception | None = None) -> None:
        self.started = 0
        self.may_end = asyncio.Event()
        self.error = error

    async def __call__(self) -> int:
        self.started += 1
        await self.may_end.wait()
        if self.error is not None:
            raise self.error
        return self.started


async def test_callers_of_one_key_share_a_task_and_other_keys_have_their_own() -> None:
    flights, work = SingleFlight[str, int]("test"), SlowCount()
    first, second, other = flights.start("a", work), flights.start("a", work), flights.start("b", work)
    assert first is second
    assert first is not other
    assert (len(flights), "a" in flights) == (2, True)
    work.may_end.set()
    await asyncio.wait({first, other})
    assert work.started == 2
    assert (len(flights), "a" in flights) == (0, False)
    assert flights.start("a", work) is not first
    await flights.close()


async def test_a_forgotten_task_still_ends_for_its_callers() -> None:
    flights = SingleFlight[str, bool]("test")
    may_end = asyncio.Event()

    async def work() -> bool:
        await may_end.wait()
        return flights.is_current("a")

    outdated = flights.start("a", work)
    flights.forget("a")
    current = flights.start("a", work)
    may_end.set()
    await asyncio.wait({outdated, current})
    assert (outdated.result(), current.result()) == (False, True)


async def test_closing_cancels_tasks_and_retrieves_failures_without_callers() -> None:
    flights, work, failing = SingleFlight[str, int]("test"), SlowCount(), SlowCount(ValueError("failed"))
    task = flights.start("a", work)
    failing.may_end.set()
    failed = flights.start("b", failing)
    await asyncio.wait({failed})
    await flights.close()
    assert task.cancelled()
    assert str(failed.exception()) == "failed"


@pytest.mark.parametrize(
    ("number", "default"), [(signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)]
)
async def test_the_first_signal_stops_and_each_further_one_ends_at_once(
    number: signal.Signals, default: object
) -> None:
    stop, ended = asyncio.Event(), asyncio.Event()
    with stop_on_signals(stop, ended.set):
        os.kill(os.getpid(), number)
        await stop.wait()
        assert not ended.is_set()
        os.kill(os.getpid(), number)
        await ended.wait()
    assert signal.getsignal(number) == default


async def test_without_a_way_to_end_at_once_the_second_signal_has_its_default_effect() -> None:
    stop = asyncio.Event()
    with stop_on_signals(stop):
        os.kill(os.getpid(), signal.SIGINT)
        await stop.wait()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


async def test_a_task_that_loses_a_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that waited for it would never end."""
    monkeypatch.setattr(tasks, "CANCELLED_AGAIN_S", 0.01)
    lost, ended = 0, []

    async def losing(times: int) -> None:
        nonlocal lost
        for _ in range(times):
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                lost += 1
        ended.append(times)
        await asyncio.sleep(3600)

    stop = asyncio.Event()
    work = asyncio.create_task(tasks.together_until(stop, {"twice": losing(2), "never": losing(0)}))
    await asyncio.sleep(0)
    stop.set()
    await asyncio.wait_for(work, 60)
    assert (lost, sorted(ended)) == (2, [0, 2])


async def test_a_task_is_cancelled_again_until_it_ends() -> None:
    async def losing() -> None:
        for _ in range(3):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)

    tasks_ = [asyncio.create_task(losing()), asyncio.create_task(asyncio.sleep(0, "done"))]
    await asyncio.sleep(0)
    await asyncio.wait_for(tasks.cancel_and_wait(*tasks_, again_s=0.01), 60)
    assert [task.done() for task in tasks_] == [True, True]
    await tasks.cancel_and_wait(*tasks_)
    await tasks.cancel_and_wait()


async def test_a_failure_of_one_ends_the_others() -> None:
    async def failing() -> None:
        raise ValueError("x")

    with pytest.raises(ExceptionGroup):
        await tasks.together_until(asyncio.Event(), {"a": failing(), "b": asyncio.sleep(3600)})
