"""What `dispatcher trace` finds by reading topics."""

import time

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition

from dispatcher.config.settings import Settings
from dispatcher.contract.history import MAX_ID, HistoryEntry, HistoryOutcome
from dispatcher.contract.records import Origin, RetryState
from dispatcher.contract.tenant import TenantKey
from dispatcher.history.topic_search import Wanted, find_in_event_topics, find_in_history_topic
from dispatcher.kafka.held_topic import Progress, Snapshot, tenant_headers
from tests.conftest import Broker
from tests.history_records import record_of
from tests.integration.harness import event, webhook_id_of
from tests.kafka import topics

TENANT = TenantKey("A@AdobeOrg", "prod")
LONG = "x" * (MAX_ID + 50)


@pytest.mark.parametrize("field", ["event_id", "request_id", "message_execution_id", "campaign_id", None])
def test_an_id_that_the_history_cuts_is_found_by_its_whole_value(field: str | None) -> None:
    entry = HistoryEntry(
        0, HistoryOutcome.DEAD, LONG[:MAX_ID], "prod", event_id=LONG[:MAX_ID], request_id=LONG[:MAX_ID],
        message_execution_id=LONG[:MAX_ID], campaign_id=LONG[:MAX_ID],
    )  # fmt: skip
    assert Wanted(LONG, field).rank(entry) == 0
    assert Wanted(LONG, field, TenantKey(LONG, "prod")).rank(entry) == 0
    assert Wanted(LONG, field, TenantKey(LONG, "stage")).rank(entry) is None
    assert Wanted("x" * (MAX_ID - 1), field).rank(entry) is None
    assert Wanted(f'"{LONG}"', field, others=("other", LONG)).rank(entry) == 2
    whole = HistoryEntry(0, HistoryOutcome.ATTEMPT, event_id=LONG, request_id=LONG)
    assert Wanted(LONG).rank(whole) == 0, "as it is in an event"
    assert Wanted("").rank(HistoryEntry(0, HistoryOutcome.ATTEMPT)) is None


async def test_a_held_event_is_shown_as_held(kafka: Broker) -> None:
    settings = Settings.model_validate(
        {
            "apiVersion": "dispatcher/v1",
            "kafka": {"bootstrap_servers": kafka.bootstrap_servers, "topic": "traced", "group_id": "tracing"},
            "webhooks": {"path": "/nowhere"},
        }
    )
    for name in ("traced", "tracing.held"):
        await topics.create_topic(kafka.bootstrap_servers, name, partitions=1)
    value = event(TENANT, "e-held")
    waits = RetryState(Origin("traced", 0, 0), time.time(), attempts=2, parks=1, last_status=410, reason="suspended")
    snapshot = Snapshot({TENANT: Progress(0, 1)})
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as producer:
        await producer.send_and_wait("traced", value)
        headers = [*waits.headers(), *tenant_headers(TENANT)]
        await producer.send_and_wait("tracing.held", value, headers=headers)
        await producer.send_and_wait("tracing.held", snapshot.encode(), headers=[("feedback-held-snapshot", b"1")])
    found = await find_in_event_topics(settings, Wanted("e-held"), time.time() - 3600)
    assert [one.text for one in found] == ["Arrived", "Held after 2 attempts, last answer 410: suspended"]
    assert {one.webhook_id for one in found} == {webhook_id_of(TENANT, "e-held")}
    pasted = Wanted('"e-held"', others=("e-held", "E-HELD"))
    assert [one.rank for one in await find_in_event_topics(settings, pasted, time.time() - 3600)] == [1, 1]


@pytest.mark.parametrize("has_history", [True, False])
async def test_topics_under_former_names_are_read_too(kafka: Broker, *, has_history: bool) -> None:
    """`kafka.topic_prefix` was another one when the event was parked, held, and given up."""
    topic, old = f"renamed{has_history}", f"earlier{has_history}"
    settings = Settings.model_validate(
        {
            "apiVersion": "dispatcher/v1",
            "kafka": {"bootstrap_servers": kafka.bootstrap_servers, "topic": topic, "group_id": f"{topic}-group"},
            "webhooks": {"path": "/nowhere"},
        }
    )
    names = [f"{old}.retry.30s", f"{old}.held", f"{old}.dead", *([f"{old}.history"] if has_history else [])]
    for name in (topic, *names):
        await topics.create_topic(kafka.bootstrap_servers, name, partitions=1)
    for name, group in ((names[0], "retry"), (names[1], "held")):
        await topics.commit(kafka.bootstrap_servers, f"{topic}-group.{group}", TopicPartition(name, 0), 0)
    parked = RetryState(Origin(topic, 0, 0), time.time(), attempts=2, parks=1, last_status=503, reason="retry")
    entry = HistoryEntry(int(time.time() * 1000), HistoryOutcome.DEAD, *TENANT, webhook_id="w", event_id="e-old")
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as producer:
        for name in names[:3]:
            await producer.send_and_wait(name, event(TENANT, "e-old"), headers=[*parked.headers()])
        if has_history:
            await producer.send_and_wait(names[3], record_of(1, 1, [entry]))
    since = time.time() - 3600
    found = await find_in_event_topics(settings, Wanted("e-old"), since)
    assert [one.place.partition("/")[0] for one in found] == names[:3]
    assert [one.text.split()[0] for one in found] == ["Parked", "Held", "Dead"]
    in_history = await find_in_history_topic(settings, Wanted("e-old"), since)
    assert (in_history is not None) is has_history
    assert [one.webhook_id for one in in_history or ()] == ["w"] * has_history
