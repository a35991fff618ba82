"""What the switch in the top bar offers, and what its cookie means."""

import re
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from dispatcher.console.pages.scope import Scope
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.records import Role, StoredWebhook
from tests.console.pages.sample_world import LUMA, LUMA_STAGE, NORTHWIND
from tests.console.pages.stage import Stage, staged
from tests.stores_sql.examples import plain


def _labels(scope: Scope, webhooks: list[StoredWebhook], orgs: frozenset[str] | None) -> list[str]:
    return [choice.label for choice in scope.choices([one.tenant for one in webhooks], orgs)]


def test_an_organisation_without_a_webhook_is_offered_to_its_admin(stage: Stage) -> None:
    webhooks = [stage.webhooks[LUMA_STAGE], stage.webhooks[LUMA]]
    assert _labels(Scope(), webhooks, frozenset({LUMA.org, "new@AdobeOrg"})) == [
        "All organisations", f"{LUMA.org}, all sandboxes", f"{LUMA.org} / prod", f"{LUMA.org} / stage",
        "new@AdobeOrg, all sandboxes",
    ]  # fmt: skip
    assert len(_labels(Scope(), webhooks, None)) == 4


def test_what_is_chosen_stays_offered(stage: Stage) -> None:
    webhooks = [replace(stage.webhooks[LUMA], tenant=NORTHWIND)]
    scope = Scope(LUMA.org, "gone")
    choices = scope.choices([one.tenant for one in webhooks], None)
    assert [choice.label for choice in choices if choice.is_chosen] == [f"{LUMA.org} / gone"]


@pytest.mark.parametrize(
    "scope", [Scope(), Scope("a@AdobeOrg"), Scope("a@AdobeOrg", "prod"), Scope("a/b", "c%d"), Scope("ü", "; x")]
)
def test_a_cookie_is_read_back(scope: Scope) -> None:
    assert Scope.read(scope.value) == scope
    assert scope.value.isascii()


def test_only_one_sandbox_is_a_tenant() -> None:
    assert Scope("a", "b").tenant == TenantKey("a", "b")
    assert Scope("a").tenant is None
    assert Scope.read("/b") == Scope()


async def test_many_sandboxes_are_searched(tmp_path: Path) -> None:
    """Without JavaScript: a link instead of the select field, a form, and a button for each result."""
    async with (
        staged(tmp_path) as stage,
        aiohttp.ClientSession(stage.base, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session,
    ):
        webhooks = stage.services.webhooks
        async with session.post("/sign-in", data={"token": await stage.token()}) as answer:
            assert 'id="scope"' in await answer.text()
        for number in range(70):
            await webhooks.create(plain(f"org{number % 7}@AdobeOrg", f"s-{number:03}"), by="test", orgs=None)
        async with session.get("/deliveries") as answer:
            page = await answer.text()
        assert ('id="scope"' in page, 'href="/scope?back=%2Fdeliveries"' in page) == (False, True)
        async with session.get("/scope?back=/deliveries") as answer:
            assert "The first 50 sandboxes are listed" in await answer.text()
        async with session.get("/scope", params={"q": "S-06 ORG4", "back": "/deliveries"}) as answer:
            page = await answer.text()
        found = re.findall(r'name="scope" value="([^"]*)"', page)
        assert found == ["", "org4@AdobeOrg", "org4@AdobeOrg/s-060", "org4@AdobeOrg/s-067"]
        token = re.search(r'name="csrf_token" value="([^"]+)"', page)
        assert token is not None
        chosen = {"scope": found[2], "back": "/deliveries", "csrf_token": token[1]}
        async with session.post("/scope", data=chosen) as answer:
            assert answer.url.path == "/deliveries"
            assert "org4@AdobeOrg / s-060" in await answer.text()
        session.cookie_jar.clear()
        rights = await stage.token(Role.VIEWER, frozenset({"org4@AdobeOrg", "empty@AdobeOrg"}))
        async with session.post("/sign-in", data={"token": rights}) as answer:
            assert answer.status == 200
        for words, wanted in (
            ("", {"org4@AdobeOrg", "empty@AdobeOrg"}), ("empty", {"empty@AdobeOrg"}), ("org5", set()), ("\0", set()),
        ):  # fmt: skip
            async with session.get("/scope", params={"q": words}) as answer:
                found = re.findall(r'<button name="scope" value="([^"]*)"', await answer.text())
            assert {one.partition("/")[0] for one in found} - {""} == wanted, words
