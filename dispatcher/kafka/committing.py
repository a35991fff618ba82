"""Commits finished records soon, in one request at a time, with as much metadata as the broker accepts.

If the process is killed, the events in flight and those that were finished since the last commit are sent again. The
commits keep the second number below the first, or below a tenth of a second's work: a commit follows `commit_interval`
after the first record that it is for, but waits, up to a second, for half as many records as there are POSTs in flight.
"""

import asyncio
import math
from collections.abc import Callable, Collection, Iterable
from typing import Final

import structlog
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.kafka.broker_access import peer_of
from dispatcher.kafka.connection_errors import explain_error
from dispatcher.kafka.membership import GroupClient
from dispatcher.kafka.metadata_limit import SIZE_REFUSED, MetadataLimit
from dispatcher.kafka.partition import Partition
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.telemetry import metrics

log = structlog.get_logger(__name__)

COMMIT_S: Final = 10.0
"""Deadline of one commit: aiokafka would repeat it for ever."""
LONGEST_WAIT_S: Final = 1.0
SHORTEST_WAIT: Final = 5
"""A commit waits at least this part (1/n) of `commit_interval`, so that other records finish with it."""
FAILURE_LASTS_S: Final = 60.0
"""A failed commit stays a problem this long, unless a later commit succeeds."""


class CommitFailures:
    """Reports why commits of a group fail, until one succeeds."""

    def __init__(self, settings: KafkaSettings, group_id: str, problems: KafkaProblems) -> None:
        self._settings = settings
        self._group_id = group_id
        self._problems = problems
        self._source = f"commits of {group_id}"
        """The name under which failed commits are reported."""

    def report(self, error: Exception) -> None:
        """Counts a failed commit, and reports why it failed."""
        metrics.COMMIT_FAILURES.inc()
        if not isinstance(error, KafkaError | OSError):
            metrics.ERRORS.labels("consumer").inc()
            log.error("commit failed because of an odd answer or a bug", group=self._group_id, exc_info=error)
        detail = f"offsets of group {self._group_id} can't be committed: {self._why(error)}"
        self._problems.report(KafkaReason.COMMIT_REFUSED, detail, source=self._source, lasts_s=FAILURE_LASTS_S)

    def _why(self, error: Exception) -> str:
        if isinstance(error, SIZE_REFUSED):
            return "the broker refuses every commit, even without metadata: raise its message.max.bytes"
        if isinstance(error, CommitFailedError | IllegalStateError):
            # The group has moved on; the new owner begins at the last commit that went through.
            return f"the group has given the partitions to another member ({type(error).__name__})"
        address = self._settings.bootstrap_servers
        _, detail = explain_error(error, peer_of(self._settings, address, group_id=self._group_id))
        return f"kafka at {address}: {detail}"

    def clear(self) -> None:
        """Notes that a commit has succeeded."""
        self._problems.clear_all(self._source)


class Committer:
    """Commits the positions of one consumer's partitions."""

    def __init__(
        self, group_id: str, settings: KafkaSettings, in_flight: Callable[[], int], problems: KafkaProblems
    ) -> None:
        """Prepares a committer. `in_flight` returns the number of POSTs in flight."""
        self._group_id = group_id
        self._interval_s = settings.commit_interval
        self._in_flight = in_flight
        self._failures = CommitFailures(settings, group_id, problems)
        self._lock = asyncio.Lock()
        self._finished = 0
        """Records finished since the last commit began."""
        self._any_finished = asyncio.Event()
        self._limit = MetadataLimit(problems, f"consumer {group_id}")

    def on_finished(self) -> None:
        """Counts a record that has its outcome. The first one since the last commit wakes the commit loop."""
        self._finished += 1
        if self._finished == 1:
            self._any_finished.set()

    def request(self) -> None:
        """Requests a commit although no record was finished: a position is new."""
        self._any_finished.set()

    async def run(self, client: GroupClient, partitions: Callable[[], Collection[Partition]]) -> None:
        """Commits by time and by count until cancelled."""
        longest, now = max(LONGEST_WAIT_S, self._interval_s), asyncio.get_running_loop().time
        began = -math.inf
        while True:
            await self._any_finished.wait()
            first_at = now()
            due_at = max(began + self._interval_s, first_at + self._interval_s / SHORTEST_WAIT)
            await asyncio.sleep(due_at - first_at)
            while now() < first_at + longest:
                if 2 * self._finished >= self._in_flight():
                    break
                await asyncio.sleep(self._interval_s)
            self._any_finished.clear()
            began = now()
            if not await self.commit(client, partitions()):
                self._any_finished.set()
                await asyncio.sleep(LONGEST_WAIT_S)

    async def commit(self, client: GroupClient, partitions: Iterable[Partition]) -> bool:
        """Commits these partitions' positions now. Returns False if that failed; the next commit covers it."""
        async with self._lock:
            partitions = list(partitions)
            while True:
                self._finished = 0
                most_bytes = self._limit.bytes_now()
                states = {one: state for one in partitions if (state := one.to_commit(most_bytes)) is not None}
                if not states:
                    self._failures.clear()
                    return True
                longest = max(len(metadata) for _, metadata in states.values())
                try:
                    async with asyncio.timeout(COMMIT_S):
                        await client.commit({one.tp: state for one, state in states.items()})
                except Exception as error:  # noqa: BLE001  (reported there)
                    if isinstance(error, SIZE_REFUSED) and self._limit.lower(longest):
                        continue
                    self._failures.report(error)
                    return False
                metrics.COMMITS.inc()
                self._limit.accepted(longest)
                self._failures.clear()
                for partition, state in states.items():
                    partition.committed = state
                return True
