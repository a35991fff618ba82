"""Formats values for people: times, numbers, states, reasons. Pure; all words of the console are defined here."""

import shlex
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from time import time
from typing import Final

import orjson

from dispatcher.config.units import format_duration
from dispatcher.console import masking
from dispatcher.console.model import AttemptModel
from dispatcher.console.time_zone import abbreviation, local
from dispatcher.contract.history import HistoryEntry, HistoryOutcome
from dispatcher.contract.outcomes import DeadReason
from dispatcher.contract.reason_texts import DEAD, FAILED, SKIPPED, WAITING
from dispatcher.contract.redaction import recipient
from dispatcher.history.timeline import details, title, utc_text

STATES: Final = {
    "active": ("Active", "ok"),
    "unstable": ("Unstable", "warning"),
    "disabled": ("Disabled", "stopped"),
    "paused": ("Paused", "paused"),
    "failing": ("Failing", "failing"),
    "off": ("Switched off", "idle"),
    "unknown": ("Unknown", "unknown"),
}
"""Word and shape of each state of a webhook."""

VERDICTS: Final = {
    "delivered": ("Delivered", "ok"),
    "retry_soon": ("Tried again soon", "retry"),
    "retry_later": ("Tried again later", "retry"),
    "disable_endpoint": ("Sending stopped", "stopped"),
    "dead": ("Dead", "stopped"),
}

ACTIONS: Final = {
    "create": "Created",
    "edit": "Edited",
    "delete": "Deleted",
    "restore": "Restored",
    "erase": "Erased the secrets of a deleted webhook",
    "erase_person": "Erased a person from the history",
    "secret_end": "Erased a signing secret that had ended",
    "key_end": "Erased a signing key that was replaced",
    "enable": "Reactivated",
    "pause": "Paused",
    "resume": "Resumed",
    "test": "Sent a test event",
    "redrive": "Sent events again",
    "open": "Opened a dead event",
    "token_create": "Made an API token",
    "token_revoke": "Revoked an API token",
    "rotate": "Encrypted secrets again",
    "notify": "Sent a notification",
    "contact": "Answered a confirmation",
}

STEPS: Final = {
    "address": "Address found",
    "connect": "Connected",
    "tls": "TLS established",
    "token": "Token ready",
    "request": "Request sent",
    "first_byte": "First byte",
    "answer": "Answer",
}


_DEAD: Final = {reason: text.label for reason, text in DEAD.items()}
_WAITING: Final = dict(WAITING)
_FAILED: Final = {reason: text.label for reason, text in FAILED.items()}


def failing_sentence(attempt: AttemptModel, failed: int, seen: int) -> str:
    """Returns a sentence about the `failed` of `seen` requests that failed as this attempt did."""
    if seen == 1:
        of = "the last request"
    elif failed == seen:
        of = f"all of the last {seen} requests"
    else:
        of = f"{failed} of the last {seen} requests"
    if attempt.status is not None and attempt.reason.startswith("http_"):
        return f"Your server answered {attempt.status} to {of}."
    sentence = FAILED[attempt.reason].sentence if attempt.reason in FAILED else "Something failed for {of}."
    return sentence.format(of=of)


def answer(attempt: AttemptModel) -> str:
    """Returns `401`, or why there was no response."""
    if attempt.status is not None:
        return str(attempt.status)
    return FAILED[attempt.reason].label if attempt.reason in FAILED else attempt.reason or "No answer"


def ago(seconds: float | None, now: float | None = None) -> str:
    """Formats an age: `3 min ago`."""
    if seconds is None:
        return "never"
    age = (time() if now is None else now) - seconds
    if age < 0:
        return f"in {span(-age)}" if age < -1 else "now"
    return "just now" if age < 5 else f"{span(age)} ago"


def span(seconds: float) -> str:
    """Formats a duration in its largest unit: `3 min`."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, round(seconds))} s"


def exact(seconds: float) -> str:
    """Formats a time in the person's zone: `24 Nov 2026, 20:37:39 UTC`."""
    at = local(seconds)
    return f"{at:%-d %b %Y, %H:%M:%S} {abbreviation(at)}"


def brief(seconds: float) -> str:
    """Formats a time in the person's zone, shown beside an age: `20:37:39`, with the date if it isn't today's."""
    at = local(seconds)
    return f"{at:%H:%M:%S}" if at.date() == local(time()).date() else f"{at:%-d %b, %H:%M}"


def day(seconds: float) -> str:
    """Formats a date of this year in the person's zone: `24 Nov`."""
    return f"{local(seconds):%-d %b}"


def clock(seconds: float) -> str:
    """Formats a time of day in the person's zone: `20:37`."""
    return f"{local(seconds):%H:%M}"


def iso(seconds: float) -> str:
    """Formats a time for the `datetime` attribute."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def death(reason: str, detail: str) -> str:
    """Returns the detail of a dead event as a phrase. An expired event's detail is why it was not sent at last."""
    if reason != DeadReason.EXPIRED or not detail:
        return detail
    return f"last: {WAITING.get(detail, detail)}"  # up to version 0.2.0, a dead letter could carry the park reason


def milliseconds(value: float | None) -> str:
    """Formats a duration: `84 ms`, `1.2 s`."""
    if value is None:
        return "–"
    if value < 10:
        return f"{value:.1f} ms"
    return f"{value:,.0f} ms" if value < 1000 else f"{value / 1000:.1f} s"


def count(value: int | None) -> str:
    """Formats a number: `12,345`."""
    return "–" if value is None else f"{value:,}"


def events(value: int) -> str:
    """Formats a number of events: `1 event`, `12 events`."""
    return f"{value:,} event{'' if value == 1 else 's'}"


def attempts(value: int) -> str:
    """Formats a number of attempts: `never sent`, `after 1 attempt`, `after 12 attempts`."""
    return f"after {value:,} attempt{'' if value == 1 else 's'}" if value else "never sent"


def percent(share: float) -> str:
    """Formats a share: `99.3 %`. Never 100 if something failed."""
    if share in (0.0, 1.0):
        return f"{share:.0%}".replace("%", " %")
    return f"{min(99.9, max(0.1, share * 100)):.1f} %"


def sentence(text: str) -> str:
    """Returns the text with a capital letter and a full stop."""
    text = text.strip()
    return text if not text else text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


def within(text: str) -> str:
    """Returns the text with a small first letter, for use within a sentence."""
    return text[:1].lower() + text[1:]


def rate(per_second: float) -> str:
    """Formats a rate so that `units.parse_rate` reads it: `100/s`."""
    for size, unit in ((1, "s"), (60, "m"), (3600, "h")):
        if (per_second * size).is_integer():
            return f"{per_second * size:.0f}/{unit}"
    return f"{per_second:g}/s"


def value_text(value: object) -> str:
    """Formats a value of the audit log: text unchanged, everything else as JSON."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def indented(text: str) -> str:
    """Returns JSON indented, any other text unchanged."""
    try:
        return orjson.dumps(orjson.loads(text), option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONDecodeError:
        return text


_FRAMING: Final = frozenset({"host", "content-length", "connection", "accept-encoding"})


def as_curl(url: str, headers: Sequence[tuple[str, str]], body: str) -> str:
    """Returns the request as a curl command for a POSIX shell, without the headers that curl sets itself."""
    lines = [f"curl -X POST {shlex.quote(url)}"]
    lines += [f"-H {shlex.quote(f'{name}: {value}')}" for name, value in headers if name.lower() not in _FRAMING]
    return " \\\n  ".join([*lines, f"--data-raw {shlex.quote(body)}"])


def word(key: object, words: dict[str, str]) -> str:
    """Returns the word for a key. A key of a newer version is returned with spaces instead of underscores."""
    return words.get(str(key), str(key).replace("_", " "))


_SHAPES: Final = {
    HistoryOutcome.ATTEMPT: "retry",
    HistoryOutcome.DELIVERED: "ok",
    HistoryOutcome.SKIPPED: "idle",
    HistoryOutcome.PARKED: "retry",
    HistoryOutcome.HELD: "paused",
    HistoryOutcome.DEAD: "stopped",
    HistoryOutcome.REDRIVEN: "retry",
}


def describe_entry(entry: HistoryEntry) -> tuple[str, str]:
    """Returns what an entry of the history reports, and its shape."""
    return title(entry, _moment), _SHAPES[entry.outcome]


def _moment(at_ms: int) -> str:
    try:
        return exact(at_ms / 1000)
    except (ValueError, OverflowError, OSError):
        return utc_text(at_ms)


FILTERS: Final[dict[str, Callable[..., object]]] = {
    "ago": ago,
    "answer": answer,
    "as_curl": as_curl,
    "attempts": attempts,
    "brief": brief,
    "clock": clock,
    "count": count,
    "death": death,
    "skip_text": lambda reason: SKIPPED[reason],
    "dead_reason": lambda key: word(key or "unknown", _DEAD),
    "action": lambda key: word(key, ACTIONS),
    "duration": format_duration,
    "events": events,
    "exact": exact,
    "happened": describe_entry,
    "happened_more": details,
    "indented": indented,
    "iso": iso,
    "masked_address": recipient,
    "masked_url": masking.url,
    "ms": milliseconds,
    "rate": rate,
    "percent": percent,
    "reason": lambda key: word(key, _FAILED),
    "sentence": sentence,
    "span": span,
    "state": lambda key: STATES[key],
    "step": lambda key: word(key, STEPS),
    "value_text": value_text,
    "waits_for": lambda key: word(key, _WAITING),
    "within": within,
    "verdict": lambda key: VERDICTS.get(key, (str(key), "retry")),
}
