"""Stores of webhooks: a mounted directory or a database, and the cache in front of either."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from dispatcher.config.settings import WebhookSettings
from dispatcher.config.webhook_revision import Webhook
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import Problem
from dispatcher.stores.cache import WebhookStore
from dispatcher.stores.webhook_file import Rules
from dispatcher.stores.yaml_directory import YamlDirectory


class WebhookSource(WebhookStore, Protocol):
    """A store of webhooks that the service runs: `YamlDirectory` or `SqlStore`."""

    @property
    def problems(self) -> Sequence[Problem]:
        """Problems in the current configuration. If there are any, an older version is in use."""
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
