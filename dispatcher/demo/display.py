"""Shows the demo's progress: a table that is redrawn in a terminal, lines every two seconds elsewhere."""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from rich.console import Console
from rich.live import Live
from rich.table import Table

from dispatcher.demo.accounts import percentile
from dispatcher.demo.ledger import Ledger
from dispatcher.demo.planning import Planned
from dispatcher.demo.subject import Counts
from dispatcher.demo.tenants import TENANTS, DemoTenant

LINES_EVERY_S = 2.0
TABLE_EVERY_S = 0.25
WIDE = 125
"""Columns of a terminal that has room for the notes."""
_COLUMNS = ("produced", "received", "delivered", "retried", "skipped", "dead", "p50", "p99")


@dataclass(frozen=True, slots=True)
class TenantRow:
    """One tenant's line."""

    tenant: DemoTenant
    cells: tuple[str, ...]
    """In the order of the columns."""


@dataclass(slots=True)
class Sent:
    """Counts of the events produced so far."""

    events: list[Planned] = field(default_factory=list)
    """Without their values: the demo may go on for days."""
    by_org: Counter[str] = field(default_factory=Counter)
    to_skip: Counter[str] = field(default_factory=Counter)
    at: dict[tuple[str, str], float] = field(default_factory=dict)
    """Unix time, by organisation and webhook-id."""

    def add(self, event: Planned) -> None:
        """Counts an event that is about to be sent to the broker."""
        org = event.tenant.org
        self.events.append(replace(event, value=None))
        self.by_org[org] += 1
        self.to_skip[org] += event.skip is not None
        if event.skip is None and event.readable:
            self.at[org, event.webhook_id] = time.time()


def rows(sent: Sent, ledger: Ledger, counts: Counts) -> list[TenantRow]:
    """Returns a row for each tenant.

    Produced, received, delivered and latency are the demo's own; retried and dead as the dispatcher counts them;
    skipped as planned.
    """
    made = []
    for tenant in TENANTS:
        org, tally = tenant.org, ledger.tally(tenant.org)
        latencies = [at - sent.at[org, one] for one, at in ledger.recent(org) if (org, one) in sent.at]
        numbers = (
            sent.by_org[org],
            tally.requests,
            tally.accepted,
            counts.tenants[org, "parked"],
            sent.to_skip[org],
            counts.tenants[org, "dead_lettered"],
        )
        times = (_milliseconds(percentile(latencies, 0.5)), _milliseconds(percentile(latencies, 0.99)))
        made.append(TenantRow(tenant, (*(f"{number:,}" for number in numbers), *times)))
    return made


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


class Display:
    """Shows rows: in a terminal in place, else as lines."""

    def __init__(self) -> None:
        self._console = Console()
        self._live: Live | None = None
        self.every_s = TABLE_EVERY_S if self._console.is_terminal else LINES_EVERY_S
        """How often to show."""

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Shows rows until the context ends."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, auto_refresh=False) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def show(self, elapsed_s: float, phase: str, shown: list[TenantRow]) -> None:
        """Shows the current rows."""
        title = f"{elapsed_s:4.1f} s  {phase}"
        if self._live is not None:
            self._live.update(_table(title, shown, notes=self._console.width >= WIDE), refresh=True)
        else:
            print(_lines(title, shown), flush=True)


def _table(title: str, shown: list[TenantRow], *, notes: bool) -> Table:
    table = Table(title=title, title_justify="left", padding=(0, 1) if notes else 0)
    table.add_column("tenant", no_wrap=True)
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    if notes:
        table.add_column("", style="dim", no_wrap=True)
    for row in shown:
        table.add_row(row.tenant.title, *row.cells, *([row.tenant.note] if notes else []))
    return table


def _lines(title: str, shown: list[TenantRow]) -> str:
    head = f"{'':10}" + "".join(f"{column:>11}" for column in _COLUMNS)
    lines = [f"{row.tenant.title:10}" + "".join(f"{cell:>11}" for cell in row.cells) for row in shown]
    return "\n".join((title, head, *lines, ""))


def say(text: str) -> None:
    """Prints a line for people."""
    print(text, flush=True)


def complain(text: str) -> None:
    """Prints a line about what went wrong."""
    print(text, file=sys.stderr, flush=True)
