"""The look-up of a tenant's webhook, which stores, the cache and tracing implement."""

from collections.abc import Callable, Sequence
from typing import Protocol

from dispatcher.config.webhook_revision import Webhook
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.contract.tenant import TenantKey

CheckWebhook = Callable[[WebhookConfig], list[tuple[str, str]]]
"""Returns problems of a webhook that its model can't find, as (key, message). Called in a thread."""

ListWebhooks = Callable[[], Sequence[Webhook] | None]
"""Returns every webhook in use; None while they are not known."""


class WebhookLookup(Protocol):
    """Looks up the webhook of a tenant."""

    async def get(self, tenant: TenantKey) -> Webhook | None:
        """Returns the tenant's webhook, or None if it has none.

        Raises:
            StoreUnavailable: the store did not answer.
            WebhookUnusable: the tenant's webhook has a mistake and no last good version.
            WebhookUndecided: a part of the configuration can't be read, which may contain the tenant's webhook.
        """
        ...
