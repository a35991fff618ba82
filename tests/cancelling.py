"""Cancels an operation at each of its awaits in turn, to see what it leaves behind."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager

MOST_AWAITS = 200
"""More than any of these operations has."""


class CancelledAt:
    """Runs an operation and cancels its task when it waits for the nth time."""

    def __init__(self, operation: Awaitable[None], waits: int) -> None:
        self._operation = operation
        self._left = waits

    def __await__(self) -> Generator[object, None, None]:
        steps, error = self._operation.__await__(), None
        while True:
            try:
                waited_for = next(steps) if error is None else steps.throw(error)
            except StopIteration:
                return
            self._left -= 1
            task = asyncio.current_task()
            if self._left == 0 and task is not None:
                task.cancel()
            error = None
            try:
                yield waited_for
            except BaseException as raised:
                error = raised


async def cancelled_everywhere(
    operation: Callable[[], Awaitable[None]], nothing_is_left: Callable[[], Awaitable[None]]
) -> int:
    """Cancels the operation at each of its awaits in turn. Returns their number."""

    async def cancelled(waits: int) -> None:
        await CancelledAt(operation(), waits)

    gc.disable()  # it would tidy up late what the operation leaves behind
    try:
        for waits in range(1, MOST_AWAITS):
            task = asyncio.create_task(cancelled(waits))
            await asyncio.wait([task])
            await nothing_is_left()
            if not task.cancelled():
                task.result()
                return waits - 1
    finally:
        gc.enable()
    raise AssertionError("it never ended uncancelled")


@asynccontextmanager
async def eventually() -> AsyncIterator[Callable[[bool], Awaitable[bool]]]:
    """Polls: yields a function that waits a moment unless its argument is true."""

    async def is_true(value: bool) -> bool:
        if not value:
            await asyncio.sleep(0.01)
        return value

    async with asyncio.timeout(60):
        yield is_true
