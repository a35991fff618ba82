"""Runs blocking reads in a thread with a deadline, so that a volume that hangs stops neither the loop nor the exit."""

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, Generic, TypeVar

READ_WITHIN_S: Final = 30.0
"""Deadline of a read. A directory of 10,000 webhooks takes a second; a network volume that recovers takes longer."""

_NEVER: Final = 1 << 30

T = TypeVar("T")


class BackgroundRead(Generic[T]):
    """Calls a blocking function, one call at a time. Used on one event loop.

    The thread is a daemon: a call that never returns can't be stopped, but it doesn't keep the process alive.
    """

    def __init__(self, within_s: float = READ_WITHIN_S) -> None:
        self._within_s = within_s
        self._running: asyncio.Future[T] | None = None

    async def __call__(self, read: Callable[[], T]) -> T:
        """Calls the function and returns its result.

        If an earlier call is still running, its result is awaited instead.

        Raises:
            TimeoutError: the deadline has passed. The function continues, and the next call gets its result.
            Exception: any error of the function propagates.
        """
        with _YOUNG_OBJECTS_ONLY.collected():
            if self._running is None:
                self._running = self._started(read)
            running = self._running
            done, _ = await asyncio.wait([running], timeout=self._within_s)
        if not done:
            raise TimeoutError(f"reading takes longer than {self._within_s:.0f} s")
        self._running = None
        return running.result()

    @staticmethod
    def _started(read: Callable[[], T]) -> "asyncio.Future[T]":
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(settled: Callable[[], None]) -> None:
            with suppress(RuntimeError):  # the loop is closed, so that no task waits
                loop.call_soon_threadsafe(settled)

        def run() -> None:
            try:
                result = read()
            except BaseException as error:  # noqa: BLE001  (handed on to the caller)
                reason = error
                settle(lambda: future.set_exception(reason))
            else:
                settle(lambda: future.set_result(result))

        threading.Thread(target=run, name="webhook files", daemon=True).start()
        return future


class _YoungObjectsOnly:
    """Restricts the garbage collector to its youngest generation.

    A large document is some hundred thousand objects. A collection of an older generation visits all of them, in one
    step that no other thread can interrupt, and would block the loop for as long.
    """

    def __init__(self) -> None:
        self._users = 0
        self._thresholds = gc.get_threshold()

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Applies the restriction until the block is left, or the last one of several that overlap."""
        if self._users == 0:
            self._thresholds = gc.get_threshold()
            gc.set_threshold(self._thresholds[0], _NEVER, _NEVER)
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if self._users == 0:
                gc.set_threshold(*self._thresholds)


_YOUNG_OBJECTS_ONLY: Final = _YoungObjectsOnly()
