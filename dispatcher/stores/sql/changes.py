"""Notifies dispatchers of changed webhooks: PostgreSQL sends notices, and every database is polled."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final

from dispatcher.errors import StoreUnavailable
from dispatcher.stores.sql.database import CONNECT_WITHIN_S, Database
from dispatcher.stores.sql.schema import NOTIFY_CHANNEL

_CLOSE_WITHIN_S: Final = 1.0


class NoNotices(StoreUnavailable):
    """The database doesn't notify of changes, or no longer: it is a hot standby, or has no connection left for it."""


class ChangeSignal:
    """Wakes a waiting task when the database may have changed."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._has_ended = False

    def set(self, *_: object) -> None:
        """Signals that the database may have changed."""
        self._event.set()

    def end(self, *_: object) -> None:
        """Signals that the connection has ended, so that no further signal comes."""
        self._has_ended = True
        self._event.set()

    async def wait(self, at_most_s: float) -> None:
        """Returns at the next signal, or after `at_most_s` seconds.

        Raises:
            NoNotices: the connection has ended.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self._event.wait()
        self._event.clear()
        if self._has_ended:
            raise NoNotices("the database has ended the connection for change notices")


@contextmanager
def _as_no_notices() -> Iterator[None]:
    try:
        yield
    except StoreUnavailable as error:
        raise NoNotices(str(error)) from error


@asynccontextmanager
async def listening(database: Database) -> AsyncIterator[ChangeSignal]:
    """Yields a signal that is set at each change on PostgreSQL; on SQLite it never is.

    Raises:
        NoNotices: the database refuses it, or doesn't answer.
    """
    signal = ChangeSignal()
    if not database.is_postgresql:
        yield signal
        return
    with _as_no_notices():
        connection = await database.connect_alone()
    try:
        connection.add_termination_listener(signal.end)
        with _as_no_notices(), database.translated(CONNECT_WITHIN_S):
            async with asyncio.timeout(CONNECT_WITHIN_S):
                await connection.add_listener(NOTIFY_CHANNEL, signal.set)
        yield signal
    finally:
        try:
            await connection.close(timeout=_CLOSE_WITHIN_S)
        except Exception:  # noqa: BLE001  (the connection is not needed any more, so that errors don't matter)
            connection.terminate()
