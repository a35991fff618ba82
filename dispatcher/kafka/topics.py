"""The dispatcher's own topics: their names, their sound settings, and how they are created.

They are named after the consumer group, so that two groups on one topic of events never touch each other's parked and
dead events. Creating them never touches the topic of events, which belongs to the producer of events.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import InvalidReplicationFactorError, TopicAlreadyExistsError, for_code

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.config.settings import Settings
from dispatcher.config.units import format_duration
from dispatcher.delivery.retry_policy import RetryPolicy
from dispatcher.errors import DispatcherError
from dispatcher.kafka.connection import admin_client
from dispatcher.kafka.producer import HEADER_ROOM, largest_record
from dispatcher.kafka.topic_lookup import described_topics

_DAY_S: Final = 86_400
_HOUR_S: Final = 3_600
_SET_ON_THE_TOPIC: Final = 1
"""`config_source` of a value that was set on the topic itself."""


def retry_topics(prefix: str, tiers: Sequence[float]) -> tuple[str, ...]:
    """Returns the names of the tiers' topics, shortest delay first: `<prefix>.retry.30s`."""
    return tuple(f"{prefix}.retry.{format_duration(tier)}" for tier in tiers)


def held_topic(prefix: str) -> str:
    """Returns `<prefix>.held`, the topic of events that wait for a change of configuration."""
    return f"{prefix}.held"


def dead_letter_topic(prefix: str) -> str:
    """Returns `<prefix>.dead`, the dead-letter topic."""
    return f"{prefix}.dead"


def history_topic(prefix: str) -> str:
    """Returns `<prefix>.history`, the history topic."""
    return f"{prefix}.history"


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """One topic as it should be."""

    name: str
    partitions: int
    replication: int
    config: Mapping[str, str]
    least_retention_s: float
    """A topic that keeps its records for less time loses events."""
    least_message_bytes: int
    """A topic that accepts less can't take the largest event with the dispatcher's headers."""


def planned_topics(settings: Settings, partitions: int, replication: int) -> list[TopicPlan]:
    """Returns the dispatcher's own topics: retry topics, dead letters, held events and, if switched on, history.

    A parked record is kept longer than the age limit, a dead one for a fortnight. Headers may make a record larger
    than its event.
    """
    kafka, policy = settings.kafka, RetryPolicy.of(settings.retry)
    keep_s = settings.retry.max_age + 3 * _DAY_S
    insync = {"min.insync.replicas": "2"} if replication >= 3 else {}

    def plan(name: str, retention_s: float, least_s: float) -> TopicPlan:
        config = {
            "cleanup.policy": "delete",
            "retention.ms": str(int(retention_s * 1000)),
            "max.message.bytes": str(largest_record(kafka.max_record_bytes)),
        }
        return TopicPlan(name, partitions, replication, config | insync, least_s, kafka.max_record_bytes + HEADER_ROOM)

    # A parked record waits for its tier's delay; and an interruption may last an hour.
    plans = [
        plan(name, keep_s, policy.longest_wait_s(tier) + _HOUR_S)
        for name, tier in zip(retry_topics(kafka.prefix, policy.tiers), policy.tiers, strict=True)
    ]
    # A held event stays in place until the age limit.
    plans.append(plan(held_topic(kafka.prefix), keep_s, settings.retry.max_age + _HOUR_S))
    plans.append(plan(dead_letter_topic(kafka.prefix), 14 * _DAY_S, _DAY_S))
    if settings.history.is_on:
        plans.append(plan(history_topic(kafka.prefix), 3 * _DAY_S, 0))
    return plans


@dataclass(frozen=True, slots=True)
class FoundTopic:
    """One topic as it is."""

    partitions: int
    replication: int
    config: Mapping[str, str] | None
    """None if the permission to see it (DESCRIBE_CONFIGS) is missing."""
    own_config: Mapping[str, str]
    """Configuration set on the topic itself."""


async def found_topics(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, FoundTopic]:
    """Returns those of the topics that exist and are visible. Creates none, whatever the broker's settings."""
    described = await described_topics(admin, names)
    there = [name for name in names if name in described]
    configs = await _configs(admin, there) if there else {}
    found = {}
    for name in there:
        partitions = described[name]
        replication = min((len(one["replicas"]) for one in partitions), default=0)
        config, own = configs.get(name, (None, {}))
        found[name] = FoundTopic(len(partitions), replication, config, own)
    return found


async def _configs(
    admin: AIOKafkaAdminClient, names: Sequence[str]
) -> dict[str, tuple[Mapping[str, str], Mapping[str, str]]]:
    answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names])
    found: dict[str, tuple[Mapping[str, str], Mapping[str, str]]] = {}
    for answer in answers:
        for code, _, _, name, entries in answer.resources:
            if code == 0:
                values = {entry[0]: entry[1] or "" for entry in entries}
                own = {entry[0]: entry[1] or "" for entry in entries if entry[3] == _SET_ON_THE_TOPIC}
                found[name] = (values, own)
    return found


async def create_topics(settings: Settings, replication: int, partitions: int | None = None) -> dict[str, str]:
    """Creates what is missing, and sets what existing topics lack, as `lacking_config` finds it.

    Partitions: as many as the topic of events has, unless given.
    Returns what was done by topic: `created`, `exists`, or `set retention.ms=…`.

    Raises:
        DispatcherError: the topic of events is missing and no number of partitions is given, or the broker refused.
    """
    async with admin_client(settings.kafka) as admin:
        names = [plan.name for plan in planned_topics(settings, 1, 1)]
        found = await found_topics(admin, [settings.kafka.topic, *names])
        if partitions is None:
            partitions = _partitions_of_events(settings.kafka, found)
        done = {}
        for plan in planned_topics(settings, partitions, replication):
            there = found.get(plan.name)
            if there is None:
                done[plan.name] = await _create(admin, plan)
            elif lacking := lacking_config(plan, there):
                await _set_config(admin, plan.name, {**there.own_config, **lacking})
                done[plan.name] = "set " + ", ".join(f"{key}={value}" for key, value in lacking.items())
            else:
                done[plan.name] = "exists"
        return done


def lacking_config(plan: TopicPlan, topic: FoundTopic) -> dict[str, str]:
    """Returns the planned values that the topic's configuration lacks; empty if it can't be seen."""
    config = topic.config
    if config is None:
        return {}
    lacking = []
    if config.get("cleanup.policy", "delete") != "delete":
        lacking.append("cleanup.policy")
    if 0 <= config_number(config, "retention.ms") < plan.least_retention_s * 1000:
        lacking.append("retention.ms")
    if 0 <= config_number(config, "max.message.bytes") < plan.least_message_bytes:
        lacking.append("max.message.bytes")
    return {key: plan.config[key] for key in lacking}


def config_number(config: Mapping[str, str], name: str) -> int:
    """Returns a number of the configuration, or -1, which Kafka reads as unlimited, if there is none."""
    try:
        return int(config.get(name, "-1"))
    except ValueError:
        return -1


def _partitions_of_events(kafka: KafkaSettings, found: Mapping[str, FoundTopic]) -> int:
    events = found.get(kafka.topic)
    if events is None:
        raise DispatcherError(
            f"there is no topic {kafka.topic} (kafka.topic), whose number of partitions the others get: "
            "create it first, or give --partitions"
        )
    return events.partitions


async def _create(admin: AIOKafkaAdminClient, plan: TopicPlan) -> str:
    topic = NewTopic(plan.name, plan.partitions, plan.replication, topic_configs=dict(plan.config))
    response = await admin.create_topics([topic])  # refusals are in the answer, not raised
    for name, code, *rest in response.topic_errors:
        error = for_code(code)
        if error is TopicAlreadyExistsError:  # the list of topics that this broker gave was a moment old
            return "exists"
        if code:
            cure = ""
            if error is InvalidReplicationFactorError and plan.replication > 1:
                cure = f"; if the cluster has fewer than {plan.replication} brokers, give --replication 1"
            raise DispatcherError(f"topic {name}: {error.__name__} {rest[0] if rest else ''}".rstrip() + cure)
    return "created"


async def _set_config(admin: AIOKafkaAdminClient, name: str, config: Mapping[str, str]) -> None:
    """Sets the topic's own config; the request replaces all of it."""
    for answer in await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs=dict(config))]):
        for code, message, *_ in answer.resources:
            if code:
                raise DispatcherError(f"topic {name}: {for_code(code).__name__} {message or ''}".rstrip())
