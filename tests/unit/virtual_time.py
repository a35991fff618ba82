"""An event loop whose clock jumps to the next timer when nothing is ready: an hour of waiting takes a millisecond.

Not for tests with sockets or threads. Each test gets a loop of its own, beside the session's. A loop in which nothing can ever happen again is an error, and
so is a task that is left over.
"""

import asyncio
import functools
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

Answer = TypeVar("Answer")

_TICK_S = 1e-6
"""Each turn of the loop takes this long, so that a timer set for now is not due for ever."""
_STUCK_S = 20.0
"""Real seconds in which another thread may still have something to say."""


class _JumpingSelector(selectors.DefaultSelector):
    jump: Callable[[float], None]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.jump(_TICK_S)
        if timeout is None:
            if not (ready := super().select(_STUCK_S)):
                raise RuntimeError("nothing is ready and no timer is set: the test would wait for ever")
            return ready
        if timeout <= 0:
            return []
        self.jump(timeout)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Begins at 1,000 seconds, so that a moment is never mistaken for "never"."""

    def __init__(self) -> None:
        self._virtual_now = 1000.0
        selector = _JumpingSelector()
        selector.jump = self._jump
        super().__init__(selector)

    def _jump(self, seconds: float) -> None:
        self._virtual_now += seconds

    def pass_time(self, seconds: float) -> None:
        """Makes the present turn of the event loop take this long, as on a busy core."""
        self._virtual_now += seconds

    def time(self) -> float:
        return self._virtual_now


def run(work: Coroutine[object, object, Answer]) -> Answer:
    """Run on a loop of its own, in virtual time."""
    loop = VirtualTimeLoop()
    try:
        answer = loop.run_until_complete(work)
        left = asyncio.all_tasks(loop)
        assert not left, f"tasks left over: {left}"
        return answer
    finally:
        _end(loop)


def virtual_time(test: Callable[..., Coroutine[object, object, None]]) -> Callable[..., None]:
    """Decorate a test coroutine: it runs in virtual time."""

    @functools.wraps(test)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        run(test(*args, **kwargs))

    return wrapped


async def settle(turns: int = 20) -> None:
    """Let everything that is ready happen; no time passes, or next to none."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def seconds_taken(work: Awaitable[object]) -> float:
    """Virtual seconds that something takes."""
    began = asyncio.get_running_loop().time()
    await work
    return asyncio.get_running_loop().time() - began


def _end(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
