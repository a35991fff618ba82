"""A refused job is answered by what cures it: waiting for the console, for the other job, or a change of the order."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.console.api_errors import ApiError, api_error_of
from dispatcher.console.sources import redrive_jobs as module
from dispatcher.console.sources.redrive_jobs import JobFunction, RedriveJobs, RunningJob
from dispatcher.errors import BrokerUnavailable, DispatcherError, NotFound
from tests.console.sources.conftest import running
from tests.console.sources.dead_letter_builders import LUMA, OTHER

KAFKA = KafkaSettings(bootstrap_servers="kafka.internal:9092", topic="events", group_id="dispatcher")


@pytest.fixture
async def jobs() -> AsyncIterator[RedriveJobs]:
    made = RedriveJobs(KAFKA)
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
    jobs: RedriveJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_REDRIVES", 1)
    monkeypatch.setattr(module, "MOST_WAITING", 0)
    await jobs.start(OTHER, "ada", 1, until_stopped)
    refused = await refusal(jobs)
    assert (refused.status, refused.code, refused.headers["Retry-After"]) == (503, "busy", "60")
    refused = await refusal(RedriveJobs(KAFKA))  # it isn't running yet
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
    assert jobs.jobs(orgs=None) == []


async def test_a_bug_in_a_job_is_not_answered_as_trouble_that_passes(jobs: RedriveJobs) -> None:
    async def fail(job: RunningJob) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await jobs.start(LUMA, "ada", 1, fail)
