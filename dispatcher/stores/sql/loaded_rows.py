"""Keeps the rows of webhooks as last read from the database, and totals over them.

An edit changes the totals by its own row, so that a database of any size is not read again.
"""

from collections.abc import KeysView
from hashlib import blake2b

from dispatcher.config.webhook_revision import Webhook
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.loading import WebhookRow

_HASH_BYTES = 6


class LoadedRows:
    """One row for each tenant."""

    def __init__(self) -> None:
        self._rows: dict[TenantKey, WebhookRow] = {}
        self._unusable: dict[TenantKey, WebhookRow] = {}
        self._hash = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, tenant: TenantKey) -> bool:
        return tenant in self._rows

    def __getitem__(self, tenant: TenantKey) -> WebhookRow:
        return self._rows[tenant]

    def __setitem__(self, tenant: TenantKey, row: WebhookRow) -> None:
        self._count_out(self._rows.get(tenant))
        self._rows[tenant] = row
        if row.webhook is None:
            self._unusable[tenant] = row
        else:
            self._hash += _digest(row.webhook)

    def __delitem__(self, tenant: TenantKey) -> None:
        self._count_out(self._rows.pop(tenant))

    def get(self, tenant: TenantKey) -> WebhookRow | None:
        """Returns the tenant's row, if any."""
        return self._rows.get(tenant)

    def keys(self) -> KeysView[TenantKey]:
        """Returns the tenants with a row."""
        return self._rows.keys()

    def webhooks(self) -> list[Webhook]:
        """Returns every webhook that can be used, in order of tenants."""
        return [row.webhook for _, row in sorted(self._rows.items()) if row.webhook is not None]

    def unusable(self) -> list[WebhookRow]:
        """Returns the rows whose webhook can't be used, in order of tenants."""
        return [row for _, row in sorted(self._unusable.items())]

    @property
    def usable_count(self) -> int:
        """Number of webhooks that can be used."""
        return len(self._rows) - len(self._unusable)

    @property
    def content_hash(self) -> str:
        """Twelve hexadecimal digits of all webhooks that can be used, in whatever order they were read."""
        return f"{self._hash % (1 << 8 * _HASH_BYTES):012x}"

    def _count_out(self, row: WebhookRow | None) -> None:
        if row is not None and row.webhook is not None:
            self._hash -= _digest(row.webhook)
        elif row is not None:
            del self._unusable[row.tenant]


def _digest(webhook: Webhook) -> int:
    text = f"{webhook.tenant}\n{webhook.revision}\n".encode()
    return int.from_bytes(blake2b(text, digest_size=_HASH_BYTES).digest())
