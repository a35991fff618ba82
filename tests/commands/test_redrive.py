"""Dead events go back under their webhook-id, each once, however often a redrive is repeated or interrupted."""

import asyncio
import itertools
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiokafka.structs import ConsumerRecord
from typer.testing import CliRunner

from dispatcher.cli.commands import app
from dispatcher.cli.redrive import _time
from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.events import DeliveryEvent, read_event
from dispatcher.contract.outcomes import DeadReason
from dispatcher.contract.records import Origin, RetryState
from dispatcher.contract.tenant import TenantKey
from dispatcher.kafka.dead_letters import DeadLetters
from dispatcher.kafka.producer import Producer
from dispatcher.kafka.redrive import MARK, MAX_BATCH, Redrive, RedriveTally, Selection, fresh_headers
from dispatcher.kafka.topic_reader import open_topics
from tests.commands.running import called, dispatcher, ended, start, write_settings, write_webhooks
from tests.conftest import Broker
from tests.kafka import topics
from tests.unit.examples import a_record, email_event

EVERYTHING = Selection()
_numbers = itertools.count()


class Dead:
    """A topic of events and its dead letters."""

    def __init__(self, broker: Broker, producer: Producer, topic: str, config: Path) -> None:
        self.broker = broker
        self.topic = topic
        self._settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, topic=topic, topic_prefix=topic)
        self._producer = producer
        self.config = config
        self._letters = DeadLetters(producer, topic)
        self._offsets = itertools.count(1000)

    async def dead_letter(
        self, org: str = "luma", reason: DeadReason = DeadReason.EXPIRED, value: bytes | None = None
    ) -> RetryState:
        """One event dies after nine attempts."""
        event = email_event(imsOrgId=org)
        del event["body"]["xdmEntity"]["_id"]  # the webhook-id is then made from the record's first place
        journey = RetryState(Origin(self.topic, 7, next(self._offsets)), 1000.0, attempts=9, parks=4, last_status=503)
        key = f"{org} {journey.origin.offset}".encode()
        record = a_record(value=value or json.dumps(event).encode(), key=key, headers=(("traceparent", b"00-1"),))
        await self._letters.dead_letter(record, journey, reason, "answered 503")
        return journey

    async def redrive(self, selection: Selection = EVERYTHING, rate: float = 10_000) -> RedriveTally:
        """What `dispatcher redrive` does, without a process of its own."""
        async with open_topics(self._settings, [f"{self.topic}.dead"]) as reader:
            redrive = Redrive(reader, selection)
            await redrive.count()
            return await redrive.send(self._producer, f"{self.topic}.retry.30s", rate, asyncio.Event())

    async def count(self, selection: Selection = EVERYTHING) -> tuple[int, int]:
        """How many are selected, and how many of those were sent back before."""
        async with open_topics(self._settings, [f"{self.topic}.dead"]) as reader:
            tally = await Redrive(reader, selection).count()
            return tally.total, tally.already

    async def sent(self) -> list[ConsumerRecord]:
        """Returns the records of the shortest tier."""
        return await topics.read_all(self.broker.bootstrap_servers, f"{self.topic}.retry.30s")


@pytest.fixture
async def dead(kafka: Broker, tmp_path: Path) -> AsyncIterator[Dead]:
    topic = f"redrive-{next(_numbers)}"
    for name in (topic, f"{topic}.dead", f"{topic}.retry.30s"):
        await topics.create_topic(kafka.bootstrap_servers, name, partitions=3)
    config = write_settings(tmp_path, kafka.bootstrap_servers, kafka={"topic": topic, "topic_prefix": topic})
    async with Producer(KafkaSettings(bootstrap_servers=kafka.bootstrap_servers, topic=topic)) as producer:
        yield Dead(kafka, producer, topic, config)


async def test_a_dry_run_counts_by_tenant_and_reason_and_sends_nothing(dead: Dead) -> None:
    for _ in range(3):
        await dead.dead_letter("luma")
    await dead.dead_letter("luma", DeadReason.REJECTED)
    await dead.dead_letter("other", DeadReason.UNREADABLE, value=b"{")
    ran = await called("redrive", "-c", dead.config, "--dry-run", "--since", "1h")
    assert ran.status == 0, ran
    out = ran.out
    assert [line.split() for line in out.splitlines()[:2]] == [
        ["luma/prod", "expired", "3"],
        ["luma/prod", "rejected", "1"],
    ]
    assert "4 dead events selected; 0 more" in out
    assert "1 of the selected dead letters still can't be read" in out
    assert "nothing was sent (--dry-run)" in out
    assert await dead.sent() == []


async def test_tenants_whose_events_would_be_skipped_are_named_before(dead: Dead) -> None:
    """Skipped events are noted as sent back, so that a later redrive leaves them out."""
    for org in ("luma", "luma", "off", "off", "on"):
        await dead.dead_letter(org)
    webhooks = [
        {"name": org, "org": org, "sandbox": "prod", "url": f"https://{org}.example/", "enabled": org == "on"}
        for org in ("off", "on")
    ]
    write_webhooks(dead.config.parent, *webhooks)
    ran = await called("redrive", "-c", dead.config, "--dry-run")
    assert ran.status == 0, ran
    assert [line for line in ran.err.splitlines() if line.startswith("warning")] == [
        "warning: luma/prod has no webhook: its 2 events would be skipped",
        "warning: off/prod has its webhook switched off: its 2 events would be skipped",
    ]
    for file in (dead.config.parent / "webhooks.d").iterdir():
        file.write_text("webhooks: [")
    ran = await called("redrive", "-c", dead.config, "--dry-run")
    assert ran.status == 0, "a store that can't be read prevents no redrive"
    assert "it is unknown whether events would be skipped" in ran.err


async def test_dead_letters_that_still_can_not_be_read_are_left_and_counted(dead: Dead) -> None:
    """They would die again, and engage the brake of every partition of the first tier."""
    readable = await dead.dead_letter("luma", DeadReason.UNREADABLE)  # by an older version, say
    for _ in range(3):
        await dead.dead_letter(reason=DeadReason.UNREADABLE, value=b"junk")
    too_large = json.dumps(email_event(requestId="x" * 9_000)).encode()
    await dead.dead_letter(reason=DeadReason.UNREADABLE, value=too_large)
    (small := dead.config.parent / "small").mkdir()
    settings = write_settings(
        small, dead.broker.bootstrap_servers,
        kafka={"topic": dead.topic, "topic_prefix": dead.topic, "max_record_bytes": 8_000},
    )  # fmt: skip
    for count in (1, 0):
        ran = await dispatcher("redrive", "-c", settings, "--reason", "unreadable")
        assert ran.status == 0, ran
        assert f"{count} dead events selected" in ran.out
        assert "4 of the selected dead letters still can't be read" in ran.out
        assert [RetryState.of(record).origin for record in await dead.sent()] == [readable.origin]


async def test_selected_events_are_redriven_once_and_the_rest_later(dead: Dead) -> None:
    wanted = [await dead.dead_letter("luma") for _ in range(3)]
    others = [await dead.dead_letter("luma", DeadReason.REJECTED), await dead.dead_letter("other")]
    ran = await dispatcher("redrive", "-c", dead.config, "--tenant", "luma/prod", "--reason", "expired")
    assert "3 of 3 sent back" in ran.out
    sent = await dead.sent()
    assert sorted(RetryState.of(record).origin.offset for record in sent) == [one.origin.offset for one in wanted]
    again = await dead.redrive(Selection(TenantKey("luma", "prod"), frozenset({"expired"})))
    assert (again.sent, again.total, again.already) == (0, 0, 3)
    assert (await dead.redrive()).sent == 2
    assert await dead.count() == (0, 5)
    found = sorted(RetryState.of(record).origin.offset for record in await dead.sent())
    assert found == sorted(one.origin.offset for one in wanted + others)


async def test_a_redriven_event_is_unchanged_and_its_attempts_start_from_zero(dead: Dead) -> None:
    before, began = await dead.dead_letter(), time.time()
    await dead.redrive()
    (record,) = await dead.sent()
    journey = RetryState.of(record)
    assert journey.origin == before.origin
    assert (journey.attempts, journey.parks, journey.last_status, journey.not_before) == (0, 0, None, 0.0)
    assert began - 1 < journey.first_seen < time.time() + 1
    assert dict(record.headers)["traceparent"] == b"00-1"
    assert "feedback-detail" not in dict(record.headers)
    event, first = (read_event(record, origin) for origin in (journey.origin, before.origin))
    assert isinstance(event, DeliveryEvent)
    assert isinstance(first, DeliveryEvent)
    assert event.webhook_id == first.webhook_id


async def test_an_event_that_died_again_can_be_redriven_again(dead: Dead) -> None:
    journey = await dead.dead_letter()
    await dead.redrive()
    (record,) = await dead.sent()
    await dead._letters.dead_letter(record, RetryState.of(record), DeadReason.EXPIRED, "again")
    assert await dead.count() == (1, 1)
    await dead.redrive()
    assert [RetryState.of(one).origin for one in await dead.sent()] == [journey.origin] * 2


async def test_only_events_that_died_within_the_requested_time_are_redriven(dead: Dead) -> None:
    await dead.dead_letter()
    now = time.time()
    assert await dead.count(Selection(until=now - 3600)) == (0, 0)
    assert await dead.count(Selection(since=now - 3600, until=now + 60)) == (1, 0)
    assert await dead.count(Selection(since=now + 60)) == (0, 0)


async def test_an_interrupted_redrive_continues_after_the_last_batch(dead: Dead) -> None:
    await asyncio.gather(*(dead.dead_letter() for _ in range(60)))
    process = await start("redrive", "-c", dead.config, "--rate", "5/s")  # it goes on for ten seconds more
    await _until(lambda count: count >= 5, dead)
    process.send_signal(signal.SIGINT)
    ran = await ended(process)
    assert ran.status == 1, ran
    assert "the same command goes on where this one ended" in ran.err
    before = len(await dead.sent())
    assert 5 <= before < 60
    assert (await dead.redrive()).sent == 60 - before
    assert set(await _times(dead)) == {1}, "an orderly stop repeats nothing"


@pytest.mark.parametrize("deleted", [False, True])
async def test_a_redrive_ends_once_a_webhook_is_switched_off_or_deleted(dead: Dead, deleted: bool) -> None:
    """Its other events would be skipped, and count as sent back."""
    await asyncio.gather(*(dead.dead_letter(org) for org in ("luma", "none") for _ in range(150)))
    on = {"name": "luma", "org": "luma", "sandbox": "prod", "url": "https://luma.example/"}
    write_webhooks(dead.config.parent, on)
    process = await start("redrive", "-c", dead.config, "--rate", "5/s")  # a minute in all
    await _until(lambda count: count >= 5, dead)
    write_webhooks(dead.config.parent, *([] if deleted else [on | {"enabled": False}]))
    ran = await ended(process)
    assert ran.status == 1, ran
    why = "has no webhook" if deleted else "has its webhook switched off"
    assert f"luma/prod now {why}: its events would be skipped, so nothing more is sent" in ran.err
    assert "none/prod now" not in ran.err, "that was so from the start"
    assert 5 <= len(await dead.sent()) < 300


async def test_a_killed_redrive_loses_nothing_and_repeats_one_batch_at_most(dead: Dead) -> None:
    await asyncio.gather(*(dead.dead_letter() for _ in range(60)))
    process = await start("redrive", "-c", dead.config, "--rate", "100/s")
    await _until(lambda count: count >= 20, dead)
    process.kill()
    await process.communicate()
    await dead.redrive()
    times = await _times(dead)
    assert times.total() == 60, "each goes back"
    assert sum((count - 1) * events for count, events in times.items()) <= 20 <= MAX_BATCH


async def test_the_rate_is_kept(dead: Dead) -> None:
    await asyncio.gather(*(dead.dead_letter() for _ in range(20)))
    began = time.monotonic()
    await dead.redrive(rate=15)
    assert time.monotonic() - began > 19 / 15


async def test_marks_do_not_count_as_dead_events(dead: Dead) -> None:
    await dead.dead_letter()
    await dead.redrive()
    records = await topics.read_all(dead.broker.bootstrap_servers, f"{dead.topic}.dead")
    letter, mark = sorted(records, key=lambda record: record.value is None)
    assert letter.partition == mark.partition
    assert (mark.key, mark.value) == (MARK.encode(), None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tenant", "luma"), "--tenant: write a tenant as ORG/SANDBOX"),
        (("--since", "yesterday"), "--since: write an age"),
        (("--rate", "fast"), "--rate: write a rate as 100/s"),
        (("--rate", "0/s"), "--rate: more than nothing"),
        (("--reason", "boredom"), "'boredom' is not one of 'unreadable'"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    ran = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["redrive", "-c", str(write_settings(tmp_path)), *arguments])
    assert ran.exit_code == 2
    assert message in " ".join(ran.stderr.split())


def test_a_time_is_an_age_or_a_date() -> None:
    assert _time("90m", 10_000.0, "--since") == 4600
    assert _time("1970-01-01T01:00", 0.0, "--since") == 3600
    assert _time("1970-01-01T01:00+01:00", 0.0, "--since") == 0


async def test_without_a_dead_letter_topic_there_is_nothing_to_send(kafka: Broker, tmp_path: Path) -> None:
    config = write_settings(
        tmp_path, kafka.bootstrap_servers, kafka={"topic": "never-made", "topic_prefix": "never-made"}
    )
    ran = await called("redrive", "-c", config)
    assert (ran.status, ran.out) == (1, "")
    assert "there is no topic never-made.dead: create it with `dispatcher topics --create`" in ran.err
    assert await topics.partitions_of(kafka.bootstrap_servers, "never-made.dead") == []


async def test_an_unavailable_broker_is_reported_in_one_line(tmp_path: Path) -> None:
    ran = await dispatcher("redrive", "-c", write_settings(tmp_path))
    assert ran.status == 1
    assert "dispatcher: kafka at 127.0.0.1:1: nothing listens there" in ran.err
    assert "Traceback" not in ran.err


def test_a_record_without_headers_of_ours_is_its_own_origin() -> None:
    record = a_record(b"{}", topic="t.dead", partition=2, offset=5, headers=(("a", b"b"),))
    headers = fresh_headers(record, 17.0)
    assert headers[0] == ("a", b"b")
    assert dict(headers)["feedback-origin-topic"] == b"t.dead"
    assert dict(headers)["feedback-first-seen"] == b"17.000"


async def _until(condition: Callable[[int], bool], dead: Dead) -> None:
    async with asyncio.timeout(60):
        while not condition(len(await dead.sent())):
            await asyncio.sleep(0.05)


async def _times(dead: Dead) -> Counter[int]:
    """How many events came how often."""
    return Counter(Counter(RetryState.of(record).origin for record in await dead.sent()).values())
