"""Stores what the history topic reports, and forgets what is older than `history.keep`."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

from dispatcher.config.settings import Settings
from dispatcher.contract.history import HistoryRecord
from dispatcher.contract.history_positions import Move, TopicAndPartition
from dispatcher.errors import ConfigError, Problem, StoreUnavailable
from dispatcher.health import HealthCheck
from dispatcher.history.states import StateJudge
from dispatcher.kafka.history_reader import HistoryReader
from dispatcher.kafka.topics import history_topic
from dispatcher.notifications.notifier import Notifier
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_evidence import CLOCKS_DIFFER_MS
from dispatcher.stores.sql.history_rows import Row, rows_of
from dispatcher.stores.sql.history_store import HistoryStore
from dispatcher.stores.sql.repeating import keep_trying
from dispatcher.tasks import Backoff, cancel_and_wait
from dispatcher.telemetry import metrics

EXPIRE_EVERY_S: Final = 600.0
FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 30.0

log = structlog.get_logger(__name__)


def history_database(settings: Settings, *, create: bool = False) -> Database:
    """Opens the database that `history.url` names. `create`: creates a missing SQLite file, as only the worker does.

    Raises:
        ConfigError: the settings name none, or its URL can't be used.
    """
    if settings.history.url is None:
        raise ConfigError([Problem("names the database of the history store: set it", "history.url")])
    return Database(settings.history.url, create=create, setting="history.url")


class HistoryWorker:
    """One worker; `run` is its task."""

    def __init__(
        self,
        settings: Settings,
        store: HistoryStore,
        judge: StateJudge | None = None,
        notifier: Notifier | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Builds the worker without starting it.

        Args:
            judge: judges the states of webhooks; None if they are not wanted.
            notifier: sends notifications, opened by the caller; None if there are none.
        """
        self._store = store
        self._judge = judge
        self._notifier = notifier
        self._clock = clock
        self._is_prepared = False
        self.reader = HistoryReader(settings.kafka, history_topic(settings.kafka.prefix), self._write, store.positions)
        self.newest = 0.0
        """Unix seconds: time of the newest entry of the latest batch, at most that of the batch's writing."""

    async def run(self) -> None:
        """Stores entries until cancelled. Neither broker nor database has to be there at the start.

        Raises:
            ConfigError: the tables are of a newer version of this program.
        """
        await self._prepare()
        tasks = [
            asyncio.create_task(self.reader.run(), name="history reader"),
            asyncio.create_task(
                keep_trying(
                    self._expire,
                    EXPIRE_EVERY_S,
                    component="history",
                    if_unavailable="old history is not dropped yet",
                    if_bug="old history is not dropped because of a bug",
                ),
                name="history retention",
            ),
        ]
        if self._judge is not None:
            tasks.append(asyncio.create_task(self._judge.run(self._progress), name="webhook states"))
        if self._notifier is not None:
            tasks.append(asyncio.create_task(self._notifier.run(), name="notifications"))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(*tasks)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    @property
    def checks(self) -> Sequence[HealthCheck]:
        """Readiness: whether entries reach the store."""
        problem = None if self._is_prepared else "the store has not answered yet; kept trying"
        problem = problem or self.reader.problem
        return [HealthCheck("history", problem is None, problem or "")]

    def _progress(self) -> tuple[int | None, float]:
        return (None if self.reader.problem is not None else self.reader.lag), self.newest

    async def _prepare(self) -> None:
        backoff = Backoff(FIRST_WAIT_S, LONGEST_WAIT_S)
        while True:
            try:
                await self._store.prepare()
            except StoreUnavailable as error:
                metrics.HISTORY_STORE_FAILURES.inc()
                log.warning("history store can't be prepared; kept trying", problem=str(error))
            else:
                self._is_prepared = True
                log.info("history store is ready", store=self._store.name)
                return
            await backoff.wait()

    async def _write(self, records: Sequence[HistoryRecord], moves: Mapping[TopicAndPartition, Move]) -> None:
        rows = []
        refused = 0
        for record in records:
            fitting, unfit = rows_of(record)
            rows += fitting
            refused += unfit
        written = await self._store.write(rows, moves)
        metrics.HISTORY_STORED.labels("stored").inc(written.added)
        metrics.HISTORY_STORED.labels("repeated").inc(len(rows) - sum(written))
        metrics.HISTORY_STORED.labels("left_out").inc(written.left_out)
        metrics.HISTORY_STORED.labels("refused").inc(refused + written.refused)
        self.newest = self._newest_of(rows)
        metrics.HISTORY_NEWEST.set(self.newest)

    def _newest_of(self, rows: Sequence[Row]) -> float:
        """Returns the time of the batch's newest entry, without entries that are in the future."""
        now_ms = int(self._clock() * 1000)
        times = [min(row[1], now_ms) for row in rows if row[1] <= now_ms + CLOCKS_DIFFER_MS]
        return max(times) / 1000 if times else self.newest

    async def _expire(self) -> None:
        """Deletes entries that are older than the retention."""
        dropped = await self._store.expire()
        if dropped:
            log.info("old history dropped", dropped=dropped)
