"""Jobs that send events again, in the database: every console sees and stops them, and one of each kind runs at once."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest
from pydantic import JsonValue
from sqlalchemy import select, text, update

from dispatcher.config.secrets import Secret
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import AlreadyRunning, NotFound
from dispatcher.stores.sql import jobs as module
from dispatcher.stores.sql import schema
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.jobs import JobStore, StoredJob
from tests.stores_sql.test_odd_rows import VALUES

LUMA, OTHER = TenantKey("luma@AdobeOrg", "prod"), TenantKey("other@AdobeOrg", "prod")
MINE = frozenset({LUMA.org})


@pytest.fixture
def store(database: Database) -> JobStore:
    """The jobs as one console has them."""
    return JobStore(database)


@pytest.fixture
async def another(url: Secret) -> AsyncIterator[JobStore]:
    """The jobs as a second console has them, with connections of its own."""
    database = Database(url)
    yield JobStore(database)
    await database.close()


def job_of(job_id: str = "1", tenant: TenantKey = LUMA, kind: str = "dead", state: str = "running") -> StoredJob:
    return StoredJob(job_id, tenant, kind, "ada", state, {"total": 3})


async def grow_silent(database: Database, job_id: str, for_s: float) -> None:
    """Makes a job look as if its console had written last that long ago."""
    async with database.write() as connection:
        at = (await connection.execute(select(schema.jobs.c.alive_at).where(schema.jobs.c.id == job_id))).scalar_one()
        earlier = at - timedelta(seconds=for_s)
        await connection.execute(update(schema.jobs).where(schema.jobs.c.id == job_id).values(alive_at=earlier))


async def states(store: JobStore) -> dict[str, str]:
    return {job.id: job.state for job in await store.search(orgs=None)}


async def test_another_console_sees_a_job_its_progress_and_its_end(store: JobStore, another: JobStore) -> None:
    selection: dict[str, JsonValue] = {"since": 0.5, "event_ids": ["msg_1"]}
    made = await store.add(replace(job_of(), selection=selection))
    assert abs(made.started_at - time.time()) < 60
    assert await another.get("1", orgs=MINE) == made
    assert (made.finished_at, made.is_stopping, made.selection) == (None, False, selection)
    sent = replace(made, progress={"total": 3, "sent": 2, "resume": None})
    assert await store.write(["1"], [sent]) == {"1": False}
    assert await another.search(orgs=None) == [sent]
    assert await store.write([], [replace(sent, state="done", progress={"total": 3, "sent": 3})]) == {}
    ended = await another.get("1", orgs=None)
    assert (ended.state, ended.progress, ended.selection) == ("done", {"total": 3, "sent": 3}, selection)
    assert ended.finished_at is not None
    assert ended.finished_at >= made.started_at


async def test_jobs_of_other_organisations_do_not_exist(store: JobStore) -> None:
    await store.add(job_of())
    await store.add(job_of("2", OTHER))
    assert [job.id for job in await store.search(orgs=MINE)] == ["1"]
    assert [job.id for job in await store.search(orgs=None, tenant=OTHER)] == ["2"]
    assert await store.search(orgs=MINE, tenant=OTHER) == []
    assert await store.search(orgs=MINE, ids=["2", "\0", "\ud800"]) == []
    for job_id in ("2", "3", "\0", "\ud800"):
        with pytest.raises(NotFound):
            await store.get(job_id, orgs=MINE)
        with pytest.raises(NotFound):
            await store.request_stop(job_id, orgs=MINE)
    assert not (await store.get("2", orgs=None)).is_stopping


async def test_a_stop_reaches_the_console_that_runs_the_job(store: JobStore, another: JobStore) -> None:
    made = await store.add(job_of())
    assert (await another.request_stop("1", orgs=MINE)).is_stopping
    assert await store.write(["1"], [replace(made, progress={"sent": 1})]) == {"1": True}
    assert (await another.get("1", orgs=MINE)).is_stopping, "progress doesn't take the stop back"
    await store.write([], [replace(made, state="stopped")])
    ended = await another.request_stop("1", orgs=MINE)
    assert (ended.state, ended.is_stopping) == ("stopped", False)


async def test_of_simultaneous_starts_one_wins_and_the_others_name_it(store: JobStore, another: JobStore) -> None:
    for tries in range(5):
        jobs = [job_of(f"{tries}-{number}") for number in range(6)]
        starts = [(store, another)[number % 2].add(job) for number, job in enumerate(jobs)]
        results = await asyncio.gather(*starts, return_exceptions=True)
        (won,) = [result for result in results if isinstance(result, StoredJob)]
        lost = [result for result in results if isinstance(result, AlreadyRunning)]
        assert {error.job_id for error in lost} == {won.id}
        assert len(lost) == len(jobs) - 1, results
        await store.write([], [replace(won, state="done")])


async def test_other_tenants_other_kinds_and_failed_jobs_do_not_refuse_a_start(store: JobStore) -> None:
    await store.add(job_of("1"))
    await store.add(job_of("2", OTHER))
    await store.add(job_of("3", kind="delivered", state="waiting"))
    failed = await store.add(job_of("4", state="failed"))
    assert failed.finished_at == failed.started_at
    for kind in ("dead", "delivered"):
        with pytest.raises(AlreadyRunning, match=f"{kind} events of luma@AdobeOrg/prod are being sent again already"):
            await store.add(job_of("5", kind=kind))
    await store.discard("1")
    await store.add(job_of("5"))
    assert await states(store) == {"2": "running", "3": "waiting", "4": "failed", "5": "running"}


@pytest.mark.parametrize("silent_s", [60.0, -3600.0], ids=["silent", "written in the future"])
async def test_a_job_whose_console_has_gone_is_shown_as_interrupted_and_blocks_none(
    store: JobStore, another: JobStore, database: Database, silent_s: float
) -> None:
    """A time in the future is of a host whose clock was set back since: it may not block the tenant until then."""
    made = await store.add(job_of())
    await grow_silent(database, "1", 20.0)
    assert await states(another) == {"1": "running"}
    with pytest.raises(AlreadyRunning):
        await another.add(job_of("2"))
    assert await store.write(["1"], []) == {"1": False}, "it is alive again"
    await grow_silent(database, "1", silent_s)
    shown = await another.get("1", orgs=None)
    assert (shown.state, shown.is_stopping) == ("interrupted", False)
    assert shown.finished_at == pytest.approx(made.started_at - silent_s, abs=30), "its last sign of life"
    await another.add(job_of("2"))
    assert await states(another) == {"1": "interrupted", "2": "running"}

    # The first console was only slow: it notices that its job was taken for lost, and can still write how it ended.
    sent = replace(made, progress={"sent": 2})
    assert await store.write(["1"], [sent]) == {}
    assert await states(another) == {"1": "interrupted", "2": "running"}
    await store.write([], [replace(sent, state="failed")])
    assert await states(another) == {"1": "failed", "2": "running"}
    assert (await another.get("1", orgs=None)).progress == {"sent": 2}


@pytest.mark.parametrize("empty_url", ["postgresql"], indirect=True)  # a SQLite file has one host, and its clock
async def test_times_are_those_of_the_database(database: Database) -> None:
    """A console whose clock is wrong by an hour neither takes others' jobs for lost nor loses its own."""
    store, fast = JobStore(database), JobStore(database, lambda: time.time() + 3600)
    await store.add(job_of())
    assert await states(fast) == {"1": "running"}
    with pytest.raises(AlreadyRunning):
        await fast.add(job_of("2"))
    made = await fast.add(job_of("3", OTHER))
    assert made.started_at < time.time() + 600
    assert await states(store) == {"1": "running", "3": "running"}


async def test_old_jobs_are_deleted_by_age_and_beyond_a_number_per_tenant(
    store: JobStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        await store.add(job_of(f"luma-{number}", state="failed"))
    await store.add(job_of("luma-runs"))
    await store.add(job_of("old", OTHER, state="failed"))
    await store.add(job_of("lost long ago", OTHER))
    await store.add(job_of("young", OTHER, kind="delivered"))
    assert await store.delete_old() == 0
    for job_id in ("old", "lost long ago"):
        await grow_silent(database, job_id, module.KEPT.total_seconds() + 1)
    monkeypatch.setattr(module, "MOST_OF_TENANT", 3)
    assert await store.delete_old() == 4
    assert set(await states(store)) == {"luma-2", "luma-3", "luma-runs", "young"}
    assert await store.delete_old() == 0


async def test_a_list_is_bounded_and_leaves_out_finished_jobs_first(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.add(job_of("first"))
    for number in range(4):
        await store.add(job_of(str(number), state="failed"))
    monkeypatch.setattr(module, "MOST_LISTED", 3)
    assert [job.id for job in await store.search(orgs=None)] == ["3", "2", "first"]


@pytest.mark.parametrize("empty_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("column", [column.name for column in schema.jobs.columns])
async def test_an_odd_row_costs_itself_only(store: JobStore, database: Database, column: str) -> None:
    await store.add(job_of("good", OTHER))
    await store.add(job_of("odd"))
    for value in VALUES:
        async with database.write() as connection:
            await connection.execute(text(f"UPDATE jobs SET {column} = {value} WHERE rowid = 2".replace(":", r"\:")))
        listed = await store.search(orgs=None)
        assert "good" in [job.id for job in listed]
        assert all(isinstance(job.progress, dict) for job in listed)
        await store.write(["good", "odd"], [job_of("odd")])
        await store.delete_old()
        assert "good" in await states(store)


async def test_progress_may_hold_any_text(store: JobStore) -> None:
    progress: dict[str, JsonValue] = {"problem": "a\0b", "resume": {"until": 1.5}}
    await store.add(replace(job_of(), progress=progress))
    assert (await store.get("1", orgs=None)).progress == progress
