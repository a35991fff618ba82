"""Events of a tenant that were not sent, by the rule that skipped them, with what to change."""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode

from dispatcher.console.formatting import iso
from dispatcher.console.model import Window
from dispatcher.console.services import Services
from dispatcher.console.webhook_state import WINDOW_S
from dispatcher.contract.history import HistoryOutcome
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import DispatcherError
from dispatcher.history.timeline import reason_in_words, remedy_of
from dispatcher.stores.sql.history_schema import SLOT_MS
from dispatcher.stores.sql.history_search import HistoryCount

QUARTER_S: Final = SLOT_MS / 1000


@dataclass(frozen=True, slots=True)
class Skipped:
    """Events that were skipped for one reason."""

    reason: str
    words: str
    remedy: str
    events: int
    since: float
    """Begin of the first quarter of an hour that is counted."""

    @property
    def query(self) -> str:
        """The query that lists these events."""
        return urlencode({"outcome": HistoryOutcome.SKIPPED.value, "reason": self.reason, "since": iso(self.since)})


def skipped_by_reason(counts: Iterable[HistoryCount], since: float) -> list[Skipped]:
    """Returns the skipped events by reason, the most frequent reason first."""
    events: Counter[str] = Counter()
    outcome = HistoryOutcome.SKIPPED
    for one in counts:
        if one.outcome is outcome:
            events[one.reason] += one.events
    return [
        Skipped(reason, reason_in_words(outcome, reason), remedy_of(outcome, reason), count, since)
        for reason, count in events.most_common()
    ]


async def skipped_lately(services: Services, tenant: TenantKey, window: Window) -> list[Skipped] | None:
    """Returns the tenant's skipped events; None without a history store, or if it doesn't answer."""
    if services.history is None:
        return None
    now = time.time()
    begin = now - WINDOW_S[window]
    since = begin - begin % QUARTER_S  # events are counted in quarters of an hour: the first one counts as a whole
    try:
        return skipped_by_reason(await services.history.counts(tenant, since, now + 60), since)
    except DispatcherError:
        return None  # the readiness probe and the operator's log report the database
