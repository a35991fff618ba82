"""Reads and moves the positions in the history store."""

from collections.abc import Mapping
from typing import Final

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.contract.history_positions import Move, StoredPositions, TopicAndPartition
from dispatcher.errors import StoreReplaced
from dispatcher.stores.sql.history_schema import positions

_EVERYWHERE: Final = ("", -1)
"""Row of a store that a version without positions filled, see `StoredPositions.trusts_commits`."""
_SET: Final = text(
    'INSERT INTO history_positions (topic, "partition", next) VALUES (:topic, :partition, :next) '
    'ON CONFLICT (topic, "partition") DO UPDATE SET next = excluded.next'
)


async def read_positions(connection: AsyncConnection) -> StoredPositions:
    """Returns the positions of every partition that was ever stored."""
    found = {(row.topic, row.partition): row.next for row in await connection.execute(select(positions))}
    trusts_commits = found.pop(_EVERYWHERE, None) is not None
    return StoredPositions(found, trusts_commits)


async def move_positions(connection: AsyncConnection, moves: Mapping[TopicAndPartition, Move]) -> None:
    """Moves the positions in the transaction that stores the records between.

    Raises:
        StoreReplaced: the reader has other positions, so that records may be missing.
    """
    if not moves:
        return
    known = (await read_positions(connection)).next
    for (topic, partition), move in moves.items():
        found = known.get((topic, partition))
        if found != move.before:
            raise StoreReplaced(f"the history store has {topic}/{partition} up to {found}, not {move.before}")
    rows = [{"topic": place[0], "partition": place[1], "next": moves[place].after} for place in sorted(moves)]
    await connection.execute(_SET, rows)


async def trust_commits(connection: AsyncConnection) -> None:
    """Notes that a version without positions filled the store."""
    topic, partition = _EVERYWHERE
    await connection.execute(_SET, {"topic": topic, "partition": partition, "next": 0})
