"""The numbers of a week are complete although the topic keeps less, and say from when they are otherwise."""

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dispatcher.console.outcomes import known_since, outcomes_of
from dispatcher.console.services import Services
from dispatcher.console.sources.attempts import AttemptMemory
from dispatcher.contract.history import HistoryOutcome
from dispatcher.errors import StoreUnavailable
from tests.console.api.fakes import LUMA, RIVAL, attempt_of
from tests.console.history_store import entry_of, history_in

DAY = 86_400.0
DELIVERED = replace(attempt_of(LUMA), verdict="delivered", status=200, reason="http_2xx")


class Tailed:
    """What was tailed since a restart."""

    def __init__(self, *ages: float) -> None:
        self.memory, now = AttemptMemory(), time.time()
        for age in ages:
            self.memory.add(replace(DELIVERED, at=now - age))
        self.outcomes = self.memory.outcomes
        self.known_since = self.memory.since


def services_of(attempts: Tailed, history: Any = None) -> Services:
    return cast(Services, SimpleNamespace(attempts=attempts, history=history))


async def test_a_week_is_completed_from_the_store(tmp_path: Path) -> None:
    tailed = Tailed(60, 60, 2 * DAY)
    failed = {"outcome": HistoryOutcome.ATTEMPT, "reason": "http_4xx", "status": 400}
    async with history_in(tmp_path, keep={"delivered": 30 * DAY}) as history:
        await history.add(
            entry_of(LUMA, "1", age_s=6 * DAY),
            entry_of(LUMA, "2", age_s=5 * DAY, **failed),
            entry_of(LUMA, "3", age_s=5 * DAY, **failed),
            entry_of(LUMA, "3", age_s=5 * DAY, outcome=HistoryOutcome.DEAD, reason="rejected"),
            entry_of(LUMA, "4", age_s=4 * DAY, outcome=HistoryOutcome.DEAD, reason="expired"),
            entry_of(LUMA, "5", age_s=2 * DAY),  # known from both
            entry_of(LUMA, "6", age_s=9 * DAY),
            entry_of(RIVAL, "7", age_s=6 * DAY),
        )
        services = services_of(tailed, history.lookup)
        week = await outcomes_of(services, LUMA, "7d")
        assert (week.delivered, week.failed, week.dead) == (4, 1, 1)
        assert known_since(services, week) is None
        day = await outcomes_of(services, LUMA, "24h")
        assert (day.delivered, day.failed) == (2, 0)


async def test_without_a_store_the_page_says_from_when_requests_are_known() -> None:
    tailed = Tailed(60, 2 * DAY)
    services = services_of(tailed)
    week = await outcomes_of(services, LUMA, "7d")
    assert (week.delivered, known_since(services, week)) == (2, tailed.known_since)
    assert known_since(services, await outcomes_of(services, LUMA, "24h")) is None
    assert known_since(services_of(Tailed()), week) is None


async def test_a_store_that_does_not_answer_costs_only_its_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise StoreUnavailable("the database does not answer")

    async with history_in(tmp_path) as history:
        monkeypatch.setattr(history.lookup, "slots", fail)
        tailed = Tailed(60)
        services = services_of(tailed, history.lookup)
        week = await outcomes_of(services, LUMA, "7d")
        assert week.delivered == 1
        assert known_since(services, week) == tailed.known_since
