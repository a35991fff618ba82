"""Decides readiness for Kafka in one place, so that `/readyz` and `dispatcher_kafka_available` can't disagree."""

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from dispatcher.health import HealthCheck
from dispatcher.kafka.problems import KafkaProblem

MAX_DETAILS: Final = 5
"""Of one reason: a problem of a thousand partitions is one problem."""


class Reader(Protocol):
    """A member of a consumer group."""

    group_id: str
    joined: bool
    broker_answers: bool


def kafka_checks(readers: Sequence[Reader], problems: Iterable[KafkaProblem]) -> list[HealthCheck]:
    """Returns one check for each condition, and one for each reason that is reported.

    The required ones fail if events can't be read or outcomes can't be written.
    """
    checks = []
    for reader in readers:
        reason = "" if reader.joined else "has not joined the group yet"
        checks.append(HealthCheck(f"consumer {reader.group_id} joined", reader.joined, reason))
        reason = "" if reader.broker_answers else "the brokers do not answer; it keeps trying"
        checks.append(HealthCheck(f"consumer {reader.group_id} broker", reader.broker_answers, reason))
    if not readers:
        checks.append(HealthCheck("kafka", False, "not connected yet; it keeps trying"))
    details: dict[str, list[str]] = {}
    required: set[str] = set()
    for problem in problems:
        known = details.setdefault(problem.reason, [])
        if problem.detail not in known and len(known) < MAX_DETAILS:
            known.append(problem.detail)
        if problem.stops_reading:
            required.add(problem.reason)
    for name, known in details.items():
        checks.append(HealthCheck(f"kafka: {name}", False, "; ".join(known), required=name in required))
    return checks
