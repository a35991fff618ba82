"""Jobs that send events again, as all consoles see them: a row each, which the console that runs the job keeps current.

A row without an end holds its tenant's place for its kind (a unique index), and is alive while its console writes. One
that was silent for `LOST_S` is lost: it is read as interrupted, and the next start takes its place. A console that was
only slow notices that its row has ended, and stops. Consoles may run on several hosts, so that times are those of the
database; a SQLite file has one host and its clock. Progress and selection are JSON of the caller's.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic import JsonValue
from sqlalchemy import ColumnElement, RowMapping, and_, case, delete, func, or_, select, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import AlreadyRunning, Busy, NotFound
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.insertion import add_unless_there
from dispatcher.stores.sql.odd_values import text_of
from dispatcher.stores.sql.records import Orgs
from dispatcher.stores.sql.rows import is_storable
from dispatcher.stores.sql.schema import jobs

LOST_S: Final = 30.0
"""Seconds after its last write from which on a job's console counts as gone."""
WRITE_WITHIN_S: Final = 5.0
"""Deadline of a write: several fit into `LOST_S`."""
KEPT: Final = timedelta(days=30)
MOST_OF_TENANT: Final = 100
"""Jobs of a tenant that are kept, unfinished ones included."""
MOST_LISTED: Final = 200
INTERRUPTED: Final = "interrupted"
"""State of a job whose console has gone."""
ENDED: Final = frozenset({"done", "stopped", "failed", INTERRUPTED})


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A job. Times are Unix seconds of the database's clock."""

    id: str
    tenant: TenantKey
    kind: str
    """Which events it sends again: `dead` or `delivered`. A tenant has one unfinished job of each kind at most."""
    by: str
    state: str
    """`waiting`, `running`, or one of `ENDED`."""
    progress: Mapping[str, JsonValue]
    selection: Mapping[str, JsonValue] | None = None
    started_at: float = 0.0
    """Set by the store."""
    finished_at: float | None = None
    """Set by the store. The last sign of life if the job was interrupted."""
    is_stopping: bool = False
    """True if a person has stopped the job and it hasn't ended yet."""


class JobStore:
    """Adds, changes and reads jobs. Every method raises `StoreUnavailable` if the database does not answer in time."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        """Creates the store. `clock`: the host's, in Unix seconds; used with SQLite only."""
        self._database = database
        self._clock = clock

    async def add(self, job: StoredJob) -> StoredJob:
        """Adds a job, and ends a lost one in its place. Returns it with the time of its start.

        Raises:
            AlreadyRunning: a job of this tenant and kind is unfinished, on any console.
        """
        own = and_(_is_of(job.tenant), jobs.c.kind == job.kind)
        async with self._database.write(WRITE_WITHIN_S) as connection:
            now = await self._now(connection)
            ended = update(jobs).where(own, _is_lost(now))
            await connection.execute(ended.values(state=INTERRUPTED, finished_at=jobs.c.alive_at))
            values = {
                "id": job.id,
                "org": job.tenant.org,
                "sandbox": job.tenant.sandbox,
                "kind": job.kind,
                "started_by": job.by,
                "started_at": now,
                "state": job.state,
                "stopping": False,
                "alive_at": now,
                "finished_at": now if job.state in ENDED else None,
                "progress": dict(job.progress),
                "selection": None if job.selection is None else dict(job.selection),
            }
            if not await add_unless_there(connection, jobs, values):
                unfinished = await connection.execute(select(jobs.c.id).where(own, jobs.c.finished_at.is_(None)))
                raise _refusal(job, unfinished.scalar_one_or_none())
        return replace(job, started_at=now.timestamp(), finished_at=now.timestamp() if job.state in ENDED else None)

    async def write(self, alive: Collection[str], changed: Sequence[StoredJob]) -> dict[str, bool]:
        """Notes that jobs go on, and the state and progress of those that have changed or ended.

        Args:
            alive: ids of the caller's unfinished jobs.

        Returns:
            Whether a person has stopped the job, for each that is alive. A job that is missing was taken for lost, or
            its row is gone: the caller has to stop it, because another console may send the same events.
        """
        is_unfinished = jobs.c.finished_at.is_(None)
        async with self._database.write(WRITE_WITHIN_S) as connection:
            now = await self._now(connection)
            beat = update(jobs).where(jobs.c.id.in_(sorted(alive)), is_unfinished).values(alive_at=now)
            rows = await connection.execute(beat.returning(jobs.c.id, jobs.c.stopping))
            stopping = {text_of(row.id): bool(row.stopping) for row in rows}
            for job in changed:
                values: dict[str, object] = {"state": job.state, "progress": dict(job.progress)}
                which = jobs.c.id == job.id
                if job.state in ENDED:  # also if it was taken for lost: its own console knows better
                    values |= {"alive_at": now, "finished_at": now}
                else:
                    which = and_(which, is_unfinished)
                await connection.execute(update(jobs).where(which).values(values))
        return stopping

    async def request_stop(self, job_id: str, *, orgs: Orgs) -> StoredJob:
        """Lets the console that runs the job stop it, with its next write. Returns the job. Raises NotFound."""
        if is_storable(job_id):
            async with self._database.write(WRITE_WITHIN_S) as connection:
                stopped = update(jobs).where(jobs.c.id == job_id, _is_seen(orgs), jobs.c.finished_at.is_(None))
                await connection.execute(stopped.values(stopping=True))
        return await self.get(job_id, orgs=orgs)

    async def discard(self, job_id: str) -> None:
        """Deletes a job that did not begin."""
        async with self._database.write(WRITE_WITHIN_S) as connection:
            await connection.execute(delete(jobs).where(jobs.c.id == job_id))

    async def get(self, job_id: str, *, orgs: Orgs) -> StoredJob:
        """Returns a job of these organisations. Raises NotFound."""
        for found in await self.search(orgs=orgs, ids=[job_id]):
            return found
        raise NotFound("there is no such job, or it is long past")

    async def search(
        self, *, orgs: Orgs, tenant: TenantKey | None = None, ids: Collection[str] | None = None
    ) -> list[StoredJob]:
        """Returns jobs of these organisations, the newest first: `MOST_LISTED` at most, unfinished ones at any rate."""
        is_over = case((jobs.c.finished_at.is_(None), 0), else_=1)
        async with self._database.read() as connection:
            is_lost = _is_lost(await self._now(connection)).label("is_lost")
            statement = select(jobs, is_lost).where(_is_seen(orgs), true() if tenant is None else _is_of(tenant))
            if ids is not None:
                statement = statement.where(jobs.c.id.in_([one for one in ids if is_storable(one)]))
            statement = statement.order_by(is_over, jobs.c.started_at.desc(), jobs.c.id).limit(MOST_LISTED)
            found = (await connection.execute(statement)).mappings().all()
        return sorted(map(_job, found), key=lambda job: -job.started_at)

    async def delete_old(self) -> int:
        """Deletes jobs that ended before `KEPT`, and of each tenant those beyond `MOST_OF_TENANT`. Returns how many."""
        place = func.row_number().over(
            partition_by=(jobs.c.org, jobs.c.sandbox),
            order_by=(jobs.c.finished_at.is_not(None), jobs.c.started_at.desc()),
        )
        numbered = select(jobs.c.id, place.label("place")).subquery()
        surplus = select(numbered.c.id).where(numbered.c.place > MOST_OF_TENANT)
        async with self._database.write() as connection:
            now = await self._now(connection)
            too_many = and_(jobs.c.finished_at.is_not(None), jobs.c.id.in_(surplus))
            return (await connection.execute(delete(jobs).where(or_(jobs.c.alive_at < now - KEPT, too_many)))).rowcount

    async def _now(self, connection: AsyncConnection) -> datetime:
        if self._database.is_postgresql:
            now: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
            return now
        return datetime.fromtimestamp(self._clock(), UTC)


def _refusal(job: StoredJob, unfinished: str | None) -> AlreadyRunning | Busy:
    if unfinished is None:  # it ended after the insertion had met it
        return Busy("another job of this organisation and sandbox has ended this moment: try again")
    return AlreadyRunning(
        f"{job.kind} events of {job.tenant} are being sent again already: wait until that job is done, or stop it",
        unfinished,
    )


def _is_of(tenant: TenantKey) -> ColumnElement[bool]:
    return and_(jobs.c.org == tenant.org, jobs.c.sandbox == tenant.sandbox)


def _is_seen(orgs: Orgs) -> ColumnElement[bool]:
    return true() if orgs is None else jobs.c.org.in_(sorted(orgs))


def _is_lost(now: datetime) -> ColumnElement[bool]:
    """Selects unfinished jobs that are not written any more. A time in the future is of a clock that was set back."""
    limit = timedelta(seconds=LOST_S)
    is_silent = or_(jobs.c.alive_at < now - limit, jobs.c.alive_at > now + limit)
    return and_(jobs.c.finished_at.is_(None), is_silent)


def _job(row: RowMapping) -> StoredJob:
    """Returns a row as a value; a lost job is interrupted."""
    state, finished_at = text_of(row["state"]), row["finished_at"]
    if row["is_lost"]:
        state, finished_at = INTERRUPTED, row["alive_at"]
    selection: Any = row["selection"]
    return StoredJob(
        id=text_of(row["id"]),
        tenant=TenantKey(text_of(row["org"]), text_of(row["sandbox"])),
        kind=text_of(row["kind"]),
        by=text_of(row["started_by"]),
        state=state,
        progress=row["progress"],
        selection=selection,
        started_at=row["started_at"].timestamp(),
        finished_at=None if finished_at is None else finished_at.timestamp(),
        is_stopping=bool(row["stopping"]) and finished_at is None,
    )
