"""Jobs of several consoles on one database: each lists and stops those of all, and none outlasts its process unseen."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import pytest
from sqlalchemy import text, update

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.config.secrets import Secret
from dispatcher.console.resend_model import RedriveModel
from dispatcher.console.sources import redrive_jobs as module
from dispatcher.console.sources.redrive_jobs import RedriveJobs, RunningJob
from dispatcher.errors import AlreadyRunning, BrokerUnavailable, Busy, NotFound, StoreUnavailable
from dispatcher.stores.sql import jobs as store_module
from dispatcher.stores.sql import schema
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.jobs import JobStore
from dispatcher.telemetry import metrics
from tests.console.sources.conftest import running, until
from tests.console.sources.dead_letter_builders import LUMA, OTHER
from tests.console.sources.one_console import QUERY, RESUME
from tests.stores_sql.conftest import database, empty_url, url

__all__ = ["database", "empty_url", "url"]

KAFKA = KafkaSettings(bootstrap_servers="127.0.0.1:1", topic="events", group_id="dispatcher")
MINE = frozenset({LUMA.org})


@pytest.fixture(autouse=True)
def _writes_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRITE_EVERY_S", 0.01)


@dataclass
class Sending:
    """Replaces the work of a job: it has sent as many events as the test says, until the job is stopped."""

    sent: int = 0
    is_done: bool = False
    begins: int = 0

    async def __call__(self, job: RunningJob) -> None:
        self.begins += 1
        job.begun.set_result(None)
        while not job.stop.is_set() and not self.is_done:
            job.report(sent=self.sent)
            await asyncio.sleep(0.005)


@asynccontextmanager
async def console(url: Secret) -> AsyncIterator[RedriveJobs]:
    """A console's jobs, with connections of their own."""
    database = Database(url)
    jobs = RedriveJobs(KAFKA, JobStore(database))
    try:
        async with running(jobs.run()):
            await asyncio.sleep(0)
            yield jobs
    finally:
        await database.close()


@pytest.fixture
async def one(url: Secret) -> AsyncIterator[RedriveJobs]:
    async with console(url) as jobs:
        yield jobs


@pytest.fixture
async def another(url: Secret) -> AsyncIterator[RedriveJobs]:
    async with console(url) as jobs:
        yield jobs


async def becomes(jobs: RedriveJobs, job_id: str, state: str, sent: int = 0) -> RedriveModel:
    """Waits until a console shows a job in a state, with as many events."""
    found: list[RedriveModel] = []

    async def is_shown() -> bool:
        found.append(await jobs.get(job_id, orgs=None))
        return (found[-1].state, found[-1].sent) == (state, sent)

    await until(is_shown, f"{state} with {sent} events")
    return found[-1]


async def test_each_console_lists_follows_and_stops_the_jobs_of_the_other(
    one: RedriveJobs, another: RedriveJobs
) -> None:
    sending = Sending()
    job = await one.start(LUMA, "ada", 9, sending, "delivered", QUERY)
    seen = await another.get(job.id, orgs=MINE)
    assert (seen.by, seen.total, seen.kind, seen.query) == ("ada", 9, "delivered", QUERY)
    sending.sent = 3
    await becomes(another, job.id, "running", 3)
    assert [shown.id for shown in await another.search(orgs=MINE, tenant=LUMA)] == [job.id]
    assert await another.search(orgs=frozenset({OTHER.org})) == []
    for orgs in (frozenset({OTHER.org}), frozenset[str]()):
        with pytest.raises(NotFound):
            await another.get(job.id, orgs=orgs)
        with pytest.raises(NotFound):
            await another.stop(job.id, orgs=orgs)
    assert not (await one.get(job.id, orgs=MINE)).stopping

    assert (await another.stop(job.id, orgs=MINE)).stopping
    ended = await becomes(one, job.id, "stopped", 3)
    assert (ended.stopping, ended.problem) == (False, "")
    assert ended.finished_at is not None
    assert await another.get(job.id, orgs=MINE) == ended
    assert await another.stop(job.id, orgs=MINE) == ended


async def test_of_simultaneous_orders_at_two_consoles_one_is_carried_out(
    one: RedriveJobs, another: RedriveJobs
) -> None:
    sending = Sending()
    orders = [jobs.start(LUMA, "ada", 9, sending) for jobs in (one, another) * 4]
    results = await asyncio.gather(*orders, return_exceptions=True)
    (won,) = [result for result in results if isinstance(result, RedriveModel)]
    assert [result.job_id for result in results if isinstance(result, AlreadyRunning)] == [won.id] * 7
    assert (sending.begins, [job.id for job in await one.search(orgs=None)]) == (1, [won.id])
    sending.is_done = True
    await becomes(another, won.id, "done")
    sending.is_done = False
    await another.start(LUMA, "eve", 9, sending)
    assert sending.begins == 2


async def test_a_job_of_a_killed_console_is_interrupted_and_can_be_ordered_again(
    url: Secret, one: RedriveJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.console.sources.one_console", url.reveal_text(), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        job_id = (await process.stdout.readline()).decode().strip()
        await becomes(one, job_id, "running", 7)
        with pytest.raises(AlreadyRunning) as refused:
            await one.start(LUMA, "eve", 9, Sending(), "delivered")
        assert refused.value.job_id == job_id
    finally:
        process.kill()
        await process.wait()
    assert (await one.get(job_id, orgs=None)).state == "running", "for half a minute"
    monkeypatch.setattr(store_module, "LOST_S", 0.5)
    lost = await becomes(one, job_id, "failed", 7)
    assert lost.problem.startswith("interrupted: the console that ran it was restarted")
    assert (lost.query, lost.resume, lost.is_over) == (QUERY, RESUME, True)
    assert lost.finished_at is not None
    assert await one.stop(job_id, orgs=None) == lost
    again = await one.start(LUMA, "eve", 9, Sending(), "delivered")
    monkeypatch.setattr(store_module, "LOST_S", 3600.0)
    assert (await one.get(job_id, orgs=None)).problem == lost.problem
    assert [job.id for job in await one.search(orgs=None)] == [again.id, job_id]


async def test_a_console_that_stops_records_the_end_and_the_entry_outlasts_it(url: Secret, one: RedriveJobs) -> None:
    sending = Sending(sent=4)
    async with console(url) as stopping:
        job = await stopping.start(LUMA, "ada", 9, sending)
        await becomes(one, job.id, "running", 4)
        sending.sent = 5
    ended = await one.get(job.id, orgs=None)
    assert (ended.state, ended.finished_at is not None) == ("failed", True)
    assert ended.problem == "the console was stopped: send them again, none goes twice"
    async with console(url) as restarted:
        assert await restarted.search(orgs=MINE) == [ended]
        await restarted.start(LUMA, "ada", 9, sending)


async def silence(database: Database, job_id: str) -> None:
    """Makes a job look as if its console had not written for an hour."""
    async with database.write() as connection:
        earlier = {"alive_at": (await JobStore(database)._now(connection)) - timedelta(hours=1)}
        await connection.execute(update(schema.jobs).where(schema.jobs.c.id == job_id).values(earlier))


async def test_a_console_whose_job_was_taken_for_lost_stops_it(
    url: Secret, database: Database, another: RedriveJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was suspended, or could not reach the database: the job that another console has started goes on alone."""
    monkeypatch.setattr(module, "WRITE_EVERY_S", 3600.0)
    slow, sending = Sending(sent=2), Sending()
    async with console(url) as suspended:
        first = await suspended.start(LUMA, "ada", 9, slow)
        await silence(database, first.id)
        monkeypatch.setattr(module, "WRITE_EVERY_S", 0.01)
        async with console(url) as quick:
            second = await quick.start(LUMA, "eve", 9, sending)
            assert (await quick.get(first.id, orgs=None)).problem.startswith("interrupted: ")
            await suspended._write()
            await until(lambda: suspended._running[first.id].job.is_over, "the end of the first job")
            await suspended._write()
            ended = await another.get(first.id, orgs=None)
            assert (ended.state, ended.sent, ended.problem[:13]) == ("failed", 2, "interrupted: ")
            sending.sent = 1
            await becomes(another, second.id, "running", 1)


@asynccontextmanager
async def away(database: Database) -> AsyncIterator[None]:
    """A database that refuses every look at the jobs."""
    async with database.write() as connection:
        await connection.execute(text("ALTER TABLE jobs RENAME TO away"))
    yield
    async with database.write() as connection:
        await connection.execute(text("ALTER TABLE away RENAME TO jobs"))


def failures() -> float:
    return metrics.STORE_FAILURES._value.get()


async def test_a_job_goes_on_while_the_database_is_away_for_a_moment(
    one: RedriveJobs, another: RedriveJobs, database: Database
) -> None:
    sending = Sending(sent=1)
    job = await one.start(LUMA, "ada", 9, sending)
    await becomes(another, job.id, "running", 1)
    before = failures()
    async with away(database):
        await until(lambda: failures() > before, "a failed write")
        sending.sent = 6
        with pytest.raises(StoreUnavailable):
            await another.get(job.id, orgs=None)
    await becomes(another, job.id, "running", 6)
    one._running[job.id].written_at = asyncio.get_running_loop().time() - 2 * module.UNWRITTEN_S
    await one._write()  # the first one that succeeds, at the last moment
    assert not one._running[job.id].stop.is_set()
    sending.is_done = True
    await becomes(another, job.id, "done", 6)


async def test_a_job_ends_before_other_consoles_take_it_for_lost_and_says_why(
    one: RedriveJobs, another: RedriveJobs, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sending = Sending(sent=3)
    job = await one.start(LUMA, "ada", 9, sending)
    waits = store_module.WRITE_WITHIN_S + store_module.WRITE_WITHIN_S / 2 + module.WRITE_EVERY_S
    assert module.UNWRITTEN_S + waits + 10 < store_module.LOST_S, "ten seconds for the running batch"
    monkeypatch.setattr(module, "UNWRITTEN_S", 0.0)
    async with away(database):
        await until(lambda: one._running[job.id].job.is_over, "the end of the job")
    ended = await becomes(another, job.id, "failed", 3)
    assert ended.problem == "the webhook database did not answer for long. The rest was not sent"


async def test_no_job_begins_while_the_database_is_away(
    one: RedriveJobs, another: RedriveJobs, database: Database
) -> None:
    sending = Sending()
    async with away(database):
        with pytest.raises(StoreUnavailable):
            await one.start(LUMA, "ada", 9, sending)
    assert (sending.begins, await another.search(orgs=None)) == (0, [])
    await one.start(LUMA, "ada", 9, sending)


async def test_a_job_that_fails_at_once_while_the_database_is_away_holds_no_place(
    one: RedriveJobs, another: RedriveJobs, database: Database
) -> None:
    before = failures()

    async def fail(job: RunningJob) -> None:
        async with database.write() as connection:
            await connection.execute(text("ALTER TABLE jobs RENAME TO away"))
        raise BrokerUnavailable("kafka.internal")

    with pytest.raises(BrokerUnavailable):
        await one.start(LUMA, "ada", 9, fail)
    assert failures() > before
    async with database.write() as connection:
        await connection.execute(text("ALTER TABLE away RENAME TO jobs"))
    (job,) = await another.search(orgs=None)
    ended = await becomes(another, job.id, "failed")
    assert ended.problem == "Kafka does not answer right now"
    await another.start(LUMA, "ada", 9, Sending())


async def test_an_order_that_is_refused_holds_no_place_even_if_its_row_stays(
    one: RedriveJobs, another: RedriveJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(job_id: str) -> None:
        raise StoreUnavailable("the database is away")

    with monkeypatch.context() as patch:
        patch.setattr(module, "MOST_REDRIVES", 0)
        patch.setattr(module, "MOST_WAITING", 0)
        patch.setattr(one._store, "discard", fail)
        with pytest.raises(Busy):
            await one.start(LUMA, "ada", 9, Sending())
    (job,) = await another.search(orgs=None)
    assert "waiting for their turn" in (await becomes(another, job.id, "failed")).problem
    await another.start(LUMA, "ada", 9, Sending())


async def test_a_job_that_waits_for_its_turn_stops_at_once_at_any_console(
    one: RedriveJobs, another: RedriveJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_REDRIVES", 1)
    one._permits = asyncio.Semaphore(1)
    first, second = Sending(), Sending()
    runs = await one.start(LUMA, "ada", 9, first)
    waits = await one.start(OTHER, "ada", 9, second)
    assert (await another.get(waits.id, orgs=None)).state == "waiting"
    await another.stop(waits.id, orgs=None)
    await becomes(another, waits.id, "stopped")
    assert second.begins == 0
    third = await one.start(OTHER, "ada", 9, second)
    await another.stop(runs.id, orgs=None)
    await becomes(another, third.id, "running")


async def test_a_damaged_row_is_shown_without_numbers(
    one: RedriveJobs, another: RedriveJobs, database: Database
) -> None:
    job = await one.start(LUMA, "ada", 9, Sending(sent=2))
    await becomes(another, job.id, "running", 2)
    await one.stop(job.id, orgs=None)
    await becomes(another, job.id, "stopped", 2)
    async with database.write() as connection:
        await connection.execute(update(schema.jobs).values(progress={"total": "many"}, state="paused"))
    shown = await another.get(job.id, orgs=None)
    assert (shown.state, shown.total, shown.by) == ("failed", 0, "ada")
    assert shown.problem == "its row in the webhook database can't be read"
