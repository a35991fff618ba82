"""`dispatcher redrive`: sends dead events back, through the shortest retry tier."""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Final

import typer

from dispatcher.checks import webhook_rules
from dispatcher.cli.options import DEFAULT_CONFIG, ConfigPath, parsed_tenant, quiet_settings_at
from dispatcher.config.settings import Settings
from dispatcher.config.units import format_duration, parse_duration, parse_rate
from dispatcher.contract.outcomes import DeadReason
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import DispatcherError, WebhookUndecided, WebhookUnusable
from dispatcher.kafka.former_topics import dead_letter_topics
from dispatcher.kafka.history_topic import open_history
from dispatcher.kafka.producer import Producer
from dispatcher.kafka.redrive import Redrive, RedriveTally, Selection
from dispatcher.kafka.topic_reader import open_topics, shown, translating_kafka_errors
from dispatcher.kafka.topics import retry_topics
from dispatcher.stores import open_source
from dispatcher.tasks import cancel_and_wait, stop_on_signals

INTERRUPTED = 1
LOOK_EVERY_S: Final = 5.0
"""Seconds between two looks at the webhooks while events are sent."""
_PROGRESS_EVERY_S = 5.0


def redrive(
    config: ConfigPath = DEFAULT_CONFIG,
    tenant: Annotated[str | None, typer.Option(metavar="ORG/SANDBOX", help="Only this tenant's events.")] = None,
    reason: Annotated[
        list[DeadReason] | None, typer.Option(help="Only events that died of this; can be given more than once.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="AGE|TIME", help="Only events that died since: 2h, or 2026-07-22T08:00.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="AGE|TIME", help="Only events that died before.")] = None,
    rate: Annotated[str, typer.Option(help="Most events in a given time.")] = "100/s",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count, by tenant and reason.")] = False,
) -> None:
    """Send dead events back, to be delivered under the same webhook-id.

    Safe to interrupt and to repeat: events that were sent back are noted and not sent again, unless they died once
    more. After a SIGKILL at most 100 events are repeated. Dead letters that still can't be read as events are left.
    Events of tenants without a webhook would be skipped: look at the warnings of --dry-run first. If a webhook is
    switched off meanwhile, the redrive ends.
    """
    now = time.time()
    selection = Selection(
        tenant=None if tenant is None else parsed_tenant(tenant),
        reasons=frozenset(one.value for one in reason or ()),
        since=None if since is None else _time(since, now, "--since"),
        until=None if until is None else _time(until, now, "--until"),
    )
    a_second = _rate(rate)
    settings = quiet_settings_at(config)
    raise typer.Exit(asyncio.run(_redrive(settings, selection, a_second, dry_run=dry_run)))


async def _redrive(settings: Settings, selection: Selection, rate: float, *, dry_run: bool) -> int:
    progress = _ProgressLine(rate)
    stop = asyncio.Event()
    with translating_kafka_errors(settings.kafka):
        topics = await dead_letter_topics(settings)
        for former in topics[1:]:
            typer.echo(f"topic {former}, of an earlier version or other settings, is read, too")
        async with (
            open_topics(settings.kafka, topics, without_silent=True) as dead,
            open_history(settings) as history,
        ):
            if dead.silent:
                why = f"warning: no broker answers for {shown(dead.silent)}: dead events there are left"
                typer.echo(f"{why}; give the same command again once their brokers are back", err=True)
            most = settings.kafka.max_record_bytes
            redrive = Redrive(dead, selection, progress.update, history, max_record_bytes=most)
            tally = await redrive.count()
            _tell_selected(tally)
            tenants = {tenant for tenant, _ in tally.selected}
            skipped = await _tell_skipped(settings, tally)
            if dry_run or not tally.total:
                typer.echo("nothing was sent" + (" (--dry-run)" if dry_run else ""))
                return INTERRUPTED if dead.silent else 0
            # The first signal ends it after the batch under way, a second one at once.
            with stop_on_signals(stop):
                async with Producer(settings.kafka) as producer:
                    watch = asyncio.create_task(_stop_if_skipped(settings, tenants - skipped, stop))
                    try:
                        await redrive.send(
                            producer, retry_topics(settings.kafka.prefix, settings.retry.tiers)[0], rate, stop
                        )
                    finally:
                        await cancel_and_wait(watch)
                        progress.end(tally)
    left = tally.total - tally.sent - tally.too_large
    if left > 0:
        typer.echo(f"interrupted: {left} are left; the same command goes on where this one ended", err=True)
    return INTERRUPTED if left > 0 or dead.silent else 0


def _tell_selected(tally: RedriveTally) -> None:
    width = max([len(str(tenant)) for tenant, _ in tally.selected], default=0)
    for (tenant, reason), count in sorted(tally.selected.items()):
        typer.echo(f"{tenant!s:<{width}}  {reason:<13}  {count:>8}")
    typer.echo(f"{tally.total} dead events selected; {tally.already} more were sent back by an earlier redrive")
    if tally.unreadable:
        typer.echo(
            f"{tally.unreadable} of the selected dead letters still can't be read as events (`dispatcher explain` says "
            "why): they stay dead letters"
        )
    if tally.truncated:
        typer.echo(
            f"{tally.truncated} of the selected dead letters carry only a part of their event and can't be sent back: "
            "their headers feedback-origin-* name the whole one"
        )


async def _tell_skipped(settings: Settings, tally: RedriveTally) -> set[TenantKey]:
    """Says which of the selected events would be skipped: nothing delivers them, and they are noted as sent back.

    A webhook store that can't be read prevents no redrive. Returns the tenants of such events.
    """
    counts: Counter[TenantKey] = Counter()
    for (tenant, _), count in tally.selected.items():
        counts[tenant] += count
    try:
        skipped = await _would_be_skipped(settings, counts)
    except DispatcherError as error:
        typer.echo(f"it is unknown whether events would be skipped: {str(error)[:256]}", err=True)
        return set()
    for tenant, why in sorted(skipped.items()):
        typer.echo(f"warning: {tenant} {why}: its {counts[tenant]} events would be skipped", err=True)
    return set(skipped)


async def _stop_if_skipped(settings: Settings, tenants: Collection[TenantKey], stop: asyncio.Event) -> None:
    """Stops the redrive once a webhook of these tenants is switched off or deleted, as far as the store can be read."""
    problem = ""
    while not stop.is_set():
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            for tenant, why in sorted((await _would_be_skipped(settings, tenants)).items()):
                typer.echo(f"{tenant} now {why}: its events would be skipped, so nothing more is sent", err=True)
                stop.set()
        except DispatcherError as error:
            if problem != (problem := str(error)[:256]):
                typer.echo(f"the webhooks can't be looked up: {problem}", err=True)


async def _would_be_skipped(settings: Settings, tenants: Collection[TenantKey]) -> dict[TenantKey, str]:
    """Returns the tenants whose events would be skipped, and why. Raises DispatcherError if that can't be known."""
    found: dict[TenantKey, str] = {}
    async with open_source(settings.webhooks, webhook_rules(settings)) as source:
        for tenant in tenants:
            with suppress(WebhookUnusable, WebhookUndecided):  # its events are held
                webhook = await source.get(tenant)
                if webhook is None:
                    found[tenant] = "has no webhook"
                elif not webhook.config.enabled:
                    found[tenant] = "has its webhook switched off"
    return found


class _ProgressLine:
    """Shows progress: on a terminal in one line that is overwritten, elsewhere in a new line now and then."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._is_terminal = sys.stderr.isatty()
        self._next = 0.0

    def update(self, tally: RedriveTally) -> None:
        now = time.monotonic()
        if not self._is_terminal and now < self._next:
            return
        self._next = now + _PROGRESS_EVERY_S
        left_s = float(round((tally.total - tally.sent) / self._rate))
        line = f"{tally.sent} of {tally.total} sent back, about {format_duration(left_s)} left"
        typer.echo(f"\r{line}\x1b[K" if self._is_terminal else line, err=True, nl=not self._is_terminal)

    def end(self, tally: RedriveTally) -> None:
        if self._is_terminal:
            typer.echo("", err=True)
        typer.echo(f"{tally.sent} of {tally.total} sent back")
        if tally.too_large:
            typer.echo(
                f"{tally.too_large} were not sent back: the retry topic accepts no record of their size; see "
                "`dispatcher topics`",
                err=True,
            )
        if tally.repeatable:
            typer.echo(f"{tally.repeatable} of them could not be noted: the next redrive repeats them", err=True)


def _time(text: str, now: float, option: str) -> float:
    """Returns the Unix seconds of an age (`2h`) or of a time (ISO 8601, in UTC unless it names a zone)."""
    try:
        age = parse_duration(text)
    except ValueError:
        pass
    else:
        return now - age if isinstance(age, float) else now
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{option}: write an age (2h, 30m) or a time (2026-07-22T08:00:00Z)") from None
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()


def _rate(text: str) -> float:
    try:
        rate = parse_rate(text)
    except ValueError as error:
        raise typer.BadParameter(f"--rate: {error}") from None
    if not isinstance(rate, float) or rate <= 0:
        raise typer.BadParameter("--rate: more than nothing, as 100/s, 600/m, or 1000/h")
    return rate


def add_to(app: typer.Typer) -> None:
    """Adds the command `redrive` to the program."""
    app.command()(redrive)
