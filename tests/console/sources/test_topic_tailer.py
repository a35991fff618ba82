"""A topic followed on a real broker: from its past to its end, over restarts, and when it is recreated."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from aiokafka.admin import NewPartitions
from aiokafka.consumer.fetcher import Fetcher

from dispatcher.config.settings import Settings
from dispatcher.contract.records import Record
from dispatcher.errors import BrokerUnavailable
from dispatcher.kafka import topic_reader
from dispatcher.kafka.commit_metadata import Fingerprint
from dispatcher.kafka.log_sources import LogSources
from dispatcher.kafka.producer import Producer
from dispatcher.kafka.topic_tailer import TopicTailer
from tests.console.sources.conftest import running, settings_for, until
from tests.field.lost_logs import remove_before
from tests.integration.brokers import needs_kafka
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka

pytestmark = [needs_kafka, pytest.mark.timeout(300)]


class Kept:
    """Keeps the values."""

    def __init__(self) -> None:
        self.values: list[bytes | None] = []
        self.forgotten = 0

    def append(self, records: Sequence[Record]) -> None:
        self.values += [record.value for record in records]

    def reset(self) -> None:
        self.values.clear()
        self.forgotten += 1


def follower(settings: Settings, kept: Kept, **changes: Any) -> TopicTailer:
    arguments: dict[str, Any] = {"keep_s": 3600.0, "most_read": 10_000, "if_missing": "make it"} | changes
    return TopicTailer(settings.kafka, settings.kafka.topic, kept, **arguments)


async def write(producer: Producer, settings: Settings, *names: str, partition: int | None = None) -> None:
    for name in names:
        await producer.write(settings.kafka.topic, None, name.encode(), (), "attempts", partition)


def names(kept: Kept) -> list[str]:
    return sorted((value or b"").decode() for value in kept.values)


async def test_existing_records_are_read_and_new_ones_followed(
    settings: Settings, producer: Producer, mortal: ApacheKafka
) -> None:
    await topics.create_topic(mortal.bootstrap_servers, settings.kafka.topic, partitions=3)
    await write(producer, settings, "a", "b", "c")
    kept = Kept()
    followed = follower(settings, kept)
    assert "not been read yet" in (followed.problem or "")
    async with running(followed.run()):
        await until(lambda: followed.problem is None, "what was there to be read")
        assert names(kept) == ["a", "b", "c"]
        assert (followed.problem, followed.is_complete) == (None, True)
        await write(producer, settings, "d")
        await until(lambda: names(kept) == ["a", "b", "c", "d"], "what came")


async def test_a_bug_in_the_client_ends_no_following(
    settings: Settings, producer: Producer, mortal: ApacheKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the task that fetches, polls find nothing for ever, and look well."""
    await topics.create_topic(mortal.bootstrap_servers, settings.kafka.topic, partitions=2)
    kept, fetch, bugs = Kept(), Fetcher._proc_fetch_request, 0
    followed = follower(settings, kept)
    async with running(followed.run()):
        await until(lambda: followed.problem is None, "what was there to be read")

        async def failing(*arguments: Any) -> Any:
            nonlocal bugs
            bugs += 1
            if bugs == 1:
                raise ValueError("a bug")
            return await fetch(*arguments)

        monkeypatch.setattr(Fetcher, "_proc_fetch_request", failing)
        await until(lambda: bugs, "the bug")
        await write(producer, settings, "after")
        await until(lambda: names(kept) == ["after"], "what came after the bug", 60)


async def test_the_number_of_records_read_back_is_limited_and_that_is_shown(
    settings: Settings, producer: Producer, mortal: ApacheKafka
) -> None:
    await topics.create_topic(mortal.bootstrap_servers, settings.kafka.topic, partitions=2)
    for partition in (0, 1):
        await write(producer, settings, *(f"{partition}{number}" for number in range(9)), partition=partition)
    kept = Kept()
    followed = follower(settings, kept, most_read=6)
    async with running(followed.run()):
        await until(lambda: followed.problem is None, "what was there to be read")
    assert names(kept) == ["06", "07", "08", "16", "17", "18"]
    assert not followed.is_complete


async def test_records_older_than_the_requested_time_are_not_read(
    settings: Settings, producer: Producer, mortal: ApacheKafka
) -> None:
    await topics.create_topic(mortal.bootstrap_servers, settings.kafka.topic, partitions=1)
    await write(producer, settings, "old")
    kept = Kept()
    followed = follower(settings, kept, keep_s=-60.0)  # from a minute ahead: everything there is older
    async with running(followed.run()):
        await until(lambda: followed.problem is None, "what was there to be read")
        await write(producer, settings, "new")
        await until(lambda: kept.values, "what came")
    assert (names(kept), followed.is_complete) == (["new"], True)


async def test_a_broker_that_restarts_costs_no_record_and_repeats_none(
    settings: Settings, producer: Producer, mortal: ApacheKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.kafka.topic_tailer.SILENCE_S", 2.0)
    monkeypatch.setattr("dispatcher.kafka.topic_tailer.STILL_THERE_S", 4.0)
    await topics.create_topic(mortal.bootstrap_servers, settings.kafka.topic, partitions=2)
    kept = Kept()
    followed = follower(settings, kept)
    async with running(followed.run()):
        await write(producer, settings, "before")
        await until(lambda: kept.values, "what was there before")
        mortal.kill()
        try:
            await until(lambda: followed.problem, "the outage to be reported", 90)
            assert names(kept) == ["before"]
        finally:
            await mortal.start()
        await write(producer, settings, "after")
        await until(lambda: len(kept.values) == 2, "what came after", 60)
        await until(lambda: followed.problem is None, "the end of the outage to be reported")
        await asyncio.sleep(1.5)
    assert (names(kept), kept.forgotten) == (["after", "before"], 0)


async def test_a_broker_that_is_away_from_the_start_is_waited_for() -> None:
    settings = settings_for("127.0.0.1:1", "events")
    kept = Kept()
    followed = follower(settings, kept)
    async with running(followed.run()):
        await until(lambda: followed.problem == BrokerUnavailable().for_tenants, "the broker to be named away")


async def test_a_topic_that_is_missing_is_never_made_and_found_once_it_is_there(
    settings: Settings, producer: Producer, mortal: ApacheKafka
) -> None:
    kept = Kept()
    followed = follower(settings, kept)
    async with running(followed.run()):
        wanted = f"there is no topic {settings.kafka.topic}: make it"
        await until(lambda: followed.problem == wanted, "the missing topic to be reported")
        assert await topics.partitions_of(mortal.bootstrap_servers, settings.kafka.topic) == []
        await topics.create_topic(mortal.bootstrap_servers, settings.kafka.topic)
        await write(producer, settings, "a")
        await until(lambda: kept.values, "the first record", 60)


@pytest.mark.parametrize("written", [["x"], ["1", "2", "3", "4", "5", "6"]])
async def test_a_recreated_topic_is_read_from_its_start(
    settings: Settings, producer: Producer, mortal: ApacheKafka, written: list[str]
) -> None:
    """Also if it has grown past the old position."""
    await topics.create_topic(mortal.bootstrap_servers, settings.kafka.topic)
    await write(producer, settings, "a", "b", "c")
    kept = Kept()
    followed = follower(settings, kept)
    async with running(followed.run()):
        await until(lambda: followed.problem is None, "what was there to be read")
        async with topics.admin_client(mortal.bootstrap_servers) as admin:
            await admin.delete_topics([settings.kafka.topic])
        await until(lambda: _gone(mortal, settings), "the topic to be gone")
        await topics.create_topic(mortal.bootstrap_servers, settings.kafka.topic)
        async with Producer(settings.kafka) as fresh:
            await write(fresh, settings, *written)
            await until(lambda: names(kept) == written, "the new topic's records", 90)
    assert kept.forgotten >= 1


@pytest.mark.parametrize("is_replaced", [True, False])
async def test_a_log_is_compared_before_it_is_read_on_after_a_gap(
    settings: Settings, producer: Producer, mortal: ApacheKafka, monkeypatch: pytest.MonkeyPatch, *, is_replaced: bool
) -> None:
    """It was lost and has grown past the position; a gap in the fetches is the only sign of that."""
    await topics.create_topic(mortal.bootstrap_servers, settings.kafka.topic, partitions=2)
    for partition in (0, 1):
        await write(producer, settings, f"a{partition}", f"b{partition}", partition=partition)
    fingerprint, source, gaps, lost = Fingerprint.of, LogSources.of, 0, False

    def fingerprint_in_this_log(record: Record) -> Fingerprint:
        found = fingerprint(record)
        return replace(found, checksum=found.checksum ^ lost)

    monkeypatch.setattr(LogSources, "of", lambda sources, tp: (*source(sources, tp), gaps))
    monkeypatch.setattr(Fingerprint, "of", fingerprint_in_this_log)
    kept = Kept()
    followed = follower(settings, kept)
    async with running(followed.run()):
        await until(lambda: followed.problem is None and len(kept.values) == 4, "what was there to be read")
        gaps, lost = 1, is_replaced
        await write(producer, settings, "c0", partition=0)
        await until(lambda: "c0" in names(kept) and len(kept.values) == 5, "all of the log", 60)
        await asyncio.sleep(1)
    assert names(kept) == ["a0", "a1", "b0", "b1", "c0"]
    assert kept.forgotten == is_replaced


@pytest.mark.parametrize("is_gone", [True, False])
async def test_a_broker_that_restarts_after_retention_costs_no_record_and_repeats_none(
    settings: Settings, producer: Producer, mortal: ApacheKafka, *, is_gone: bool
) -> None:
    await topics.create_topic(mortal.bootstrap_servers, settings.kafka.topic)
    await write(producer, settings, "a", "b", "c")
    kept = Kept()
    followed = follower(settings, kept)
    async with running(followed.run()):
        await until(lambda: followed.problem is None, "what was there to be read")
        await remove_before(mortal, settings.kafka.topic, 3 if is_gone else 2)
    await write(producer, settings, "d")
    async with running(followed.run()):
        await until(lambda: names(kept) == ["a", "b", "c", "d"], "what came after", 60)
    assert kept.forgotten == 0


async def test_partitions_that_are_added_are_followed_too(
    settings: Settings, producer: Producer, mortal: ApacheKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.kafka.topic_tailer.LOOK_AGAIN_S", 0.5)
    arguments = topic_reader.connection_arguments(settings.kafka) | {"metadata_max_age_ms": 500}
    monkeypatch.setattr(topic_reader, "connection_arguments", lambda _: arguments)
    await topics.create_topic(mortal.bootstrap_servers, settings.kafka.topic)
    kept = Kept()
    followed = follower(settings, kept)
    async with running(followed.run()):
        await write(producer, settings, "a")
        await until(lambda: kept.values, "the first record")
        async with topics.admin_client(mortal.bootstrap_servers) as admin:
            await admin.create_partitions({settings.kafka.topic: NewPartitions(2)})
        async with Producer(settings.kafka) as fresh:
            await write(fresh, settings, "b", partition=1)
        await until(lambda: names(kept) == ["a", "b"], "the new partition's record", 90)
    assert kept.forgotten == 0


async def _gone(mortal: ApacheKafka, settings: Settings) -> bool:
    return not await topics.partitions_of(mortal.bootstrap_servers, settings.kafka.topic)
