"""The webhooks of a database, as dispatchers read them.

A look-up asks the database; the cache in front makes that rare, and stands in while the database is away. Beside it
`run` follows the changes, so that the cache can be told within two seconds. Used on one event loop.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import Final

import structlog
from sqlalchemy import select

from dispatcher.config.settings import WebhookSettings
from dispatcher.config.webhooks import Webhook
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import ConfigError, Problem, StoreUnavailable, WebhookUnusable
from dispatcher.stores.cache import NOT_CACHED, NotCached
from dispatcher.stores.sql.changes import listening
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.encryption import Encryption
from dispatcher.stores.sql.loading import Row, read_rows, select_rows
from dispatcher.stores.sql.migrate import schema_problem
from dispatcher.stores.sql.rows import is_storable
from dispatcher.stores.sql.schema import change_counter, webhooks
from dispatcher.telemetry import metrics

POLL_S: Final = 1.0
"""How often the change counter is asked for: one row by its key. On PostgreSQL, in case a notice is lost."""
LOAD_WITHIN_S: Final = 30.0
"""Reading every webhook has this long."""
FIRST_PAUSE_S: Final = 0.2
LAST_PAUSE_S: Final = 2.0
"""Between tries while the database is away, doubling from the first to the last."""

log = structlog.get_logger(__name__)


class SqlStore:
    """Finds webhooks, and tells whose webhook has changed."""

    def __init__(self, database: Database, encryption: Encryption, poll_s: float = POLL_S) -> None:
        self._database = database
        self._encryption = encryption
        self._poll_s = poll_s
        self._rows: dict[TenantKey, Row] = {}  # as last read; the truth is in the database
        self._seen: int | None = None  # the change counter up to which `_rows` is complete
        self._listeners: list[Callable[[set[TenantKey]], None]] = []
        self._is_away = False
        self._told: frozenset[Problem] = frozenset()

    def __repr__(self) -> str:
        return f"<SqlStore {self._database.name}, {len(self._rows)} webhooks, change {self._seen}>"

    @property
    def problems(self) -> Sequence[Problem]:
        """What stands against single webhooks (their events wait), and against the database."""
        own = [problem for _, row in sorted(self._rows.items()) for problem in row.problems]
        away = [Problem("does not answer: what is known is used", "", self._database.name)] if self._is_away else []
        return [*away, *own]

    @property
    def is_loaded(self) -> bool:
        """Whether the database has answered at all; until then nothing is known."""
        return self._seen is not None

    @property
    def content_hash(self) -> str:
        """Twelve hexadecimal digits of all webhooks in use, secrets included: the same in pods that agree."""
        digest = blake2b(digest_size=6)
        for webhook in self.all():
            digest.update(f"{webhook.tenant}\n{webhook.revision}\n".encode())
        return digest.hexdigest()

    def get_cached(self, _: TenantKey, /) -> NotCached:
        """Only the database can tell."""
        return NOT_CACHED

    async def get(self, tenant: TenantKey) -> Webhook | None:
        """The tenant's webhook, None where it has none. The same object as long as it is not edited.

        While the database is away, what was read of the tenant last stands in for its answer. That it had nothing
        then does not: a webhook that is new would lose its events.

        Raises:
            StoreUnavailable: the database did not answer within 3 s, and nothing is known of the tenant.
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

    async def _row(self, tenant: TenantKey) -> Row | None:
        if self._is_away and tenant in self._rows:
            raise StoreUnavailable(f"{self._database.name} is away")  # `run` asks it: don't let each tenant wait
        which = (webhooks.c.org == tenant.org, webhooks.c.sandbox == tenant.sandbox, webhooks.c.deleted_at.is_(None))
        async with self._database.read() as connection:
            selected = await select_rows(connection, *which)
        if not selected:
            return None
        known = self._rows.get(tenant)
        if known is None or known.webhook is None or known.changed < selected[0]["changed"]:
            (known,) = read_rows(selected, self._encryption)
            self._rows[tenant] = known
        return known

    def is_held(self, tenant: TenantKey) -> bool:
        """True while the tenant's events wait for a change: its webhook is unusable or paused, or nothing is known."""
        row = self._rows.get(tenant)
        if row is None:
            return self._seen is None
        return row.webhook is None or row.webhook.config.paused

    def all(self) -> list[Webhook]:
        """Every webhook in use, in order of tenants; as of the last change that was seen."""
        return [row.webhook for _, row in sorted(self._rows.items()) if row.webhook is not None]

    def on_change(self, listener: Callable[[set[TenantKey]], None]) -> None:
        """Tell `listener`, on the loop, whose webhook is new, different or gone, once `find` gives the new one."""
        self._listeners.append(listener)

    async def load(self) -> None:
        """Read every webhook, or what has changed since the last time; tell the listeners of it.

        Raises:
            StoreUnavailable: the database did not answer.
        """
        async with self._database.read(LOAD_WITHIN_S) as connection:
            counted = await connection.execute(select(change_counter.c.value))
            value: int = counted.scalar_one()
            if value == self._seen:
                self._back()
                return
            # A counter that went back is a database restored from a backup: everything may be different.
            is_all = self._seen is None or value < self._seen
            which = webhooks.c.deleted_at.is_(None) if is_all else webhooks.c.changed > self._seen
            selected = await select_rows(connection, which)
        rows = await asyncio.to_thread(lambda: list(read_rows(selected, self._encryption)))
        self._take_over(rows, value, is_all=is_all)

    async def run(self) -> None:
        """Follow the changes until cancelled; never ends by itself, whatever happens to the database."""
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
        """The database did not answer: say so until it does."""
        if not self._is_away:
            log.warning("webhook database is away", why=str(error))
        self._is_away = True

    async def _follow(self) -> None:
        async with listening(self._database) as bell:
            while True:  # first of all what happened before the bell was there
                await self.load()
                await bell.wait(self._poll_s)

    def _take_over(self, rows: Sequence[Row], value: int, *, is_all: bool) -> None:
        changed = {row.tenant for row in rows}
        is_first = self._seen is None
        if is_all:
            changed |= self._rows.keys()
            old = {} if self._seen is not None else self._rows
            self._rows = {}
            rows = [_newer(old.get(row.tenant), row) for row in rows]
        for row in rows:
            known = self._rows.get(row.tenant)
            if not row.is_deleted:
                self._rows[row.tenant] = _newer(known, row)
            elif known is not None and known.id == row.id:
                del self._rows[row.tenant]
        self._seen = value
        self._back()
        self._tell(len(changed), is_first=is_first)
        for listener in self._listeners if changed else ():
            listener(set(changed))

    def _back(self) -> None:
        if self._is_away:
            log.info("webhook database is back")
        self._is_away = False

    def _tell(self, changed: int, *, is_first: bool) -> None:
        problems = self.problems
        for problem in frozenset(problems) - self._told:
            log.warning("webhook refused", source=problem.file, key=problem.key, problem=problem.message)
        self._told = frozenset(problems)
        if changed or is_first:
            metrics.RELOADS.labels("failed" if problems else "ok").inc()
        metrics.RELOAD_OK.set(0 if problems else 1)
        if not problems:
            metrics.RELOAD_TIME.set_to_current_time()
        webhooks_in_use, content_hash = len(self.all()), self.content_hash
        metrics.CONFIG_TENANTS.set(webhooks_in_use)
        metrics.CONFIG_HASH.clear()
        metrics.CONFIG_HASH.labels(content_hash).set(1)
        log.info("webhooks loaded", webhooks=webhooks_in_use, changed=changed, problems=len(problems))


def _newer(known: Row | None, row: Row) -> Row:
    """The one that was read later; of two readings of one state the first, whose webhook may be in use."""
    return known if known is not None and known.changed >= row.changed and known.webhook is not None else row


@asynccontextmanager
async def open_sql_store(settings: WebhookSettings) -> AsyncIterator[SqlStore]:
    """The store that the settings name, loaded; empty where the database is away, until it answers.

    Raises:
        ConfigError: the URL, a key or the database's schema can't be used; or not one of its webhooks.
    """
    if settings.url is None:
        raise ConfigError([Problem("store sql needs url, the database's", "webhooks.url")])
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
