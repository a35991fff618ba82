"""Webhooks, and test events for them."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, JsonValue, RootModel

from dispatcher.config.webhooks import Channel
from dispatcher.console.api.models.base import Flag, Id, Limit, RequestModel, ResponseModel, Text, Word, whole_number

MAX_OFFSET = 1_000_000_000


class WebhookDraft(RootModel[dict[str, JsonValue]]):
    """A webhook as an editor sends it."""


class Configuration(RootModel[dict[str, JsonValue]]):
    """A webhook as it is stored, a fingerprint where a secret stands."""


class WebhookList(RequestModel):
    """Which webhooks."""

    text: Text = ""
    """Words that must all appear in name, organisation, sandbox or host."""
    channel: Channel | None = None
    enabled: Flag | None = None
    org: Word | None = None
    sandbox: Word | None = None
    sort: Literal["name", "tenant", "created", "updated"] = "name"
    descending: Flag = False
    offset: Annotated[int, Field(strict=True, ge=0, le=MAX_OFFSET), BeforeValidator(whole_number)] = 0
    limit: Limit = 50


class WebhookSummary(ResponseModel):
    """A webhook in a list."""

    id: str
    name: str
    org: str
    sandbox: str
    url: str
    """For viewers without path and query."""
    channels: tuple[Channel, ...]
    enabled: bool
    version: int
    """As in its ETag, from 1."""
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str


class Webhook(WebhookSummary):
    """A webhook. Its configuration, sent back with PUT as it is, changes nothing."""

    configuration: Configuration


class WebhookPage(ResponseModel):
    """A part of what was found."""

    items: tuple[WebhookSummary, ...]
    total: int
    """How many were found in all."""
    next: str | None
    """Path of the next part; null at the end. Also in the header Link."""


class SampleEvent(RequestModel):
    """Which sample event."""

    channel: Channel = Channel.EMAIL
    message_status: Word = "delivered"
    """Feedback status of the event: `delivered`, `bounce`, …"""


class DraftTest(SampleEvent):
    """A sample event for a webhook that is not saved."""

    webhook: WebhookDraft
    webhook_id: Id | None = None
    """The webhook that is being edited: the draft may keep its secrets."""


class StepModel(ResponseModel):
    """One rung of the ladder."""

    name: Literal["address", "connect", "tls", "token", "request", "first_byte", "answer"]
    ok: bool | None
    """null: not reached, or not needed."""
    ms: float | None
    told: str


class HeaderModel(ResponseModel):
    """A header that was sent, a secret masked."""

    name: str
    value: str


class TestResultModel(ResponseModel):
    """What became of a test event; of a preview only event_id, request and body say anything."""

    __test__ = False

    steps: tuple[StepModel, ...]
    event_id: str
    verdict: str
    reason: str
    status: int | None
    elapsed_ms: float
    verdict_in_words: str
    cure: str
    """What to change; empty where it was delivered."""
    answer: str
    """The first 2,048 bytes of the answer's body, as text."""
    request: tuple[HeaderModel, ...]
    body: str
    """The payload."""
