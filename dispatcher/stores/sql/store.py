"""The store `sql`: reads webhooks from a database for dispatchers.

A look-up queries the database; the cache in front makes that rare, and answers while the database is unavailable.
`run` follows the changes, so that the cache is invalidated within two seconds. Used on one event loop.

A deleted webhook leaves a row that is marked. A missing row doesn't count as deleted: the database is being restored,
or an older one was. The webhook stays in use until every webhook was read again, and if most or all are missing, for
`REMOVAL_AFTER_S` more.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog
from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from dispatcher.config.settings import WebhookSettings
from dispatcher.config.webhook_revision import Webhook
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import ConfigError, Problem, StoreUnavailable, WebhookUnusable
from dispatcher.stores.cache import NOT_CACHED, NotCached
from dispatcher.stores.mass_removal import REMOVAL_AFTER_S, is_mass_removal
from dispatcher.stores.sql.changes import NoNotices, listening
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import Encryption
from dispatcher.stores.sql.loaded_rows import LoadedRows
from dispatcher.stores.sql.loading import WebhookRow, changed_in, read_rows, select_rows
from dispatcher.stores.sql.migrate import schema_problem
from dispatcher.stores.sql.rows import is_storable
from dispatcher.stores.sql.schema import change_counter, webhooks
from dispatcher.tasks import Backoff
from dispatcher.telemetry import metrics

POLL_S: Final = 1.0
"""Interval between reads of the change counter, one row. On PostgreSQL they cover lost notices."""
LOAD_WITHIN_S: Final = 30.0
"""Deadline for reading every webhook."""
MOST_READ_AGAIN: Final = 10_000
"""Unusable webhooks that are read again at each change. Databases accept 32,766 parameters."""
FIRST_PAUSE_S: Final = 0.2
LAST_PAUSE_S: Final = 2.0
"""Longest pause between tries while the database is unavailable; pauses double from the first."""
LAST_LISTEN_PAUSE_S: Final = 120.0
"""Longest pause between tries to be notified by a database that answers, and is polled meanwhile."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Missing:
    """Webhooks whose removal is held back, because most or all rows are missing."""

    count: int
    since: float
    """Seconds of the loop's clock at which they were first missing."""


class SqlStore:
    """Looks up webhooks, and notifies listeners of changed ones."""

    def __init__(self, database: Database, encryption: Encryption, poll_s: float = POLL_S) -> None:
        self._database = database
        self._encryption = encryption
        self._poll_s = poll_s
        self._rows = LoadedRows()
        self._seen: int | None = None  # value of the change counter up to which `_rows` is complete
        self._listeners: list[Callable[[set[TenantKey]], None]] = []
        self._away = ""
        """Reason why the database does not answer; empty if it does."""
        self._is_polled = False
        """The database answers, and refuses to notify of changes."""
        self._listen_backoff = Backoff(FIRST_PAUSE_S, LAST_LISTEN_PAUSE_S)
        self._is_in_doubt = False
        """A known webhook has no row any more, so that every webhook has to be read."""
        self._missing: _Missing | None = None
        self._told: frozenset[Problem] = frozenset()

    def __repr__(self) -> str:
        return f"<SqlStore {self._database.name}, {len(self._rows)} webhooks, change {self._seen}>"

    @property
    def problems(self) -> Sequence[Problem]:
        """Problems of webhooks, whose events wait, and of the database."""
        own = [problem for row in self._rows.unusable() for problem in row.problems]
        database: list[str] = []
        if self._away:
            used = "the last known webhooks are used" if len(self._rows) else "no webhook is known"
            database.append(f"does not answer ({self._away}): {used}")
        if self._missing is not None:
            database.append(
                f"{self._missing.count} of {len(self._rows)} webhooks are missing: they stay in use, "
                f"and are removed {REMOVAL_AFTER_S / 60:.0f} minutes after they were first missed"
            )
        return [*(Problem(message, "", self._database.name) for message in database), *own]

    @property
    def is_loaded(self) -> bool:
        """True if the database has answered at least once."""
        return self._seen is not None

    @property
    def content_hash(self) -> str:
        """Twelve hexadecimal digits of all webhooks in use, secrets included: the same in pods that agree."""
        return self._rows.content_hash

    def get_cached(self, _: TenantKey, /) -> NotCached:
        """Returns `NOT_CACHED`: only the database can answer."""
        return NOT_CACHED

    async def get(self, tenant: TenantKey) -> Webhook | None:
        """Returns the tenant's webhook, or None if it has none. It is the same object until the webhook is edited.

        While the database is unavailable, the last known webhook is returned. A tenant without one raises an error
        instead: events for a new webhook would be lost.

        Raises:
            StoreUnavailable: the database did not answer within 3 s, and no webhook of the tenant is known.
            WebhookUnusable: its secrets can't be decrypted, or this version can't use it.
        """
        if not is_storable(*tenant):
            return None
        try:
            row = await self._row(tenant)
        except StoreUnavailable:
            row = self._rows.get(tenant)
            if row is None:
                raise
            metrics.STORE_FAILURES.inc()
            metrics.STALE_ANSWERS.inc()
        if row is None:
            return None
        if row.webhook is None:
            raise WebhookUnusable(f"{tenant}: its webhook can't be used: " + "; ".join(map(str, row.problems)))
        return row.webhook

    async def _row(self, tenant: TenantKey) -> WebhookRow | None:
        if self._away and tenant in self._rows:
            raise StoreUnavailable(
                f"{self._database.name} is away"
            )  # `run` tries to reach it: tenants don't wait for the deadline
        which = (webhooks.c.org == tenant.org, webhooks.c.sandbox == tenant.sandbox, webhooks.c.deleted_at.is_(None))
        async with self._database.read() as connection:
            selected = await select_rows(connection, *which)
            known = self._rows.get(tenant)
            if not selected:
                return await self._without_row(connection, known)
        if known is None or known.webhook is None or known.changed < changed_in(selected[0]):
            (read,) = read_rows(selected, self._encryption)
            if known is not None and known.webhook is None:
                return read  # `load` takes it over, and notifies its listeners
            known = self._rows[tenant] = read
        return known

    async def _without_row(self, connection: AsyncConnection, known: WebhookRow | None) -> WebhookRow | None:
        """Returns the webhook of a tenant that has no row: None unless the row of a known one has disappeared.

        Raises:
            StoreUnavailable: no webhook of the tenant is known, but others' rows have disappeared.
        """
        if known is None:
            if self._missing is not None or self._is_in_doubt:
                raise StoreUnavailable(f"{self._database.name}: webhooks are missing")
            return None
        selected = await select_rows(connection, webhooks.c.id == known.id)
        if selected:  # deleted, or of another tenant now, or the look-up misses a tenant that isn't text
            (read,) = read_rows(selected, self._encryption)
            is_missed = read.webhook is None and not read.is_deleted and read.tenant == known.tenant
            return read if is_missed else None
        self._is_in_doubt = True
        metrics.STALE_ANSWERS.inc()
        return known

    def is_held(self, tenant: TenantKey) -> bool:
        """Returns True while the tenant's events wait for a change: webhook unusable or paused, or nothing known."""
        row = self._rows.get(tenant)
        if row is None:
            return self._seen is None
        return row.webhook is None or row.webhook.config.paused

    def all(self) -> list[Webhook]:
        """Returns every webhook in use, in order of tenants, as of the last change that was seen."""
        return self._rows.webhooks()

    def on_change(self, listener: Callable[[set[TenantKey]], None]) -> None:
        """Registers a listener, called on the loop with the tenants whose webhook is new, different or gone.

        `get` already returns the new webhook then.
        """
        self._listeners.append(listener)

    async def load(self) -> None:
        """Reads every webhook, or those changed since the last time, and notifies the listeners.

        Unusable ones are read again at every change: `rotate-keys` can make them usable, and doesn't edit them.

        Raises:
            StoreUnavailable: the database did not answer.
        """
        async with self._database.read(LOAD_WITHIN_S) as connection:
            counted = await connection.execute(select(change_counter.c.value))
            value = counted.scalar_one()
            if not isinstance(value, int):
                where = f"{self._database.name}: change_counter.value isn't a whole number"
                raise StoreUnavailable(f"{where}: set it to one above every webhooks.changed")
            # A lower counter means that the database was restored from a backup: everything may be different.
            is_new = self._seen is None or value < self._seen
            is_all = is_new or self._is_in_doubt
            if value == self._seen and not is_all:
                self._back()
                return
            conditions = [] if is_new else [self._is_news()]
            if is_all:
                conditions.append(webhooks.c.deleted_at.is_(None))
            selected = await select_rows(connection, or_(*conditions))
        rows = await asyncio.to_thread(lambda: list(read_rows(selected, self._encryption)))
        self._take_over(rows, value, is_all=is_all)

    def _is_news(self) -> ColumnElement[bool]:
        """Returns the condition for rows that have changed since the last time, or that could not be used then."""
        unusable = sorted(row.id for row in self._rows.unusable() if isinstance(row.id, str))  # bytes: typed by hand
        return or_(webhooks.c.changed > self._seen, webhooks.c.id.in_(unusable[:MOST_READ_AGAIN]))

    async def run(self) -> None:
        """Follows the changes until cancelled. Errors of the database never end it."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self.load()
                pause_s = FIRST_PAUSE_S
                await self._follow()
            except StoreUnavailable as error:
                self.note_away(error)
            except Exception:
                metrics.ERRORS.labels("task").inc()
                log.exception("changes of webhooks could not be followed because of a bug")
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311  (spreads the replicas' tries)
            pause_s = min(2 * pause_s, LAST_PAUSE_S)

    def note_away(self, error: StoreUnavailable) -> None:
        """Records that the database did not answer; it is reported until it does."""
        if not self._away:
            log.warning("webhook database is away", why=str(error))
        self._away = str(error).removeprefix(f"{self._database.name}: ")

    async def _follow(self) -> None:
        """Follows the changes until the database doesn't answer. If it only refuses to notify of them, it is polled."""
        now = asyncio.get_running_loop().time
        while True:
            since = now()
            try:
                async with listening(self._database) as signal:
                    if self._is_polled:
                        log.info("changes of webhooks are notified again")
                    self._is_polled = False
                    while True:  # first the changes that happened before the signal existed
                        await self.load()
                        await signal.wait(self._poll_s)
            except NoNotices as error:
                if now() - since >= LAST_LISTEN_PAUSE_S:
                    self._listen_backoff.reset()
                await self._poll(error, now() + self._listen_backoff.next_s())

    async def _poll(self, refusal: NoNotices, until: float) -> None:
        now = asyncio.get_running_loop().time
        while (left_s := until - now()) > 0:
            await self.load()
            if not self._is_polled:
                log.warning("changes of webhooks are polled", why=str(refusal))
            self._is_polled = True
            await asyncio.sleep(min(self._poll_s, left_s))

    def _take_over(self, rows: Sequence[WebhookRow], value: int, *, is_all: bool) -> None:
        is_first = self._seen is None
        if is_all and not is_first:
            self._is_in_doubt = self._is_held_back(self._rows.keys() - {row.tenant for row in rows})
            is_all = not self._is_in_doubt
            if self._is_in_doubt:  # the other rows were read, too: only news count
                rows = [
                    row for row in rows if row.tenant not in self._rows or row.changed > self._rows[row.tenant].changed
                ]
        changed = {row.tenant for row in rows if not self._is_as_known(row)}
        if is_all:
            changed |= self._rows.keys()
            old = LoadedRows() if self._seen is not None else self._rows
            self._rows = LoadedRows()
            rows = [_newer(old.get(row.tenant), row) for row in rows]
        for row in rows:
            known = self._rows.get(row.tenant)
            if not row.is_deleted:
                self._rows[row.tenant] = _newer(known, row)
            elif known is not None and known.id == row.id:
                del self._rows[row.tenant]
        self._seen = value
        self._back()
        self._notify(len(changed), is_first=is_first)
        for listener in self._listeners if changed else ():
            listener(set(changed))

    def _is_held_back(self, missing: Collection[TenantKey]) -> bool:
        """Returns True if so many rows are missing that the removal of their webhooks has to wait."""
        count, known, now = len(missing), len(self._rows), asyncio.get_running_loop().time()
        if not count or (count < known and not is_mass_removal(count, known)):
            self._missing = None
            return False
        since = now if self._missing is None else self._missing.since
        is_over = now - since >= REMOVAL_AFTER_S
        self._missing = None if is_over else _Missing(count, since)
        return not is_over

    def _is_as_known(self, row: WebhookRow) -> bool:
        """Returns True for an unusable webhook that was read again, and is still unusable for the same reasons."""
        return row.webhook is None and not row.is_deleted and self._rows.get(row.tenant) == row

    def _back(self) -> None:
        if self._away:
            log.info("webhook database is back")
        self._away = ""

    def _notify(self, changed: int, *, is_first: bool) -> None:
        problems = self.problems
        for problem in frozenset(problems) - self._told:
            log.warning("webhook refused", source=problem.file, key=problem.key, problem=problem.message)
        self._told = frozenset(problems)
        if changed or is_first:
            metrics.RELOADS.labels("failed" if problems else "ok").inc()
        metrics.RELOAD_OK.set(0 if problems else 1)
        if not problems:
            metrics.RELOAD_TIME.set_to_current_time()
        metrics.CONFIG_TENANTS.set(self._rows.usable_count)
        metrics.CONFIG_HASH.clear()
        metrics.CONFIG_HASH.labels(self.content_hash).set(1)
        log.info("webhooks loaded", webhooks=self._rows.usable_count, changed=changed, problems=len(problems))


def _newer(known: WebhookRow | None, row: WebhookRow) -> WebhookRow:
    """Returns `known` if it is at least as new as `row` and has a webhook, which may be in use; otherwise `row`."""
    return known if known is not None and known.changed >= row.changed and known.webhook is not None else row


@asynccontextmanager
async def open_sql_store(settings: WebhookSettings) -> AsyncIterator[SqlStore]:
    """Opens the store that the settings name. It stays empty until the database answers.

    Raises:
        ConfigError: the URL, a key or the database's schema can't be used, or every webhook in it is unusable.
    """
    if settings.url is None:
        raise ConfigError([Problem("store sql needs url, the URL of the database", "webhooks.url")])
    encryption = Encryption(settings.encryption_keys)
    database = Database(settings.url)
    store = SqlStore(database, encryption)
    try:
        try:
            problem = await schema_problem(database)
            if problem is not None:
                raise ConfigError([problem])
            await store.load()
            if store.problems and not store.all():
                raise ConfigError(store.problems)
        except StoreUnavailable as error:
            store.note_away(error)
        yield store
    finally:
        await database.close()
