"""Limits the log lines about events: one summary a minute, and samples of failures instead of a line for each event.

An endpoint that is down parks thousands of events a minute. The first line of each tenant and reason in a minute is
written; the others are counted, and their number is written at the end of the minute.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

import structlog
from prometheus_client.metrics_core import Metric

from dispatcher.contract.tenant import TenantKey
from dispatcher.telemetry import metrics

EVERY_S: Final = 60.0
MAX_SERIES: Final = 1000
"""Pairs of tenant and reason that are logged separately in a minute; lines of further pairs are only counted."""
MAX_TENANTS: Final = 10_000
"""Number of tenants without a webhook that are remembered, so that each is logged once."""

log = structlog.get_logger(__name__)


class EventLog:
    """Samples and sums up the log lines about events. A process has one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._window_ends = clock() + EVERY_S
        self._more: dict[tuple[str, str, str], int] = {}
        """Number of lines left out in this minute, by event, tenant and reason; 0 after the first line."""
        self._beyond_limit = 0
        self._without_webhook: OrderedDict[TenantKey, None] = OrderedDict()
        self._before: dict[str, float] = {}

    def sampled(self, event: str, tenant: TenantKey | None, reason: str) -> bool:
        """Returns True if this line is the first of its tenant and reason in this minute, and is to be written."""
        if self._clock() >= self._window_ends:
            self.flush()
        key = (event, str(tenant or ""), reason)
        count = self._more.get(key)
        if count is not None:
            self._more[key] = count + 1
            return False
        if len(self._more) >= MAX_SERIES:
            self._beyond_limit += 1
            return False
        self._more[key] = 0
        return True

    def no_webhook(self, tenant: TenantKey) -> None:
        """Logs a tenant without a webhook when its first event is skipped."""
        if tenant in self._without_webhook:
            return
        self._without_webhook[tenant] = None
        if len(self._without_webhook) > MAX_TENANTS:
            self._without_webhook.popitem(last=False)
        log.info("tenant has no webhook: its events are skipped; logged once", tenant=str(tenant))

    def flush(self) -> None:
        """Ends the minute: writes how many lines of each tenant and reason were left out."""
        self._window_ends = self._clock() + EVERY_S
        for (event, tenant, reason), count in self._more.items():
            if count:
                log.info(f"{event}: more of the same", tenant=tenant, reason=reason, count=count)
        if self._beyond_limit:
            log.info("events of further tenants and reasons were not logged", count=self._beyond_limit)
        self._more.clear()
        self._beyond_limit = 0

    def summarise(self) -> None:
        """Writes what happened since the last summary; nothing if nothing did."""
        now = {
            "read": _sum(metrics.EVENTS_CONSUMED.collect()),
            "delivered": _sum(metrics.EVENTS_FINISHED.collect(), result="delivered"),
            "parked": _sum(metrics.EVENTS_PARKED.collect()),
            "dead": _sum(metrics.DEAD_LETTERS.collect()),
        }
        skipped = _by_label(metrics.EVENTS_SKIPPED.collect(), "reason")
        now |= {f"skipped.{reason}": value for reason, value in skipped.items()}
        done = {name: int(value - self._before.get(name, 0.0)) for name, value in now.items()}
        self._before = now
        if any(done.values()):
            reasons = {name.removeprefix("skipped."): count for name, count in done.items() if "." in name and count}
            totals = {name: count for name, count in done.items() if "." not in name}
            log.info("events in the last minute", **totals, skipped=reasons)

    async def run(self) -> None:
        """Summarises every minute until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            self.flush()
            self.summarise()


def _sum(families: Iterable[Metric], **labels: str) -> float:
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name.endswith("_total") and all(sample.labels.get(name) == value for name, value in labels.items())
    )


def _by_label(families: Iterable[Metric], label: str) -> dict[str, float]:
    return {
        sample.labels[label]: sample.value
        for family in families
        for sample in family.samples
        if sample.name.endswith("_total")
    }
