"""What the history has of an event's end: if the event failed or waited before, its end is kept as long as that."""

import asyncio
from dataclasses import replace as changed
from typing import Any

import pytest

from dispatcher.config.secrets import Secret
from dispatcher.config.settings import HistorySettings
from dispatcher.contract.history import HistoryOutcome, KeptAs, kept_as
from dispatcher.contract.outcomes import Delivered, Outcome, Parked, SkipReason
from dispatcher.contract.records import Record, RetryState
from dispatcher.delivery.history_recorder import HistoryRecorder
from dispatcher.kafka.redrive import fresh_headers
from tests.build_form import interpreted_only
from tests.history_records import taken_from
from tests.unit.delivering.builders import Bench, wall
from tests.unit.delivering.test_fast_path import Owner
from tests.unit.delivering.test_pipeline import fresh
from tests.unit.examples import ORIGIN, TENANT, email_event, webhook
from tests.unit.virtual_time import virtual_time

RETRY_TOPIC = f"{ORIGIN.topic}.retry.30s"


def recorder() -> HistoryRecorder:
    return HistoryRecorder(
        HistorySettings.model_construct(store="none", recipient_key=Secret(b"k" * 32), answers=False), wall
    )


def ends(made: HistoryRecorder) -> list[tuple[str, bool, KeptAs]]:
    """Outcome of each final entry, whether others came before it, and as what it is kept."""
    final = (HistoryOutcome.DELIVERED, HistoryOutcome.SKIPPED)
    return [(one.outcome.value, one.has_earlier, kept_as(one)) for one in taken_from(made) if one.outcome in final]


def waited(event: Any = None, *, attempts: int = 0, parks: int = 1) -> Record:
    """An event as the retry topic has it."""
    state = RetryState(ORIGIN, wall() - 60, attempts=attempts, parks=parks, reason="attempt_failed")
    return fresh(event or email_event(), headers=dict(state.headers()), topic=RETRY_TOPIC)


@virtual_time
async def test_a_delivery_at_once_is_kept_as_a_delivery() -> None:
    history = recorder()
    bench = Bench(200, history=history)
    assert await bench.process(fresh()) == Delivered(1)
    owner = Owner(bench, fresh(offset=42))
    bench.fast_path.start(owner.record, bench.processing(), owner)
    await asyncio.sleep(1)
    assert owner.outcome == Delivered(1)
    assert ends(history) == [("delivered", False, KeptAs.DELIVERED)] * 2


@virtual_time
async def test_a_delivery_by_a_quick_retry_is_kept_as_long_as_the_failure_before_it() -> None:
    history = recorder()
    assert await Bench(503, 200, history=history).process(fresh()) == Delivered(2)
    bench = Bench(503, 200, history=history)
    owner = Owner(bench, fresh(offset=42))
    bench.fast_path.start(owner.record, bench.processing(), owner)
    await asyncio.sleep(5)
    assert owner.outcome == Delivered(2)
    assert ends(history) == [("delivered", True, KeptAs.FAILED)] * 2


@virtual_time
@pytest.mark.parametrize(("attempts", "parks"), [(4, 1), (0, 1), (0, 0)], ids=["failed", "only waited", "sent again"])
async def test_a_delivery_after_a_wait_is_kept_as_long_as_the_wait(attempts: int, parks: int) -> None:
    """Also one by the first attempt: of an event that waited without one, or was sent again."""
    history = recorder()
    outcome = await Bench(200, history=history).process(waited(attempts=attempts, parks=parks))
    assert outcome == Delivered(attempts + 1)
    assert ends(history) == [("delivered", True, KeptAs.FAILED)]


@virtual_time
async def test_a_delivery_after_a_redrive_is_kept_as_long_as_the_redrive() -> None:
    history = recorder()
    dead = fresh(headers=dict(RetryState(ORIGIN, wall() - 60, attempts=3, parks=2).headers()), topic="x.dead")
    again = changed(dead, headers=tuple(fresh_headers(dead, wall())), topic=RETRY_TOPIC)
    assert await Bench(200, history=history).process(again) == Delivered(1)
    assert ends(history) == [("delivered", True, KeptAs.FAILED)]


@virtual_time
async def test_a_skip_after_a_wait_is_kept_as_long_as_the_wait() -> None:
    history = recorder()
    bench = Bench(200, history=history)
    await bench.process(fresh(email_event(feedbackStatus="delay")))
    await bench.process(waited(email_event(feedbackStatus="delay")))
    assert ends(history) == [("skipped", False, KeptAs.SKIPPED), ("skipped", True, KeptAs.FAILED)]


@virtual_time
async def test_a_skip_after_an_attempt_is_kept_as_long_as_the_attempt() -> None:
    history = recorder()
    bench = Bench(503, 200, history=history)
    task = asyncio.create_task(bench.process(fresh()))
    await asyncio.sleep(0.06)
    bench.store.put(webhook(channels=["sms"]))
    await task
    assert ends(history) == [("skipped", True, KeptAs.FAILED)]


@interpreted_only
@virtual_time
async def test_an_event_that_waited_is_listed_although_its_webhook_is_gone() -> None:
    """Its timeline would end with its wait otherwise. Others of such tenants are counted, by reason, and not listed."""
    history = recorder()
    bench = Bench(200, history=history)
    del bench.store.webhooks[TENANT]
    for one in (fresh(), fresh(email_event(isTestExecution=True)), fresh(), waited()):
        outcome: Outcome = await bench.process(one)
        assert not isinstance(outcome, Delivered | Parked)
    owner = Owner(bench, fresh(email_event(isTestExecution=True)))
    bench.fast_path.start(owner.record, bench.processing(), owner)
    found = [(one.org, one.reason, one.count, one.webhook_id is not None) for one in taken_from(history)]
    assert sorted(found) == [
        (TENANT.org, SkipReason.NO_WEBHOOK, 1, True), (TENANT.org, SkipReason.NO_WEBHOOK, 2, False),
        (TENANT.org, SkipReason.TEST_EXECUTION, 2, False),
    ]  # fmt: skip


@virtual_time
async def test_a_test_execution_of_a_tenant_with_a_webhook_is_listed() -> None:
    history = recorder()
    await Bench(200, history=history).process(fresh(email_event(isTestExecution=True)))
    assert [(one.reason, one.count, bool(one.webhook_id)) for one in taken_from(history)] == [
        ("test_execution", 1, True)
    ]
