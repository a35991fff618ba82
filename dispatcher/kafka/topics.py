"""The topics that the dispatcher uses, named after the topic of delivery events, and their sound settings."""

from collections.abc import Mapping
from dataclasses import dataclass

from aiokafka.admin import NewTopic
from aiokafka.errors import TopicAlreadyExistsError, for_code

from dispatcher.config.settings import Settings
from dispatcher.config.units import format_duration
from dispatcher.errors import DispatcherError
from dispatcher.kafka.connection import admin_client

_DAY_S = 86_400


def retry_topics(topic: str, tiers: tuple[float, ...]) -> tuple[str, ...]:
    """Names of the tiers' topics, shortest delay first: `<topic>.retry.30s`."""
    return tuple(f"{topic}.retry.{format_duration(tier)}" for tier in tiers)


def dead_letter_topic(topic: str) -> str:
    """`<topic>.dead`"""
    return f"{topic}.dead"


def attempts_topic(topic: str) -> str:
    """`<topic>.attempts`"""
    return f"{topic}.attempts"


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """One topic as it should be."""

    name: str
    partitions: int
    replication: int
    config: Mapping[str, str]


def planned_topics(settings: Settings, partitions: int, replication: int) -> list[TopicPlan]:
    """Everything but the topic of events itself, whose owner is the producer of events.

    A parked record must outlive the age limit, a dead one a fortnight of holidays. They may be larger than the record
    they were made from, by their headers.
    """
    largest = str(settings.kafka.max_record_bytes * 2 + 64 * 1024)
    keep_s = settings.retry.max_age + 3 * _DAY_S
    insync = {"min.insync.replicas": "2"} if replication >= 3 else {}

    def plan(name: str, retention_s: float) -> TopicPlan:
        config = {
            "cleanup.policy": "delete",
            "retention.ms": str(int(retention_s * 1000)),
            "max.message.bytes": largest,
        }
        return TopicPlan(name, partitions, replication, config | insync)

    topic = settings.kafka.topic
    plans = [plan(name, keep_s) for name in retry_topics(topic, settings.retry.tiers)]
    plans.append(plan(dead_letter_topic(topic), 14 * _DAY_S))
    if settings.attempt_log:
        plans.append(plan(attempts_topic(topic), 7 * _DAY_S))
    return plans


async def create_topics(settings: Settings, replication: int, partitions: int | None = None) -> dict[str, str]:
    """Create what is missing; partitions as many as the topic of events has, where not given.

    Gives what became of each topic: `created` or `exists`.

    Raises:
        DispatcherError: the broker refused one; the message says which and why.
    """
    async with admin_client(settings.kafka) as admin:
        if partitions is None:
            # All topics are asked for: asking for this one would create it where the broker creates topics.
            described = {found["topic"]: found["partitions"] for found in await admin.describe_topics()}
            partitions = len(described.get(settings.kafka.topic, ())) or 1
        plans = planned_topics(settings, partitions, replication)
        existing = set(await admin.list_topics())
        missing = [plan for plan in plans if plan.name not in existing]
        if missing:
            _raise_refusals(await admin.create_topics([_new_topic(plan) for plan in missing]))
        return {plan.name: "created" if plan in missing else "exists" for plan in plans}


def _new_topic(plan: TopicPlan) -> NewTopic:
    return NewTopic(plan.name, plan.partitions, plan.replication, topic_configs=dict(plan.config))


def _raise_refusals(response: object) -> None:
    for name, code, *rest in getattr(response, "topic_errors", []):
        error = for_code(code)
        if code and error is not TopicAlreadyExistsError:
            raise DispatcherError(f"topic {name}: {error.__name__} {rest[0] if rest else ''}".rstrip())
