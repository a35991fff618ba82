"""Provides waits with a deadline, and the end of tasks with an await, for several packages."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

Answer = TypeVar("Answer")


async def end(*tasks: "asyncio.Task[object]") -> None:
    """Cancels the tasks that still run and waits until each has ended. Their exceptions stay with them."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


async def set_within(event: asyncio.Event, most_s: float) -> bool:
    """Waits for the event, at most `most_s` seconds. Returns True as soon as it is set, else False."""
    try:
        async with asyncio.timeout(most_s):
            return await event.wait()
    except TimeoutError:
        return False


async def unless(stop: asyncio.Event, work: Coroutine[object, object, Answer]) -> Answer | None:
    """Runs `work` until it returns or `stop` is set. Returns its result; None after `stop`, which cancels it.

    Raises what the work raises.
    """
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        await end(working, stopping)
