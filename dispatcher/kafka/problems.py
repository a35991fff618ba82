"""Holds what is wrong with Kafka now, for readiness, the metric, the log and the exit messages.

The part that notices a problem reports it under its own name (`source`) and clears it when it is gone. The same problem
is logged at once and then at most once a minute.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Final

import structlog
from aiokafka import TopicPartition

from dispatcher.contract.kafka_problems import STOPS_READING, KafkaReason
from dispatcher.telemetry import metrics

log = structlog.get_logger(__name__)

LOG_EVERY_S: Final = 60.0
MAX_DETAIL: Final = 500
"""Characters of a detail: it may quote a broker."""
MAX_REPORTED: Final = 1000
"""Problems that are kept: partitions and brokers are few."""


def partition_name(tp: TopicPartition) -> str:
    """Returns the name of a partition in log lines, and as the source of a problem: `topic/0`."""
    return f"{tp.topic}/{tp.partition}"


@dataclass(frozen=True, slots=True)
class KafkaProblem:
    """One problem, as `/readyz` and the log show it."""

    reason: KafkaReason
    detail: str
    """One sentence that names the resource, and the cure if one is known."""
    source: str
    """The part that noticed it: `consumer <group>`, `<topic>/<partition>`, `connection`; empty if it doesn't matter."""

    @property
    def stops_reading(self) -> bool:
        """True if no events can be read, or no outcomes written, while the problem lasts."""
        return self.reason in STOPS_READING


class KafkaProblems:
    """Holds the problems that were reported and not yet cleared. One per process, owned by the service."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts without problems. `clock` returns monotonic seconds."""
        self._clock = clock
        self._reported: dict[tuple[KafkaReason, str], tuple[KafkaProblem, float]] = {}
        """By reason and source: the problem, and when it clears itself."""
        self._logged: dict[tuple[KafkaReason, str], float] = {}
        """By reason and detail: when it was logged."""
        self._logged_reasons: set[KafkaReason] = set()
        """Reasons that were logged and not yet logged as solved."""

    def __repr__(self) -> str:
        return f"<KafkaProblems {[str(reason) for reason, _ in self._reported]}>"

    def report(self, reason: KafkaReason, detail: str, *, source: str = "", lasts_s: float | None = None) -> None:
        """Reports a problem, or that it persists.

        `lasts_s`: seconds without another report after which the problem clears itself; None: it stays until cleared.
        """
        key = reason, source
        if key not in self._reported and len(self._reported) >= MAX_REPORTED:
            return
        problem = KafkaProblem(reason, detail[:MAX_DETAIL], source)
        self._reported[key] = problem, inf if lasts_s is None else self._clock() + lasts_s
        if self._is_to_be_logged(problem):
            self._logged_reasons.add(reason)
            log.warning("kafka problem", reason=str(reason), detail=problem.detail, source=source or None)
        metrics.KAFKA_PROBLEM.labels(str(reason)).set(1)

    def reports(self, reason: KafkaReason) -> bool:
        """Returns True if any source reports this reason."""
        return any(known == reason for known, _ in self._reported)

    def clear(self, reason: KafkaReason, *, source: str = "") -> None:
        """Removes a problem that is gone. Does nothing if it was not reported."""
        known = self._reported.pop((reason, source), None)
        if known is None or self.reports(reason):
            return
        metrics.KAFKA_PROBLEM.labels(str(reason)).set(0)
        if reason in self._logged_reasons:
            self._logged_reasons.discard(reason)
            log.info("kafka problem solved", reason=str(reason), detail=known[0].detail)

    def clear_all(self, source: str) -> None:
        """Removes all problems of this source."""
        self.replace(source, {})

    def replace(self, source: str, found: Mapping[KafkaReason, str]) -> None:
        """Reports exactly these problems for a source that sees all of its problems at once; clears its others."""
        for reason, detail in found.items():
            self.report(reason, detail, source=source)
        for reason, by in list(self._reported):
            if by == source and reason not in found:
                self.clear(reason, source=source)

    @property
    def current(self) -> tuple[KafkaProblem, ...]:
        """All problems, those that stop reading first."""
        now = self._clock()
        for (reason, source), (_, until) in list(self._reported.items()):
            if until <= now:
                self.clear(reason, source=source)
        problems = [problem for problem, _ in self._reported.values()]
        return tuple(sorted(problems, key=lambda one: (not one.stops_reading, one.reason, one.source)))

    def _is_to_be_logged(self, problem: KafkaProblem) -> bool:
        """Returns True for a new problem, then once a minute; one that several sources report counts once."""
        now, key = self._clock(), (problem.reason, problem.detail)
        if now - self._logged.get(key, -inf) < LOG_EVERY_S:
            return False
        if len(self._logged) >= MAX_REPORTED:
            self._logged = {one: at for one, at in self._logged.items() if now - at < LOG_EVERY_S}
        if len(self._logged) < MAX_REPORTED:
            self._logged[key] = now
        return True
