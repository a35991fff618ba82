"""`dispatcher explain`: shows the whole decision about one event."""

import asyncio
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from dispatcher.cli.ops_client import OpsUrl, ask
from dispatcher.cli.options import DEFAULT_CONFIG, ConfigPath, quiet_settings_at
from dispatcher.config.settings import Settings
from dispatcher.contract.records import Origin, Record
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import DispatcherError, StoreUnavailable, WebhookUndecided, WebhookUnusable
from dispatcher.flow.explain import Explanation, Limits, Line, explain, lane_lines
from dispatcher.kafka.topic_reader import fetch_record
from dispatcher.service import checked_source

_TITLES = {
    "read": "How it was read",
    "webhook": "Webhook",
    "rules": "Rules",
    "request": "What would be sent",
    "verdict": "Verdict",
    "lane": "Lane",
    "history": "What happened",
}


MAX_HISTORY = 30
"""Entries of the event's history that are printed, the latest ones."""

_ANSWERS = {True: "yes", False: "NO", None: "not asked"}


def explain_event(
    event: Annotated[Path | None, typer.Argument(help="File with the value of a record; - for standard input.")] = None,
    config: ConfigPath = DEFAULT_CONFIG,
    topic: Annotated[
        str | None, typer.Option(help="Read the event from this topic; by default that of events.")
    ] = None,
    partition: Annotated[int | None, typer.Option(min=0, help="Partition of the record.")] = None,
    offset: Annotated[int | None, typer.Option(min=0, help="Offset of the record.")] = None,
    ops: OpsUrl = None,
) -> None:
    """Show how an event is read, which webhook it belongs to, and what would be sent. Sends nothing; masks secrets.

    If the history store knows the event, its history is shown, too.

    Exit status 1 if the event can't be read.
    """
    is_place = partition is not None and offset is not None
    is_part_given = any(option is not None for option in (topic, partition, offset))
    if (event is None) != is_place or (event is not None and is_part_given):
        raise typer.BadParameter("give either a file, or --partition and --offset (and --topic)")
    explanation = asyncio.run(_explained(quiet_settings_at(config), event, topic, partition or 0, offset or 0, ops))
    _show(explanation)
    if not explanation.is_readable:
        raise typer.Exit(1)


async def _explained(
    settings: Settings, event: Path | None, topic: str | None, partition: int, offset: int, ops: str | None
) -> Explanation:
    if event is None:
        record = await fetch_record(settings.kafka, Origin(topic or settings.kafka.topic, partition, offset))
    else:
        record = Record(settings.kafka.topic, 0, 0, int(time.time() * 1000), None, _content(event), ())
    limits = Limits(
        settings.kafka.max_record_bytes, settings.delivery.max_body, settings.delivery.timeout, settings.kafka.topic
    )
    async with checked_source(settings) as (source, problems):
        now, webhooks = time.time(), source.all()
        explanation = explain(record, webhooks, limits, now)
        if explanation.event is not None:
            try:
                await source.get(explanation.event.tenant)
            except (WebhookUnusable, WebhookUndecided, StoreUnavailable) as error:
                explanation = explain(record, (), limits, now, error)
    more: tuple[Line, ...] = ()
    if problems:
        more = (Line("webhook", "problems", f"{len(problems)} in the configuration: see `dispatcher check`"),)
    if ops is not None and explanation.event is not None:
        more = (*more, *lane_lines(await _lane(ops, explanation.event.tenant, settings)))
    if explanation.event is not None:
        more = (*more, *await _history_lines(settings, explanation.event.webhook_id, explanation.event.tenant))
    return replace(explanation, lines=(*explanation.lines, *more))


def _content(path: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise DispatcherError(f"{path}: can't be read ({error.strerror})") from None


async def _lane(ops: str, tenant: TenantKey, settings: Settings) -> Mapping[str, object] | None:
    path = f"/lanes/{quote(tenant.org, safe='')}/{quote(tenant.sandbox, safe='')}"
    status, lane = await ask(ops, path, settings.ops)
    return None if status == 404 else lane


async def _history_lines(settings: Settings, webhook_id: str, tenant: TenantKey) -> list[Line]:
    """Returns the event's newest history entries, the oldest first; nothing if there is no history store."""
    if not settings.history.has_store:
        return []
    from dispatcher.history.timeline import forgotten_end, title, utc_text  # imports SQLAlchemy, which takes its time
    from dispatcher.history.worker import history_database
    from dispatcher.stores.sql.history_search import HistorySearch

    database = history_database(settings)
    try:
        found = await HistorySearch(database).timeline(webhook_id, orgs=frozenset({tenant.org}))
    except StoreUnavailable:
        return [Line("history", "unknown", "the history store does not answer (history.url)")]
    finally:
        await database.close()
    entries = [entry for entry in found.entries if entry.sandbox == tenant.sandbox]
    if not entries:
        return [Line("history", "nothing", "the history store knows nothing of this event")]
    shown = entries[-MAX_HISTORY:]
    lines = [Line("history", utc_text(entry.at), title(entry)) for entry in shown]
    if found.is_cut or len(shown) < len(entries):
        lines.insert(0, Line("history", "before", "earlier entries are not shown"))
    if end := forgotten_end(entries, settings.history.keep, time.time()):
        lines.append(Line("history", "then", end))
    return lines


def _show(explanation: Explanation) -> None:
    shown = [
        *explanation.lines,
        *(Line("rules", rule.reason.value, f"{_ANSWERS[rule.passes]}: {rule.why}") for rule in explanation.rules),
        *(Line("request", f"header {name}", value) for name, value in explanation.headers),
    ]
    for section, title in _TITLES.items():
        lines = [line for line in shown if line.section == section]
        if not lines:
            continue
        typer.echo(title)
        width = max(len(line.name) for line in lines)
        for line in lines:
            typer.echo(f"  {line.name:<{width}}  {line.text}")


def add_to(app: typer.Typer) -> None:
    """Adds the command `explain` to the program."""
    app.command("explain")(explain_event)
