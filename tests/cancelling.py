"""Cancels an operation at each of its awaits in turn, to see what it leaves behind."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager

MOST_AWAITS = 200
"""More than any of these operations has."""
LONGEST_END_S = 60.0


class CancelledAt:
    """Runs an operation and cancels its task when it waits for the nth time."""

    def __init__(self, operation: Awaitable[None], waits: int) -> None:
        self._operation = operation
        self._left = waits
        self.has_cancelled = False

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
                self.has_cancelled = True
            error = None
            try:
                yield waited_for
            except BaseException as raised:
                error = raised


async def _nothing() -> None: ...


async def cancelled_everywhere(
    operation: Callable[[], Awaitable[None]], nothing_is_left: Callable[[], Awaitable[None]] = _nothing
) -> int:
    """Cancels the operation at each of its awaits in turn, which must end it each time. Returns their number."""

    async def run(operation: Awaitable[None]) -> None:
        await operation

    gc.disable()  # it would tidy up late what the operation leaves behind
    try:
        for waits in range(1, MOST_AWAITS):
            cancelling = CancelledAt(operation(), waits)
            task = asyncio.create_task(run(cancelling))
            ended, _ = await asyncio.wait([task], timeout=LONGEST_END_S)
            assert ended, f"it goes on after it was cancelled at its await {waits}"
            await nothing_is_left()
            if not cancelling.has_cancelled:
                task.result()
                return waits - 1
            assert task.cancelled(), f"the cancellation at its await {waits} was lost"
    finally:
        gc.enable()
        gc.collect()  # what is left behind is reported in this test, not in a later one
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
