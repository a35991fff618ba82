"""Finds topics with the names of earlier versions: `<topic>.retry.30s` and `<topic>.dead`, after the topic of events.

What those versions parked must not be lost by the upgrade: `run` reads the former retry topics beside the new ones, as
long as the group has unread records there, and `redrive` reads the former dead-letter topic too. Nothing is written to
them. They belong to every group on the topic of events, so a group that is new doesn't read them.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.config.settings import Settings
from dispatcher.config.units import parse_duration
from dispatcher.kafka.connection import admin_client, stopped
from dispatcher.kafka.groups import retry_group
from dispatcher.kafka.log_bounds import end_offsets, first_offsets
from dispatcher.kafka.topic_reader import outside_consumer
from dispatcher.kafka.topics import dead_letter_topic, held_topic, retry_topics

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FormerTopics:
    """The former topics that concern this group."""

    tiers: Mapping[str, float] = field(default_factory=dict)
    """Delay in seconds by name of a retry topic."""
    unread: Mapping[str, int] = field(default_factory=dict)
    """Records that the group has not finished, by name of a retry topic; only topics that have some."""
    dead: str | None = None
    """The dead-letter topic, if it holds records."""
    uncommitted: Mapping[TopicPartition, int] = field(default_factory=dict)
    """First offset of each partition of a retry topic that the group has never committed."""

    def messages(self) -> tuple[str, ...]:
        """Returns sentences for the operator about former topics with unread records."""
        found = [
            f"topic {name}: holds {count} unread events parked by an earlier version: they are read beside the new "
            "retry topics; delete the topic once there are none"
            for name, count in self.unread.items()
        ]
        if self.dead is not None:
            found.append(
                f"topic {self.dead}: holds dead events of an earlier version: `dispatcher redrive` reads it, too; "
                "delete it once they are no longer needed"
            )
        return tuple(found)


def former_names(settings: Settings, existing: Iterable[str]) -> tuple[dict[str, float], str | None]:
    """Returns the existing topics with former names: the delay of each retry topic, and the dead-letter topic."""
    kafka = settings.kafka
    if kafka.prefix == kafka.topic:
        return {}, None
    own = {
        *retry_topics(kafka.prefix, settings.retry.tiers),
        held_topic(kafka.prefix),
        dead_letter_topic(kafka.prefix),
        kafka.topic,
    }
    tiers: dict[str, float] = {}
    dead = None
    for name in sorted(set(existing) - own):
        match = re.fullmatch(re.escape(kafka.topic) + r"\.retry\.([0-9a-z.]+)", name)
        if match is not None and (delay := _delay(match[1])) is not None:
            tiers[name] = delay
        elif name == dead_letter_topic(kafka.topic):
            dead = name
    return tiers, dead


async def dead_letter_topics(settings: Settings) -> tuple[str, ...]:
    """Returns the dead-letter topics that a redrive reads: the present one, then the one of the former name if any.

    Raises what aiokafka raises if the broker doesn't answer.
    """
    own = dead_letter_topic(settings.kafka.prefix)
    async with admin_client(settings.kafka) as admin:
        existing = [found["topic"] for found in await admin.describe_topics()]
    _, former = former_names(settings, existing)
    if former is None:
        return (own,)
    return (own, former) if own in existing else (former,)


async def find_former_topics(settings: Settings) -> FormerTopics:
    """Returns the former topics that exist on the broker. Raises aiokafka's error if the broker doesn't answer."""
    kafka = settings.kafka
    async with admin_client(kafka) as admin:
        described = {found["topic"]: len(found["partitions"]) for found in await admin.describe_topics()}
        tiers, dead = former_names(settings, described)
        if not tiers and dead is None:
            return FormerTopics()
        parked = [TopicPartition(name, number) for name in tiers for number in range(described[name])]
        read = await _committed(admin, retry_group(kafka.group_id))
        is_old = any(tp in read for tp in parked) or (not read and bool(await _committed(admin, kafka.group_id)))
    if not is_old:
        parked, tiers = [], {}
    buried = [] if dead is None else [TopicPartition(dead, number) for number in range(described[dead])]
    known = await _ranges(kafka, [*parked, *buried])
    unread: dict[str, int] = {}
    for tp in parked:
        first, end = known.get(tp, (0, 0))
        # One that doesn't answer may have records.
        if left := max(0, end - max(first, read.get(tp, 0))) if tp in known else 1:
            unread[tp.topic] = unread.get(tp.topic, 0) + left
    uncommitted = {tp: known[tp][0] for tp in parked if tp not in read and tp in known}
    holds_dead = any(tp not in known or known[tp][0] < known[tp][1] for tp in buried)
    return FormerTopics(tiers, unread, dead if holds_dead else None, uncommitted)


async def find_and_claim_former_topics(settings: Settings) -> FormerTopics:
    """Finds the former topics and commits the first offsets of those that the group has never read.

    Call it before the group reads. From then on the commits show that the topics are the group's own, even if the
    process is killed after it has committed in the new retry topics and before it reads the former ones. A group with
    members accepts no commit from outside; its members have committed, or commit soon.

    Raises what aiokafka raises if the broker doesn't answer.
    """
    found = await find_former_topics(settings)
    if found.uncommitted:
        group_id = retry_group(settings.kafka.group_id)
        consumer: AIOKafkaConsumer[bytes, bytes] = outside_consumer(settings.kafka, group_id)
        try:
            await consumer.start()
            consumer.assign(list(found.uncommitted))
            await consumer.commit(dict(found.uncommitted))
        except (kafka_errors.UnknownMemberIdError, kafka_errors.CommitFailedError, kafka_errors.IllegalGenerationError):
            log.info("the group has members: former retry topics are left to them", group=settings.kafka.group_id)
        finally:
            await stopped(consumer)
    return found


async def _committed(admin: AIOKafkaAdminClient, group_id: str) -> dict[TopicPartition, int]:
    known = await admin.list_consumer_group_offsets(group_id)
    return {tp: state.offset for tp, state in known.items() if state.offset >= 0}


async def _ranges(kafka: KafkaSettings, tps: list[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
    """Returns the first offsets of logs and the ones after their last, without the partitions that don't answer."""
    if not tps:
        return {}
    consumer: AIOKafkaConsumer[bytes, bytes] = outside_consumer(kafka)
    try:
        await consumer.start()
        firsts, ends = await first_offsets(consumer, tps), await end_offsets(consumer, tps)
        return {tp: (firsts[tp], ends[tp]) for tp in tps if tp in firsts and tp in ends}
    except kafka_errors.LeaderNotAvailableError:
        return {}
    finally:
        await stopped(consumer)


def _delay(text: str) -> float | None:
    try:
        seconds = parse_duration(text)
    except ValueError:
        return None
    return seconds if isinstance(seconds, float) else None
