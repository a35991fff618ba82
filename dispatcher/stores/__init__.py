"""Stores of webhooks: a mounted directory or a database, and the cache in front of either."""

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
    """A store of webhooks that the service runs."""

    @property
    def problems(self) -> Sequence[Problem]:
        """Problems in the current configuration. If there are any, an older version is in use."""
        ...

    async def get(self, tenant: TenantKey) -> Webhook | None:
        """Returns the tenant's webhook, or None if it has none.

        Raises:
            StoreUnavailable: the store did not answer.
            WebhookUnusable: the tenant's webhook has a mistake and no last good version.
            WebhookUndecided: a part of the configuration can't be read, which may contain the tenant's webhook.
        """
        ...

    def get_cached(self, tenant: TenantKey, /) -> Webhook | NotCached | None:
        """Returns the webhook, or None, without waiting; `NOT_CACHED` if only `get` can answer."""
        ...

    def is_held(self, tenant: TenantKey) -> bool:
        """Returns True while the tenant's events wait for a change of configuration. Answers from memory."""
        ...

    def all(self) -> list[Webhook]:
        """Returns every webhook in use."""
        ...

    def on_change(self, listener: Callable[[set[TenantKey]], None]) -> None:
        """Registers a listener, which is called on the loop with the tenants whose webhook is new, different or gone.

        It is also called, perhaps without tenants, when the store becomes complete or incomplete.
        """
        ...

    async def run(self) -> None:
        """Follows changes until cancelled."""
        ...


@asynccontextmanager
async def open_source(settings: WebhookSettings, rules: Rules) -> AsyncIterator[WebhookSource]:
    """Opens and loads the store that the settings name.

    Args:
        rules: checks of webhook files, and limits of their secret references.

    Raises:
        ConfigError: the store doesn't exist, or it has webhooks and none of them can be used.
    """
    if settings.store == "yaml":
        directory = YamlDirectory(settings, rules)
        await directory.load()
        yield directory
    else:
        from dispatcher.stores.sql.store import open_sql_store  # importing SQLAlchemy takes long: only if it is used

        async with open_sql_store(settings) as store:
            yield store
