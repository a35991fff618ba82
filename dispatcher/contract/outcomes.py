"""The outcome of a record and of one POST.

Every record ends in exactly one `Outcome`. The enums are closed: their values are metric labels, log fields
and the `feedback-reason` header, and `docs/` explains each one.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from dispatcher.contract.values import slots_dataclass


class SkipReason(StrEnum):
    """Why an event is not sent to a webhook, in the order of the checks."""

    NOT_FEEDBACK = "not_feedback"
    TEST_EXECUTION = "test_execution"
    NO_WEBHOOK = "no_webhook"
    WEBHOOK_DISABLED = "webhook_disabled"
    CHANNEL = "channel"
    STATUS = "status"
    CAMPAIGN = "campaign"


class FailureReason(StrEnum):
    """Why no usable answer came back from an endpoint."""

    DNS = "dns"
    CONNECT_REFUSED = "connect_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    CONNECT = "connect"
    """Any other failure to connect: no route, network unreachable."""
    TLS = "tls"
    """Handshake or certificate; the detail says which."""
    TIMEOUT = "timeout"
    """Connected, but the answer's head was not complete in time."""
    RESET = "reset"
    """The connection was closed or reset before the answer's head was complete."""
    PROTOCOL = "protocol"
    """The answer isn't HTTP, or exceeds the limits on headers."""
    EGRESS_DENIED = "egress_denied"
    """The name resolves to a denied address, or the operator's rules refuse the URL: never connected, tried again."""
    URL_DENIED = "url_denied"
    """The URL's host is itself a denied address: no resolver can change that."""
    PROXY = "proxy"
    """The operator's egress proxy failed; never evidence against the tenant."""
    LOCAL = "local"
    """This machine failed: no file descriptor, no local port, no network; never evidence against the tenant."""
    TOKEN = "token"
    """No access token could be fetched from the tenant's token endpoint."""


class ParkReason(StrEnum):
    """Why an event waits in a retry tier, or in the topic of held events."""

    ATTEMPT_FAILED = "attempt_failed"
    BREAKER_OPEN = "breaker_open"
    LANE_FULL = "lane_full"
    RETRY_AFTER = "held"
    """The endpoint asked for a pause with Retry-After."""
    SUSPENDED = "suspended"
    """The endpoint answered 410 or `webhook-delivery: disable`; until the webhook is edited."""
    TENANT_DISABLED = "tenant_disabled"
    """Nearly everything failed for 24 hours; until the webhook is edited or enabled by hand."""
    UNUSABLE = "unusable"
    """The store has the webhook and can't use it: a mistake in it, a secret that is missing; until it is repaired."""
    UNDECIDED = "undecided"
    """Not known whether the tenant has a webhook: a webhook file can't be read; until it can be."""
    PAUSED = "paused"
    """The webhook is paused; until it no longer is."""


CONFIGURATION_REASONS: Final = frozenset(
    {
        ParkReason.SUSPENDED, ParkReason.TENANT_DISABLED, ParkReason.UNUSABLE, ParkReason.UNDECIDED, ParkReason.PAUSED,
    }
)  # fmt: skip
"""Reasons that only an operator or a change of configuration ends."""


class DeadReason(StrEnum):
    """Why an event went to the dead-letter topic."""

    UNREADABLE = "unreadable"
    INTERNAL = "internal"
    """A bug of ours: the record is kept for a redrive by a fixed version."""
    TOO_LARGE = "too_large"
    """The feedback payload passes the limit on request bodies."""
    REJECTED = "rejected"
    """A final 4xx, 501 or 505."""
    REDIRECTED = "redirected"
    """Any 3xx: redirects are never followed."""
    ABORTED = "aborted"
    """The endpoint answered `webhook-delivery: abort-message`."""
    EGRESS_DENIED = "egress_denied"
    EXPIRED = "expired"
    """Not delivered by the age limit: it failed each time, or it was held."""


class FinishedResult(StrEnum):
    """How an event ended for good. It labels the service-level indicator, which counts each event once."""

    DELIVERED = "delivered"
    SKIPPED = "skipped"
    DEAD_LETTERED = "dead_lettered"


@slots_dataclass
class Delivered:
    """The endpoint answered 2xx."""

    attempts: int


@slots_dataclass
class Skipped:
    """The event is not for a webhook."""

    reason: SkipReason


@slots_dataclass
class Parked:
    """Written to a retry tier or to the topic of held events, acknowledged by the broker."""

    tier: int | None
    """Index into the configured tiers; None: held until the configuration changes."""
    reason: ParkReason


@slots_dataclass
class Dead:
    """Written to the dead-letter topic, acknowledged by the broker."""

    reason: DeadReason


Outcome = Delivered | Skipped | Parked | Dead


@dataclass(frozen=True, slots=True)
class Phases:
    """Seconds each phase of one POST took; None for a phase that was not reached or not needed."""

    dns_s: float | None = None
    connect_s: float | None = None
    tls_s: float | None = None
    request_s: float | None = None
    """To encrypt the request and hand it to the operating system."""
    first_byte_s: float | None = None
    """Seconds from the request's last byte written to the first byte of the answer."""
    body_s: float | None = None
    address: str | None = None
    tls_version: str | None = None
    certificate_expires: float | None = None
    """Unix time, seconds."""


NO_PHASES: Final = Phases()
NO_PUBLIC_ADDRESS: Final = "has no public address: correct the name, or its records in DNS"
"""End of the detail for a name that doesn't exist and for one that resolves to a denied address. Tenants must not see
the difference: they could list the names of the operator's network."""


@slots_dataclass
class Attempt:
    """A finished POST: the response, or the reason why there is none. Exactly one of status and failure is set."""

    elapsed_s: float
    status: int | None = None
    failure: FailureReason | None = None
    detail: str = ""
    """For people: what exactly failed, without payload, token or full URL; at most 256 characters."""
    reused: bool = False
    """The request went out on a kept-alive connection."""
    retry_after: str | None = None
    """Response header, as it came."""
    webhook_delivery: str | None = None
    """Response header, as it came."""
    body: bytes = b""
    """First 2,048 bytes of the answer, only if the request asked to keep them."""
    phases: Phases = NO_PHASES
    trace_id: str | None = None
    """Trace of the sampled span that describes it, if there is one."""
    www_authenticate: str | None = None
    """Response header, as it came: may echo the token."""

    @property
    def answer(self) -> str:
        """The stored body as text; control characters except line breaks and tabs are replaced."""
        text = self.body.decode(errors="replace")
        return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)


def shown_to_tenants(attempt: Attempt) -> Attempt:
    """Returns the attempt as tenants may see it: without a hint whether a name of the operator's network exists.

    A name that doesn't exist and one that resolves to a denied address become equal. Operators see the difference in
    metrics and logs.
    """
    if attempt.failure is None or not attempt.detail.endswith(NO_PUBLIC_ADDRESS):
        return attempt
    return Attempt(0.0, failure=FailureReason.DNS, detail=attempt.detail)  # the time would show a cached answer
