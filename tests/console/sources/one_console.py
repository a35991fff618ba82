"""A console process that only runs jobs, for tests that kill it: `python -m tests.console.sources.one_console URL`.

It starts a job that has sent 7 of 9 events and goes on for ever, and prints the job's id.
"""

import asyncio
import sys

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.config.secrets import Secret
from dispatcher.console.resend_model import ResendQuery, ResumePoint
from dispatcher.console.sources.redrive_jobs import RedriveJobs, RunningJob
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.jobs import JobStore
from tests.console.sources.dead_letter_builders import LUMA

QUERY = ResendQuery(since=1.5, reasons=frozenset({"http_2xx"}), checked_at=3.0)
RESUME = ResumePoint(2.5, 3.0)


async def endless(job: RunningJob) -> None:
    job.report(sent=7, resume=RESUME)
    job.begun.set_result(None)
    await asyncio.Event().wait()


async def main(url: str) -> None:
    kafka = KafkaSettings(bootstrap_servers="127.0.0.1:1", topic="events", group_id="dispatcher")
    jobs = RedriveJobs(kafka, JobStore(Database(Secret(url.encode()))))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(jobs.run())
        await asyncio.sleep(0)
        job = await jobs.start(LUMA, "ada", 9, endless, "delivered", QUERY)
        print(job.id, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
