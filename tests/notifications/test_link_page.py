"""The page of links in e-mails: opening it changes nothing, its button does, and it needs no sign-in."""

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from dispatcher.console.access import is_public
from dispatcher.console.pages import notification_link
from dispatcher.console.pages.assets import Assets
from dispatcher.console.pages.renderer import Renderer
from dispatcher.console.services import Services
from dispatcher.stores.sql.database import Database
from tests.notifications.receivers import Certificates, MailServer, mail_server
from tests.notifications.scene import CONTACT, LUMA, Scene, open_scene, settings_for, webhook_of
from tests.notifications.test_notifications import link_in

Client = TestClient[Any, Any]


@pytest.fixture
async def mail(issued: Certificates) -> AsyncIterator[MailServer]:
    async with mail_server(issued.server, implicit=False) as server:
        yield server


@pytest.fixture
async def scene(tmp_path: Path, issued: Certificates, mail: MailServer, history: Database) -> AsyncIterator[Scene]:
    async with open_scene(settings_for(tmp_path, issued, mail, None), history) as opened:
        opened.webhooks = [webhook_of(LUMA, CONTACT)]
        await opened.work()
        yield opened


@pytest.fixture
async def client(scene: Scene) -> AsyncIterator[Client]:
    app = web.Application()
    services = cast("Services", SimpleNamespace(notifications=scene.desk, settings=scene.settings))
    notification_link.add_to(app, Renderer(services, Assets.load()))
    async with TestClient(TestServer(app)) as opened:
        yield opened


@pytest.mark.parametrize("empty_url", ["sqlite"], indirect=True)
async def test_a_contact_confirms_with_the_button_and_not_by_opening_the_link(
    scene: Scene, client: Client, mail: MailServer
) -> None:
    assert is_public("/notifications/link")
    token, config = link_in(mail.received[0]), scene.webhooks[0].config
    opened = await client.get("/notifications/link", params={"token": token})
    text = await opened.text()
    assert (opened.status, "Confirm" in text, LUMA.org in text) == (200, True, True)
    assert opened.headers["Referrer-Policy"] == "no-referrer"
    assert (await scene.desk.contacts(config))[0].status == "asked"
    done = await client.post("/notifications/link", data={"token": token})
    assert (done.status, "is confirmed" in await done.text()) == (200, True)
    assert (await scene.desk.contacts(config))[0].status == "confirmed"
    for bad in ("", "x.y", token[:-4], token + "<script>", "é" * 500):
        for answer in (
            await client.get("/notifications/link", params={"token": bad[:3000]}),
            await client.post("/notifications/link", data={"token": bad}),
        ):
            assert answer.status == 400
            assert "<script>" not in await answer.text()
    scene.clock.now += 8 * 86_400
    expired = await client.post("/notifications/link", data={"token": token})
    assert (expired.status, "expired" in await expired.text()) == (400, True)
