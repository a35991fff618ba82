"""Building blocks of asyncio that several packages use: waits with a deadline, growing waits, shared work, signals."""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, TypeVar

import structlog

CANCELLED_AGAIN_S = 2.0
"""Seconds after which a task that should end at once is cancelled again."""
LONGEST_END_S = 15.0
"""Seconds that a cancelled task may need to close what it uses, such as connections to a broker that is away."""

log = structlog.get_logger(__name__)

Key = TypeVar("Key")
Result = TypeVar("Result")


async def cancel_and_wait(*tasks: "asyncio.Task[object]", again_s: float = LONGEST_END_S) -> None:
    """Cancels the tasks that still run and waits until each has ended. Their exceptions stay with them.

    One that goes on for `again_s` seconds is cancelled again, and named in the log. A library may lose a cancellation:
    one that awaits a task of its own that it has just cancelled can't distinguish the two. The waiting task would
    never end.
    """
    while going_on := [task for task in tasks if not task.done()]:
        for task in going_on:
            task.cancel()
        _, late = await asyncio.wait(going_on, timeout=again_s)
        if late:
            log.warning("tasks go on after they were cancelled", tasks=sorted(task.get_name() for task in late))


def retrieve_error(future: "asyncio.Future[Result]") -> None:
    """Marks a future's error as seen, if it is done and has one, so that asyncio doesn't log it as unobserved."""
    if future.done() and not future.cancelled():
        future.exception()


async def set_within(event: asyncio.Event, timeout_s: float) -> bool:
    """Waits for the event, at most `timeout_s` seconds. Returns whether it is set."""
    try:
        async with asyncio.timeout(timeout_s):
            return await event.wait()
    except TimeoutError:
        return False


async def unless_stopped(stop: asyncio.Event, work: Coroutine[object, object, Result]) -> Result | None:
    """Runs `work` until it returns or `stop` is set. Returns its result; None after `stop`, which cancels it.

    Raises what `work` raises.
    """
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        await cancel_and_wait(working, stopping)


async def with_end(
    work: Coroutine[object, object, Result], clean_up: Callable[[], Coroutine[object, object, None]]
) -> Result:
    """Runs `work`, and then `clean_up`, whatever happened. Returns what `work` returns; raises what either raises.

    For compiled modules, which must not await while an exception is handled (docs/decisions/0008).
    """
    try:
        return await work
    finally:
        await clean_up()


async def together_until(stop: asyncio.Event, work: Mapping[str, Coroutine[object, object, None]]) -> None:
    """Runs coroutines concurrently until `stop` is set, which cancels them. The keys name their tasks.

    Raises:
        ExceptionGroup: one of them has failed; the others were cancelled.
    """
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(one, name=name) for name, one in work.items()]
        await stop.wait()
        await cancel_and_wait(*running, again_s=CANCELLED_AGAIN_S)


class Backoff:
    """Growing waits between repetitions: each wait is twice as long as the one before, up to a bound."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._next_s = first_s

    def reset(self) -> None:
        """Makes the next wait the first again."""
        self._next_s = self._first_s

    def next_s(self) -> float:
        """Returns the seconds of the next wait, and doubles the one after it."""
        wait_s, self._next_s = self._next_s, min(self._next_s * 2, self._longest_s)
        return wait_s

    async def wait(self) -> None:
        """Waits, and doubles the next wait."""
        await asyncio.sleep(self.next_s())


class Patience(Backoff):
    """Growing waits that end after some time: for what passes by itself soon, or not at all. Needs a running loop."""

    def __init__(self, first_s: float, longest_s: float, most_s: float) -> None:
        """Starts now. `most_s`: seconds after which `is_over` is true."""
        super().__init__(first_s, longest_s)
        self._now = asyncio.get_running_loop().time
        self._ends_at = self._now() + most_s

    @property
    def is_over(self) -> bool:
        return self._now() >= self._ends_at


class SingleFlight(Generic[Key, Result]):
    """Runs at most one task per key at a time; callers that come meanwhile share the task and its result."""

    def __init__(self, name: str) -> None:
        """Starts without tasks. `name`: the name of the tasks, for debugging."""
        self._name = name
        self._tasks: dict[Key, asyncio.Task[Result]] = {}

    def __len__(self) -> int:
        """Returns the number of keys with a task in progress."""
        return len(self._tasks)

    def __contains__(self, key: Key) -> bool:
        """Returns True if a task is in progress that new callers share."""
        return key in self._tasks

    def start(self, key: Key, work: Callable[[], Coroutine[object, object, Result]]) -> "asyncio.Task[Result]":
        """Returns the key's task in progress, or starts one that runs `work`.

        Wait for it with `asyncio.wait`: awaiting the task itself would cancel it when one of its callers is cancelled.
        """
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(work(), name=self._name)
            task.add_done_callback(lambda done: self._finished(key, done))
        return task

    def is_current(self, key: Key) -> bool:
        """Returns True if the calling task is the key's task: the key was not forgotten since it began."""
        return self._tasks.get(key) is asyncio.current_task()

    def forget(self, key: Key) -> None:
        """Makes the next caller start a new task. The task in progress still returns its result to its callers."""
        self._tasks.pop(key, None)

    def forget_all(self) -> None:
        """Does for every key what `forget` does."""
        self._tasks.clear()

    async def close(self) -> None:
        """Cancels the tasks in progress and waits for their end."""
        await cancel_and_wait(*self._tasks.values())

    def _finished(self, key: Key, task: "asyncio.Task[Result]") -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
        if not task.cancelled():
            task.exception()  # retrieved, because there may be no caller left that does


@contextmanager
def stop_on_signals(
    stop: asyncio.Event,
    on_further_signal: Callable[[], object] | None = None,
    log: structlog.stdlib.BoundLogger | None = None,
) -> Iterator[None]:
    """Sets `stop` at the first SIGTERM or SIGINT, and calls `on_further_signal` at each further one.

    Args:
        on_further_signal: ends what is still in progress. Without it, a second signal has its default effect.
        log: receives a line for each signal.
    """
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def restore() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)

    def received(number: signal.Signals) -> None:
        if not stop.is_set():
            if log is not None:
                log.info("stopping: finishing what is under way", signal=number.name)
            stop.set()
            if on_further_signal is None:
                restore()
        elif on_further_signal is not None:
            if log is not None:
                log.warning("second signal: stopping at once", signal=number.name)
            on_further_signal()

    for number in numbers:
        loop.add_signal_handler(number, received, number)
    try:
        yield
    finally:
        restore()
