"""The demo's balance after its console was used and after an event was lost, and its e-mails: each time the whole demo."""

import asyncio
import html
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from dispatcher.config.secrets import Secret
from dispatcher.contract.tenant import TenantKey
from dispatcher.demo import run as demo
from dispatcher.demo.kafka_side import produce
from dispatcher.demo.planning import Planned
from dispatcher.demo.tenants import CONTACT
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.records import Role
from dispatcher.stores.sql.tokens import ApiTokens

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
async def forever(tmp_path: Path) -> AsyncIterator["tuple[asyncio.subprocess.Process, str, Path]"]:
    """The demo, with its console's address and its directory."""
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "dispatcher.demo", env=os.environ | {"FOREVER": "1", "TMPDIR": str(tmp_path)},
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        while (found := re.search(r"(http://127\.0\.0\.1:\d+)/sign-in/link/", log.read_text())) is None:
            assert process.returncode is None, log.read_text()
            await asyncio.sleep(0.2)
        (directory,) = [one for one in os.listdir(tmp_path) if one.startswith("dispatcher-demo-")]
        yield process, found[1], tmp_path / directory
    finally:
        for _ in range(2):
            if process.returncode is None:
                process.send_signal(signal.SIGINT)
                await asyncio.sleep(0.5)
        await process.wait()


async def test_what_is_done_in_the_console_loses_nothing(
    forever: tuple[asyncio.subprocess.Process, str, Path], tmp_path: Path
) -> None:
    process, console, directory = forever
    async with api_of(console, directory) as api:
        async with api.get("webhooks") as answer:
            ids = {one["org"]: one["id"] for one in (await answer.json())["items"]}
        again = {"since": "2020-01-01T00:00:00Z"}
        await until_dead(api)
        for method, path, body in (
            ("POST", f"webhooks/{ids['luma']}/resend", again | {"include": ["delivered"]}),
            ("POST", f"webhooks/{ids['adatum']}/resend", again | {"include": ["dead"]}),
            ("POST", f"webhooks/{ids['northwind']}/test", {}),
            ("POST", f"webhooks/{ids['contoso']}/pause", None),
        ):
            async with api.request(method, path, json=body) as answer:
                assert answer.status < 300, (path, await answer.text())
        for org in ("fabrikam", "tailspin"):
            async with api.get(f"webhooks/{ids[org]}") as answer:
                version = {"If-Match": answer.headers["ETag"]}
            async with api.delete(f"webhooks/{ids[org]}", headers=version) as answer:
                assert answer.status < 300, await answer.text()
        await asyncio.sleep(3)  # events come, of which some are held and some have no webhook any more
    process.send_signal(signal.SIGINT)
    status = await process.wait()
    shown = (tmp_path / "log").read_text()
    assert "in the console: adatum, contoso, fabrikam, luma, northwind, tailspin." in shown, shown[-3000:]
    assert "lost 0; delivered twice" in shown
    assert "It balances" in shown, shown[-5000:]
    assert status == 0


@asynccontextmanager
async def api_of(console: str, directory: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """The API, with a token of an administrator."""
    database = Database(Secret((directory / "secrets" / "database-url").read_bytes()))
    _, token = await ApiTokens(database).create("test", Role.ADMIN, orgs=None, by="test")
    await database.close()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(f"{console}/api/v1/", headers=headers) as api:
        yield api


async def until_dead(api: aiohttp.ClientSession) -> None:
    while True:
        async with api.get("dead-events?org=adatum&sandbox=prod") as answer:
            if (await answer.json())["items"]:
                return
        await asyncio.sleep(0.5)


async def test_an_event_that_is_lost_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One is planned, and never reaches the broker."""
    lost = Planned(TenantKey("luma", "prod"), "luma-lost", b"")

    async def loses(
        brokers: str, topic: str, events: Iterator[Planned], per_second: float,
        on_event: Callable[[Planned], None], stop: asyncio.Event,
    ) -> None:  # fmt: skip
        on_event(lost)
        await produce(brokers, topic, events, per_second, on_event, stop)

    monkeypatch.setattr(demo, "produce", loses)
    monkeypatch.setattr(demo, "SETTLE_S", 30.0)
    assert await demo.Demo(replace(demo.Options(), events=100)).run() == 1
    shown = capsys.readouterr()
    assert "lost 1; delivered twice 0" in shown.out
    assert "luma-lost: neither delivered nor in the dead-letter topic" in shown.err


async def test_a_contact_confirms_by_a_link_in_an_e_mail(
    forever: tuple[asyncio.subprocess.Process, str, Path], tmp_path: Path
) -> None:
    _, console, directory = forever
    found = re.search(r"shown here: (http://127\.0\.0\.1:\d+/)", (tmp_path / "log").read_text())
    assert found is not None
    async with aiohttp.ClientSession() as session:

        async def mails(text: str) -> str:
            """The text of the page, once it has an e-mail like that."""
            while True:
                async with session.get(found[1]) as answer:
                    page = html.unescape(await answer.text())
                if re.search(text, page, re.DOTALL):
                    return page
                await asyncio.sleep(0.5)

        page = await mails(f"to {CONTACT}.*/notifications/link")
        links = re.findall(r'href="([^"]*/notifications/link\?token=([^"]+))"', page)
        async with session.get(links[0][0]) as answer:
            assert "confirm" in (await answer.text()).lower()
        async with session.post(f"{console}/notifications/link", data={"token": links[0][1]}) as answer:
            assert answer.status == 200, await answer.text()
        async with api_of(console, directory) as api:
            async with api.get("webhooks") as answer:
                (adatum,) = [one["id"] for one in (await answer.json())["items"] if one["org"] == "adatum"]
            for path in (f"webhooks/{adatum}/contacts/test", "notifications/test"):
                async with api.post(path, json={}) as answer:
                    assert answer.status == 202, await answer.text()
        await mails(f"<h2>[^<]*[Tt]est[^<]*</h2><p>[^<]* to {CONTACT}<")
        await mails("<h2>[^<]*[Tt]est[^<]*</h2><p>[^<]* to operator@demo.example<")
