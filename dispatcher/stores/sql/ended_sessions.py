"""Sessions that ended before their time and sign-in links that were used, for all consoles.

A cookie is valid by its signature alone, at every console that has the key. What ended early is a row here until it
would have expired anyway.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import delete, select

from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.insertion import add_unless_there
from dispatcher.stores.sql.schema import ended_sessions

KEPT_LONGER_S: Final = 3600.0
"""Seconds for which a row is kept after its expiry: another console's clock may be slow."""


class EndedSessions:
    """Adds and looks up ids. Every method raises `StoreUnavailable` if the database does not answer in time."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    async def add(self, ended_id: str, expires: float) -> bool:
        """Adds an id. Returns True the first time only, over all consoles.

        Args:
            expires: Unix seconds after which the id is invalid anyway.
        """
        row = {"id": ended_id, "expires_at": datetime.fromtimestamp(expires, UTC)}
        past = datetime.fromtimestamp(self._clock() - KEPT_LONGER_S, UTC)
        async with self._database.write() as connection:
            await connection.execute(delete(ended_sessions).where(ended_sessions.c.expires_at < past))
            return await add_unless_there(connection, ended_sessions, row)

    async def has(self, ended_id: str) -> bool:
        """Returns True if the id was added."""
        statement = select(ended_sessions.c.id).where(ended_sessions.c.id == ended_id)
        async with self._database.read() as connection:
            return (await connection.execute(statement)).scalar_one_or_none() is not None
