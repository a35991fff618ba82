"""`dispatcher trace`: everything that happened to a message, found by any of its ids."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from dispatcher.cli.options import DEFAULT_CONFIG, ConfigPath, parsed_tenant, quiet_settings_at
from dispatcher.config.settings import Settings
from dispatcher.config.units import parse_duration
from dispatcher.contract.history import HistoryEntry
from dispatcher.contract.recipient import recipient_hashes
from dispatcher.contract.search_text import readings, recipient_hash_in
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import ConfigError, Problem
from dispatcher.history.timeline import details, forgotten_end, title, utc_text

MAX_EVENTS = 50
"""Events that are printed."""

_FIELDS = {
    "request_id": "--request-id",
    "webhook_id": "--webhook-id",
    "message_execution_id": "--execution-id",
    "event_id": "--event-id",
    "campaign_id": "--campaign",
    "recipient": "--recipient",
}


def trace(
    any_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="Any of the ids, or a recipient or its hash.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(metavar="ORG/SANDBOX", help="Only this tenant's events.")] = None,
    request_id: Annotated[str | None, typer.Option(help="requestId of the envelope.")] = None,
    webhook_id: Annotated[str | None, typer.Option(help="The webhook-id header.")] = None,
    execution_id: Annotated[str | None, typer.Option(help="messageExecutionID.")] = None,
    event_id: Annotated[str | None, typer.Option(help="XDM _id.")] = None,
    campaign: Annotated[str | None, typer.Option(help="campaignID.")] = None,
    recipient: Annotated[str | None, typer.Option(help="Address or number it was sent to, or the hash.")] = None,
    since: Annotated[str, typer.Option(metavar="AGE", help="How far back topics are read without a store.")] = "1d",
    topics: Annotated[bool, typer.Option("--topics", help="Read the topics even if there is a store.")] = False,
    config: ConfigPath = DEFAULT_CONFIG,
) -> None:
    """Print what happened to a message, from the history store; without one, by reading the topics.

    Exit status 1 if nothing is known about it.
    """
    given = {
        None: any_id, "request_id": request_id, "webhook_id": webhook_id, "message_execution_id": execution_id,
        "event_id": event_id, "campaign_id": campaign, "recipient": recipient,
    }  # fmt: skip
    wanted = [(field, value) for field, value in given.items() if value]
    if len(wanted) != 1:
        raise typer.BadParameter(f"give one id, as an argument or by one of {', '.join(_FIELDS.values())}")
    field, value = wanted[0]
    settings = quiet_settings_at(config)
    own = None if tenant is None else parsed_tenant(tenant)
    read_since = time.time() - _age(since)
    has_store = settings.history.has_store and not topics
    if has_store:
        lines = asyncio.run(_from_store(settings, field, value, own))
    else:
        lines = asyncio.run(_from_topics(settings, field, value, own, read_since, since))
    for line in lines:
        typer.echo(line)
    if not lines:
        hint = " in the history store; --topics reads the topics" if has_store else _looked_at(since)
        typer.echo(f"nothing is known about it{hint}", err=True)
        raise typer.Exit(1)


async def _from_store(settings: Settings, field: str | None, value: str, tenant: TenantKey | None) -> list[str]:
    from dispatcher.history.worker import history_database  # imports SQLAlchemy, which takes its time
    from dispatcher.stores.sql.history_ids import with_known_ids
    from dispatcher.stores.sql.history_search import MAX_LIMIT, HistoryQuery, HistorySearch

    query = HistoryQuery(
        tenant=tenant,
        any_id=None if field == "recipient" else value,
        id_field=field,
        recipients=_hashes(settings, field, value),
        limit=MAX_LIMIT,
    )
    database = history_database(settings)
    search = HistorySearch(database)
    lines: list[str] = []
    try:
        query = await with_known_ids(search, query, orgs=None)
        found = await search.search(query, orgs=None)
        lines += _found_as(query.any_id, value, found.items)
        webhook_ids = list(dict.fromkeys(entry.webhook_id for entry in found.items if entry.webhook_id is not None))
        for webhook_id in webhook_ids[:MAX_EVENTS]:
            timeline = await search.timeline(webhook_id, orgs=None)
            lines += _event_lines([_Line.of(entry) for entry in timeline.entries], is_cut=timeline.is_cut)
            if end := forgotten_end(timeline.entries, settings.history.keep, time.time()):
                lines.append(f"  {end}")
    finally:
        await database.close()
    if len(webhook_ids) > MAX_EVENTS or found.next is not None:
        lines.append("there are more events: give another id or a tenant, or use the console")
    return lines


async def _from_topics(
    settings: Settings, field: str | None, value: str, tenant: TenantKey | None, since: float, since_text: str
) -> list[str]:
    from dispatcher.history.topic_search import OF_RECIPIENT, Wanted, find_in_event_topics, find_in_history_topic

    hashes = _hashes(settings, field, value, needs_key=False)
    typed = readings(value) or [value]
    wanted = Wanted(typed[0], field, tenant, hashes, tuple(typed[1:]))
    silent: list[str] = []
    found = await find_in_history_topic(settings, wanted, since, silent.append)
    has_history = found is not None
    if not found:
        found = await find_in_event_topics(settings, wanted, since, silent.append)
    if silent:
        typer.echo(f"warning: no broker answers for {', '.join(silent)}: what is there is left out", err=True)
    by_event: defaultdict[str | None, list[_Line]] = defaultdict(list)
    for one in found:
        line = _Line(one.at, one.text, one.place) if one.entry is None else _Line.of(one.entry)
        by_event[one.webhook_id].append(line)
    rank = max((one.rank for one in found), default=OF_RECIPIENT)
    lines = _found_as(None if rank == OF_RECIPIENT else typed[rank], value, (one.entry for one in found))
    lines += [line for own in list(by_event.values())[:MAX_EVENTS] for line in _event_lines(own)]
    if len(by_event) > MAX_EVENTS:
        lines.append(f"there are {len(by_event)} events: give another id or a tenant")
    if lines and not has_history:
        lines.append("There is no history topic: deliveries leave no trace in the others.")
    if lines:
        lines.append(f"Topics were read back to {since_text} ago (--since).")
    return lines


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of an event's timeline."""

    at: int
    text: str
    more: str = ""
    entry: HistoryEntry | None = None

    @classmethod
    def of(cls, entry: HistoryEntry) -> "_Line":
        return cls(entry.at, title(entry), details(entry), entry)


def _found_as(known: str | None, typed: str, found: Iterable[HistoryEntry | None]) -> list[str]:
    """Returns a line that says how the entries were found, if not by the text as it was typed."""
    hashed, entries = recipient_hash_in(typed), list(found)
    if hashed is not None and any(entry is not None and entry.recipient == hashed for entry in entries):
        return [f"found by the recipient's hash {hashed}"]
    return [f"found as {known}"] if entries and known not in (None, typed) else []


def _event_lines(lines: Sequence[_Line], *, is_cut: bool = False) -> list[str]:
    printed = []
    first = next((line.entry for line in lines if line.entry is not None), None)
    if first is not None:
        about = (f"{first.org}/{first.sandbox}", first.webhook_id, first.channel, first.message_status)
        printed.append("  ".join(part for part in about if part))
        names = (
            ("requestId", first.request_id), ("_id", first.event_id), ("campaignID", first.campaign_id),
            ("messageExecutionID", first.message_execution_id),
        )  # fmt: skip
        printed.append("  " + "  ".join(f"{name} {value}" for name, value in names if value))
        if first.topic is not None:
            printed.append(f"  read at {first.topic}/{first.partition}/{first.offset}")
    if is_cut:
        printed.append("  earlier entries are not shown")
    printed += [f"  {utc_text(line.at)}  {line.text}" + (f"  ({line.more})" if line.more else "") for line in lines]
    return printed


def _hashes(settings: Settings, field: str | None, value: str, *, needs_key: bool = True) -> tuple[str, ...]:
    if field not in (None, "recipient"):
        return ()
    key, hashed = settings.history.recipient_key, recipient_hash_in(value)
    own = () if hashed is None else (hashed,)
    if key is not None:
        return (*own, *recipient_hashes(key.reveal(), value))
    if own:
        return own
    if field == "recipient" and needs_key:
        message = "is needed to find a recipient: without it, entries hold no trace of recipients"
        raise ConfigError([Problem(message, "history.recipient_key")])
    return ()


def _looked_at(since: str) -> str:
    from dispatcher.history.topic_search import NEWEST

    return (
        f"; of the topics, records with a timestamp of the last {since} (--since) and the newest {NEWEST:,} of each "
        "partition were read"
    )


def _age(text: str) -> float:
    try:
        age = parse_duration(text)
    except ValueError:
        age = None
    if not isinstance(age, float) or age <= 0:
        raise typer.BadParameter("--since: write an age: 2h, 30m, 3d")
    return age


def add_to(app: typer.Typer) -> None:
    """Adds the command `trace` to the program."""
    app.command()(trace)
