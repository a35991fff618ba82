"""Describes what happened to an event, for the command line and the console. Pure."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from dispatcher.config.settings import HistoryKeepSettings
from dispatcher.config.units import format_duration
from dispatcher.contract.history import FINAL, HistoryEntry, HistoryOutcome
from dispatcher.contract.reason_texts import SKIPPED, WAITING, death_in_words, failure_in_words


def utc_text(at_ms: int) -> str:
    """Formats a time: `2026-11-28 14:00:01.123 UTC`."""
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"
    except (ValueError, OverflowError, OSError):
        return f"{at_ms} ms since 1970"


def title(entry: HistoryEntry, until_text: Callable[[int], str] = utc_text) -> str:
    """Returns one line without time: `Attempt 2: answered 503`, `Skipped: the webhook doesn't want its channel`.

    Args:
        until_text: formats the time until which an event is parked, or at which a held one expires; it is given in Unix
            milliseconds.
    """
    until = "" if entry.due_at is None else f" until {until_text(entry.due_at)}"
    reason = entry.reason
    match entry.outcome:
        case HistoryOutcome.ATTEMPT:
            return f"Attempt {entry.attempt or 1}: {_answer(entry)}"
        case HistoryOutcome.DELIVERED:
            return f"Delivered by attempt {entry.attempt or 1}: {_answer(entry)}"
        case HistoryOutcome.SKIPPED:
            return f"Skipped: {reason_in_words(entry.outcome, reason)}"
        case HistoryOutcome.PARKED:
            return f"Parked{until}: {reason_in_words(entry.outcome, reason)}"
        case HistoryOutcome.HELD:
            expires = "" if entry.due_at is None else f"; expires on {until_text(entry.due_at)}"
            return f"Held: {reason_in_words(entry.outcome, reason)}{expires}"
        case HistoryOutcome.DEAD:
            return f"Dead: {reason_in_words(entry.outcome, reason)}"
        case HistoryOutcome.REDRIVEN:
            return "Sent again after it was delivered" if reason == "delivered" else "Sent again from the dead events"


def reason_in_words(outcome: HistoryOutcome, reason: str) -> str:
    """Returns why an event was skipped, parked, held or dead, as a sentence; otherwise `reason` as it is."""
    spelt = reason.replace("_", " ")  # for reasons of a later version
    match outcome:
        case HistoryOutcome.SKIPPED:
            return SKIPPED[reason].text if reason in SKIPPED else spelt
        case HistoryOutcome.PARKED | HistoryOutcome.HELD:
            return WAITING.get(reason, spelt)
        case HistoryOutcome.DEAD:
            return death_in_words(reason)
        case _:
            return reason


def remedy_of(outcome: HistoryOutcome, reason: str) -> str:
    """Returns what to change so that events which are skipped for this reason are sent; empty for other outcomes."""
    return SKIPPED[reason].remedy if outcome is HistoryOutcome.SKIPPED and reason in SKIPPED else ""


def forgotten_end(entries: Sequence[HistoryEntry], keep: HistoryKeepSettings, now: float) -> str:
    """Returns a sentence if an event's last stored entry isn't its last one: how it ended is no longer kept.

    Empty if the event has ended, or may still wait. Ends are kept as long as what came before, except those that
    versions up to 0.2.0 wrote, and those that never reached the store.
    """
    last = entries[-1] if entries else None
    if last is None or last.outcome in FINAL or last.verdict == "dead":
        return ""
    if max(last.at, last.due_at or 0) / 1000 + min(keep.delivered, keep.skipped) > now:
        return ""
    delivered, skipped = format_duration(keep.delivered), format_duration(keep.skipped)
    return f"How it ended is no longer kept: deliveries are kept for {delivered}, skipped events for {skipped}."


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
    return failure_in_words(entry.reason) or "no answer"
