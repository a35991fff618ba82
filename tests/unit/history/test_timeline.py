"""Checks that an event whose last entries are gone isn't taken for one that still waits."""

from typing import Any

import pytest

from dispatcher.config.settings import HistoryKeepSettings
from dispatcher.contract.history import HistoryEntry
from dispatcher.contract.history import HistoryOutcome as O
from dispatcher.history.timeline import forgotten_end

HOUR_MS = 3_600_000
NOW_S = 1_790_000_000.0
KEEP = HistoryKeepSettings.model_validate({"delivered": "24h", "skipped": "12h"})


def entry(outcome: O, age_h: float, due_h: float | None = None, **changes: Any) -> HistoryEntry:
    """An entry of this age that is due in `due_h` hours from now."""
    now = int(NOW_S * 1000)
    due_at = None if due_h is None else now + int(due_h * HOUR_MS)
    return HistoryEntry(now - int(age_h * HOUR_MS), outcome, due_at=due_at, **changes)


@pytest.mark.parametrize(
    ("last", "is_forgotten"),
    [
        (entry(O.PARKED, 13, -12.5), True),
        (entry(O.PARKED, 13, -11.5), False),  # whatever ended it is still stored
        (entry(O.PARKED, 600, -599), True),
        (entry(O.HELD, 600, -13), True),
        (entry(O.HELD, 600, 24), False),  # it may still be held
        (entry(O.ATTEMPT, 13, verdict="retry_later"), True),
        (entry(O.ATTEMPT, 11, verdict="retry_later"), False),
        (entry(O.ATTEMPT, 600, verdict="dead"), False),
        (entry(O.REDRIVEN, 13), True),
        (entry(O.REDRIVEN, 1), False),
        (entry(O.DEAD, 600), False),
        (entry(O.DELIVERED, 600), False),
        (entry(O.SKIPPED, 600), False),
    ],
)
def test_an_end_that_is_no_longer_kept_is_not_taken_for_a_wait(last: HistoryEntry, is_forgotten: bool) -> None:
    text = forgotten_end([entry(O.ATTEMPT, 700, verdict="retry_soon"), last], KEEP, NOW_S)
    assert bool(text) is is_forgotten
    assert text in ("", "How it ended is no longer kept: deliveries are kept for 24h, skipped events for 12h.")


def test_of_an_unknown_event_nothing_is_said() -> None:
    assert not forgotten_end([], KEEP, NOW_S)
