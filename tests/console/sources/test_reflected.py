"""A whole dispatcher run, as the console sees it: the same numbers as the receiver's ledger."""

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from dispatcher.config.console_settings import ConsoleSettings
from dispatcher.config.settings import Settings
from dispatcher.console.model import AttemptQuery, DeadQuery
from dispatcher.console.sources.attempts import AttemptReader
from dispatcher.console.sources.dead_events import DeadLetterReader
from dispatcher.console.sources.lanes import RunningLanes
from dispatcher.console.sources.retry_backlog import RetryBacklog
from dispatcher.contract.events import DeliveryEvent, read_event
from dispatcher.contract.tenant import TenantKey
from dispatcher.kafka.topic_reader import open_topics
from dispatcher.stores.sql.jobs import JobStore
from tests.console.sources.conftest import reader_of, running, until
from tests.integration.brokers import needs_kafka
from tests.integration.harness import Behaviour, Receiver, Stage, stage, status, tenants
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka

pytestmark = [needs_kafka, pytest.mark.timeout(300)]

COUNT = 30
EVERYBODY = GOOD, SHAKY, BAD = tenants(3)
MINE = frozenset({BAD.org})


@pytest.fixture
async def scene(mortal: ApacheKafka, tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(mortal.bootstrap_servers, tmp_path) as made:
        await topics.create_topic(mortal.bootstrap_servers, f"group-{made.topic}.history", partitions=4)
        yield made


def console_settings(scene: Stage) -> Settings:
    return Settings.model_validate(scene.settings | {"history": {"store": "none"}})


def now_and_then(behaviour: Behaviour) -> Behaviour:
    """Each fourth request ends so, and never one that is tried again: too few for the breaker."""
    requests = 0

    async def answer(request: web.Request, receiver: Receiver) -> web.StreamResponse:
        nonlocal requests
        requests += 1
        is_again = request.headers["webhook-attempt"] != "1"
        return receiver.accept(request) if requests % 4 or is_again else await behaviour(request, receiver)

    return answer


async def outcomes(log: AttemptReader, tenant: TenantKey) -> tuple[int, int, int]:
    counted = log.outcomes(tenant, "1h")
    return counted.delivered, counted.failed, counted.dead


async def test_a_run_is_shown_as_the_receiver_saw_it_and_its_dead_come_back(
    scene: Stage, mortal: ApacheKafka, job_store: JobStore
) -> None:
    scene.mount([scene.webhook(tenant) for tenant in EVERYBODY])
    scene.receiver.behave(f"/{SHAKY.org}", now_and_then(status(503)))
    scene.receiver.behave(f"/{BAD.org}", status(501))
    settings = console_settings(scene)
    attempts, dead = AttemptReader(settings), reader_of(settings, job_store)
    async with (
        scene.dispatcher(history={"store": "none"}) as dispatcher,
        running(attempts.run(), dead.run(), dead.jobs.run()),
    ):
        dispatcher.start()
        await scene.produce(EVERYBODY, 3 * COUNT)
        await until(lambda: dead.count(BAD, 0.0) == COUNT, "every dead event", 90)
        await until(lambda: attempts.outcomes(SHAKY, "1h").delivered == COUNT, "every delivery", 90)
        await until(lambda: attempts.outcomes(GOOD, "1h").delivered == COUNT, "every delivery", 60)

        async def is_complete() -> bool:
            seen = Counter(scene.expected[name].org for name in scene.receiver.seen.elements())
            return [sum(await outcomes(attempts, one)) for one in EVERYBODY] == [seen[one.org] for one in EVERYBODY]

        await until(is_complete, "every attempt")
        ledger = Counter(scene.expected[name].org for name in scene.receiver.accepted.elements())
        seen = Counter(scene.expected[name].org for name in scene.receiver.seen.elements())
        for tenant in EVERYBODY:
            delivered, failed, died = await outcomes(attempts, tenant)
            assert delivered == ledger[tenant.org]
            assert delivered + failed + died == seen[tenant.org]
        assert await outcomes(attempts, BAD) == (0, 0, COUNT)
        assert attempts.problem is None
        assert attempts.last_delivery(GOOD) is not None
        assert attempts.failing(GOOD, 0.0) is None
        failing = attempts.failing(BAD, 0.0)
        assert failing is not None
        assert (failing.attempt.reason, failing.attempt.status) == ("http_5xx", 501)
        assert failing[1:] == (COUNT, COUNT, COUNT)
        await _is_found_again(attempts, settings)

        async with RunningLanes(ConsoleSettings(dispatchers=(f"http://127.0.0.1:{dispatcher.ops_port}",))) as lanes:
            lane = await lanes.of(GOOD)
            assert lane is not None
            assert (lane.state, lane.breaker, lane.instances) == ("active", "closed", 1)
        assert await RetryBacklog(settings).of(GOOD) == []

        # The endpoint is fixed: one, some, and all come back.
        scene.receiver.behave(f"/{BAD.org}", None)
        ids = [fact.id for fact in dead.search(DeadQuery(tenant=BAD, limit=200), orgs=MINE).items]
        assert len(ids) == COUNT
        sent = 0
        for chosen in (frozenset(ids[:1]), frozenset(ids[:5]), None):
            job = await dead.redrive(BAD, ids=chosen, query=DeadQuery(), by="ada", orgs=MINE)
            sent += await sent_by(dead, job.id)
            await until(lambda: dead.count(BAD, 0.0) == COUNT - sent, "its marks")  # noqa: B023
        assert sent == COUNT
        await scene.all_accepted(dispatcher)
        await until(lambda: attempts.outcomes(BAD, "1h").delivered == COUNT, "their deliveries", 60)
        assert dead.search(DeadQuery(tenant=BAD, redriven=True), orgs=MINE).total == COUNT
        assert scene.receiver.repeats() == 0
    records = await topics.read_all(mortal.bootstrap_servers, f"group-{scene.topic}.history")
    assert records
    for record in records:
        whole = bytes(record.value or b"") + bytes(record.key or b"") + repr(record.headers).encode()
        assert not any(word in whole for word in (b"@luma", b"john", b"identityMap", b"4218b775"))


async def sent_by(dead: DeadLetterReader, job_id: str) -> int:
    """Waits for a redrive. Returns how many events it has sent."""

    async def is_done() -> bool:
        return (await dead.jobs.get(job_id, orgs=MINE)).state == "done"

    await until(is_done, "the redrive")
    return (await dead.jobs.get(job_id, orgs=MINE)).sent


async def _is_found_again(attempts: AttemptReader, settings: Settings) -> None:
    """By what the log has of it: for `explain`, and the page of the delivery."""
    name = attempts.search(SHAKY, AttemptQuery(outcome="failed")).items[0].event_id
    page = attempts.search(SHAKY, AttemptQuery(event_id=name))
    assert [fact.verdict for fact in page.items] == ["delivered", "retry_soon"]
    (origin,) = {fact.origin for fact in page.items}
    assert origin is not None
    async with open_topics(settings.kafka, [origin.topic]) as reader:
        record = await reader.record_at(origin.partition, origin.offset)
    event = read_event(record, origin)
    assert isinstance(event, DeliveryEvent)
    assert (event.webhook_id, event.tenant) == (name, SHAKY)


async def test_what_is_parked_is_seen_waiting_and_a_broker_restart_costs_nothing(
    scene: Stage, mortal: ApacheKafka, job_store: JobStore
) -> None:
    scene.mount([scene.webhook(tenant) for tenant in (GOOD, BAD)])
    scene.receiver.behave(f"/{BAD.org}", status(401))
    settings = console_settings(scene)
    attempts, dead = AttemptReader(settings), reader_of(settings, job_store)
    async with (
        scene.dispatcher(history={"store": "none"}) as dispatcher,
        running(attempts.run(), dead.run(), dead.jobs.run()),
    ):
        dispatcher.start()
        await scene.produce([GOOD, BAD], 20)
        await until(lambda: attempts.outcomes(BAD, "1h").failed >= 10, "ten failed attempts", 60)

        async def waits() -> bool:
            return sum(tier.events for tier in await RetryBacklog(settings).of(BAD)) == 10

        await until(waits, "ten events that wait", 60)
        assert await RetryBacklog(settings).of(GOOD) == []
        await mortal.restart()
        await scene.produce([GOOD], 10, prefix="after")
        await until(lambda: attempts.outcomes(GOOD, "1h").delivered == 20, "what came after the restart", 120)
        scene.receiver.behave(f"/{BAD.org}", None)
        # The edit closes the breaker, which would stay open for half a minute.
        scene.mount([scene.webhook(GOOD), scene.webhook(BAD, headers={"X-Edited": "yes"})])
        await scene.all_accepted(dispatcher)
        await until(lambda: attempts.outcomes(BAD, "1h").delivered == 10, "what had waited", 90)
        await until(lambda: attempts.problem is None, "the log to be followed again", 60)
        counted = await outcomes(attempts, BAD)
        seen = sum(scene.receiver.seen[name] for name, tenant in scene.expected.items() if tenant == BAD)
        assert (
            sum(counted) <= seen
        )  # what could not be written during the restart is left out, and nothing is counted twice
