"""A webhook whose row was edited by hand: its pages say so, and the list and its other webhooks are as ever."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import aiohttp
import orjson
import pytest
from pydantic import JsonValue

from dispatcher.stores.sql.records import Role
from tests.console.pages.sample_world import CONTOSO, EXPLAINED_ID, LUMA
from tests.console.pages.stage import Stage, staged

WRONG: dict[str, JsonValue] = dict.fromkeys(
    ("auth", "headers", "signing", "tls", "channels", "events", "campaigns", "notify", "limits"), 5
)
ODD: dict[str, str] = {
    "no JSON": "config = '{\"name\": '",
    "no object": "config = '[1]'",
    "empty": "config = '{}'",
    "numbers": f"config = '{orjson.dumps(WRONG | {'rate_limit': 'x', 'timeout': 'x'}).decode()}'",
    "texts": f"config = '{orjson.dumps(dict.fromkeys(WRONG, 'x')).decode()}'",
    "lists": f"config = '{orjson.dumps({key: [{}, [], None] for key in WRONG}).decode()}'",
    "odd members": "config = '{\"auth\": {\"type\": \"jwt\", \"sign\": 5, \"fetch\": []}, \"signing\": {\"secrets\": 5, "
    "\"ends\": 5}, \"tls\": {\"ca\": 5}, \"headers\": {\"a\": 5}, \"notify\": {\"emails\": 5}}'",
    "a version that is none": "version = 'x'",
    "times": "created_at = 'x', updated_at = 5",
    "bytes": "name = x'FC', url = x'FC', channels = x'FC', created_by = x'FC', updated_by = x'FC'",
    "a URL that is none": "url = 'http://[x', config = json_set(config, '$.url', 'http://[x')",
}  # fmt: skip


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path) as running:
        yield running


@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
async def test_an_odd_row_is_named_and_breaks_no_page(stage: Stage, tmp_path: Path, change: str) -> None:
    luma, contoso = stage.webhooks[LUMA], stage.webhooks[CONTOSO]
    with closing(sqlite3.connect(tmp_path / "webhooks.db")) as database, database:
        assert database.execute(f"UPDATE webhooks SET {change} WHERE id = ?", (luma.id,)).rowcount == 1
    api, page = f"/api/v1/webhooks/{luma.id}", f"/webhooks/{luma.id}"
    found = (
        *("/", "/?state=active", "/?state=paused", "/?sort=last", "/?channel=sms", "/?q=luma", "/audit", page),
        *(f"{page}/{tab}" for tab in ("deliveries", "configuration", "audit", "notifications")),
        *("/deliveries", "/dead-events", f"/webhooks/{contoso.id}"),
    )
    for_admins = (f"{page}/edit", f"{page}/delete", f"{page}/test", f"{page}/resend?range=24h")
    explained = (f"{page}/deliveries/{EXPLAINED_ID}?explain=1", f"{api}/contacts")
    api_found = ("/api/v1/webhooks", "/api/v1/audit", *(f"{api}{part}" for part in ("", "/state", "/signing-secrets")))
    wrong: dict[str, tuple[int, str]] = {}
    for role in Role:
        paths = (*found, *explained, *api_found, *(for_admins if role is Role.ADMIN else ()))
        async with _signed_in(stage, role) as client:
            for path in paths:
                async with client.get(path, allow_redirects=False) as got:
                    body = await got.text()
                    if got.status != 200 and not (path in explained and got.status in (404, 422)):
                        wrong[path] = (got.status, body[-300:])
                    if path == f"{page}/edit" and change in (ODD["no JSON"], ODD["no object"], ODD["empty"]):
                        assert "What could not be read is missing here" in body, "it would be saved without"
                    if path == page and any(f"{column} = " in change for column in ("version", "created_at")):
                        assert "damaged row" in body
    assert wrong == {}
    async with _signed_in(stage, Role.ADMIN) as client, client.get(api) as got:
        tag = got.headers["ETag"]
        draft = {"name": "New", "org": LUMA.org, "sandbox": LUMA.sandbox, "url": "https://hooks.luma.example/new"}
        async with client.put(api, json=draft, headers={"If-Match": tag}) as put:
            assert put.status == 200, await put.text()
        async with client.post(f"{api}/pause") as paused:
            assert paused.status == 200


@asynccontextmanager
async def _signed_in(stage: Stage, role: Role) -> AsyncIterator[aiohttp.ClientSession]:
    token = await stage.token(role)
    jar, headers = aiohttp.CookieJar(unsafe=True), {"Origin": stage.base, "Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(stage.base, cookie_jar=jar, headers=headers) as client:
        async with client.post("/sign-in", data={"token": token}) as got:
            assert got.status == 200
        yield client
