"""Tests what the comparison of the dispatcher's own topics with the settings finds, and what it leaves alone."""

from collections.abc import Mapping

import pytest

from dispatcher.kafka.topic_comparison import compare_topics, warnings_of_events
from dispatcher.kafka.topics import FoundTopic, TopicPlan, lacking_config

PLAN = TopicPlan(
    "g.retry.30s",
    12,
    3,
    {"cleanup.policy": "delete", "retention.ms": "86400000", "max.message.bytes": "2000"},
    3600.0,
    1000,
)
EVENTS = FoundTopic(12, 3, {}, {})
FINE = {"cleanup.policy": "delete", "retention.ms": "3600000", "max.message.bytes": "1000", "min.insync.replicas": "3"}


def _topic(partitions: int = 12, replication: int = 3, **changed: str) -> FoundTopic:
    config = FINE | {name.replace("_", "."): value for name, value in changed.items()}
    return FoundTopic(partitions, replication, config, {})


def _messages(found: Mapping[str, FoundTopic], events: FoundTopic | None = EVENTS) -> list[str]:
    return [str(warning) for warning in compare_topics([PLAN], found, events)]


def test_a_topic_that_just_fits_is_left_alone() -> None:
    """Every value is at its limit: the least retention, the least size, as many replicas as must be in sync."""
    assert _messages({PLAN.name: _topic()}) == []
    assert lacking_config(PLAN, _topic()) == {}


def test_a_compacted_topic_of_events_is_named() -> None:
    (warning,) = warnings_of_events("events", _topic(cleanup_policy="compact,delete"))
    assert str(warning).startswith("topic events: cleanup.policy is compact,delete: of events with the same key")
    assert warnings_of_events("events", _topic()) == ()
    assert warnings_of_events("events", EVENTS) == (), "without a value there is nothing to say"
    assert warnings_of_events("events", None) == ()


@pytest.mark.parametrize(
    "changed",
    [
        {"retention_ms": "-1"},
        {"retention_bytes": "-1"},
        {"max_message_bytes": "nonsense"},
        {"retention_ms": ""},
    ],
    ids=str,
)
def test_unlimited_and_unreadable_values_are_left_alone(changed: dict[str, str]) -> None:
    assert _messages({PLAN.name: _topic(**changed)}) == []


@pytest.mark.parametrize(
    ("changed", "says", "sets"),
    [
        ({"retention_ms": "3599999"}, "the settings need at least 1h", {"retention.ms": "86400000"}),
        ({"retention_ms": "0"}, "events are lost", {"retention.ms": "86400000"}),
        ({"retention_ms": "1800000"}, "keeps records for 30m", {"retention.ms": "86400000"}),
        ({"max_message_bytes": "999"}, "accepts records of 999 bytes", {"max.message.bytes": "2000"}),
        ({"cleanup_policy": "compact"}, "cleanup.policy is compact", {"cleanup.policy": "delete"}),
        ({"cleanup_policy": "compact,delete"}, "all but the last are lost", {"cleanup.policy": "delete"}),
        ({"retention_bytes": "0"}, "retention.bytes is 0", {}),
        ({"min_insync_replicas": "4"}, "min.insync.replicas is 4, and it has 3 replicas", {}),
    ],
)
def test_settings_that_lose_or_refuse_events_are_reported_with_the_correction(
    changed: dict[str, str], says: str, sets: dict[str, str]
) -> None:
    topic = _topic(**changed)

    (message,) = _messages({PLAN.name: topic})

    assert message.startswith(f"topic {PLAN.name}: ")
    assert says in message
    assert lacking_config(PLAN, topic) == sets
    for key, value in sets.items():
        assert f"set {key}={value}, or run `dispatcher topics --create`" in message


def test_several_problems_of_a_topic_are_all_named() -> None:
    messages = _messages({PLAN.name: _topic(partitions=11, cleanup_policy="compact", retention_ms="1")})

    assert len(messages) == 3
    assert "has 11 partitions, fewer than the 12 of the topic of events" in messages[0]


def test_more_partitions_than_the_topic_of_events_are_accepted() -> None:
    assert _messages({PLAN.name: _topic(partitions=13)}) == []
    assert _messages({PLAN.name: _topic(partitions=1)}, events=None) == []


def test_a_missing_topic_is_named() -> None:
    (message,) = _messages({})

    assert "is missing, or may not be seen" in message


def test_without_the_permission_to_see_the_configuration_only_that_is_said() -> None:
    topic = FoundTopic(12, 3, None, {})

    (message,) = _messages({PLAN.name: topic})

    assert "DESCRIBE_CONFIGS is missing" in message
    assert lacking_config(PLAN, topic) == {}


def test_a_single_replica_is_compared_with_those_in_sync() -> None:
    (message,) = _messages({PLAN.name: _topic(replication=1, min_insync_replicas="2")})

    assert "min.insync.replicas is 2, and it has 1 replicas" in message


def test_a_topic_without_known_replicas_is_not_compared_with_those_in_sync() -> None:
    assert _messages({PLAN.name: _topic(replication=0, min_insync_replicas="2")}) == []
