"""The words for every reason: why an event was skipped, waits or died, and why an attempt failed.

Each table has an entry for every member of its enum. The keys are texts because the history may contain reasons of
another version.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from dispatcher.contract.outcomes import DeadReason, FailureReason, ParkReason, SkipReason


@dataclass(frozen=True, slots=True)
class SkipText:
    """The words for a rule that events are skipped by."""

    rule: str
    """The rule as a heading."""
    text: str
    """Reason why the event was skipped; continues the words "Skipped: "."""
    remedy: str = ""
    """The change that makes such events be sent."""


@dataclass(frozen=True, slots=True)
class DeadText:
    """The words for a reason to dead-letter an event."""

    label: str
    text: str
    """Continues the words "Dead: "."""
    remedy: str = ""
    """The change without which it would die again; empty if the last attempt shows it."""


@dataclass(frozen=True, slots=True)
class FailureText:
    """The words for an attempt without an answer."""

    label: str
    text: str
    """Continues the words "Attempt 2: "."""
    sentence: str
    """About several attempts; `{of}` stands for them: `the last request`, `3 of the last 5 requests`."""


SKIPPED: Final[Mapping[str, SkipText]] = {
    SkipReason.NOT_FEEDBACK: SkipText("Message feedback", "it isn't a message feedback event"),
    SkipReason.TEST_EXECUTION: SkipText(
        "No test execution", "it belongs to a test execution", "Nothing: test executions are never sent."
    ),
    SkipReason.NO_WEBHOOK: SkipText(
        "Has a webhook",
        "its organisation and sandbox have no webhook",
        "Create a webhook for the organisation and sandbox.",
    ),
    SkipReason.WEBHOOK_DISABLED: SkipText("Webhook is on", "the webhook is switched off", "Switch the webhook on."),
    SkipReason.CHANNEL: SkipText(
        "Channel is wanted", "the webhook doesn't want its channel", "Add the channel to the webhook's channels."
    ),
    SkipReason.STATUS: SkipText(
        "Status is wanted", "the webhook doesn't want its message status", "Add the status to the webhook's events."
    ),
    SkipReason.CAMPAIGN: SkipText(
        "Campaign is wanted",
        "the webhook doesn't want its campaign, or the campaign has feedback webhooks switched off",
        "Add the campaign to the webhook's campaigns, or allow all. Only events of API-triggered "
        "campaigns with feedback webhooks switched on are sent.",
    ),
}

WAITING: Final[Mapping[str, str]] = {
    ParkReason.ATTEMPT_FAILED: "the attempt failed",
    ParkReason.BREAKER_OPEN: "the circuit breaker is open because nearly every request fails",
    ParkReason.LANE_FULL: "the endpoint accepts fewer events than arrive",
    ParkReason.RETRY_AFTER: "the endpoint asked for a pause with Retry-After",
    ParkReason.SUSPENDED: "the endpoint asked for no more events, until the webhook is edited",
    ParkReason.TENANT_DISABLED: "nearly every request failed for 24 hours, until the webhook is edited or reactivated",
    ParkReason.UNUSABLE: "the webhook can't be used as it is configured, until it is repaired",
    ParkReason.UNDECIDED: "not all webhook files can be read, so that it is unknown whether the tenant has a webhook",
    ParkReason.PAUSED: "the webhook is paused",
}
"""Why an event waits. Each continues the words "Parked: " or "Held: "."""

DEAD: Final[Mapping[str, DeadText]] = {
    DeadReason.UNREADABLE: DeadText(
        "Unreadable", "it can't be read as a delivery event", "Report it to the operator: the event itself is wrong."
    ),
    DeadReason.INTERNAL: DeadText(
        "Internal error", "a bug of the dispatcher", "Report it to the operator: a version without this bug is needed."
    ),
    DeadReason.TOO_LARGE: DeadText(
        "Payload too large", "it is too large", "Report it to the operator: only a higher limit lets it pass."
    ),
    DeadReason.REJECTED: DeadText("Rejected by the server", "the endpoint rejected it"),
    DeadReason.REDIRECTED: DeadText("Redirected", "the endpoint answered with a redirect, which is never followed"),
    DeadReason.ABORTED: DeadText(
        "Aborted by the server",
        "the endpoint asked to abort it",
        "Have your server send webhook-delivery: abort-message only for events that it never wants.",
    ),
    DeadReason.EGRESS_DENIED: DeadText("Address not allowed", "the endpoint's address is not allowed"),
    DeadReason.EXPIRED: DeadText("Not delivered in time", "it was not delivered by the age limit"),
}

HELD_REMEDIES: Final[Mapping[str, str]] = {
    ParkReason.SUSPENDED: "Have your server take events again, then edit or reactivate the webhook: its events wait "
    "until then, and die at the age limit.",
    ParkReason.TENANT_DISABLED: "Correct what made the requests fail, then edit or reactivate the webhook: its events "
    "wait until then, and die at the age limit.",
    ParkReason.UNUSABLE: "Repair the webhook's configuration: its events wait until then, and die at the age limit.",
    ParkReason.UNDECIDED: "Have the operator repair the webhook files that can't be read: events wait until then, and "
    "die at the age limit.",
    ParkReason.PAUSED: "Resume the webhook: its events wait until then, and die at the age limit.",
}
"""What to change so that an event that is held, or that died while it was held, is sent."""


def remedy_of_death(reason: str, detail: str) -> str:
    """Returns the change without which a dead event would die again; empty if its last attempt shows it, if anything.

    Args:
        reason: a `DeadReason`, or one of another version.
        detail: of an event that died at the age limit, it begins with why the event waited: a text of `WAITING`, or up
            to version 0.2.0 its key.
    """
    if reason == DeadReason.EXPIRED:
        held = (text for why, text in HELD_REMEDIES.items() if detail == why or detail.startswith(WAITING[why]))
        return next(held, "")
    return DEAD[reason].remedy if reason in DEAD else ""


FAILED: Final[Mapping[str, FailureText]] = {
    FailureReason.DNS: FailureText(
        "Host not found", "the host name was not resolved", "The host name could not be resolved for {of}."
    ),
    FailureReason.CONNECT_REFUSED: FailureText(
        "Connection refused", "the connection was refused", "Your server refused the connection for {of}."
    ),
    FailureReason.CONNECT_TIMEOUT: FailureText(
        "No connection in time",
        "no connection within the time limit",
        "No connection to your server could be opened in time for {of}.",
    ),
    FailureReason.CONNECT: FailureText("No connection", "no connection", "Your server could not be reached for {of}."),
    FailureReason.TLS: FailureText(
        "TLS failed", "the TLS handshake failed", "No TLS connection to your server was possible for {of}."
    ),
    FailureReason.TIMEOUT: FailureText(
        "No answer in time", "no complete answer within the time limit", "Your server gave no answer in time to {of}."
    ),
    FailureReason.RESET: FailureText(
        "Connection broke off", "the connection broke off", "The connection broke off for {of}."
    ),
    FailureReason.PROTOCOL: FailureText(
        "Invalid HTTP answer", "the answer was not valid HTTP", "The answer was not valid HTTP for {of}."
    ),
    FailureReason.EGRESS_DENIED: FailureText(
        "Address not allowed",
        "the address is not allowed",
        "The endpoint's address is not allowed: that stopped {of}.",
    ),
    FailureReason.URL_DENIED: FailureText(
        "Address not allowed",
        "the URL's address is not allowed",
        "The URL's address is not allowed: that stopped {of}.",
    ),
    FailureReason.LOCAL: FailureText(
        "Our own side failed",
        "the dispatcher's own side failed",
        "Our own side failed for {of}: nothing is wrong on yours.",
    ),
    FailureReason.PROXY: FailureText(
        "Our proxy failed",
        "the operator's egress proxy failed",
        "Our own proxy failed for {of}: nothing is wrong on your side.",
    ),
    FailureReason.TOKEN: FailureText(
        "No token", "no access token", "No authentication token could be obtained for {of}."
    ),
}


def death_in_words(reason: str) -> str:
    """Returns why an event died; continues the words "Dead: ". Spells a reason of a later version."""
    return DEAD[reason].text if reason in DEAD else reason.replace("_", " ")


def failure_in_words(reason: str) -> str:
    """Returns why an attempt had no answer; continues the words "Attempt 2: ". Spells a reason of a later version."""
    return FAILED[reason].text if reason in FAILED else reason.replace("_", " ")
