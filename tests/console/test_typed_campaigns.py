"""Dead events are listed, counted and sent again by a campaign as people paste it, by the same readings as the history."""

import html
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from dispatcher.config.settings import Settings
from dispatcher.console.sources.dead_events import DeadLetterReader
from dispatcher.contract.records import RetryState
from dispatcher.contract.search_text import readings
from dispatcher.contract.tenant import TenantKey
from dispatcher.kafka.producer import Producer
from dispatcher.stores.sql.jobs import JobStore
from dispatcher.stores.sql.records import Role
from tests.console.history_store import FilledHistory, entry_of, history_in
from tests.console.pages.sample_world import CONTOSO, LUMA, LUMA_STAGE
from tests.console.pages.stage import Stage, settings_of, staged
from tests.console.pages.test_kept_form import value_in
from tests.console.sources.conftest import job_store, producer, reader_of, running, settings, until
from tests.console.sources.dead_letter_builders import Grave
from tests.integration.brokers import needs_kafka
from tests.kafka import topics
from tests.kafka.apache_kafka import ApacheKafka

__all__ = ["job_store", "producer", "settings"]
pytestmark = [needs_kafka, pytest.mark.timeout(300)]

ORGS = frozenset({LUMA.org})
UPPER = "7D0E2A9B-0B7C-4D3E-9A52-16F24A15C001"
LOWER = "16f24a15-0b7c-4d3e-9a52-7d0e2a9bc001"
DEAD = (
    (LUMA, "spring:sale"), (LUMA, "spring:sale"), (LUMA, "sale"), (LUMA, UPPER), (LUMA, LOWER),
    (LUMA, "'q'"), (LUMA, "q"), (LUMA, "{b}"), (LUMA, "a%2Fb"), (LUMA, "c/d"),
    (LUMA_STAGE, "sale"), (LUMA_STAGE, "dev:q"), (CONTOSO, "theirs"), (CONTOSO, "ns:sale"),
)  # fmt: skip
TYPED = (
    *dict.fromkeys(campaign for _, campaign in DEAD), " sale\t", '"sale",', "`sale`", "campaignID: sale", "[sale]", "SALE",
    '"campaignID": "spring:sale"', "autumn:sale", UPPER.lower(), f"{{{UPPER.lower()}}}", f'"{LOWER.upper()}"', "{q}", "b",
    "c%2Fd", "dev:q", "unknown", '"unknown"', "unknown: campaign", "sale\u200b", ",", "sale.", "(sale)",
)  # fmt: skip
_SINCE = "2000-01-01T00:00:00Z"


@dataclass(frozen=True)
class World:
    """A console whose dead events are read from a broker, and an administrator of LUMA's organisation."""

    stage: Stage
    reader: DeadLetterReader
    grave: Grave
    history: FilledHistory
    browser: aiohttp.ClientSession
    api: aiohttp.ClientSession
    bootstrap: str
    dead: list[tuple[TenantKey, str]] = field(default_factory=list)

    async def dead_letter(self, *dead: tuple[TenantKey, str]) -> None:
        """Writes dead events of campaigns, and waits until the console has them."""
        for tenant, campaign in dead:
            await self.grave.dead_letter(tenant, campaign=campaign)
        self.dead.extend(dead)
        await until(lambda: len(self.reader.memory) == len(self.dead), "all dead events")

    def matching(self, typed: str, *tenants: TenantKey) -> int:
        """The naive answer: how many have the first reading that a dead event of these tenants has."""
        campaigns = Counter(campaign for tenant, campaign in self.dead if tenant in tenants)
        return next((number for one in readings(typed) if (number := campaigns[one])), 0)

    async def page(self, path: str, form: Sequence[tuple[str, str]] | None = None, **query: str) -> str:
        method = "GET" if form is None else "POST"
        async with self.browser.request(method, path, data=form, params=query) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.text()

    async def ask(self, path: str, document: object) -> object:
        async with self.api.post(f"/api/v1{path}", json=document) as answer:
            assert answer.status < 300, await answer.text()
            return await answer.json()

    async def counted(self, typed: str, **more: object) -> tuple[int, int]:
        """Counts what a resend of LUMA's webhook would send, delivered events and dead ones."""
        path = f"/webhooks/{self.stage.webhooks[LUMA].id}/resend/check"
        check = await self.ask(path, {"since": _SINCE, "campaign": typed, **more})
        assert isinstance(check, dict)
        return check["delivered"] + check["gone"], check["dead"]

    async def sent(self) -> int:
        """Waits for the jobs, and returns how many events they have sent in all."""

        async def are_over() -> bool:
            return all(job.is_over for job in await self.reader.jobs.search(orgs=None))

        await until(are_over, "the jobs' end")
        assert {job.state for job in await self.reader.jobs.search(orgs=None)} <= {"done"}
        records = await topics.read_all(self.bootstrap, f"{self.stage.services.settings.kafka.prefix}.retry.30s")
        origins = [RetryState.of(record).origin for record in records]
        assert len(set(origins)) == len(origins)
        return len(origins)


@pytest.fixture
async def world(
    settings: Settings, producer: Producer, mortal: ApacheKafka, tmp_path: Path, job_store: JobStore
) -> AsyncIterator[World]:
    for name in ("retry.30s", "dead", "history"):
        await topics.create_topic(mortal.bootstrap_servers, f"{settings.kafka.prefix}.{name}", partitions=2)
    settings = settings_of().model_copy(update={"kafka": settings.kafka})
    reader = reader_of(settings, job_store)
    async with (
        running(reader.run(), reader.jobs.run()),
        history_in(tmp_path) as history,
        staged(tmp_path, settings=settings, history=history.lookup, dead_events=reader) as stage,
        aiohttp.ClientSession(stage.base, cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser,
        aiohttp.ClientSession(stage.base) as api,
    ):
        await until(lambda: reader.problem is None, "what was there to be read")
        token = await stage.token(Role.ADMIN, ORGS)
        async with browser.post("/sign-in", data={"token": token}) as answer:
            assert answer.status == 200
        api.headers["Authorization"] = f"Bearer {token}"
        yield World(stage, reader, Grave(producer, settings), history, browser, api, mortal.bootstrap_servers)


def hidden_in(page: str, action: str) -> list[tuple[str, str]]:
    """The hidden fields of a form."""
    form = re.search(rf'<form [^>]*action="{re.escape(action)}".*?</form>', page, re.DOTALL)
    assert form is not None, action
    found = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', form[0])
    return [(name, html.unescape(value)) for name, value in found]


async def listed(world: World, typed: str, **tenant: str) -> int:
    """How many dead events the API lists, page by page."""
    query, found = {"campaign": typed, "limit": "2", **tenant}, 0
    path = "/api/v1/dead-events"
    while True:
        async with world.api.get(path, params=query) as answer:
            assert answer.status == 200, await answer.text()
            content = await answer.json()
        found += len(content["items"])
        if content["next"] is None:
            assert found == content["total"], typed
            return found
        path, query = content["next"], {}


async def test_list_count_and_confirmation_find_the_first_reading_that_a_dead_event_has(world: World) -> None:
    await world.dead_letter(*DEAD)
    one = {"org": LUMA.org, "sandbox": LUMA.sandbox}
    for typed in TYPED:
        every, own = world.matching(typed, LUMA, LUMA_STAGE), world.matching(typed, LUMA)
        page = await world.page("/dead-events", campaign=typed)
        assert len(re.findall('name="id"', page)) == every, typed
        assert html.unescape(value_in(page, "campaign")) == typed.strip(), "as it was typed"
        assert ("Nothing matches" in page) == (every == 0), typed
        assert len(re.findall('name="id"', await world.page("/dead-events", campaign=typed, **one))) == own, typed
        if every:
            form = hidden_in(page, "/dead-events/confirm")
            confirmed = await world.page("/dead-events/confirm", [*form, ("which", "all")])
            assert f"Send {every} event{'s' * (every > 1)} again?" in confirmed, typed
        if typed.isprintable():  # the API's limit
            assert await listed(world, typed) == every
            assert await listed(world, typed, **one) == own
            assert await world.counted(typed, include=["dead"]) == (0, own), typed


async def test_what_was_counted_is_what_is_sent(world: World) -> None:
    await world.dead_letter(*DEAD)
    page = await world.page("/dead-events", campaign="'spring:sale',")
    confirmed = await world.page("/dead-events/confirm", [*hidden_in(page, "/dead-events/confirm"), ("which", "all")])
    await world.page("/dead-events/redrive", hidden_in(confirmed, "/dead-events/redrive"))
    assert await world.sent() == 2
    order = {"org": LUMA.org, "sandbox": LUMA.sandbox, "events": {"select": "matching", "campaign": UPPER.lower()}}
    await world.ask("/dead-events/redrive", order)
    assert await world.sent() == 3
    path = f"/webhooks/{world.stage.webhooks[LUMA].id}/resend"
    assert await world.counted("campaignID: c/d", include=["dead"]) == (0, 1)
    await world.ask(path, {"since": _SINCE, "campaign": "campaignID: c/d", "include": ["dead"]})
    assert await world.sent() == 4
    page = await world.page(path, since="2000-01-01", campaign=f"{{{LOWER.upper()}}}", include="dead")
    await world.page(path, hidden_in(page, path))
    assert await world.sent() == 5
    # Those that were sent again are still known: the same text never turns to the events of another campaign.
    assert await world.counted("spring:sale", include=["dead"]) == (0, 0)


async def test_an_event_that_dies_after_the_confirmation_does_not_change_the_campaign(world: World) -> None:
    await world.dead_letter((LUMA, "sale"), (LUMA_STAGE, "sale"))
    path = f"/webhooks/{world.stage.webhooks[LUMA].id}/resend"
    page = await world.page("/dead-events", campaign="late:sale")
    confirmed = await world.page("/dead-events/confirm", [*hidden_in(page, "/dead-events/confirm"), ("which", "all")])
    checked = await world.page(path, since="2000-01-01", campaign="late:sale", include="dead")
    assert "Send 2 events again?" in confirmed
    assert "Send 1 event again?" in checked
    for page in (confirmed, checked):
        assert 'Only those of the campaign <span class="code">sale</span>' in page
    await world.dead_letter((LUMA, "late:sale"), (LUMA, "late:sale"), (LUMA, "late:sale"))
    await world.page("/dead-events/redrive", hidden_in(confirmed, "/dead-events/redrive"))
    assert await world.sent() == 2
    assert dict(hidden_in(checked, path))["campaign"] == "sale"


async def test_a_resend_takes_one_campaign_for_delivered_and_dead_events(world: World) -> None:
    """One that only one side has would otherwise turn to events of another campaign on the other side."""
    await world.dead_letter((LUMA, "sale"), (LUMA, "dead:only"), (LUMA, UPPER))
    for number, campaign in enumerate(("spring:sale", "only", UPPER)):
        place = {"webhook_id": f"msg_{number}", "offset": number}
        await world.history.add(entry_of(LUMA, str(number), campaign_id=campaign, **place))
    for typed, counted in {
        "spring:sale": (1, 0), "sale": (0, 1), "dead:only": (0, 1), "only": (1, 0), UPPER.lower(): (1, 1),
        f'"campaignID": "{UPPER}"': (1, 1), "unknown": (0, 0), "delivered:only": (1, 0),
    }.items():  # fmt: skip
        assert await world.counted(typed) == counted, typed
    assert await world.counted("dead:only", include=["delivered"]) == (1, 0), "only the history counts"
