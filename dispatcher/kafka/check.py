"""Checks for `dispatcher check --kafka` that the cluster has everything that a running dispatcher needs."""

from dataclasses import dataclass

from dispatcher.config.settings import Settings
from dispatcher.contract.kafka_problems import CONNECTING, KafkaReason
from dispatcher.delivery.retry_policy import RetryPolicy
from dispatcher.kafka.committed_offsets import COORDINATOR_S
from dispatcher.kafka.former_topics import find_former_topics
from dispatcher.kafka.groups import delivering_groups, group_names
from dispatcher.kafka.probe import AclOperation, Findings, GroupNeed, KafkaProbe, TopicNeed
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.kafka.topic_comparison import known_topics
from dispatcher.kafka.topic_reader import translating_kafka_errors
from dispatcher.kafka.topics import dead_letter_topic, held_topic, history_topic, planned_topics, retry_topics
from dispatcher.tasks import Patience


@dataclass(frozen=True, slots=True)
class KafkaReport:
    """The result of checking the cluster: lines for what is right, wrong, and worth attention."""

    good: tuple[str, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    """Findings that need attention but don't stop everything: brokers that can't be reached, partitions without a
    leader, a topic's retention or partitions, topics of former names."""


def topic_needs(settings: Settings) -> list[TopicNeed]:
    """Returns the dispatcher's topics with the operations that it performs on each."""
    cure = "`dispatcher topics --create` creates it"
    prefix = settings.kafka.prefix
    required = {*retry_topics(prefix, RetryPolicy.of(settings.retry).tiers), held_topic(prefix)}
    read_too = required | ({history_topic(prefix)} if settings.history.has_store else set())
    required.add(dead_letter_topic(prefix))
    events = TopicNeed(settings.kafka.topic, (AclOperation.READ,), "create it, or correct kafka.topic")
    needs = [events]
    for plan in planned_topics(settings, 1, 1):
        operations = (AclOperation.READ, AclOperation.WRITE) if plan.name in read_too else (AclOperation.WRITE,)
        needs.append(TopicNeed(plan.name, operations, cure, plan.name in required))
    return needs


def group_needs(settings: Settings) -> list[GroupNeed]:
    """Returns the dispatcher's consumer groups."""
    required = delivering_groups(settings)
    return [GroupNeed(name, name in required) for name in group_names(settings)]


def kafka_probe(settings: Settings, problems: KafkaProblems | None = None) -> KafkaProbe:
    """Returns a probe for all topics, groups and permissions that the dispatcher needs."""
    return KafkaProbe(settings.kafka, topic_needs(settings), group_needs(settings), problems)


async def check_kafka(settings: Settings) -> KafkaReport:
    """Connects with the settings and checks brokers, topics and permissions. Writes nothing, joins no group.

    Waits up to `COORDINATOR_S` for coordinators and leaders: a new cluster has none in its first seconds, and they move
    while a broker restarts.

    Raises:
        BrokerUnavailable: the brokers stopped answering during the check.
    """
    patience = Patience(0.1, 1.0, COORDINATOR_S)
    async with kafka_probe(settings) as probe:
        while _may_settle(found := await probe.look()) and not patience.is_over:
            await patience.wait()
    found.add_offline(found.without_leader)
    waiting = (KafkaReason.BROKER_UNREACHABLE, KafkaReason.PARTITION_OFFLINE)
    silent = tuple(detail for reason in waiting for detail in found.problems.pop(reason, ()))
    details = tuple(detail for details in found.problems.values() for detail in details)
    warnings: tuple[str, ...] = silent
    if found.topics:
        with translating_kafka_errors(settings.kafka):
            compared = (await known_topics(settings)).warnings
            former = await find_former_topics(settings)
        warnings = (*silent, *(str(one) for one in compared if one.topic in found.topics), *former.messages())
    return KafkaReport(_success_messages(settings, found), details, warnings)


def _may_settle(found: Findings) -> bool:
    return KafkaReason.COORDINATOR_UNAVAILABLE in found.problems or bool(found.without_leader)


def _success_messages(settings: Settings, found: Findings) -> tuple[str, ...]:
    if not found.answers or any(reason in CONNECTING for reason in found.problems):
        return ()
    security = settings.kafka.security
    how = security.protocol if security.mechanism is None else f"{security.protocol}, {security.mechanism}"
    good = [f"kafka at {settings.kafka.bootstrap_servers} answers ({how})"]
    wrong = "; ".join(found.details.values())
    for name, partitions in found.topics.items():
        if f"topic {name}:" not in wrong:
            good.append(f"topic {name}: {partitions} partitions, and the permissions that are needed")
    good += [f"group {group}: can be joined" for group in group_names(settings) if f"group {group}:" not in wrong]
    return tuple(good)
