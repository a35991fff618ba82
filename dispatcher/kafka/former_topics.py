"""Finds topics with events that the present settings don't name: those of earlier versions or of earlier settings.

What was parked there must not be lost. A topic counts as a former one if
- its name is that of an earlier version, after the topic of events: `<topic>.retry.30s` and `<topic>.dead`. It belongs
  to every group on the topic of events, so a group that is new doesn't read it;
- it is a retry topic of the present prefix whose tier is gone from `retry`;
- the group's own readers have committed there: `kafka.topic_prefix` was another one, or is gone.

`run` reads former retry topics beside the present ones, as long as the group has unread records there, and `redrive`
reads former dead-letter topics. Former topics of held events are only named. `trace` looks into all of them. Nothing is
written to any.
"""

import asyncio
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import OffsetAndMetadata

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.config.settings import Settings
from dispatcher.config.units import parse_duration
from dispatcher.errors import NotFound
from dispatcher.kafka.committed_offsets import committed_offsets
from dispatcher.kafka.connection import admin_client, stopped
from dispatcher.kafka.groups import held_group, retry_group
from dispatcher.kafka.log_bounds import Range, ranges_of
from dispatcher.kafka.topic_lookup import all_topics
from dispatcher.kafka.topic_reader import outside_consumer
from dispatcher.kafka.topics import dead_letter_topic, held_topic, history_topic, retry_topics

log = structlog.get_logger(__name__)

_HELD = held_topic("")
_TIER = re.compile(r"(.+)\.retry\.([0-9a-z.]+)")


@dataclass(frozen=True, slots=True)
class FormerTopics:
    """The former topics that concern this group."""

    tiers: Mapping[str, float] = field(default_factory=dict)
    """Delay in seconds by name of a retry topic."""
    unread: Mapping[str, int] = field(default_factory=dict)
    """Records that the group has not finished, by name of a retry topic; only topics that have some."""
    held: Mapping[str, int] = field(default_factory=dict)
    """Records that the group has not finished, by name of a topic of held events; only topics that have some."""
    dead: tuple[str, ...] = ()
    """The dead-letter topics that hold records."""
    uncommitted: Mapping[TopicPartition, int] = field(default_factory=dict)
    """First offset of each partition of a retry topic that the group has never committed."""

    def messages(self) -> tuple[str, ...]:
        """Returns sentences for the operator about former topics with unread records."""
        parked = [
            f"topic {name}: holds {count} unread events parked by an earlier version or under other settings: they are "
            "read beside the present retry topics; delete the topic once there are none"
            for name, count in self.unread.items()
        ]
        held = [
            f"topic {name}: holds up to {count} held events of other settings, which are not read: set "
            f"kafka.topic_prefix to {name.removesuffix(_HELD)} until they are delivered"
            for name, count in self.held.items()
        ]
        dead = [
            f"topic {name}: holds dead events of an earlier version or other settings: `dispatcher redrive` reads it, "
            "too; delete it once they are no longer needed"
            for name in self.dead
        ]
        return (*parked, *held, *dead)


@dataclass(frozen=True, slots=True)
class FormerNames:
    """The existing topics with former names."""

    tiers: Mapping[str, float]
    """Delay in seconds by name of a retry topic."""
    uncertain: frozenset[str]
    """Retry topics that may be another group's."""
    held: tuple[str, ...]
    dead: tuple[str, ...]
    history: tuple[str, ...] = ()


def former_names(settings: Settings, existing: Iterable[str], read: Collection[str] = ()) -> FormerNames:
    """Returns the existing topics with former names. `read`: topics in which the group's own readers have committed."""
    kafka = settings.kafka
    own = {
        *retry_topics(kafka.prefix, settings.retry.tiers),
        held_topic(kafka.prefix),
        dead_letter_topic(kafka.prefix),
        history_topic(kafka.prefix),
        kafka.topic,
    }
    there = sorted(set(existing) - own)
    tiers: dict[str, float] = {}
    prefixes = {kafka.topic}
    uncertain = set()
    for name in there:
        match = _TIER.fullmatch(name)
        if match is None or (delay := _delay(match[2])) is None:
            continue
        if name in read or match[1] in (kafka.topic, kafka.prefix):
            tiers[name] = delay
            prefixes.add(match[1])
        if name not in read and match[1] != kafka.prefix:
            uncertain.add(name)
    held = tuple(name for name in there if name in read and name.endswith(_HELD))
    prefixes |= {name.removesuffix(_HELD) for name in held}
    dead = tuple(name for name in map(dead_letter_topic, sorted(prefixes)) if name in there)
    history = tuple(name for name in map(history_topic, sorted(prefixes)) if name in there)
    return FormerNames(tiers, frozenset(uncertain & tiers.keys()), held, dead, history)


async def dead_letter_topics(settings: Settings) -> tuple[str, ...]:
    """Returns the dead-letter topics that a redrive reads: the present one, then those of former names.

    Raises what aiokafka raises if the broker doesn't answer.

    Raises:
        NotFound: there is none.
    """
    own = dead_letter_topic(settings.kafka.prefix)
    existing, former = await find_former_names(settings)
    if own not in existing and not former.dead:
        raise NotFound(f"there is no topic {own}: create it with `dispatcher topics --create`")
    return (own, *former.dead) if own in existing else former.dead


async def find_former_names(settings: Settings) -> tuple[Collection[str], FormerNames]:
    """Returns the names of all topics, and the former ones among them.

    Raises what aiokafka raises if the broker doesn't answer.
    """
    async with admin_client(settings.kafka) as admin:
        described = await all_topics(admin)
        names = former_names(settings, described, described)  # as if the group had read every topic
        if names.tiers or names.held or names.dead or names.history:
            read = [tp.topic for commits in await _own_commits(admin, settings.kafka, described) for tp in commits]
            names = former_names(settings, described, read)
    return described, names


async def find_former_topics(settings: Settings) -> FormerTopics:
    """Returns the former topics that exist on the broker. Raises aiokafka's error if the broker doesn't answer."""
    kafka = settings.kafka
    async with admin_client(kafka) as admin:
        described = await all_topics(admin)
        possible = former_names(settings, described, described)  # as if the group had read every topic
        if not (possible.tiers or possible.held or possible.dead):
            return FormerTopics()
        retried, held = await _own_commits(admin, kafka, described)
        read = {**retried, **held}
        names = former_names(settings, described, {tp.topic for tp in read})
        tiers = dict(names.tiers)
        if names.uncertain and not await _is_old(admin, kafka, described, retried):
            tiers = {name: delay for name, delay in tiers.items() if name not in names.uncertain}
    waiting = _partitions(described, (*tiers, *names.held))
    dead_partitions = _partitions(described, names.dead)
    known = await _ranges(kafka, [*waiting, *dead_partitions])
    unread: dict[str, int] = {}
    for tp in waiting:
        first, end = known.get(tp, (0, 0))
        # One that doesn't answer may have records.
        if left := max(0, end - max(first, read.get(tp, 0))) if tp in known else 1:
            unread[tp.topic] = unread.get(tp.topic, 0) + left
    uncommitted = {tp: known[tp][0] for tp in _partitions(described, tiers) if tp not in read and tp in known}
    dead = {tp.topic for tp in dead_partitions if tp not in known or known[tp][0] < known[tp][1]}
    return FormerTopics(
        tiers,
        {name: count for name, count in unread.items() if name in tiers},
        {name: count for name, count in unread.items() if name not in tiers},
        tuple(sorted(dead)),
        uncommitted,
    )


async def _is_old(
    admin: AIOKafkaAdminClient,
    kafka: KafkaSettings,
    described: Mapping[str, int],
    retried: Mapping[TopicPartition, int],
) -> bool:
    """Returns True if the group has read retry topics named after the topic of events, or has yet to read any.

    `retried`: what its readers of retry topics have committed.
    """
    if any(tp.topic.startswith(f"{kafka.topic}.retry.") for tp in retried):
        return True
    events = _partitions(described, [kafka.topic])
    return not retried and bool(await committed_offsets(admin, kafka.group_id, events))


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


def _partitions(described: Mapping[str, int], topics: Iterable[str]) -> list[TopicPartition]:
    return [TopicPartition(name, number) for name in topics for number in range(described.get(name, 0))]


async def _own_commits(
    admin: AIOKafkaAdminClient, kafka: KafkaSettings, described: Mapping[str, int]
) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
    """Returns the positions that the group's readers have committed: those of parked events, and of held events."""
    tiers = _partitions(described, filter(_TIER.fullmatch, described))
    held = _partitions(described, (name for name in described if name.endswith(_HELD)))
    retried, held_events = await asyncio.gather(
        committed_offsets(admin, retry_group(kafka.group_id), tiers),
        committed_offsets(admin, held_group(kafka.group_id), held),
    )
    return _positions(retried), _positions(held_events)


def _positions(known: Mapping[TopicPartition, OffsetAndMetadata]) -> dict[TopicPartition, int]:
    return {tp: state.offset for tp, state in known.items()}


async def _ranges(kafka: KafkaSettings, tps: list[TopicPartition]) -> dict[TopicPartition, Range]:
    """Returns the first offsets of logs and the ones after their last, without the partitions that don't answer."""
    if not tps:
        return {}
    consumer: AIOKafkaConsumer[bytes, bytes] = outside_consumer(kafka)
    try:
        await consumer.start()
        return await ranges_of(consumer, tps)
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
