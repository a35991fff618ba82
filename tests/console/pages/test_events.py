"""The page of one event, from attempts and dead letter; redrives of dead events."""

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from playwright.async_api import Browser, expect

from dispatcher.console.model import AttemptModel, DeadEventModel
from dispatcher.console.pages.assets import Assets
from dispatcher.console.pages.event_explanation import decision_on
from dispatcher.console.pages.events import EventPage, KnownEvent
from dispatcher.console.pages.renderer import Renderer
from dispatcher.console.resend_model import RedriveModel
from dispatcher.console.sources.attempts import attempt_of
from dispatcher.contract.history import HistoryEntry
from dispatcher.contract.history import HistoryOutcome as O
from dispatcher.contract.outcomes import DeadReason
from dispatcher.contract.reason_texts import HELD_REMEDIES, WAITING
from dispatcher.contract.records import Origin
from dispatcher.errors import NotFound
from dispatcher.stores.sql.records import Role
from tests.console.history_store import entry_of, history_in
from tests.console.pages.browsing import window
from tests.console.pages.sample_world import CONTOSO, EXPLAINED, EXPLAINED_ID, FABRIKAM, LUMA, NORTHWIND, dead_facts
from tests.console.pages.stage import Stage, staged

DEATH = next(fact for fact in dead_facts() if fact.tenant == CONTOSO)
TRIED = AttemptModel(
    DEATH.died_at - 9, CONTOSO, "msg", "bounce", "email", 1, 503, "http_5xx", "", "retry_later", 20.0, False
)
REDRIVEN = replace(DEATH, redriven=True)
SINCE = replace(TRIED, at=DEATH.died_at + 60, status=200, reason="http_2xx", verdict="delivered")


@pytest.mark.parametrize(
    ("known", "state", "is_dead"),
    [
        (KnownEvent([TRIED], None), "Tried again later", False),
        (KnownEvent([replace(TRIED, verdict="dead")], None), "Dead", True),
        (KnownEvent([TRIED], DEATH), "Dead", True),  # too old: no attempt shows that
        (KnownEvent([], DEATH), "Dead", True),
        (KnownEvent([TRIED], REDRIVEN), "Sent again", False),
        (KnownEvent([], REDRIVEN), "Sent again", False),
        (KnownEvent([TRIED, SINCE], REDRIVEN), "Delivered", False),
        (KnownEvent([TRIED, SINCE], DEATH), "Delivered", False),  # the mark of the redrive is not read yet
    ],
)
def test_an_events_state_is_what_happened_last(known: KnownEvent, state: str, is_dead: bool) -> None:
    assert (known.shown[0], known.is_dead) == (state, is_dead)


def entry(outcome: O, after_s: float = 0.0, **changes: Any) -> HistoryEntry:
    """An entry of DEATH's event, `after_s` seconds after the death."""
    return msgspec.structs.replace(
        entry_of(CONTOSO, outcome=outcome), at=int((DEATH.died_at + after_s) * 1000), **changes
    )


@pytest.mark.parametrize(
    ("history", "death", "expected"),
    [
        ([entry(O.ATTEMPT, -99, verdict="retry_later"), entry(O.DEAD, reason="expired")], None, "among the dead"),
        ([entry(O.DEAD, reason="too_large")], None, "among the dead"),  # the console's memory lacks the dead letter
        ([entry(O.DEAD, 5)], DEATH, "among the dead"),
        ([entry(O.DEAD)], REDRIVEN, "It was sent again"),
        ([entry(O.DEAD, 900)], REDRIVEN, "among the dead"),  # it has died once more
        ([entry(O.ATTEMPT, -1, verdict="dead")], None, "among the dead"),
        ([entry(O.PARKED, -9)], DEATH, "among the dead"),  # the entry of its death is not stored yet
        ([entry(O.DELIVERED), entry(O.REDRIVEN, 5, reason="delivered")], None, "It was sent again"),
        ([entry(O.DELIVERED, 60)], DEATH, "your server took the event"),
        ([entry(O.HELD, reason="paused")], None, "until the webhook is resumed"),
        ([entry(O.HELD, reason="unusable")], None, "until the cause is gone"),
        ([entry(O.ATTEMPT, verdict="retry_later"), entry(O.PARKED)], None, "It is tried again"),
        ([entry(O.ATTEMPT, verdict="disable_endpoint"), entry(O.PARKED)], None, "edited or reactivated"),
        ([entry(O.SKIPPED, reason="channel")], None, "events like this one are not sent"),
        ([], None, ""),
    ],
)
async def test_what_happens_next_follows_from_what_happened_last(
    stage: Stage, history: list[HistoryEntry], death: DeadEventModel | None, expected: str
) -> None:
    renderer = Renderer(stage.services, Assets.load())
    posts = [attempt_of(one, time.time()) for one in history if one.outcome in (O.ATTEMPT, O.DELIVERED)]
    known = KnownEvent(posts, death, history)
    step = await EventPage(renderer).next_step(stage.webhooks[FABRIKAM], known)
    assert (expected in step, bool(step)) == (True, bool(expected))
    assert known.is_dead == (expected == "among the dead")


@pytest.mark.parametrize(
    ("history", "death", "paused", "off"),
    [
        ([entry(O.ATTEMPT, verdict="retry_later"), entry(O.PARKED)], None, "until the webhook is resumed", "is skipped when"),
        ([entry(O.ATTEMPT, verdict="disable_endpoint")], None, "until the webhook is resumed", "is skipped when"),
        ([entry(O.HELD, reason="unusable")], None, "until the webhook is resumed", "is skipped when"),
        ([entry(O.DEAD, reason="expired")], REDRIVEN, "sent again. It waits until the webhook is resumed", "is skipped when"),
        ([entry(O.DELIVERED)], None, "your server took the event", "your server took the event"),
        ([entry(O.DEAD)], None, "among the dead", "among the dead"),
        ([entry(O.SKIPPED, reason="channel")], None, "events like this one", "events like this one"),
    ],
)  # fmt: skip
async def test_what_happens_next_depends_on_whether_the_webhook_is_on(
    stage: Stage, history: list[HistoryEntry], death: DeadEventModel | None, paused: str, off: str
) -> None:
    page, webhook = EventPage(Renderer(stage.services, Assets.load())), stage.webhooks[FABRIKAM]
    posts = [attempt_of(one, time.time()) for one in history if one.outcome in (O.ATTEMPT, O.DELIVERED)]
    known = KnownEvent(posts, death, history)
    assert paused in await page.next_step(replace(webhook, paused=True), known)
    for changed in (replace(webhook, enabled=False), replace(webhook, enabled=False, paused=True)):
        assert off in await page.next_step(changed, known)


async def test_one_thing_to_change_and_an_incomplete_history_are_shown(browser: Browser, tmp_path: Path) -> None:
    async with history_in(tmp_path) as history, staged(tmp_path, history=history.lookup) as stage:
        await history.add(
            entry_of(LUMA, "1", outcome=O.ATTEMPT, reason="http_5xx", status=500, verdict="retry_later", age_s=90),
            entry_of(LUMA, "1", outcome=O.SKIPPED, reason="channel", status=None),
            entry_of(LUMA, "2", outcome=O.ATTEMPT, reason="http_5xx", status=500, verdict="retry_later"),
        )
        async with window(browser, stage.base) as shown:
            shown.ignored = ("404",)
            main = shown.page.locator("main")
            await shown.sign_in(await stage.token())
            for event, text, tests in (("1", "Add the channel", 0), ("2", "The server failed (500)", 1)):
                await shown.go(stage.path(LUMA, f"/deliveries/msg_{event}"))
                await expect(main.get_by_text("What to change.")).to_have_count(1)
                await expect(main).to_contain_text(text)
                await expect(main.get_by_role("link", name="Send a test event")).to_have_count(tests)
            history.lookup._problem = lambda: asyncio.sleep(0, "the history worker is 20 minutes behind")
            for path in ("/deliveries/msg_2", "/deliveries/msg_3"):
                await shown.go(stage.path(LUMA, path))
                await expect(main).to_contain_text("The history worker is 20 minutes behind.")
            await expect(main).not_to_contain_text("never have been sent")
            history.lookup._problem = None
            await shown.go(stage.path(LUMA, "/deliveries/msg_3"))
            await expect(main).to_contain_text("never have been sent")


async def test_what_held_an_event_is_what_to_change_and_not_an_older_attempt(stage: Stage) -> None:
    page, webhook = EventPage(Renderer(stage.services, Assets.load())), stage.webhooks[FABRIKAM]
    died = replace(DEATH, reason=DeadReason.EXPIRED, detail=WAITING["paused"], last_status=None)
    for known in (
        KnownEvent([TRIED], died),
        KnownEvent([], None, [entry(O.DEAD, reason="expired", detail=WAITING["paused"])]),
        KnownEvent([TRIED], None, [entry(O.HELD, reason="paused")]),
    ):
        assert page._remedy(webhook, known) == HELD_REMEDIES["paused"]


async def test_what_to_change_names_the_address_only_if_it_was_tried(stage: Stage) -> None:
    page, webhook = EventPage(Renderer(stage.services, Assets.load())), stage.webhooks[FABRIKAM]
    host = urlsplit(webhook.url).hostname
    assert host is not None
    edited_at = webhook.updated_at.timestamp()
    refused = replace(TRIED, reason="connect_refused", status=None)
    died = replace(DEATH, reason=DeadReason.REJECTED, last_status=401)
    for at, is_tried in ((edited_at - 1, False), (edited_at + 1, True)):
        last = HistoryEntry(int(at * 1000), O.DEAD, *FABRIKAM, "connect_refused")
        for known in (KnownEvent([replace(refused, at=at)], None), KnownEvent([], None, [last])):
            text = page._remedy(webhook, known)
            assert (host in text) == is_tried
            assert ("changed" in text) != is_tried
        assert ("changed" in page._remedy(webhook, KnownEvent([], replace(died, died_at=at)))) != is_tried


def test_a_death_is_listed_between_the_attempts_before_and_after_it() -> None:
    assert KnownEvent([TRIED, SINCE], REDRIVEN).timeline == [TRIED, REDRIVEN, SINCE]
    assert KnownEvent([], DEATH).timeline == [DEATH]


def test_the_newest_attempt_or_the_death_says_which_record_an_event_is() -> None:
    here = Origin("events", 1, 2)
    assert KnownEvent([replace(TRIED, origin=here), TRIED], DEATH).origin == here
    assert KnownEvent([TRIED], DEATH).origin == DEATH.origin
    assert KnownEvent([TRIED], None).origin is None


def test_the_dead_keep_a_record_that_the_topic_of_events_does_not() -> None:
    here, grave = Origin("events", 1, 2), Origin("events.dead", 0, 900)
    assert KnownEvent([replace(TRIED, origin=here)], replace(DEATH, id="0-900")).places("events") == [here, grave]
    assert KnownEvent([replace(TRIED, origin=here)], None).places("events") == [here]
    assert KnownEvent([TRIED], None).places("events") == []


async def test_an_event_is_explained_from_wherever_it_is_kept(stage: Stage) -> None:
    async def verdict(*places: Origin) -> str:
        settings, webhook = stage.services.settings, stage.webhooks[LUMA]
        return (await decision_on(places, webhook, settings, 1.8e9, EXPLAINED_ID, shows_people=True)).verdict

    kafka = stage.services.settings.kafka
    gone, grave = Origin(kafka.topic, 5, 7), Origin(f"{kafka.prefix}.dead", EXPLAINED.partition, EXPLAINED.offset)
    assert (await verdict(gone, grave)).startswith("would be sent")
    with pytest.raises(NotFound, match="has no offset 7"):
        await verdict(gone)
    with pytest.raises(NotFound, match="another topic"):
        await verdict(Origin("older-topic", EXPLAINED.partition, EXPLAINED.offset))


async def test_answers_to_failed_attempts_are_shown_as_text(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        page = shown.page
        await shown.sign_in(await stage.token(Role.VIEWER))
        assert await shown.go(stage.path(LUMA, f"/deliveries/{EXPLAINED_ID}")) == 200
        answers = page.locator(".timeline details")
        assert await answers.count() == 2  # the third attempt delivered
        await answers.first.locator("summary").click()
        await expect(answers.first).to_contain_text('{"error": "<b>we are moving</b>, come back later"}')
        await expect(answers.first.locator("pre")).to_be_visible()
        assert await shown.violations() == []


async def test_a_dead_event_whose_attempts_are_gone_is_shown_and_sent_again(browser: Browser, stage: Stage) -> None:
    path = stage.path(CONTOSO, f"/deliveries/{DEATH.event_id}")
    async with window(browser, stage.base) as shown:
        page = shown.page
        await shown.sign_in(await stage.token(Role.VIEWER))
        assert await shown.go(path) == 200
        await expect(page.locator(".timeline")).to_contain_text("Dead: rejected by the server")
        await expect(page.locator("main")).to_contain_text("compare the payload's version")
        assert await page.get_by_role("button", name="Send again").count() == 0
        assert await shown.violations() == []
    async with window(browser, stage.base) as shown:
        page = shown.page
        await shown.sign_in(await stage.token())
        await shown.go(path)
        await expect(page.get_by_role("link", name="Send a test event")).to_be_visible()
        await page.get_by_role("button", name="Send again…").click()
        await page.get_by_role("button", name="Send 1 event again").click()
        await expect(page.locator("#jobs")).to_contain_text("1 of 1 dead event sent again")
        await shown.go(path)
        await expect(page.locator("main")).to_contain_text("delivered like a new event")


async def test_an_event_that_expired_without_an_attempt_is_shown_with_what_to_change(
    browser: Browser, stage: Stage
) -> None:
    detail = "breaker_open"
    aged = replace(
        DEATH,
        id="1-998",
        org=NORTHWIND.org,
        sandbox=NORTHWIND.sandbox,
        event_id="msg_aged",
        reason="expired",
        detail=detail,
    )
    aged = replace(aged, attempts=0, last_status=None)
    large = replace(aged, id="1-997", event_id="msg_large", reason="too_large", detail="261,402 bytes")
    stage.dead_events.facts = [*dead_facts(), aged, large]
    async with window(browser, stage.base) as shown:
        main = shown.page.locator("main")
        await shown.sign_in(await stage.token())
        await shown.go(stage.path(NORTHWIND, "/deliveries/msg_aged"))
        await expect(main).to_contain_text("never sent")
        await expect(main).to_contain_text("circuit breaker is open")
        await expect(main).to_contain_text("Nothing listens on port 443 of sms.northwind.example")
        await shown.go(stage.path(NORTHWIND, "/deliveries/msg_large"))
        await expect(main).to_contain_text("261,402 bytes")
        await expect(main).not_to_contain_text("Nothing listens")  # that is not what it died of


async def test_events_left_out_of_a_redrive_are_shown(browser: Browser, stage: Stage) -> None:
    stage.dead_events.facts, stage.dead_events.busy = dead_facts(), {NORTHWIND}
    async with window(browser, stage.base) as shown:
        page = shown.page
        await shown.sign_in(await stage.token())
        await shown.go("/dead-events")
        for tenant in (CONTOSO, NORTHWIND, FABRIKAM):
            name = next(fact.id for fact in stage.dead_events.facts if fact.tenant == tenant)
            await page.check(f"input[value='{name}']")
        await page.get_by_role("button", name="Send again…").click()
        await page.get_by_role("button", name="Send 3 events again").click()
        await expect(page.locator("#jobs section")).to_have_count(2)
        await expect(page.locator("#jobs")).to_contain_text("Those of 1 sandbox were left out.")
        await expect(page.locator("#jobs section").first).to_contain_text("Done")
        await expect(page.locator("#jobs")).to_contain_text("left out")  # still, after the page has followed the work
        assert await shown.violations() == []
    stage.dead_events.busy.clear()


async def test_chosen_events_that_were_sent_before_or_are_gone_are_counted(browser: Browser, stage: Stage) -> None:
    stage.dead_events.jobs.made["counted"] = RedriveModel(
        "counted", *CONTOSO, "ada", time.time(), 3, 3, 2, 1, state="done"
    )
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token())
        await shown.go("/jobs?job=counted")
        progress = "3 of 3 dead events sent again; 2 had been already; 1 is no longer kept."
        await expect(shown.page.locator("#jobs")).to_contain_text(progress)


async def test_all_of_the_only_sandbox_one_has_need_no_choice_of_it(browser: Browser, stage: Stage) -> None:
    stage.dead_events.facts = dead_facts()
    events = sum(fact.tenant == CONTOSO for fact in stage.dead_events.facts)
    async with window(browser, stage.base) as shown:
        page = shown.page
        await shown.sign_in(await stage.token(orgs=frozenset({CONTOSO.org})))
        await shown.go("/dead-events")
        await page.get_by_label(f"All {events} that match").check()
        await page.get_by_role("button", name="Send again…").click()
        await page.get_by_role("button", name=f"Send {events} events again").click()
        await expect(page.locator("#jobs")).to_contain_text(f"{events} of {events} dead events sent again")


async def test_all_that_match_go_back_over_all_sandboxes(browser: Browser, stage: Stage) -> None:
    stage.dead_events.facts = dead_facts()
    hooked = [fact for fact in stage.dead_events.facts if fact.tenant in (CONTOSO, NORTHWIND, FABRIKAM)]
    sandboxes = len({fact.tenant for fact in hooked})
    async with window(browser, stage.base) as shown:
        page = shown.page
        await shown.sign_in(await stage.token())
        await shown.go("/dead-events")
        await page.get_by_label(f"All {len(hooked)} that match, in {sandboxes} sandboxes").check()
        await page.get_by_role("button", name="Send again…").click()
        assert await page.locator(".groups li").count() == sandboxes
        await page.get_by_role("button", name=f"Send {len(hooked)} events again").click()
        await expect(page.locator("#jobs section")).to_have_count(sandboxes)
        await expect(page.locator("#jobs")).to_contain_text("Sent again")
        await shown.go("/dead-events?again=yes")
        await expect(page.get_by_label("that match")).to_be_disabled()


@pytest.mark.parametrize("more", [0, 1])
async def test_sandboxes_beyond_what_goes_back_at_once_come_next(
    browser: Browser, stage: Stage, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    stage.dead_events.facts = dead_facts()
    hooked = {fact.tenant for fact in stage.dead_events.facts} & {CONTOSO, NORTHWIND, FABRIKAM}
    most = len(hooked) - more
    monkeypatch.setattr("dispatcher.console.pages.dead_events.MAX_GROUPS", most)
    async with window(browser, stage.base) as shown:
        page = shown.page
        await shown.sign_in(await stage.token())
        await shown.go("/dead-events")
        await expect(page.get_by_text("the others come next")).to_have_count(more)
        await page.get_by_label("that match").check()
        await page.get_by_role("button", name="Send again…").click()
        assert await page.locator(".groups li").count() == most


async def test_a_redrive_in_the_queue_says_that_it_waits(browser: Browser, stage: Stage) -> None:
    stage.dead_events.jobs.made["patient"] = RedriveModel("patient", *CONTOSO, "ada", time.time(), 3, state="waiting")
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token())
        await shown.go("/jobs?job=patient")
        await expect(shown.page.locator("#jobs")).to_contain_text("Waiting for its turn")
        await expect(shown.page.locator("#jobs")).to_contain_text("Done")  # the page follows


async def test_a_page_that_can_not_be_followed_any_more_says_so(browser: Browser, stage: Stage) -> None:
    """The job's row is gone, or no console answers: what is shown isn't the present state."""
    job = RedriveModel("followed", *CONTOSO, "ada", time.time(), 1_000_000, state="running")
    stage.dead_events.jobs.made["followed"] = job
    async with window(browser, stage.base) as shown:
        shown.ignored = ("404", "ERR_", "htmx:")
        jobs, notice = shown.page.locator("#jobs"), shown.page.locator("#jobs .notice-stopped")
        await shown.sign_in(await stage.token())
        await shown.go("/jobs?job=followed")
        await expect(jobs).to_contain_text("Running")
        await expect(notice).to_have_count(0)
        del stage.dead_events.jobs.made["followed"]
        await expect(notice).to_contain_text("Not up to date")
        await expect(notice).to_contain_text("There is no such job")
        assert await shown.violations() == []
        stage.dead_events.jobs.made["followed"] = job
        await expect(notice).to_have_count(0)
        await shown.page.context.set_offline(True)
        await expect(notice).to_contain_text("The console doesn't answer")
        await shown.page.context.set_offline(False)
        await expect(notice).to_have_count(0)


async def test_an_empty_list_of_jobs_says_how_far_it_reaches(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token())
        stage.dead_events.jobs.made.clear()
        await shown.go("/jobs")
        await expect(shown.page.locator("#jobs")).to_contain_text("in the last 30 days")
        await expect(shown.page.locator("#jobs .empty").get_by_role("link", name="audit")).to_have_count(1)


async def test_dead_events_are_filtered_by_channel_campaign_and_time(browser: Browser, stage: Stage) -> None:
    """The filters are part of the order to send all that match again."""
    now = time.time()
    facts = [fact for fact in dead_facts() if fact.tenant == FABRIKAM][:3]
    stage.dead_events.facts = [
        replace(facts[0], channel="sms", campaign_id="spring", died_at=now - 7200),
        replace(facts[1], channel="email", campaign_id="spring", died_at=now - 7200),
        replace(facts[2], channel="email", campaign_id="autumn", died_at=now - 400_000),
    ]
    stage.dead_events.busy = set()
    day_ago = datetime.fromtimestamp(now - 86_400, UTC).strftime("%Y-%m-%dT%H:%M")
    async with window(browser, stage.base) as shown:
        page, rows = shown.page, shown.page.locator("tbody tr")
        shown.ignored = ("422",)
        await shown.sign_in(await stage.token())
        for query, number in (
            ("?channel=sms", 1),
            ("?campaign=spring", 2),
            (f"?since={day_ago}", 2),
            (f"?until={day_ago}", 1),
            ("?channel=email&campaign=spring", 1),
        ):
            await shown.go(f"/dead-events{query}")
            await expect(rows).to_have_count(number)
        await page.get_by_label("which match", exact=False).or_(page.get_by_label("that match", exact=False)).check()
        await page.get_by_role("button", name="Send again…").click()
        await expect(page.get_by_role("button", name="Send 1 event again")).to_be_visible()
        assert await shown.go("/dead-events?since=28.11.2026") == 422
        await expect(page.locator("main")).to_contain_text("The time 28.11.2026 can't be read")
    stage.dead_events.facts = dead_facts()
