"""Commits finished records soon, in one request at a time, with as much metadata as the broker accepts.

A kill repeats what was in flight and what was finished since the last commit. The second is kept below the first, or
below a tenth of a second's work: a commit follows `commit_interval` after the first record that it is for, but waits,
up to a second, for half as many records as there are POSTs in flight.
"""

import asyncio
import math
from collections.abc import Callable, Collection, Iterable
from typing import Final

import structlog
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError, OffsetMetadataTooLargeError

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.kafka.broker_access import peer_of
from dispatcher.kafka.connection_errors import explain
from dispatcher.kafka.membership import GroupClient
from dispatcher.kafka.metadata_limit import MetadataLimit
from dispatcher.kafka.partition import Partition
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.telemetry import metrics

log = structlog.get_logger(__name__)

COMMIT_S: Final = 10.0
"""Deadline of one commit: aiokafka would repeat it for ever."""
LONGEST_WAIT_S: Final = 1.0
SHORTEST_WAIT: Final = 5
"""Between a record and its commit is at least this fraction of `commit_interval`: other records finish with it."""
FAILURE_LASTS_S: Final = 60.0
"""A failed commit stays a problem this long, unless a later commit succeeds."""


class Committer:
    """Commits the positions of one consumer's partitions."""

    def __init__(
        self, group_id: str, settings: KafkaSettings, in_flight: Callable[[], int], problems: KafkaProblems
    ) -> None:
        """Prepares a committer. `in_flight` returns the number of POSTs in flight."""
        self._group_id = group_id
        self._settings = settings
        self._interval_s = settings.commit_interval
        self._in_flight = in_flight
        self._problems = problems
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
                    self._problems.clear_all(self._source)
                    return True
                longest = max(len(metadata) for _, metadata in states.values())
                try:
                    async with asyncio.timeout(COMMIT_S):
                        await client.commit({one.tp: state for one, state in states.items()})
                except OffsetMetadataTooLargeError:
                    if self._limit.lower(longest):
                        continue
                    self._report("the broker refuses every commit, even without metadata")
                    return False
                except (CommitFailedError, IllegalStateError) as error:
                    # The group has moved on; the new owner begins at the last commit that went through.
                    self._report(f"the group has given the partitions to another member ({type(error).__name__})")
                    return False
                except Exception as error:
                    if not isinstance(error, KafkaError | OSError):
                        metrics.ERRORS.labels("consumer").inc()
                        log.exception("commit failed because of an odd answer or a bug", group=self._group_id)
                    address = self._settings.bootstrap_servers
                    peer = peer_of(self._settings, address, group_id=self._group_id)
                    self._report(f"kafka at {address}: {explain(error, peer)[1]}")
                    return False
                metrics.COMMITS.inc()
                self._limit.accepted(longest)
                self._problems.clear_all(self._source)
                for partition, state in states.items():
                    partition.committed = state
                return True

    def _report(self, why: str) -> None:
        """Counts a failed commit, and reports why it failed until a commit succeeds."""
        metrics.COMMIT_FAILURES.inc()
        detail = f"offsets of group {self._group_id} can't be committed: {why}"
        self._problems.report(KafkaReason.COMMIT_REFUSED, detail, source=self._source, lasts_s=FAILURE_LASTS_S)

    @property
    def _source(self) -> str:
        """The name under which failed commits are reported."""
        return f"commits of {self._group_id}"
