"""Small promises about asyncio that several parts need: ended tasks are awaited, waits can be given up."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

Answer = TypeVar("Answer")


async def end(*tasks: "asyncio.Task[object]") -> None:
    """Cancel the tasks that still run and wait until each has ended; their exceptions stay with them."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


async def set_within(event: asyncio.Event, most_s: float) -> bool:
    """Whether the event was set within so many seconds; returns as soon as it is."""
    try:
        async with asyncio.timeout(most_s):
            return await event.wait()
    except TimeoutError:
        return False


async def unless(stop: asyncio.Event, work: Coroutine[object, object, Answer]) -> Answer | None:
    """The work's answer, or None where `stop` was set before it was there; the work is then cancelled.

    Raises what the work raises.
    """
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        await end(working, stopping)
