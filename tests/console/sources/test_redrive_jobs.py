"""A refused job is answered by what cures it: waiting for the console, for the other job, or a change of the order."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.config.secrets import Secret, SecretSource
from dispatcher.config.settings import Settings
from dispatcher.console.api_errors import ApiError, api_error_of
from dispatcher.console.assembly import open_services
from dispatcher.console.resend_model import RedriveModel
from dispatcher.console.sources import redrive_jobs as module
from dispatcher.console.sources.redrive_jobs import JobFunction, RedriveJobs, RunningJob
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import BrokerUnavailable, DispatcherError, NotFound, StoreUnavailable, WouldBeSkipped
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.jobs import JobStore
from dispatcher.stores.sql.migrate import upgrade
from tests.console.sources.conftest import running
from tests.console.sources.dead_letter_builders import LUMA, OTHER

KAFKA = KafkaSettings(bootstrap_servers="kafka.internal:9092", topic="events", group_id="dispatcher")


@pytest.fixture
async def jobs(job_store: JobStore) -> AsyncIterator[RedriveJobs]:
    made = RedriveJobs(KAFKA, job_store)
    async with running(made.run()):
        await asyncio.sleep(0)
        yield made


async def until_stopped(job: RunningJob) -> None:
    job.begun.set_result(None)
    await job.stop.wait()


async def refusal(jobs: RedriveJobs, work: JobFunction = until_stopped) -> ApiError:
    with pytest.raises(DispatcherError) as raised:
        await jobs.start(LUMA, "ada", 1, work)
    return api_error_of(raised.value, may_have_changed=True)


async def test_a_job_beside_one_that_runs_conflicts_with_it_and_names_it(jobs: RedriveJobs) -> None:
    """A client that obeyed Retry-After repeated the order when the job was done, and sent everything twice."""
    first = await jobs.start(LUMA, "ada", 1, until_stopped)
    refused = await refusal(jobs)
    path = f"/api/v1/redrives/{first.id}"
    assert (refused.status, refused.code, refused.existing) == (409, "already_running", path)
    assert dict(refused.headers) == {"Link": f'<{path}>; rel="related"'}
    assert "stop it" in refused.detail
    await jobs.start(LUMA, "ada", 1, until_stopped, "delivered")  # of the other kind


async def test_a_console_that_has_too_much_to_do_says_when_to_try_again(
    jobs: RedriveJobs, job_store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_REDRIVES", 1)
    monkeypatch.setattr(module, "MOST_WAITING", 0)
    await jobs.start(OTHER, "ada", 1, until_stopped)
    refused = await refusal(jobs)
    assert (refused.status, refused.code, refused.headers["Retry-After"]) == (503, "busy", "60")
    refused = await refusal(RedriveJobs(KAFKA, job_store))  # it isn't running yet
    assert (refused.status, refused.code) == (503, "busy")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NotFound("the topic delivery-events does not exist"), 404, "not_found"),
        (BrokerUnavailable("kafka at kafka.internal:9092: refused"), 503, "unavailable"),
        (ConnectionRefusedError("kafka.internal:9092"), 503, "unavailable"),
    ],
)
async def test_a_job_that_fails_at_once_is_answered_by_its_error(
    jobs: RedriveJobs, error: Exception, status: int, code: str
) -> None:
    async def fail(job: RunningJob) -> None:
        raise error

    refused = await refusal(jobs, fail)
    assert (refused.status, refused.code, "internal" in refused.detail) == (status, code, False)
    assert await jobs.search(orgs=None) == []


async def test_a_bug_in_a_job_is_not_answered_as_trouble_that_passes(jobs: RedriveJobs) -> None:
    async def fail(job: RunningJob) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await jobs.start(LUMA, "ada", 1, fail)


async def end_of(jobs: RedriveJobs, job_id: str) -> RedriveModel:
    async with asyncio.timeout(60):
        while not (job := await jobs.get(job_id, orgs=None)).is_over:
            await asyncio.sleep(0.001)
    return job


async def test_a_job_ends_when_its_webhook_is_switched_off(
    job_store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dead events would be skipped, and still count as sent again."""
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.001)
    why = {LUMA: "", OTHER: "there is no webhook for it"}
    away = [StoreUnavailable("the database is away")]

    async def why_skipped(tenant: TenantKey) -> str:
        if why[tenant] and away:
            raise away.pop()
        return why[tenant]

    jobs = RedriveJobs(KAFKA, job_store, why_skipped)
    async with running(jobs.run()):
        await asyncio.sleep(0)
        job = await jobs.start(LUMA, "ada", 1, until_stopped)
        why[LUMA] = "the webhook is switched off"
        ended = await end_of(jobs, job.id)
        assert (ended.state, ended.problem) == ("failed", "the webhook is switched off. The rest was not sent")
        with pytest.raises(WouldBeSkipped, match="there is no webhook for it"):
            await jobs.start(OTHER, "ada", 1, until_stopped)


async def test_jobs_of_the_console_look_at_the_webhooks_that_it_edits(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'webhooks.db'}"
    await upgrade(Secret(url.encode()))
    settings = Settings.model_validate(
        {
            "apiVersion": "dispatcher/v1",
            "kafka": {"bootstrap_servers": "127.0.0.1:1"},
            "webhooks": {"store": "sql", "url": {"env": "U"}},
        },
        context=SecretSource(tmp_path, environ={"U": url}).as_context(),
    )
    database = Database(Secret(url.encode()))
    try:
        async with open_services(settings, database) as opened, running(opened.services.jobs.run()):
            await asyncio.sleep(0)
            with pytest.raises(WouldBeSkipped, match="no webhook"):
                await opened.services.jobs.start(LUMA, "ada", 1, until_stopped)
    finally:
        await database.close()
