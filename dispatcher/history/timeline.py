"""Describes what happened to an event, for the command line and the console. Pure."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from dispatcher.contract.history import HistoryEntry, HistoryOutcome

SKIP_REASONS: Final = {
    "not_feedback": "it is no message feedback event",
    "test_execution": "it is of a test execution",
    "no_webhook": "its organisation and sandbox have no webhook",
    "webhook_disabled": "the webhook is switched off",
    "channel": "the webhook doesn't want its channel",
    "status": "the webhook doesn't want its message status",
    "campaign": "the webhook doesn't want its campaign, or the campaign has feedback webhooks switched off",
}
"""The rule that skipped an event. Each continues the words "Skipped: "."""

SKIP_REMEDIES: Final = {
    "test_execution": "Nothing: test executions are never sent.",
    "no_webhook": "Create a webhook for the organisation and sandbox.",
    "webhook_disabled": "Switch the webhook on.",
    "channel": "Add the channel to the webhook's channels.",
    "status": "Add the status to the webhook's events.",
    "campaign": "Add the campaign to the webhook's campaigns, or allow all. Only campaigns triggered by API and "
    "have feedback webhooks switched on are sent.",
}
"""What to change so that such events are sent."""

WAIT_REASONS: Final = {
    "attempt_failed": "the attempt failed",
    "breaker_open": "the circuit breaker is open because nearly every request fails",
    "lane_full": "the endpoint takes fewer events than arrive",
    "held": "the endpoint asked for a pause with Retry-After",
    "suspended": "the endpoint asked for no more events, until the webhook is edited",
    "tenant_disabled": "every request failed for a day, until the webhook is edited or reactivated",
    "unusable": "the webhook can't be used as it is configured, until it is repaired",
    "undecided": "not all webhook files can be read, so that it is unknown whether the tenant has a webhook",
    "paused": "the webhook is paused",
}
"""Why an event waits. Each continues the words "Parked: " or "Held: "."""

DEAD_REASONS: Final = {
    "unreadable": "it can't be read as a delivery event",
    "internal": "a bug of the dispatcher",
    "too_large": "it is too large",
    "rejected": "the endpoint rejected it",
    "redirected": "the endpoint answered with a redirect, which is never followed",
    "aborted": "the endpoint asked to abort it",
    "egress_denied": "the endpoint's address is not allowed",
    "expired": "it still failed at the age limit",
}

_NO_ANSWER: Final = {
    "dns": "the host name was not resolved",
    "connect_refused": "the connection was refused",
    "connect_timeout": "no connection within the time limit",
    "connect": "no connection",
    "tls": "the TLS handshake failed",
    "timeout": "no complete answer within the time limit",
    "reset": "the connection broke off",
    "protocol": "the answer was not HTTP",
    "egress_denied": "the address is not allowed",
    "proxy": "the operator's egress proxy failed",
    "token": "no access token",
}


def moment(at_ms: int) -> str:
    """Formats a time: `2026-11-28 14:00:01.123 UTC`."""
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"
    except (ValueError, OverflowError, OSError):
        return f"{at_ms} ms since 1970"


def title(entry: HistoryEntry, moment_text: Callable[[int], str] = moment) -> str:
    """Returns one line without time: `Attempt 2: answered 503`, `Skipped: the webhook doesn't want its channel`.

    Args:
        moment_text: formats the time until which an event is parked or held, from Unix milliseconds.
    """
    until = "" if entry.due_at is None else f" until {moment_text(entry.due_at)}"
    reason = entry.reason
    match entry.outcome:
        case HistoryOutcome.ATTEMPT:
            return f"Attempt {entry.attempt or 1}: {_answer(entry)}"
        case HistoryOutcome.DELIVERED:
            return f"Delivered by attempt {entry.attempt or 1}: {_answer(entry)}"
        case HistoryOutcome.SKIPPED:
            return f"Skipped: {_words(reason, SKIP_REASONS)}"
        case HistoryOutcome.PARKED:
            return f"Parked{until}: {_words(reason, WAIT_REASONS)}"
        case HistoryOutcome.HELD:
            return f"Held{until}: {_words(reason, WAIT_REASONS)}"
        case HistoryOutcome.DEAD:
            return f"Dead: {_words(reason, DEAD_REASONS)}"
        case HistoryOutcome.REDRIVEN:
            return "Sent again after it was delivered" if reason == "delivered" else "Sent again from the dead events"


def reason_in_words(outcome: HistoryOutcome, reason: str) -> str:
    """Returns why an event was skipped, parked, held or dead, as a sentence; otherwise `reason` as it is."""
    match outcome:
        case HistoryOutcome.SKIPPED:
            return _words(reason, SKIP_REASONS)
        case HistoryOutcome.PARKED | HistoryOutcome.HELD:
            return _words(reason, WAIT_REASONS)
        case HistoryOutcome.DEAD:
            return _words(reason, DEAD_REASONS)
        case _:
            return reason


def details(entry: HistoryEntry) -> str:
    """Returns what else is known: duration, headers of the answer, detail; empty if nothing is."""
    parts = []
    if entry.duration_ms is not None:
        parts.append(f"{entry.duration_ms:.{1 if entry.duration_ms < 10 else 0}f} ms")
    if entry.detail and entry.detail != _answer(entry):
        parts.append(entry.detail)
    parts += [f"{name}: {value}" for name, value in (entry.headers or {}).items()]
    return "; ".join(parts)


def _answer(entry: HistoryEntry) -> str:
    if entry.status is not None:
        return f"answered {entry.status}"
    return _words(entry.reason, _NO_ANSWER) or "no answer"


def _words(reason: str, known: dict[str, str]) -> str:
    return known.get(reason, reason.replace("_", " "))
