"""Values that the repository returns. Secrets appear as fingerprints only."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Literal
from urllib.parse import urlsplit

from pydantic import JsonValue

from dispatcher.config.webhooks import Channel, WebhookConfig
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import ConfigError, Problem
from dispatcher.stores.sql.documents import without_secrets

Orgs = frozenset[str] | None
"""Organisations that the caller may see or change; None for all. Others are treated as if they didn't exist."""

MAX_PAGE: Final = 200
RESTORABLE: Final = timedelta(days=30)
"""How long a deleted webhook can be restored; its secrets are erased then."""
MAX_LISTED: Final = 20_000
"""Webhooks that one list sorts by what the database doesn't know."""


@dataclass(frozen=True, slots=True)
class StoredWebhook:
    """A webhook in the database, without secrets: it is shown to the users of its organisation."""

    id: str
    tenant: TenantKey
    name: str
    url: str
    channels: tuple[Channel, ...]
    enabled: bool
    paused: bool
    """True if its events are held until it is resumed."""
    document: Mapping[str, JsonValue]
    """The configuration as JSON, with fingerprints instead of secrets. Sent back as a draft, it changes nothing."""
    version: int
    """Version, from 1, increased by each change; the ETag."""
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str
    deleted_at: datetime | None = None
    """None unless it was deleted."""
    problems: tuple[Problem, ...] = ()
    """Columns that hold something else than they should: the row was edited by hand."""

    @property
    def host(self) -> str:
        """Host of its URL; empty if a damaged row has none."""
        try:
            return urlsplit(self.url).hostname or ""
        except ValueError:
            return ""

    def config(self) -> WebhookConfig:
        """Returns the configuration with empty secrets: to show, never to deliver.

        Raises:
            ConfigError: it isn't a valid configuration in this version of the program, or the row is damaged.
        """
        if self.problems:
            raise ConfigError(self.problems)
        return without_secrets(dict(self.document))


@dataclass(frozen=True, slots=True)
class ListedWebhook:
    """A webhook's entry in the list of all webhooks, without its configuration."""

    id: str
    tenant: TenantKey
    name: str
    enabled: bool
    paused: bool
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class WebhookQuery:
    """Filter and order of a search for webhooks."""

    text: str = ""
    """Words that must all appear in name, organisation, sandbox or host, in either case."""
    channel: Channel | None = None
    enabled: bool | None = None
    paused: bool | None = None
    org: str | None = None
    sandbox: str | None = None
    sort: Literal["name", "tenant", "created", "updated"] = "name"
    descending: bool = False
    offset: int = 0
    limit: int = 50
    """At most 200."""


@dataclass(frozen=True, slots=True)
class WebhookPage:
    """One page of the results of a query."""

    items: tuple[StoredWebhook, ...]
    total: int
    """Total number of results."""


class AuditAction(StrEnum):
    """Kind of an audit entry."""

    CREATE = "create"
    EDIT = "edit"
    DELETE = "delete"
    RESTORE = "restore"
    """Undone deletion."""
    ERASE = "erase"
    """The secrets of a deleted webhook were erased: by a person, or after 30 days."""
    ERASE_PERSON = "erase_person"
    """A person's entries were erased from the history store."""
    SECRET_END = "secret_end"
    """A signing secret was erased because its end had come."""
    KEY_END = "key_end"
    """A signing key was erased a day after the next one had replaced it."""
    ENABLE = "enable"
    """Re-enabled by hand after the dispatcher had disabled it, without an edit."""
    PAUSE = "pause"
    RESUME = "resume"
    TEST = "test"
    REDRIVE = "redrive"
    OPEN = "open"
    """The record of a dead event was shown or downloaded."""
    TOKEN_CREATE = "token_create"
    TOKEN_REVOKE = "token_revoke"
    NOTIFY = "notify"
    """A notification was sent."""
    CONTACT = "contact"
    """A contact confirmed its address, or stopped notifications."""
    ROTATE = "rotate"
    """Every secret was encrypted again with the first key."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One entry of the audit."""

    id: int
    at: datetime
    actor: str
    action: AuditAction | str
    """Plain text if a newer version wrote it."""
    tenant: TenantKey | None
    """None if the entry concerns no single webhook."""
    webhook_id: str | None
    changes: Mapping[str, JsonValue]
    """For create, edit and delete: `{"before": …, "after": …}` by dotted path.

    Secrets are `<secret fingerprint>`, contacts `<contact hash>`.
    """


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Filter of a search in the audit. The newest entries come first."""

    webhook_id: str | None = None
    actor: str | None = None
    action: AuditAction | None = None
    before: int | None = None
    """Limits the result to entries older than the one with this id: the next page."""
    limit: int = 50
    """At most 200."""


class Role(StrEnum):
    """Permissions of a token."""

    VIEWER = "viewer"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class ApiToken:
    """Metadata of a token for the admin API; only its holder knows the token itself."""

    id: str
    name: str
    role: Role
    orgs: Orgs
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """Time of the last use, to the minute."""
