"""Runs `dispatcher history`: opens the ops endpoint, prepares the store, and stores entries until a signal."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import structlog

from dispatcher.config.settings import Settings
from dispatcher.config.webhook_lookup import ListWebhooks
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.lane_scheduler import LaneScheduler
from dispatcher.health import HealthCheck, HealthServer, LoopLag, OpsCallbacks
from dispatcher.history.states import StateJudge
from dispatcher.history.webhooks import KnownWebhooks
from dispatcher.history.worker import HistoryWorker, history_database
from dispatcher.notifications.notifier import Notifier, notification_store
from dispatcher.stores.sql.audit import AuditLog
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_states import TenantStates
from dispatcher.stores.sql.history_store import HistoryStore
from dispatcher.stores.webhook_file import Rules
from dispatcher.tasks import cancel_and_wait, stop_on_signals
from dispatcher.telemetry import metrics

log = structlog.get_logger(__name__)


class HistoryProcess:
    """A history worker as a process. `run` starts it, serves until a signal, and stops it."""

    def __init__(self, settings: Settings, rules: Rules) -> None:
        """Builds the process without starting it. `rules`: limits and checks for reading webhook files."""
        self._settings = settings
        self._webhooks = KnownWebhooks(settings.webhooks, rules)
        self._stop = asyncio.Event()
        self._loop_lag = LoopLag()

    async def run(self) -> int:
        """Runs until a signal. A batch that is being written is written again by the next worker.

        Raises:
            ConfigError: the settings name no store, or its tables are of a newer version.
        """
        metrics.initialise()
        database = history_database(self._settings, create=True)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(database.close)
            states = TenantStates(database)
            notifier = await open_notifier(
                self._settings, database, states, self._webhooks.all, self._webhooks.is_held, stack
            )
            store, judge = HistoryStore(database, self._settings.history), StateJudge(states, self._webhooks.all)
            worker = HistoryWorker(self._settings, store, judge, notifier)
            await stack.enter_async_context(HealthServer(self._settings.ops, self._ops_callbacks(worker)))
            stack.enter_context(stop_on_signals(self._stop, self._stop.set))
            tasks = [
                asyncio.create_task(worker.run(), name="history worker"),
                asyncio.create_task(self._webhooks.run(), name="webhook source"),
                asyncio.create_task(self._loop_lag.run(), name="event loop lag"),
                asyncio.create_task(self._stop.wait(), name="signal"),
            ]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await cancel_and_wait(*tasks)
        for task in done:
            task.result()
        log.info("stopped", status=0)
        return 0

    def _ops_callbacks(self, worker: HistoryWorker) -> OpsCallbacks:
        def ready() -> Sequence[HealthCheck]:
            draining = self._stop.is_set()
            return [HealthCheck("running", not draining, "draining" if draining else ""), *worker.checks]

        return OpsCallbacks(
            alive=lambda: [HealthCheck("event loop", True, f"worst lag {self._loop_lag.worst_s:.3f} s")],
            ready=ready,
            observe=lambda: None,
            lanes=LaneScheduler(self._settings.delivery),  # it sends nothing
            release_brakes=lambda: 0,
            configuration=self._settings.model_dump(mode="json"),
        )


async def open_notifier(
    settings: Settings,
    database: Database,
    states: TenantStates,
    webhooks: ListWebhooks,
    is_held: Callable[[TenantKey], bool],
    stack: AsyncExitStack,
) -> Notifier | None:
    """Opens what sends notifications. Returns None if the settings name neither mail server nor endpoint.

    Raises:
        ConfigError: a signing secret can't sign, or the database of webhooks can't be used.
    """
    if not settings.notifications.is_on:
        return None
    audit = None
    if settings.webhooks.store == "sql" and settings.webhooks.url is not None:
        webhook_database = Database(settings.webhooks.url)
        stack.push_async_callback(webhook_database.close)
        audit = AuditLog(webhook_database)
    store = notification_store(settings, database)
    return await stack.enter_async_context(Notifier(settings, states, store, webhooks, audit, is_held=is_held))
