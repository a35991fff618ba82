"""The content of messages, in words: what happened, since when, how many events wait, what to change. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

import msgspec

from dispatcher.config.webhooks import WebhookConfig
from dispatcher.contract.reason_texts import death_in_words, failure_in_words, remedy_of_death
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.remedies import remedy_for
from dispatcher.notifications.news import News, NewsKind
from dispatcher.stores.sql.history_states import StateReport

MAX_TEXT: Final = 300
"""Characters of one text from outside: a name, a detail."""
MAX_SECTIONS: Final = 50
"""Webhooks that one message describes; further ones are counted."""


class Section(msgspec.Struct, rename="camel"):
    """The part of a message that describes one webhook, or the whole installation."""

    title: str
    """`Luma order status is failing: nothing arrives`"""
    kind: str
    org: str = ""
    sandbox: str = ""
    webhook: str = ""
    facts: list[tuple[str, str]] = []
    """Label and value."""
    advice: str = ""
    """Change that ends the trouble."""
    link: str = ""
    since: int = 0
    """Unix seconds."""
    waiting: int | None = None
    """Events that wait; None if it is unknown."""
    waiting_at_least: bool = False
    """True if `waiting` is a lower bound."""


class Content(msgspec.Struct, rename="camel"):
    """A message before it is rendered."""

    kind: str
    """`notice`, `confirm` or `test`."""
    title: str
    sections: list[Section] = []
    more: int = 0
    """Sections that were left out."""
    link: str = ""
    """Of a confirmation: what confirms."""
    stop_link: str = ""
    asked_by: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """Facts about one webhook when a message about it is written."""

    config: WebhookConfig | None
    report: StateReport | None
    waiting: int | None
    waiting_at_least: bool = False
    """True if `waiting` is a lower bound."""


_TITLES: Final = {
    NewsKind.DISABLED: "{name} is disabled: its events wait",
    NewsKind.FAILING: "{name} is failing: nothing arrives",
    NewsKind.UNSTABLE: "{name} is unstable: most requests fail",
    NewsKind.RECOVERED: "{name} has recovered: events arrive again",
    NewsKind.FIRST_DEAD: "{name}: an event is dead",
    NewsKind.EXPIRING: "{name}: {expiry}",
    NewsKind.MASS: "{count} of {total} webhooks are in trouble at once",
    NewsKind.BROKEN: "Requests fail on the dispatcher's own side",
    NewsKind.TEST: "A test of notifications",
}
_STOPPED: Final = {
    "suspended": "The endpoint asked for no more events (410 Gone, or webhook-delivery: disable).",
    "tenant_disabled": "Nearly every request failed for 24 hours, so sending stopped.",
}


def clean(text: str, most: int = MAX_TEXT) -> str:
    """Returns the text on one line, without control characters, cut at `most` characters."""
    shown = "".join(char if char.isprintable() else " " for char in text)
    shown = " ".join(shown.split())
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def date_text(at: float) -> str:
    """Formats a time: `28 November 2026, 14:05 UTC`."""
    try:
        when = datetime.fromtimestamp(at, UTC)
    except (ValueError, OverflowError, OSError):
        return "an unknown time"
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def section(tenant: TenantKey, news: News, known: Known, public_url: str | None, now: float) -> Section:
    """Describes one piece of news of one webhook."""
    config, report = known.config, known.report
    name = clean(config.name if config is not None else str(tenant), 100)
    expiry = "" if news.expiry is None else _expiry_in_words(news, now)
    facts = [("Organisation and sandbox", clean(f"{tenant.org} / {tenant.sandbox}"))]
    if news.kind is not NewsKind.EXPIRING:
        facts.append(("Since", date_text(news.since)))
    if config is not None:
        facts.append(("Endpoint", clean(config.origin)))
    facts += _last_answers(news.kind, report)
    if news.kind is not NewsKind.EXPIRING:
        facts.append(("Events that wait", _waiting_in_words(known)))
    return Section(
        title=_TITLES[news.kind].format(name=name, expiry=expiry),
        kind=news.kind.value,
        org=tenant.org,
        sandbox=tenant.sandbox,
        webhook=name,
        facts=facts,
        advice=_advice(news, known),
        link=webhook_link(public_url, tenant),
        since=int(news.since),
        waiting=known.waiting,
        waiting_at_least=known.waiting_at_least,
    )


def fleet_section(news: News, public_url: str | None, now: float) -> Section:
    """Describes news for the operator: of many webhooks, or of the installation itself."""
    if news.kind is NewsKind.EXPIRING:
        expiry = _expiry_in_words(news, now)
        title = f"Dispatcher: {expiry}"
        return Section(title, news.kind.value, advice=_advice(news, Known(None, None, None)), since=int(news.since))
    title = _TITLES[news.kind].format(count=news.count, total=news.total)
    advice = (
        "Look at the dispatchers' own network first: name servers, egress proxy, firewall, certificates. Contacts of "
        "these webhooks are not notified now, only of what is still broken an hour after most have recovered, or a day "
        "later."
        if news.kind is NewsKind.MASS
        else "Look at the egress proxy, the network and the limits of the dispatchers. Contacts of webhooks are not "
        "notified of trouble meanwhile, for six hours at most."
    )
    facts = [("Since", date_text(news.since)), ("Webhooks", f"{news.count:,} of {news.total:,}")]
    link = f"{public_url}/webhooks" if public_url else ""
    return Section(title, news.kind.value, facts=facts, advice=advice, link=link, since=int(news.since))


def content_of(sections: Sequence[Section]) -> Content:
    """Returns one message with these sections. Its title is the first one's, and says how many more there are."""
    title = sections[0].title
    if len(sections) > 1:
        title += f", and {len(sections) - 1} more"
    return Content("notice", title, list(sections[:MAX_SECTIONS]), max(0, len(sections) - MAX_SECTIONS))


def webhook_link(public_url: str | None, tenant: TenantKey) -> str:
    """Returns the URL at which the console lists the tenant's webhook; empty without `console.public_url`."""
    if not public_url:
        return ""
    return f"{public_url}/webhooks?org={quote(tenant.org, safe='')}&sandbox={quote(tenant.sandbox, safe='')}"


def as_events(content: Content, created_at: float) -> list[Mapping[str, object]]:
    """Returns the bodies of a message's operational webhooks, one for each section."""
    when = datetime.fromtimestamp(created_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return [
        {
            "type": f"webhook.{one.kind}" if one.org else f"dispatcher.{one.kind}",
            "timestamp": when,
            "data": {
                "title": one.title, "org": one.org or None, "sandbox": one.sandbox or None,
                "webhook": one.webhook or None, "since": one.since, "waiting": one.waiting,
                "waitingAtLeast": one.waiting_at_least,
                "facts": dict(one.facts), "advice": one.advice, "link": one.link or None,
            },
        }
        for one in content.sections
    ]  # fmt: skip


def encode(content: Content) -> str:
    """Returns the text that the store keeps."""
    return msgspec.json.encode(content).decode()


def decode(text: str) -> Content:
    """Returns the content in a text of the store. Raises msgspec.DecodeError if another version wrote it."""
    return msgspec.json.decode(text, type=Content)


def _waiting_in_words(known: Known) -> str:
    if known.waiting is None:
        return "unknown right now"
    return f"at least {known.waiting:,}" if known.waiting_at_least else f"{known.waiting:,}"


def _expiry_in_words(news: News, now: float) -> str:
    expiry = news.expiry
    if expiry is None:
        return ""
    verb = "signs until" if expiry.is_rotation else "expires on" if expiry.at > now else "expired on"
    return f"{clean(expiry.name, 150)} {verb} {date_text(expiry.at)}"


def _last_answers(kind: NewsKind, report: StateReport | None) -> list[tuple[str, str]]:
    if report is None or kind in (NewsKind.RECOVERED, NewsKind.EXPIRING):
        return []
    facts = []
    if kind is NewsKind.FIRST_DEAD:
        facts.append((f"Events that died since {date_text(report.dead_since)}", f"{report.dead:,}"))
        if report.death_reason:
            facts.append(("Why the last one died", _death_in_words(report)))
    if report.failed_at is not None and _is_cause(kind, report):
        answer = f"{report.failure_status}" if report.failure_status else failure_in_words(report.failure_reason)
        facts.append(("Last failed attempt", clean(f"{answer}, {date_text(report.failed_at)}")))
    facts.append(("Last delivery", "none is known" if report.delivered_at is None else date_text(report.delivered_at)))
    return facts


def _death_in_words(report: StateReport) -> str:
    words = death_in_words(report.death_reason)
    return clean(f"{words} ({report.death_detail})" if report.death_detail else words)


def _is_cause(kind: NewsKind, report: StateReport) -> bool:
    """Returns False if the latest failed attempt has nothing to do with the news: events have arrived since."""
    if kind is not NewsKind.FIRST_DEAD or report.failed_at is None or report.delivered_at is None:
        return True
    return report.failed_at > report.delivered_at


def _advice(news: News, known: Known) -> str:
    report, config = known.report, known.config
    if news.kind is NewsKind.RECOVERED:
        return "Nothing: events that waited are delivered by themselves. Dead events can be sent again in the console."
    if news.kind is NewsKind.EXPIRING:
        if news.expiry is not None and news.expiry.is_rotation:
            return "Check that your server accepts the newer one: from then on it alone signs the requests."
        return "Replace it before that time; otherwise requests fail."
    parts = []
    if news.kind is NewsKind.DISABLED and report is not None:
        parts.append(_STOPPED.get(report.stopped_by, ""))
    cure = ""
    if news.kind is NewsKind.FIRST_DEAD and report is not None:
        cure = remedy_of_death(report.death_reason, report.death_detail)
        parts.append(cure)
    if not cure and config is not None and report is not None and _is_cause(news.kind, report):
        parts.append(_remedy_of_attempt(report, config))
    if news.kind is NewsKind.DISABLED:
        parts.append("Then edit the webhook or reactivate it: events wait until then, at most to their age limit.")
    elif news.kind is NewsKind.FIRST_DEAD:
        parts.append("A dead event isn't tried again by itself: send it again in the console.")
    return " ".join(part for part in parts if part)


def _remedy_of_attempt(report: StateReport, config: WebhookConfig) -> str:
    """Returns what to change by the latest failed attempt; empty if none is known."""
    if not report.failure_reason:
        return ""
    detail = clean(report.failure_detail, 150) or report.failure_reason
    is_tried = (report.failed_at or 0.0) >= report.changed_at
    remedy = remedy_for(report.failure_reason, report.failure_status, detail, config if is_tried else None)
    return clean(remedy, 600)
