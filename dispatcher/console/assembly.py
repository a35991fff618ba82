"""Builds the console's services once. The caller runs and owns their tasks."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from dispatcher.checks import webhook_check
from dispatcher.config.settings import Settings
from dispatcher.config.webhook_revision import Webhook
from dispatcher.console.actions import why_skipped
from dispatcher.console.formatting import span
from dispatcher.console.services import Services
from dispatcher.console.sources.attempts import AttemptReader
from dispatcher.console.sources.dead_events import DeadLetterReader
from dispatcher.console.sources.delivered_events import DeliveredEvents
from dispatcher.console.sources.history import HistoryLookup
from dispatcher.console.sources.jwks import PublishedKeys
from dispatcher.console.sources.lanes import RunningLanes
from dispatcher.console.sources.redrive_jobs import RedriveJobs
from dispatcher.console.sources.retry_backlog import RetryBacklog
from dispatcher.console.sources.test_sender import SampleSender
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import StoreUnavailable
from dispatcher.history.process import open_notifier
from dispatcher.history.states import StateJudge
from dispatcher.history.worker import HistoryWorker, history_database
from dispatcher.notifications.desk import NotificationDesk
from dispatcher.notifications.notifier import notification_store
from dispatcher.stores.sql.audit import AuditLog
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import Encryption
from dispatcher.stores.sql.ended_sessions import EndedSessions
from dispatcher.stores.sql.history_search import HistorySearch
from dispatcher.stores.sql.history_states import CURRENT_S, TenantStates
from dispatcher.stores.sql.history_store import HistoryStore
from dispatcher.stores.sql.jobs import JobStore
from dispatcher.stores.sql.notification_store import NotificationStore
from dispatcher.stores.sql.repository import WebhookRepository
from dispatcher.stores.sql.store import SqlStore, open_sql_store
from dispatcher.stores.sql.tokens import ApiTokens

_NOT_WRITTEN: Final = "the history is not being written right now: the newest entries are missing"


@dataclass(frozen=True, slots=True)
class RunningServices:
    """The console's services, and what keeps them up to date. The caller runs `run` as a task."""

    services: Services
    store: SqlStore
    history_worker: HistoryWorker | None

    async def run(self) -> None:
        """Tails the topics, watches the store and runs redrives until cancelled. Never returns."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.services.attempts.run(), name="attempts")
            tasks.create_task(self.services.dead_events.run(), name="dead letters")
            tasks.create_task(self.services.jobs.run(), name="redrives")
            tasks.create_task(self.store.run(), name="webhook source")
            if self.history_worker is not None:
                tasks.create_task(self.history_worker.run(), name="history worker")


@asynccontextmanager
async def open_services(settings: Settings, database: Database) -> AsyncIterator[RunningServices]:
    """Opens the services. Neither the broker nor a database needs to be available.

    Args:
        database: the database that the webhooks are edited in.

    Raises:
        ConfigError: see `open_sql_store`.
    """
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_sql_store(settings.webhooks))
        lanes = await stack.enter_async_context(
            RunningLanes(settings.console, token=settings.ops.token, tls=settings.ops.tls)
        )
        waiting = RetryBacklog(settings)
        stack.push_async_callback(waiting.close)
        encryption = Encryption(settings.webhooks.encryption_keys)
        webhooks = WebhookRepository(database, encryption, webhook_check(settings))

        async def why_not(tenant: TenantKey) -> str:
            return why_skipped(await webhooks.of_tenant(tenant, orgs=None))

        jobs = RedriveJobs(settings.kafka, JobStore(database), why_not)
        history, worker, notifications = await _open_history(settings, store, stack)
        audit = AuditLog(database)
        services = Services(
            settings=settings,
            webhooks=webhooks,
            audit=audit,
            tokens=ApiTokens(database),
            ended_sessions=EndedSessions(database),
            attempts=AttemptReader(settings),
            lanes=lanes,
            waiting=waiting,
            dead_events=DeadLetterReader(settings, jobs),
            jobs=jobs,
            test_events=SampleSender(settings),
            keys=PublishedKeys(store),
            history=history,
            resends=None if history is None else DeliveredEvents(settings, history, jobs),
            notifications=None if notifications is None else NotificationDesk(settings, notifications, audit),
        )
        yield RunningServices(services, store, worker)


async def _open_history(
    settings: Settings, webhooks: SqlStore, stack: AsyncExitStack
) -> tuple[HistoryLookup | None, HistoryWorker | None, NotificationStore | None]:
    """Opens the history store, and the worker that fills it if the console embeds it."""
    if not settings.history.has_store:
        return None, None, None
    database = history_database(settings, create=settings.history.embedded)
    stack.push_async_callback(database.close)
    store = HistoryStore(database, settings.history)
    states = TenantStates(database)
    worker = None
    if settings.history.embedded:

        def known() -> Sequence[Webhook] | None:
            return webhooks.all() if webhooks.is_loaded else None

        notifier = await open_notifier(settings, database, states, known, webhooks.is_held, stack)
        worker = HistoryWorker(settings, store, StateJudge(states, known), notifier)

    problem = partial(missing_entries, states, worker)
    lookup = HistoryLookup(HistorySearch(database), store, settings.history.recipient_key, states, problem)
    return lookup, worker, notification_store(settings, database)


async def missing_entries(
    states: TenantStates, worker: HistoryWorker | None, clock: Callable[[], float] = time.time
) -> str | None:
    """Returns why the store may lack entries, in words for tenants; None if it is complete.

    Args:
        worker: the one of this process, which notices a problem first; None if others fill the store.
    """
    if worker is not None and not all(check.ok for check in worker.checks):
        return _NOT_WRITTEN
    try:
        complete_at = await states.complete_at()
    except StoreUnavailable as error:
        return error.for_tenants
    if complete_at is None:
        return _NOT_WRITTEN
    behind_s = clock() - complete_at
    if behind_s <= CURRENT_S:
        return None
    since = f" of the last {span(behind_s)}" if complete_at else ""
    return f"the history lags behind: entries{since} may be missing"
