"""How a dispatcher learns that a webhook was changed: PostgreSQL tells, and every database is asked now and then."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from dispatcher.errors import StoreUnavailable
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.schema import NOTIFY_CHANNEL

_CLOSE_WITHIN_S: Final = 1.0


class ChangeSignal:
    """Rings when there is something new."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()
        self._is_cut = False

    def ring(self, *_: object) -> None:
        """There may be something new."""
        self._rung.set()

    def cut(self, *_: object) -> None:
        """It will not ring any more."""
        self._is_cut = True
        self._rung.set()

    async def wait(self, at_most_s: float) -> None:
        """Return when it rings, or after `at_most_s` seconds.

        Raises:
            StoreUnavailable: it will not ring any more.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self._rung.wait()
        self._rung.clear()
        if self._is_cut:
            raise StoreUnavailable("the database has ended the connection that tells of changes")


@asynccontextmanager
async def listening(database: Database) -> AsyncIterator[ChangeSignal]:
    """A bell that rings at each change on PostgreSQL; on SQLite it never does.

    Raises:
        StoreUnavailable: there is no connection to listen on.
    """
    bell = ChangeSignal()
    if not database.is_postgresql:
        yield bell
        return
    connection = await database.connect_alone()
    try:
        connection.add_termination_listener(bell.cut)
        with database.translated():
            await connection.add_listener(NOTIFY_CHANNEL, bell.ring)
        yield bell
    finally:
        try:
            await connection.close(timeout=_CLOSE_WITHIN_S)
        except Exception:  # noqa: BLE001  (it is of no more use: how it ends doesn't matter)
            connection.terminate()
