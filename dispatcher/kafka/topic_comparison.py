"""Compares the dispatcher's own topics with the settings: retention, size, cleanup, partitions. Pure except one read.

`dispatcher topics`, `dispatcher check --kafka` and `run` use it, so they report the same. A warning never stops them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dispatcher.config.settings import Settings
from dispatcher.config.units import format_duration
from dispatcher.kafka.connection import admin_client
from dispatcher.kafka.topics import FoundTopic, TopicPlan, config_number, found_topics, lacking_config, planned_topics


@dataclass(frozen=True, slots=True)
class TopicWarning:
    """One thing that is wrong with a topic."""

    topic: str
    message: str
    """The mistake, its consequence, and the correction."""

    def __str__(self) -> str:
        return f"topic {self.topic}: {self.message}"


@dataclass(frozen=True, slots=True)
class KnownTopics:
    """Facts about the topics that were found, and warnings about them."""

    events_partitions: int
    """Number of partitions of the topic of events; 0 if it is missing."""
    warnings: tuple[TopicWarning, ...]


async def known_topics(settings: Settings) -> KnownTopics:
    """Asks the broker, and compares the dispatcher's own topics with the settings. Creates and changes nothing.

    Raises what aiokafka raises if no broker answers.
    """
    plans = planned_topics(settings, 1, 1)
    async with admin_client(settings.kafka) as admin:
        found = await found_topics(admin, [settings.kafka.topic, *(plan.name for plan in plans)])
    events = found.get(settings.kafka.topic)
    warnings = (*compare_topics(plans, found, events), *warnings_of_events(settings.kafka.topic, events))
    return KnownTopics(0 if events is None else events.partitions, warnings)


def compare_topics(
    plans: list[TopicPlan], found: Mapping[str, FoundTopic], events: FoundTopic | None
) -> tuple[TopicWarning, ...]:
    """Returns a warning for each mistake in the topics. `events`: the topic of events; None if it is missing."""
    return tuple(
        TopicWarning(plan.name, message)
        for plan in plans
        for message in _messages(plan, found.get(plan.name), 0 if events is None else events.partitions)
    )


def warnings_of_events(name: str, events: FoundTopic | None) -> tuple[TopicWarning, ...]:
    """Returns a warning if the topic of events, which others configure, loses events before they are read."""
    policy = "" if events is None or events.config is None else events.config.get("cleanup.policy", "")
    if "compact" not in policy:
        return ()
    message = (
        f"cleanup.policy is {policy}: of events with the same key, all but the last may be lost before they are read, "
        "and everything is sent again if the record is gone that shows how far was read; set cleanup.policy=delete"
    )
    return (TopicWarning(name, message),)


def _messages(plan: TopicPlan, topic: FoundTopic | None, wanted_partitions: int) -> Iterator[str]:
    if topic is None:
        yield "is missing, or may not be seen: create it with `dispatcher topics --create`"
        return
    if topic.partitions < wanted_partitions:
        yield (
            f"has {topic.partitions} partitions, fewer than the {wanted_partitions} of the topic of events: at most "
            f"{topic.partitions} processes share its work"
        )
    if topic.config is None:
        yield "its retention and size are not checked: the permission DESCRIBE_CONFIGS is missing"
        return
    yield from _config_messages(plan, topic, topic.config)


def _config_messages(plan: TopicPlan, topic: FoundTopic, config: Mapping[str, str]) -> Iterator[str]:
    lacking = lacking_config(plan, topic)
    cures = {key: f"set {key}={value}, or run `dispatcher topics --create`" for key, value in lacking.items()}
    if "cleanup.policy" in lacking:
        yield (
            f"cleanup.policy is {config['cleanup.policy']}: of events with the same key, all but the last are lost, "
            f"and events without a key are refused; {cures['cleanup.policy']}"
        )
    if "retention.ms" in lacking:
        kept, least = float(config["retention.ms"]) / 1000, plan.least_retention_s
        yield (
            f"keeps records for {format_duration(kept)}, and the settings need at least {format_duration(least)}: "
            f"events are lost; {cures['retention.ms']}"
        )
    if "max.message.bytes" in lacking:
        yield (
            f"accepts records of {config['max.message.bytes']} bytes, and an event may need "
            f"{plan.least_message_bytes}: larger ones can't be kept whole; {cures['max.message.bytes']}"
        )
    if config_number(config, "retention.bytes") >= 0:
        yield (
            f"retention.bytes is {config['retention.bytes']}: records may be removed before their time; "
            "set retention.bytes=-1"
        )
    insync = config_number(config, "min.insync.replicas")
    if insync > topic.replication > 0:
        yield (
            f"min.insync.replicas is {insync}, and it has {topic.replication} replicas: brokers before Kafka 4 refuse "
            "every write; add replicas or lower min.insync.replicas"
        )
