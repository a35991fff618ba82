"""Decides readiness for Kafka in one place, so that `/readyz` and `dispatcher_kafka_available` can't disagree."""

from collections.abc import Iterable, Sequence
from typing import Final

from dispatcher.health import HealthCheck
from dispatcher.kafka.group_session import GroupSession
from dispatcher.kafka.problems import KafkaProblem

MAX_DETAILS: Final = 5
"""Details shown for one reason: a problem of a thousand partitions is one problem."""


def kafka_checks(sessions: Sequence[GroupSession], problems: Iterable[KafkaProblem]) -> list[HealthCheck]:
    """Returns one check for each condition, and one for each reason that is reported.

    The required ones fail if events can't be read or outcomes can't be written.
    """
    checks = []
    for session in sessions:
        reason = "" if session.joined else "has not joined the group yet"
        checks.append(HealthCheck(f"consumer {session.group_id} joined", session.joined, reason))
        answers = session.broker_answers or not session.joined  # until then, the problems below say why it has not
        reason = "" if answers else "the brokers do not answer; it keeps trying"
        checks.append(HealthCheck(f"consumer {session.group_id} broker", answers, reason))
    if not sessions:
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
