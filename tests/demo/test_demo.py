"""The demo: its arithmetic, its events, and one whole run."""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence

import pytest

from dispatcher.contract.events import DeliveryEvent, OtherEvent, read_event
from dispatcher.contract.history import HistoryOutcome
from dispatcher.contract.outcomes import SkipReason
from dispatcher.contract.tenant import TenantKey
from dispatcher.demo.accounts import Balance, balance, percentile
from dispatcher.demo.planning import Planned, plan
from dispatcher.demo.subject import parse_counts
from dispatcher.errors import UnreadableEvent
from tests.unit.examples import ORIGIN, record

LUMA = TenantKey("luma", "prod")
GOOD, DEAD = Planned(LUMA, "good", b"1"), Planned(LUMA, "dead", b"2")
BROKEN, TEST = Planned(LUMA, "broken", None, readable=False), Planned(LUMA, "test", b"3", SkipReason.TEST_EXECUTION)
EVENTS = (GOOD, DEAD, BROKEN, TEST)
ACCEPTED = {("luma", GOOD.webhook_id): 1}
IN_DEAD_LETTERS = {"dead": "expired", "broken": "unreadable"}
SKIPPED = {"test_execution": 1}


def test_balances_when_every_event_is_accounted_for() -> None:
    found = balance(EVENTS, ACCEPTED, IN_DEAD_LETTERS, SKIPPED)
    assert found == Balance(produced=4, delivered=1, skipped=1, dead=2)
    assert found.holds
    assert str(found) == "4 events = 1 delivered + 1 skipped + 2 dead; lost 0; delivered twice 0"


def test_a_repeated_delivery_is_reported_and_allowed() -> None:
    found = balance(EVENTS, {("luma", GOOD.webhook_id): 3}, IN_DEAD_LETTERS, SKIPPED)
    assert found.twice == 1
    assert found.holds


@pytest.mark.parametrize(
    ("accepted", "dead", "skipped"),
    [
        ({}, IN_DEAD_LETTERS, SKIPPED),
        (ACCEPTED, {"dead": "expired"}, SKIPPED),
        (ACCEPTED, {"broken": "unreadable"}, SKIPPED),
        (ACCEPTED, IN_DEAD_LETTERS, {}),
    ],
    ids=["not delivered", "unreadable one gone", "dead one gone", "no skip counted"],
)
def test_a_missing_event_does_not_balance(
    accepted: dict[tuple[str, str], int], dead: dict[str, str], skipped: dict[str, int]
) -> None:
    found = balance(EVENTS, accepted, dead, skipped)
    assert found.lost == 1
    assert not found.holds
    assert len(found.problems) == 1


OTHER = Planned(TenantKey("contoso", "prod"), "other", b"4")
UNKNOWN = Planned(TenantKey("wingtip", "prod"), "unknown", b"5", SkipReason.NO_WEBHOOK)


@pytest.mark.parametrize(
    ("said", "skipped", "counted"),
    [
        ((HistoryOutcome.SKIPPED, "webhook_disabled"), SKIPPED | {"webhook_disabled": 1}, "skipped"),
        ((HistoryOutcome.DELIVERED, "http_2xx"), SKIPPED, "delivered"),
        (None, SKIPPED | {"no_webhook": 1}, "skipped"),
        ((HistoryOutcome.PARKED, "attempt_failed"), SKIPPED | {"no_webhook": 1}, "skipped"),
        ((HistoryOutcome.PARKED, "attempt_failed"), SKIPPED, "waiting"),
        ((HistoryOutcome.HELD, "paused"), SKIPPED, "waiting"),
        (None, SKIPPED, "lost"),
    ],
)
def test_an_event_of_a_tenant_that_was_changed_is_what_the_dispatcher_says(
    said: tuple[HistoryOutcome, str] | None, skipped: dict[str, int], counted: str
) -> None:
    """It was disabled, given another address, deleted before and after an attempt, or paused."""
    history = {} if said is None else {GOOD.webhook_id: said}
    found = balance(EVENTS, {}, IN_DEAD_LETTERS, skipped, history, frozenset({"luma"}))
    usual = {"produced": 4, "skipped": 1, "dead": 2}
    assert found == Balance(**usual | {counted: usual.get(counted, 0) + 1}, problems=found.problems)
    assert found.holds == (not found.problems) == (counted in ("skipped", "delivered"))
    unchanged = balance(EVENTS, {}, IN_DEAD_LETTERS, skipped, history)
    assert not unchanged.holds
    assert unchanged.waiting == (said is not None and said[0] in (HistoryOutcome.PARKED, HistoryOutcome.HELD))


def test_what_is_lost_is_found_beside_a_tenant_that_was_changed() -> None:
    """Deleting one webhook accounts for as many events as were skipped for it, and for none of other tenants."""
    events = (*EVENTS, OTHER, UNKNOWN)
    changed = frozenset({"luma"})
    found = balance(events, {}, IN_DEAD_LETTERS, SKIPPED | {"no_webhook": 2}, {}, changed)
    assert (found.lost, len(found.problems)) == (1, 1)
    assert "other" in found.problems[0]
    found = balance(events, {}, IN_DEAD_LETTERS, SKIPPED | {"no_webhook": 1}, {}, changed)
    assert found.lost == 2
    found = balance(events, {}, IN_DEAD_LETTERS, SKIPPED, {}, changed)
    assert found.lost == 3, "the one that was to be skipped, too"


def test_what_was_done_in_the_console_is_not_a_problem() -> None:
    """A dead event is sent again and delivered; one is delivered that was to be skipped; a test event arrives."""
    accepted = {("luma", one.webhook_id): 1 for one in (GOOD, DEAD, TEST)} | {("luma", "msg_test"): 1}
    assert not balance(EVENTS, accepted, IN_DEAD_LETTERS, {}).holds
    found = balance(EVENTS, accepted, IN_DEAD_LETTERS, {}, {}, frozenset({"luma"}))
    assert found == Balance(produced=4, delivered=3, dead=1)
    assert found.holds


@pytest.mark.parametrize(
    ("accepted", "dead", "skipped"),
    [
        (ACCEPTED | {("luma", TEST.webhook_id): 1}, IN_DEAD_LETTERS, SKIPPED),
        (ACCEPTED | {("luma", BROKEN.webhook_id): 1}, IN_DEAD_LETTERS, SKIPPED),
        (ACCEPTED | {("luma", "msg_stranger"): 1}, IN_DEAD_LETTERS, SKIPPED),
        (ACCEPTED | {("contoso", GOOD.webhook_id): 1}, IN_DEAD_LETTERS, SKIPPED),
        (ACCEPTED, IN_DEAD_LETTERS | {"good": "expired"}, SKIPPED),
        (ACCEPTED, IN_DEAD_LETTERS | {"test": "expired"}, SKIPPED),
        (ACCEPTED, IN_DEAD_LETTERS | {"stranger": "expired"}, SKIPPED),
        (ACCEPTED, IN_DEAD_LETTERS | {"dead": "unreadable"}, SKIPPED),
        (ACCEPTED, IN_DEAD_LETTERS | {"broken": "expired"}, SKIPPED),
        (ACCEPTED, IN_DEAD_LETTERS, {"test_execution": 2}),
        (ACCEPTED, IN_DEAD_LETTERS, SKIPPED | {"status": 1}),
    ],
)
def test_a_ledger_with_forbidden_outcomes_does_not_balance(
    accepted: dict[tuple[str, str], int], dead: dict[str, str], skipped: dict[str, int]
) -> None:
    found = balance(EVENTS, accepted, dead, skipped)
    assert found.problems
    assert not found.holds


def test_every_planned_event_is_read_as_planned() -> None:
    planned = list(plan(2000))
    assert len({event.event_id for event in planned}) == 2000
    for event in planned:
        if not event.readable:
            with pytest.raises(UnreadableEvent):
                read_event(record(event.value), ORIGIN)
            continue
        found = read_event(record(event.value), ORIGIN)
        if event.skip is SkipReason.NOT_FEEDBACK:
            assert isinstance(found, OtherEvent)
        else:
            assert isinstance(found, DeliveryEvent)
            assert (found.tenant, found.webhook_id) == (event.tenant, event.webhook_id)
            assert bool(found.profile.is_test_execution) == (event.skip is SkipReason.TEST_EXECUTION)


def test_the_plan_is_the_same_each_time_and_has_every_kind() -> None:
    planned = list(plan(2000))
    assert planned == list(plan(2000))
    assert list(plan(50)) == planned[:50]
    kinds = Counter(event.skip for event in planned if event.readable)
    assert min(kinds.values()) >= 10
    assert set(kinds) == {
        None, SkipReason.NOT_FEEDBACK, SkipReason.TEST_EXECUTION, SkipReason.NO_WEBHOOK, SkipReason.CHANNEL,
        SkipReason.STATUS, SkipReason.CAMPAIGN,
    }  # fmt: skip
    assert sum(not event.readable for event in planned) >= 5


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [((), 0.5, None), ((7.0,), 0.99, 7.0), ((3.0, 1.0, 2.0), 0.5, 2.0), (tuple(map(float, range(100))), 0.99, 99.0)],
)
def test_percentile(values: Sequence[float], share: float, expected: float | None) -> None:
    assert percentile(values, share) == expected


def test_counts_are_read_from_a_page_of_metrics() -> None:
    found = parse_counts(
        "# TYPE dispatcher_events_skipped counter\n"
        'dispatcher_events_skipped_total{reason="status"} 2.0\n'
        'dispatcher_events_skipped_total{reason="channel"} 0.0\n'
        "# TYPE dispatcher_tenant_events counter\n"
        'dispatcher_tenant_events_total{org="luma",sandbox="",outcome="parked"} 4.0\n'
    )
    assert found.skipped == {"status": 2}
    assert found.tenants["luma", "parked"] == 4


def _run(**environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "dispatcher.demo"]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
def test_the_whole_demo_balances() -> None:
    done = _run(DEMO_EVENTS="300", FOREVER="false")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "300 events = " in done.stdout
    assert "lost 0" in done.stdout
    assert len(re.findall(r"http://127\.0\.0\.1:\d+/sign-in/link/\S+", done.stdout)) == 1
    assert not done.stderr


@pytest.mark.parametrize("count", ["many", "0", "-1"])
def test_a_wrong_number_of_events_is_refused(count: str) -> None:
    done = _run(DEMO_EVENTS=count)
    assert done.returncode == 2
    assert "DEMO_EVENTS" in done.stderr
