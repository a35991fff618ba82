"""Deletes many rows in transactions that each take little time, so that one that fails undoes little."""

from collections.abc import Mapping
from typing import Final

from sqlalchemy import text

from dispatcher.stores.sql.database import Database

SLICE_WITHIN_S: Final = 30.0


async def delete_in_slices(
    database: Database, table: str, column: str, where: str, parameters: Mapping[str, object], most: int
) -> int:
    """Deletes the matching rows in order of a column, about `most` at once. Returns their number.

    Args:
        column: together with the condition, it should be indexed.

    Raises:
        StoreUnavailable: the database did not answer in time; the slices before stay deleted.
    """
    select = f'SELECT "{column}" FROM {table} WHERE {where} ORDER BY "{column}" LIMIT 1 OFFSET :most'  # noqa: S608  (names of our own)
    deleted = 0
    while True:
        async with database.write(SLICE_WITHIN_S) as connection:
            last = (await connection.execute(text(select), dict(parameters) | {"most": most - 1})).scalar()
            delete = f"DELETE FROM {table} WHERE {where}"  # noqa: S608  (names of our own)
            bound = {} if last is None else {"last": last}
            if bound:
                delete += f' AND "{column}" <= :last'
            deleted += (await connection.execute(text(delete), dict(parameters) | bound)).rowcount
        if last is None:
            return deleted
