"""What the repository gives: values, with secrets by fingerprint only."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, Literal

from pydantic import JsonValue

from dispatcher.config.webhooks import Channel, WebhookConfig
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.documents import restore_secrets

Orgs = frozenset[str] | None
"""Organisations that the asker may see or change; None for all. Everything else does not exist for them."""

MAX_PAGE: Final = 200


@dataclass(frozen=True, slots=True)
class StoredWebhook:
    """A webhook as it lies in the database, fit to be shown to whoever may see its organisation."""

    id: str
    tenant: TenantKey
    name: str
    url: str
    channels: tuple[Channel, ...]
    enabled: bool
    document: Mapping[str, JsonValue]
    """The configuration as JSON, a fingerprint where a secret stands; sent back as a draft it changes nothing."""
    version: int
    """From 1, one more at each change; the ETag."""
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str

    def config(self) -> WebhookConfig:
        """The configuration with empty secrets: to show, never to deliver.

        Raises:
            ConfigError: it is no configuration for this version of the program.
        """
        return restore_secrets(dict(self.document), {})


@dataclass(frozen=True, slots=True)
class WebhookQuery:
    """Which webhooks, in which order."""

    text: str = ""
    """Words that must all appear in name, organisation, sandbox or host, in either case."""
    channel: Channel | None = None
    enabled: bool | None = None
    org: str | None = None
    sandbox: str | None = None
    sort: Literal["name", "tenant", "created", "updated"] = "name"
    descending: bool = False
    offset: int = 0
    limit: int = 50
    """At most 200."""


@dataclass(frozen=True, slots=True)
class WebhookPage:
    """A part of what a query finds."""

    items: tuple[StoredWebhook, ...]
    total: int
    """How many it finds in all."""


class AuditAction(StrEnum):
    """What was done."""

    CREATE = "create"
    EDIT = "edit"
    DELETE = "delete"
    ENABLE = "enable"
    """Taken up again by hand after the dispatcher had disabled it; nothing was edited."""
    TEST = "test"
    REDRIVE = "redrive"
    TOKEN_CREATE = "token_create"
    TOKEN_REVOKE = "token_revoke"
    ROTATE = "rotate"
    """Every secret encrypted anew under the first key."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line of history."""

    id: int
    at: datetime
    actor: str
    action: AuditAction | str
    """A plain text where a newer version wrote it."""
    tenant: TenantKey | None
    """None for what concerns no single webhook."""
    webhook_id: str | None
    changes: Mapping[str, JsonValue]
    """For create, edit and delete: `{"before": …, "after": …}` by dotted path. Secrets as `<secret fingerprint>`."""


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which lines, the newest first."""

    webhook_id: str | None = None
    actor: str | None = None
    action: AuditAction | None = None
    before: int | None = None
    """Only lines older than the one with this id: the next page."""
    limit: int = 50
    """At most 200."""


class Role(StrEnum):
    """What the holder of a token may do."""

    VIEWER = "viewer"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class ApiToken:
    """A token for the admin API; the token itself is known to its holder only."""

    id: str
    name: str
    role: Role
    orgs: Orgs
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """To the minute."""
