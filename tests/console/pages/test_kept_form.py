"""A form survives the end of its session, for its author only, and with no secret in the clear."""

import itertools
import re
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest

from dispatcher.config.secrets import Secret
from dispatcher.console.pages.sealing import LIFE_S, KeptForm, SecretSealer
from dispatcher.console.server import ConsoleServer
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.erasing import erase_what_is_over
from dispatcher.stores.sql.records import WebhookQuery
from tests.console.api.issuer import SmallIssuer, settings_for
from tests.console.pages.sample_world import LUMA
from tests.console.pages.stage import Stage, add_webhook, settings_of, staged
from tests.console.pages.test_authorisation_of_pages import draft
from tests.stores_sql.postgres import Postgres

SECRET = "whsec_" + "c2VjcmV0LXRoYXQtd2FzLXR5cGVkLWluLWE="
TYPED = {"name": "Typed for an hour", "timeout": "7s", "signing.new": SECRET, "campaign_ids": "c-1\nc-2"}


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path) as running:
        yield running


@asynccontextmanager
async def browser(stage: Stage, token: str = "") -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(stage.base, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        if token:
            await fetch(session, "/sign-in", {"token": token})
        yield session


async def fetch(session: aiohttp.ClientSession, path: str, form: dict[str, str] | None = None) -> tuple[int, str]:
    method = "GET" if form is None else "POST"
    async with session.request(method, path, data=form) as answer:
        return answer.status, await answer.text()


def value_in(page: str, name: str) -> str:
    found = re.search(rf'name="{re.escape(name)}"[^>]*? value="([^"]*)"', page)
    assert found is not None, name
    return found[1]


async def typed_in(session: aiohttp.ClientSession, path: str) -> dict[str, str]:
    """Opens a form and returns what a person posts."""
    _, page = await fetch(session, path)
    hidden = {name: value_in(page, name) for name in ("csrf_token", "owner")}
    version = {"version": value_in(page, "version")} if "/edit" in path else {}
    return draft("kept") | TYPED | hidden | version | {"campaigns": "some", "action": "save"}


def end_sessions(stage: Stage) -> Callable[[], None]:
    """Lets every session expire. Returns what makes new ones valid again."""
    sessions = stage.server._sessions
    real = sessions._clock
    sessions._clock = lambda: real() + 366 * 86_400

    def begin() -> None:
        sessions._clock = real

    return begin


@pytest.mark.parametrize("path", ["/webhooks/new", "edit"])
async def test_after_a_new_sign_in_the_form_is_back_and_can_be_saved(stage: Stage, path: str) -> None:
    path = stage.path(LUMA, "/edit") if path == "edit" else path
    token = await stage.token()
    async with browser(stage, token) as session:
        form = await typed_in(session, path)
        end_sessions(stage)
        status, page = await fetch(session, path, form)
        assert status == 401
        assert "Your session has ended." in page
        status, page = await fetch(session, "/sign-in?kept", {"token": "fdt_wrong", "kept": value_in(page, "kept")})
        assert status == 401
        status, page = await fetch(session, "/webhooks/kept-form", {"kept": value_in(page, "kept")})  # too early
        assert (status, "Your session has ended." in page) == (401, True)
        kept = value_in(page, "kept")
        assert SECRET not in page
        assert TYPED["name"] not in page
        status, page = await fetch(session, "/sign-in?kept", {"token": token, "kept": kept})
        assert (status, "Continue with the form" in page) == (200, True)
        status, page = await fetch(session, "/webhooks/kept-form", {"kept": value_in(page, "kept")})
        assert status == 200
        assert f'action="{path}"' in page
        assert f'formaction="{path}#test-result"' in page
        assert SECRET not in page
        assert value_in(page, "name") == TYPED["name"]
        assert "c-1\nc-2</textarea>" in page
        again = form | {"csrf_token": value_in(page, "csrf_token"), "signing.new": ""}
        again["signing.new.sealed"] = value_in(page, "signing.new.sealed")
        status, page = await fetch(session, path, again)
        assert (status, TYPED["name"] in page) == (200, True)
        if "edit" in path:
            config = await stage.services.webhooks.for_delivery(stage.webhooks[LUMA].id, orgs=None)
            assert (config.name, config.timeout) == (TYPED["name"], 7.0)
            assert config.signing is not None
            assert config.signing.secrets[0].reveal_text() == SECRET


async def test_a_form_of_an_earlier_session_of_the_same_person_is_kept_too(stage: Stage) -> None:
    """The session has ended, and the person has signed in again in another tab before posting the form."""
    token = await stage.token()
    async with browser(stage, token) as session:
        form = await typed_in(session, "/webhooks/new")
        await fetch(session, "/sign-in", {"token": token})
        status, page = await fetch(session, "/webhooks/new", form)
        assert (status, "Continue with the form" in page) == (200, True)
        _, page = await fetch(session, "/webhooks/kept-form", {"kept": value_in(page, "kept")})
        assert value_in(page, "name") == TYPED["name"]


@pytest.mark.parametrize("action", ["save", "test"])
async def test_a_key_that_is_replaced_while_the_form_is_open_is_a_conflict(tmp_path: Path, action: str) -> None:
    url = Secret(f"sqlite+aiosqlite:///{tmp_path / 'webhooks.db'}".encode())
    async with staged(tmp_path) as stage, browser(stage, await stage.token()) as session:
        starts = (datetime.now(UTC) - timedelta(days=1)).isoformat()
        following = {"algorithm": "HS384", "key": {"value": "2" * 48}, "starts": starts}
        sign = {"algorithm": "HS256", "key": {"value": "1" * 40}, "kid": "k1", "next": following}
        webhook = await add_webhook(stage, "rotating", auth={"type": "jwt", "sign": sign})
        path = f"/webhooks/{webhook.id}/edit"
        _, page = await fetch(session, path)
        names = ("csrf_token", "owner", "version", "auth.sign.key.shown")
        form = draft("rotating") | {name: value_in(page, name) for name in names}
        form |= {"auth": "sign", "auth.sign.algorithm": "HS256", "auth.sign.kid": "k1", "auth.sign.ttl": "5m"}
        database = Database(url)
        assert await erase_what_is_over(database) == (0, 1)
        await database.close()
        status, page = await fetch(session, path, form | {"action": action})
        assert (status, "The signing key was replaced" in page) == (412, True)
        assert (value_in(page, "auth.sign.kid"), value_in(page, "name")) == ("", form["name"])
        assert (await stage.services.webhooks.get(webhook.id, orgs=None)).version == 1
        form |= {"auth.sign.key.shown": value_in(page, "auth.sign.key.shown"), "auth.sign.kid": ""}
        assert (await fetch(session, path, form | {"auth.sign.algorithm": "HS384", "action": "save"}))[0] == 200
        token = (await stage.services.webhooks.for_delivery(webhook.id, orgs=None)).signed_token
        assert token is not None
        assert (token.kid, token.key.reveal()) == (None, b"2" * 48)


async def test_another_person_can_not_open_it(stage: Stage) -> None:
    async with browser(stage, await stage.token()) as session:
        form = await typed_in(session, "/webhooks/new")
        begin = end_sessions(stage)
        _, page = await fetch(session, "/webhooks/new", form)
        kept = value_in(page, "kept")
        begin()
    async with browser(stage, await stage.token(name="another")) as session:
        status, page = await fetch(session, "/webhooks/kept-form", {"kept": kept})
        assert (status, TYPED["name"] in page) == (404, False)
        status, page = await fetch(session, "/webhooks/new", form)  # the CSRF token is of another session
        assert (status, TYPED["name"] in page) == (403, False)


async def test_a_choice_in_the_top_bar_leads_back_to_a_page(stage: Stage) -> None:
    """Also from a page that a POST has made, whose own path can't be opened."""
    token = await stage.token()
    async with browser(stage, token) as session:
        path = stage.path(LUMA, "/configuration")
        _, page = await fetch(session, path)
        form = {"csrf_token": value_in(page, "csrf_token"), "kind": "hmac", "version": value_in(page, "version")}
        for referer, back in (
            (stage.base + path, path),
            ("https://elsewhere.example//x", "/"),
            ("", "/"),
            ("https://[", "/"),
        ):
            session.headers["Referer"] = referer
            status, page = await fetch(session, stage.path(LUMA, "/signing-secrets"), form)
            assert status in (200, 412)  # the same form again
            assert value_in(page, "back") == back


async def test_a_typed_header_that_is_a_secret_comes_back_sealed(stage: Stage) -> None:
    token, secret = await stage.token(), "typed-into-a-header"
    async with browser(stage, token) as session:
        form = await typed_in(session, "/webhooks/new") | {"timeout": "wrong", "sandbox": "with-header"}
        form |= {
            "headers.0.name": "X-Api-Key",
            "headers.0.value": secret,
            "headers.1.name": "X-A",
            "headers.1.value": "plain",
        }
        status, page = await fetch(session, "/webhooks/new", form)
        assert (status, secret in page, 'value="plain"' in page) == (422, False, True)
        assert "received, not saved yet" in page
        form |= {"headers.0.value": "", "headers.0.sealed": value_in(page, "headers.0.sealed")}
        _, page = await fetch(session, "/webhooks/new", form | {"headers.0.name": "X-Token"})
        assert "What was typed here has expired" in page
        status, page = await fetch(session, "/webhooks/new", form | {"timeout": "7s"})
        assert status == 200, page
    (stored,) = (await stage.services.webhooks.search(WebhookQuery(sandbox="with-header"), orgs=None)).items
    config = await stage.services.webhooks.for_delivery(stored.id, orgs=None)
    assert config.headers == {"X-Api-Key": secret, "X-A": "plain"}


async def test_a_large_form_is_kept_too(stage: Stage) -> None:
    """Random text, which can't be compressed: client keys and a thousand campaigns."""
    token = await stage.token()
    async with browser(stage, token) as session:
        form = await typed_in(session, "/webhooks/new") | {"campaign_ids": secrets.token_urlsafe(36_000)}
        end_sessions(stage)
        _, page = await fetch(session, "/webhooks/new", form)
        status, page = await fetch(session, "/sign-in?kept", {"token": token, "kept": value_in(page, "kept")})
        assert status == 200
        _, page = await fetch(session, "/webhooks/kept-form", {"kept": value_in(page, "kept")})
        assert form["campaign_ids"] in page


@pytest.mark.parametrize("owner", ["", "x", "gAAAAA", "\ud800"])
async def test_a_stranger_has_nothing_kept(stage: Stage, owner: str) -> None:
    async with browser(stage) as session:
        for path in ("/webhooks/new", stage.path(LUMA, "/edit"), "/webhooks/kept-form", stage.path(LUMA, "/pause")):
            form = {"owner": owner.encode(errors="replace").decode(), "name": "x", "kept": "x"}
            status, page = await fetch(session, path, form)
            assert (status, "<h1>Sign in</h1>" in page, 'name="kept"' in page) == (200, True, False)


async def test_a_page_of_another_site_can_neither_keep_nor_continue_a_form(stage: Stage) -> None:
    async with browser(stage, await stage.token()) as session:
        session.headers["Sec-Fetch-Site"] = "cross-site"
        assert (await fetch(session, "/webhooks/kept-form", {"kept": "x"}))[0] == 403


def test_a_value_sealed_for_one_purpose_is_refused_for_another() -> None:
    sealer = SecretSealer.of(None)
    kept = KeptForm("token:1", "/webhooks/new", [("name", "☂"), ("name", "twice")])
    assert sealer.kept(sealer.keep(kept)) == kept
    owner, secret = sealer.seal_owner("token:1"), sealer.seal("s", person="token:1", place="its author")
    assert sealer.owner_of(owner) == "token:1"
    assert sealer.kept(owner) is None
    assert sealer.kept(secret) is None
    assert sealer.owner_of(sealer.keep(kept)) is None
    assert sealer.open(sealer.keep(kept), person="token:1", place="the whole form") is None
    assert SecretSealer.of(None).kept(sealer.keep(kept)) is None
    old = sealer.fernet.encrypt_at_time(sealer.fernet.decrypt(sealer.keep(kept)), 1_700_000_000 - LIFE_S).decode()
    assert sealer.kept(old) is None


async def by_issuer(session: aiohttp.ClientSession, issuer: SmallIssuer) -> None:
    """Signs in at the issuer, as a person does in a tab."""
    async with session.get("/sign-in/oidc?next=/", allow_redirects=False) as answer:
        back = issuer.authorize(answer.headers["Location"])
    async with session.get("/sign-in/oidc/callback", params=back, allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (303, "/")


async def test_the_form_outlasts_a_session_of_an_issuer(tmp_path: Path) -> None:
    """The person signs in again in another tab, since a form can't travel over the issuer, and continues here."""
    async with SmallIssuer() as issuer:
        settings = settings_of(oidc=settings_for(issuer), public_url="http://console.example")
        async with staged(tmp_path, settings=settings) as stage, browser(stage) as session:
            issuer.claims["orgs"] = ["*"]
            await by_issuer(session, issuer)
            form = await typed_in(session, stage.path(LUMA, "/edit"))
            begin = end_sessions(stage)
            status, page = await fetch(session, stage.path(LUMA, "/edit"), form)
            assert (status, 'target="_blank">Sign in with your organisation' in page) == (401, True)
            begin()
            await by_issuer(session, issuer)
            status, page = await fetch(session, "/webhooks/kept-form", {"kept": value_in(page, "kept")})
            assert (status, value_in(page, "name")) == (200, TYPED["name"])
            again = form | {"csrf_token": value_in(page, "csrf_token"), "signing.new": ""}
            again["signing.new.sealed"] = value_in(page, "signing.new.sealed")
            status, page = await fetch(session, stage.path(LUMA, "/edit"), again)
            assert (status, TYPED["name"] in page) == (200, True)


async def test_two_replicas_on_one_postgresql_keep_a_form_between_them(tmp_path: Path, postgres: Postgres) -> None:
    """Each request goes to the other replica, as behind a load balancer."""
    url = Secret((await postgres.fresh_database()).encode())
    async with staged(tmp_path, url=url) as one:
        replica = replace(one.services, settings=settings_of())
        async with ConsoleServer(replica) as second, browser(one, await one.token()) as session:
            other = replace(one, server=second)
            turns = itertools.cycle((one.base, other.base))

            async def go(path: str, data: dict[str, str] | None = None) -> tuple[int, str]:
                return await fetch(session, next(turns) + path, data)

            token, path = await one.token(), one.path(LUMA, "/edit")
            await go("/sign-in", {"token": token})
            form = await typed_in(session, next(turns) + path)
            begins = [end_sessions(stage) for stage in (one, other)]
            status, page = await go(path, form)
            assert status == 401
            for begin in begins:
                begin()
            _, page = await go("/sign-in?kept", {"token": token, "kept": value_in(page, "kept")})
            status, page = await go("/webhooks/kept-form", {"kept": value_in(page, "kept")})
            assert (status, value_in(page, "name")) == (200, TYPED["name"])
            again = form | {"csrf_token": value_in(page, "csrf_token"), "signing.new": ""}
            again["signing.new.sealed"] = value_in(page, "signing.new.sealed")
            status, page = await go(path, again)
            assert (status, TYPED["name"] in page) == (200, True)
            config = await one.services.webhooks.for_delivery(one.webhooks[LUMA].id, orgs=None)
            assert config.signing is not None
            assert config.signing.secrets[0].reveal_text() == SECRET
