"""The webhooks as the history worker knows them. Entries are stored without them; states and notifications use them."""

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from dispatcher.config.settings import WebhookSettings
from dispatcher.config.webhook_revision import Webhook
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import DispatcherError
from dispatcher.stores import WebhookSource, open_source
from dispatcher.stores.webhook_file import Rules

AGAIN_S: Final = 30.0

log = structlog.get_logger(__name__)


class KnownWebhooks:
    """Opens the store of webhooks, and retries until that succeeds. `run` is its task."""

    def __init__(self, settings: WebhookSettings, rules: Rules) -> None:
        self._settings = settings
        self._rules = rules
        self._source: WebhookSource | None = None

    def all(self) -> Sequence[Webhook] | None:
        """Returns every webhook in use; None until the store has answered."""
        if self._source is None:
            return None
        return self._source.all() or None  # a database that has not answered yet has none

    def is_held(self, tenant: TenantKey) -> bool:
        """Returns True if the tenant may have a webhook that can't be used: then `all` lacks it, or is None."""
        return self._source is None or self._source.is_held(tenant)

    async def run(self) -> None:
        """Follows the store's changes until cancelled."""
        while True:
            try:
                async with open_source(self._settings, self._rules) as source:
                    self._source = source
                    await source.run()
            except DispatcherError as error:
                log.warning("webhooks can't be read; states are judged without them", problem=str(error)[:500])
            finally:
                self._source = None
            await asyncio.sleep(AGAIN_S)
