"""Adds rows of which another console may add the same at the same moment."""

from collections.abc import Mapping

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection


async def add_unless_there(connection: AsyncConnection, table: Table, row: Mapping[str, object]) -> bool:
    """Adds a row to a table with the column `id`. Returns False if a unique index has a row in its place."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(table).values(row).on_conflict_do_nothing().returning(table.c.id)
    return (await connection.execute(statement)).scalar_one_or_none() is not None
