"""Models of callers, tokens and the audit log."""

from datetime import datetime
from typing import Annotated

from pydantic import BeforeValidator, Field, JsonValue, StringConstraints

from dispatcher.console.api.models.base import Id, PageQuery, RequestModel, ResponseModel, Word, whole_number
from dispatcher.stores.sql.records import AuditAction, Role

MAX_AUDIT_ID = 2**31 - 1
"""The largest identifier of both SQLite and PostgreSQL."""


def _days(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # 90.0 is 90, in JSON


class AuditList(PageQuery):
    """Query parameters of the audit log."""

    webhook_id: Id | None = None
    """Id of a webhook, a deleted one too."""
    actor: Word | None = None
    """Name of the person or token that did it, as in the log."""
    action: AuditAction | None = None
    """What was done."""
    before: Annotated[int, Field(strict=True, ge=1, le=MAX_AUDIT_ID), BeforeValidator(whole_number)] | None = None
    """Only entries older than the one with this id."""


class AuditModel(ResponseModel):
    """One entry of the audit log."""

    id: int
    at: datetime
    actor: str
    action: str
    org: str | None
    sandbox: str | None
    webhook_id: str | None
    changes: dict[str, JsonValue]
    """For create, edit and delete `{"before": …, "after": …}` by dotted path.

    Secrets are fingerprints, contacts are hashes of their addresses.
    """


class AuditPage(ResponseModel):
    """A page of the audit log, the newest first."""

    items: tuple[AuditModel, ...]
    next: str | None


class Me(ResponseModel):
    """The authenticated caller."""

    id: str
    name: str
    role: Role
    orgs: tuple[str, ...] | None
    """Organisations that the caller can see; null for all."""


class NewToken(RequestModel):
    """A token to create."""

    name: Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x20\x7f-\xa0][^\x00-\x1f\x7f-\x9f]*$")]
    """Name of the holder: the audit log's actor."""
    role: Role
    orgs: Annotated[tuple[Word, ...], Field(min_length=1, max_length=1000)] | None
    """Organisations that the token gives access to; null for all."""
    expires_in_days: Annotated[int, Field(strict=True, ge=1, le=3650), BeforeValidator(_days)] | None = None
    """null if it does not expire."""


class TokenModel(ResponseModel):
    """A token without its text, which only its holder knows."""

    id: str
    name: str
    role: Role
    orgs: tuple[str, ...] | None
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """Accurate to one minute."""


class MadeToken(ResponseModel):
    """A token that was just created."""

    token: TokenModel
    text: str
    """`fdt_…`: returned only once."""


class TokenPage(ResponseModel):
    """Every token, including revoked ones, the newest first."""

    items: tuple[TokenModel, ...]
