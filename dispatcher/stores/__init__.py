"""Where webhooks come from: a mounted directory or a database, and the cache in front of either."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from dispatcher.config.settings import WebhookSettings
from dispatcher.config.webhooks import Webhook
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import Problem
from dispatcher.stores.cache import NotCached
from dispatcher.stores.webhook_files import Rules
from dispatcher.stores.yaml_directory import YamlDirectory


class WebhookSource(Protocol):
    """A store, as the service runs it."""

    @property
    def problems(self) -> Sequence[Problem]:
        """What stands against the configuration as it is now; what is in use is older where there is anything."""
        ...

    async def get(self, tenant: TenantKey) -> Webhook | None:
        """The tenant's webhook, None where it has none.

        Raises:
            StoreUnavailable: the store did not answer.
            WebhookUnusable: it has one that can't be used.
            WebhookUndecided: whether it has one can't be said, as a part of the configuration can't be read.
        """
        ...

    def get_cached(self, tenant: TenantKey, /) -> Webhook | NotCached | None:
        """The same without waiting; `MISSING` where only `find` can tell."""
        ...

    def is_held(self, tenant: TenantKey) -> bool:
        """True while the tenant's events wait for a change of configuration. Answers from memory."""
        ...

    def all(self) -> list[Webhook]:
        """Every webhook in use."""
        ...

    def on_change(self, listener: Callable[[set[TenantKey]], None]) -> None:
        """Tell `listener`, on the loop, whose webhook is new, different or gone.

        It is also told, perhaps with no tenant, when the store becomes complete or incomplete.
        """
        ...

    async def run(self) -> None:
        """Follow changes until cancelled."""
        ...


@asynccontextmanager
async def open_source(settings: WebhookSettings, rules: Rules) -> AsyncIterator[WebhookSource]:
    """The store that the settings name, loaded.

    Args:
        rules: what webhook files are checked by, and what their secret references may name.

    Raises:
        ConfigError: it can't be used at all: not there, or with webhooks of which none can be used.
    """
    if settings.store == "yaml":
        directory = YamlDirectory(settings, rules)
        await directory.load()
        yield directory
    else:
        from dispatcher.stores.sql.store import open_sql_store  # SQLAlchemy takes its time: only for those who use it

        async with open_sql_store(settings) as store:
            yield store
