"""Models of webhooks and test events."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BeforeValidator, Field, JsonValue, RootModel

from dispatcher.config.webhooks import Channel
from dispatcher.console.api.models.base import (
    Flag,
    Id,
    PageQuery,
    RequestModel,
    ResponseModel,
    Text,
    Word,
    whole_number,
)
from dispatcher.console.signing_secrets import SigningSecretModel

MAX_OFFSET = 1_000_000_000


class WebhookDraft(RootModel[dict[str, JsonValue]]):
    """A webhook's configuration as a client sends it."""


class WebhookConfiguration(RootModel[dict[str, JsonValue]]):
    """A stored webhook's configuration, with fingerprints in place of secrets."""


class WebhookList(PageQuery):
    """Query parameters of the list of webhooks."""

    text: Text = ""
    """Words that must all appear in name, organisation, sandbox or host."""
    channel: Channel | None = None
    """A channel that the webhook receives."""
    enabled: Flag | None = None
    """false: only webhooks that are switched off."""
    paused: Flag | None = None
    """true: only paused webhooks."""
    org: Word | None = None
    """The whole id of an organisation."""
    sandbox: Word | None = None
    """The whole name of a sandbox."""
    sort: Literal["name", "tenant", "created", "updated"] = "name"
    """What the list is sorted by."""
    descending: Flag = False
    """true: the last comes first."""
    offset: Annotated[int, Field(strict=True, ge=0, le=MAX_OFFSET), BeforeValidator(whole_number)] = 0
    """How many webhooks of the sorted list to leave out."""


class WebhookSummary(ResponseModel):
    """A webhook in a list."""

    id: str
    name: str
    org: str
    sandbox: str
    url: str
    """Viewers see it without path and query."""
    channels: tuple[Channel, ...]
    enabled: bool
    """false: the webhook is switched off, and its events are skipped."""
    paused: bool
    """true: its events are held until it is resumed, at most until the age limit."""
    version: int
    """As in its ETag, from 1."""
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str


class Webhook(WebhookSummary):
    """A webhook. Sending its configuration back with PUT changes nothing."""

    configuration: WebhookConfiguration


class WebhookPage(ResponseModel):
    """A page of the webhooks that match."""

    items: tuple[WebhookSummary, ...]
    total: int
    """How many match in total."""
    next: str | None
    """Path of the next page; null at the end. Also in the header Link."""


class DeletedWebhook(WebhookSummary):
    """A webhook that was deleted and can be restored."""

    deleted_at: datetime
    restorable_until: datetime
    """When its secrets are erased, 30 days after it was deleted."""


class DeletedWebhooks(ResponseModel):
    """Webhooks that can be restored, the last deleted first: at most 200."""

    items: tuple[DeletedWebhook, ...]


class NewSigningSecret(RequestModel):
    """The kind of signing secret to generate."""

    kind: Literal["hmac", "ed25519"] = "hmac"
    """`hmac`: a shared secret, `whsec_…`. `ed25519`: a private key, `whsk_…`, that never leaves the dispatcher."""
    end_older_in_hours: Annotated[int, Field(strict=True, ge=1, le=8784)] | None = None
    """When the older secrets stop signing, from now; those that end before keep their end. null: not by themselves."""


class SecretEnd(RequestModel):
    """When a signing secret stops signing."""

    at: AwareDatetime | None = None
    """A time in the next 366 days, with its zone. null: now, and the secret is erased."""


class SigningSecretList(ResponseModel):
    """The signing secrets of a webhook, the newest first."""

    items: tuple[SigningSecretModel, ...]


class GeneratedSecretModel(ResponseModel):
    """A signing secret that was just generated. It signs together with the older ones until they end or are removed."""

    secret: str
    """`whsec_…` or `whsk_…`: returned only once."""
    fingerprint: str
    public_key: str | None
    """`whpk_…`: with which receivers verify Ed25519 signatures; null for HMAC."""
    older_end_at: datetime | None
    """When the older secrets stop signing at the latest; null if they don't by themselves, or if there are none."""
    version: int
    """The webhook's version now."""


class SampleEvent(RequestModel):
    """Selects a sample event."""

    channel: Channel = Channel.EMAIL
    message_status: Word = "delivered"
    """Feedback status of the event: `delivered`, `bounce`, …"""


class DraftTest(SampleEvent):
    """A sample event for a webhook that is not saved."""

    webhook: WebhookDraft
    webhook_id: Id | None = None
    """Id of the webhook that is being edited, whose secrets the draft may keep."""
