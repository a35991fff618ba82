"""Signing in and out with a browser: sessions, CSRF, links, and what keeps guessing slow."""

import asyncio
import base64
from typing import Any

import pytest
from structlog.testing import capture_logs

from dispatcher.console import access, login_throttle
from dispatcher.console.access import is_local_path
from dispatcher.console.sessions import LINK_LIFE_S, Sessions
from dispatcher.errors import ConfigError
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.records import Role
from tests.console.api.conftest import Answered, Client, Console, StartConsole
from tests.console.api.fakes import LUMA
from tests.stores_sql.examples import plain_draft

ME = "/api/v1/me"
COOKIE = "dispatcher-session"

pytestmark = pytest.mark.parametrize("empty_url", ["sqlite"], indirect=True)  # no database has a part in this


async def sign_in(console: Console, token: str, **others: Any) -> Answered:
    return await console.stranger().post("/sign-in", data={"token": token, **others.pop("form", {})}, **others)


async def signed_in(console: Console, role: Role = Role.ADMIN) -> dict[str, str]:
    """Returns the session cookies of a person of Luma."""
    answer = await sign_in(console, await console.token(role, frozenset({LUMA.org})))
    assert answer.status == 303, answer.text
    return dict(answer.cookies)


def csrf_token(console: Console, cookies: dict[str, str]) -> str:
    session = console.server._sessions._opened("session", cookies[COOKIE])
    assert isinstance(session, dict)
    return console.server._sessions.csrf_token(str(session["id"]))


def pass_s(part: Any, seconds: float) -> None:
    """Advances the clock of a part of the console."""
    before = part._clock
    part._clock = lambda: before() + seconds


async def test_a_token_signs_in_and_the_session_is_its_holders(console: Console) -> None:
    token = await console.token(Role.VIEWER, frozenset({LUMA.org}), "ada")
    answer = await sign_in(console, f"  {token}\n", form={"next": "/webhooks/new?a=1"})
    assert (answer.status, answer.headers["Location"]) == (303, "/webhooks/new?a=1")
    assert token not in answer.headers["Set-Cookie"]
    read = await console.stranger().get(ME, cookies=answer.cookies)
    assert (read.json["name"], read.json["role"], read.json["orgs"]) == ("ada", "viewer", [LUMA.org])
    page = await console.stranger().get("/", cookies=answer.cookies)
    assert (page.status, page.headers["Cache-Control"]) == (200, "no-store")


async def test_the_cookie_is_for_us_alone(start: StartConsole) -> None:
    for public_url, prefix, secure in ((None, "", False), ("https://console.example", "__Host-", True)):
        async with start(public_url=public_url) as console:
            answer = await sign_in(console, await console.token())
            name, _, rest = answer.headers["Set-Cookie"].partition("=")
            attributes = {part.strip().lower() for part in rest.split(";")[1:]}
            assert name == f"{prefix}dispatcher-session"
            assert {"httponly", "samesite=lax", "path=/", "max-age=28800"} <= attributes
            assert ("secure" in attributes) == secure
            assert not [one for one in attributes if one.startswith("domain")]
            assert ("Strict-Transport-Security" in answer.headers) == secure


async def test_a_page_without_a_session_redirects_to_the_login_and_back(console: Console) -> None:
    page = await console.stranger().get("/?text=a%26b")
    assert (page.status, page.headers["Location"]) == (303, "/sign-in?next=/?text%3Da%2526b")
    assert (await console.stranger().get("/no/such/page")).status == 303
    changed = await console.stranger().post("/")
    assert (changed.status, changed.headers["Location"]) == (303, "/sign-in?next=/")
    api = await console.stranger().get("/api/v1/no/such")
    assert (api.status, api.headers["WWW-Authenticate"], api.headers["Content-Type"]) == (
        401,
        "Bearer",
        "application/problem+json",
    )


async def test_no_cookie_but_ours_is_a_session(console: Console) -> None:
    cookies = await signed_in(console)
    data, _, mac = cookies[COOKIE].partition(".")
    other = Sessions(b"another key of enough bytes......", 3600, console.services.ended_sessions, is_https=False)
    link = console.server.new_sign_in_link().rpartition("/")[2]
    for value in ("", ".", "x", f"{data}.", f"{data}.{mac[:-2]}", f"{data[:-2]}.{mac}", f".{mac}", link, "é.é", "=.=",
                  other._sealed("session", other.create("link", "link").model_dump(mode="json")),
                  base64.b64encode(b'{"kind":"link"}').decode()):  # fmt: skip
        assert (await console.stranger().get(ME, headers={"Cookie": f"{COOKIE}={value}"})).status == 401, value
    assert (await console.stranger().get(ME, cookies=cookies)).status == 200


async def test_a_session_ends_with_its_time_with_its_token_and_at_sign_out(console: Console) -> None:
    sessions, door = console.server._sessions, console.server._access
    stranger = console.stranger()

    signed_out = await signed_in(console)
    answer = await stranger.post("/sign-out", cookies=signed_out, data={"csrf_token": csrf_token(console, signed_out)})
    assert (answer.status, answer.headers["Location"], answer.cookies[COOKIE]) == (303, "/sign-in", "")
    assert (await stranger.get(ME, cookies=signed_out)).status == 401

    revoked = await signed_in(console)
    assert (await stranger.get(ME, cookies=revoked)).status == 200
    token = (await console.services.tokens.list_all())[0]
    await console.services.tokens.revoke(token.id, by="test")
    pass_s(door, access.TOKENS_FRESH_S)
    assert (await stranger.get(ME, cookies=revoked)).status == 401

    old = await signed_in(console)
    assert (await stranger.get(ME, cookies=old)).status == 200
    pass_s(sessions, 28_800)
    assert (await stranger.get(ME, cookies=old)).status == 401


async def test_what_ended_at_one_console_has_ended_at_all(start: StartConsole) -> None:
    async with start() as one, start() as another:
        cookies = await signed_in(one)
        assert (await another.stranger().get(ME, cookies=cookies)).status == 200
        form = {"csrf_token": csrf_token(one, cookies)}
        assert (await one.stranger().post("/sign-out", cookies=cookies, data=form)).status == 303
        assert (await another.stranger().get(ME, cookies=cookies)).status == 401
        assert (await another.stranger().get("/", cookies=cookies)).status == 303

        link = one.server.new_sign_in_link().removeprefix(one.server.public_url)
        answers = await asyncio.gather(*(console.stranger().get(link) for console in (one, another) * 3))
        assert sorted(answer.status for answer in answers) == [303, *[401] * 5]


async def test_while_it_is_unknown_whether_a_session_has_ended_it_opens_nothing(
    console: Console, database: Database
) -> None:
    cookies, link = await signed_in(console), console.server.new_sign_in_link().rpartition("/sign-in")[2]
    form = {"csrf_token": csrf_token(console, cookies)}
    async with database.write() as connection:
        await connection.exec_driver_sql("ALTER TABLE ended_sessions RENAME TO gone")
    stranger = console.stranger()
    for path in (ME, "/", "/sign-in"):
        assert (await stranger.get(path, cookies=cookies)).status == 503, path
    for path in ("/livez", "/metrics", "/api/v1/openapi.json"):
        assert (await stranger.get(path, cookies=cookies)).status == 200, path
    assert (await stranger.get("/sign-in")).status == 200
    assert (await stranger.get(f"/sign-in{link}")).status == 503
    answer = await stranger.post("/sign-out", cookies=cookies, data=form)
    assert (answer.status, answer.cookies) == (503, {}), "the person is not made to believe it"
    async with database.write() as connection:
        await connection.exec_driver_sql("ALTER TABLE gone RENAME TO ended_sessions")
    assert (await stranger.get(ME, cookies=cookies)).status == 200
    assert (await stranger.get(f"/sign-in{link}")).status == 303
    assert (await stranger.post("/sign-out", cookies=cookies, data=form)).status == 303
    assert (await stranger.get(ME, cookies=cookies)).status == 401


async def test_a_token_revoked_by_the_api_ends_its_sessions_at_once(console: Console) -> None:
    cookies = await signed_in(console)
    assert (await console.stranger().get(ME, cookies=cookies)).status == 200
    token = (await console.services.tokens.list_all())[0]
    assert (await (await console.client())("DELETE", f"/api/v1/tokens/{token.id}")).status == 204
    assert (await console.stranger().get(ME, cookies=cookies)).status == 401


async def test_sessions_of_tokens_end_when_tokens_are_switched_off(start: StartConsole) -> None:
    async with start() as console:
        cookies = await signed_in(console)
        token = await console.token()
    async with start(tokens=False, oidc={"issuer": "https://login.example", "audience": "a"}) as console:
        assert (await console.stranger().get(ME, cookies=cookies)).status == 401
        assert (await Client(console.base, console.session, token).get(ME)).status == 401
        assert (await sign_in(console, token)).status == 401


async def test_a_change_by_cookie_needs_the_sessions_csrf_token(console: Console) -> None:
    cookies, others = await signed_in(console), await signed_in(console)
    right, stranger = csrf_token(console, cookies), console.stranger()
    path, draft = "/api/v1/webhooks", plain_draft(*LUMA)
    for headers in ({}, {"X-CSRF-Token": ""}, {"X-CSRF-Token": "x"}, {"X-CSRF-Token": csrf_token(console, others)}):
        answer = await stranger.post(path, json=draft, cookies=cookies, headers=headers)
        assert (answer.status, answer.json["type"]) == (403, "urn:dispatcher:problem:csrf")
    assert (await stranger.post(path, json=draft, cookies=cookies, headers={"X-CSRF-Token": right})).status == 201
    assert (await stranger.post("/", data={}, cookies=cookies)).status == 403
    assert (await stranger.post("/", data={"csrf_token": "é"}, cookies=cookies)).status == 403
    assert (await stranger.post("/", data={"csrf_token": right}, cookies=cookies)).status == 200
    assert (await stranger.post("/sign-out", cookies=cookies)).status == 403
    assert (await stranger.get(ME, cookies=cookies)).status == 200


async def test_changes_from_pages_of_another_origin_are_refused_for_every_caller(console: Console) -> None:
    cookies = await signed_in(console)
    proof = {"X-CSRF-Token": csrf_token(console, cookies)}
    bearer = {"Authorization": f"Bearer {await console.token()}"}
    for headers, is_taken in (
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://["}, False),
        ({"Origin": "//["}, False),
        ({"Origin": "http://[::1"}, False),
        ({"Origin": ""}, False),
        ({"Origin": console.base.replace("http:", "ftp:")}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": console.base}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": console.base}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({}, True),
    ):
        for who in (proof, bearer):
            jar = cookies if who is proof else {}
            answer = await console.stranger().post("/api/v1/webhooks/preview", json={"webhook": plain_draft(*LUMA)},
                                                   cookies=jar, headers=headers | who)  # fmt: skip
            assert answer.status == (200 if is_taken else 403), headers
    assert (await sign_in(console, "x", headers={"Origin": "https://evil.example"})).status == 403


async def test_a_refused_bearer_token_is_not_made_good_by_a_cookie(console: Console) -> None:
    cookies = await signed_in(console)
    for header in (
        "Bearer fdt_0123456789abcdef_" + "x" * 43,
        "Bearer",
        "Basic YTpi",
        "Bearer x y",
        "Bearer fdt_",
    ):
        answer = await console.stranger().get(ME, cookies=cookies, headers={"Authorization": header})
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, 'Bearer error="invalid_token"'), header


async def test_a_link_signs_in_once_and_soon(console: Console) -> None:
    stranger, sessions = console.stranger(), console.server._sessions
    path = console.server.new_sign_in_link().removeprefix(console.server.public_url)
    assert (await stranger("HEAD", path)).status == 405
    answer = await stranger.get(path)
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    read = await stranger.get(ME, cookies=answer.cookies)
    assert (read.json["role"], read.json["orgs"]) == ("admin", None)
    assert (await stranger.get(path)).status == 401
    late = console.server.new_sign_in_link().removeprefix(console.server.public_url)
    pass_s(sessions, LINK_LIFE_S)
    assert (await stranger.get(late)).status == 401
    assert (await stranger.get("/sign-in/link/" + answer.cookies[COOKIE])).status == 401


@pytest.mark.parametrize(
    ("path", "is_local"),
    [
        ("/", True), ("/webhooks/1?a=b&c=/d", True), ("/a//b", True), ("", False), ("//evil.example", False), ("/\\evil.example", False),
        ("https://evil.example", False), ("javascript:alert(1)", False), ("/\t/evil.example", False), ("/a\r\nSet-Cookie: a=b", False),
        ("/é", False), ("/" + "a" * 3000, False), ("/sign-in?next=/", False), ("/sign-out", False), ("evil.example", False), (" /", False),
    ],
)  # fmt: skip
async def test_no_redirect_leads_to_another_host(console: Console, path: str, is_local: bool) -> None:
    assert is_local_path(path) == is_local
    answer = await sign_in(console, await console.token(), form={"next": path})
    assert answer.headers["Location"] == (path if is_local else "/")


async def test_failures_make_the_next_try_wait(console: Console) -> None:
    good = await console.token()
    for _ in range(login_throttle.FREE):
        assert (await sign_in(console, "fdt_wrong")).status == 401
    answer = await sign_in(console, "fdt_wrong")
    assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
    assert (await console.stranger().get("/sign-in/link/x")).status == 429
    assert (await sign_in(console, good)).status == 303
    # The API is not held up: a bearer token is not guessed.
    assert (await Client(console.base, console.session, good).get(ME)).status == 200


async def test_success_resets_the_throttle_and_only_trusted_proxies_name_clients(start: StartConsole) -> None:
    for proxies, others_wait in (([], True), (["127.0.0.0/8"], False)):
        async with start(trusted_proxies=proxies) as console:
            good = await console.token()
            for _ in range(login_throttle.FREE):
                assert (await sign_in(console, "x", headers={"X-Forwarded-For": "192.0.2.1"})).status == 401
            assert (await sign_in(console, "x", headers={"X-Forwarded-For": "192.0.2.1"})).status == 429
            other = await sign_in(console, "x", headers={"X-Forwarded-For": "192.0.2.1, 192.0.2.2"})
            assert other.status == (429 if others_wait else 401)
            assert (await sign_in(console, good, headers={"X-Forwarded-For": "192.0.2.1"})).status == 303


async def test_with_neither_tokens_nor_oidc_everybody_on_the_loopback_is_the_admin(start: StartConsole) -> None:
    async with start(tokens=False) as console:
        stranger = console.stranger()
        assert (await stranger.get(ME)).json == {"id": "local", "name": "local admin", "role": "admin", "orgs": None}
        assert (await stranger.get("/")).status == 200
        assert (await stranger.post("/api/v1/webhooks", json=plain_draft(*LUMA))).status == 201
        # A page elsewhere is not everybody: neither by its own name for our address, nor by a form of its own.
        for path in (ME, "/"):
            for host in ("evil.example", "[", "]:", "a]b", "[::1"):
                assert (await stranger.get(path, headers={"Host": host})).status == 403, host
        assert (
            await stranger.post("/api/v1/webhooks", json={}, headers={"Origin": "https://evil.example"})
        ).status == 403
        assert (await stranger.post("/", data={"a": "b"})).status == 403
        token = console.server._sessions.csrf_token("local")
        assert (await stranger.post("/", data={"csrf_token": token})).status == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "console.example", ""])
async def test_it_does_not_start_without_sign_in_on_a_reachable_address(start: StartConsole, host: str) -> None:
    with pytest.raises(ConfigError, match=r"console.host: .*console.tokens.*console.oidc"):
        async with start(tokens=False, host=host):
            pass
    assert access.is_open_console(console_settings(host=host, tokens=True)) is False


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_the_loopback_has_many_names(host: str, empty_url: object) -> None:
    assert access.is_open_console(console_settings(host=host, tokens=False)) is True


def console_settings(**values: Any) -> Any:
    from dispatcher.config.console_settings import ConsoleSettings

    return ConsoleSettings(**values)


async def test_a_token_and_a_link_that_hold_are_taken_whatever_failed_at_their_address(console: Console) -> None:
    token, link = await console.token(), console.server.new_sign_in_link().rpartition("/sign-in")[2]
    for _ in range(login_throttle.FREE_IN_ALL + 20):
        await console.stranger().get("/sign-in/link/wrong")
    assert (await sign_in(console, "fdt_wrong")).status == 429
    assert (await sign_in(console, token)).status == 303
    for _ in range(login_throttle.FREE + 5):
        await console.stranger().get("/sign-in/link/wrong")
    assert (await console.stranger().get(f"/sign-in{link}")).status == 303


@pytest.mark.parametrize(
    ("proxies", "headers", "warns"),
    [
        ([], {"X-Forwarded-For": "192.0.2.1"}, True),
        (["10.0.0.0/8"], {"X-Forwarded-For": "192.0.2.1"}, True),
        (["127.0.0.0/8"], {"X-Forwarded-For": "192.0.2.1"}, False),
        ([], {}, False),
    ],
)
async def test_a_proxy_that_is_not_trusted_is_shown_to_the_operator(
    start: StartConsole, proxies: list[str], headers: dict[str, str], warns: bool
) -> None:
    async with start(trusted_proxies=proxies) as console:
        with capture_logs() as lines:
            for _ in range(3):
                await console.stranger().get("/sign-in", headers=headers)
                await sign_in(console, "x", headers=headers)
    warnings = [line["event"] for line in lines if "console.trusted_proxies" in line["event"]]
    assert len(warnings) == int(warns)
    assert "192.0.2.1" not in "".join(warnings)
