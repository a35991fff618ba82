"""The page of links in e-mails: opening it changes nothing, its button does, and it needs no sign-in."""

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from sqlalchemy import text

from dispatcher.console.access import is_public
from dispatcher.console.pages import notification_link
from dispatcher.console.pages.assets import Assets
from dispatcher.console.pages.renderer import Renderer
from dispatcher.console.services import Services
from dispatcher.contract.redaction import contact_of
from dispatcher.contract.tenant import TenantKey
from dispatcher.notifications.confirmation import Link, Purpose
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
    shown = await opened.text()
    assert (opened.status, "Confirm" in shown, LUMA.org in shown) == (200, True, True)
    assert f"Get notifications when the webhook of {LUMA.org} / {LUMA.sandbox} fails?" in shown
    assert "You are notified" not in shown
    assert opened.headers["Referrer-Policy"] == "no-referrer"
    assert (await scene.desk.contacts(config))[0].status == "asked"
    done = await client.post("/notifications/link", data={"token": token})
    assert (done.status, "is confirmed" in await done.text()) == (200, True)
    assert (await scene.desk.contacts(config))[0].status == "confirmed"
    assert scene.desk._composer.links is not None
    stop = scene.desk._composer.links.token(Link(Purpose.STOP, LUMA, contact_of(CONTACT)), scene.clock.now)
    opened = await client.get("/notifications/link", params={"token": stop})
    shown = await opened.text()
    assert f"Stop notifications about the webhook of {LUMA.org} / {LUMA.sandbox}?" in shown
    assert "no longer sent" not in shown
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


async def test_a_mail_program_stops_notifications_with_one_click_and_confirms_nothing(
    scene: Scene, client: Client, mail: MailServer
) -> None:
    """RFC 8058: a POST to the URL of List-Unsubscribe, whose form doesn't repeat the token."""
    config, one_click = scene.webhooks[0].config, {"List-Unsubscribe": "One-Click"}
    asked = link_in(mail.received[0])
    refused = await client.post("/notifications/link", params={"token": asked}, data=one_click)
    assert (refused.status, (await scene.desk.contacts(config))[0].status) == (400, "asked")
    await scene.desk.use(asked)
    await scene.desk.send_test(config, "admin")
    await scene.work()
    (stop,) = re.findall(r"token=([^>]+)>", str(mail.received[1]["List-Unsubscribe"]))
    refused = await client.post("/notifications/link", params={"token": stop}, data={"other": "x"})
    assert (refused.status, (await scene.desk.contacts(config))[0].status) == (400, "confirmed")
    done = await client.post("/notifications/link", params={"token": stop}, data=one_click)
    assert (done.status, (await scene.desk.contacts(config))[0].status) == (200, "stopped")


async def rows_of(scene: Scene) -> list[tuple[str, str]]:
    async with scene.store._database.read() as connection:
        found = await connection.execute(text("SELECT contact, status FROM history_contacts ORDER BY contact"))
        return [(contact, status) for contact, status in found]


async def test_contacts_of_an_older_version_stay_confirmed_and_get_a_keyed_hash(scene: Scene, mail: MailServer) -> None:
    """Without the key no one can try addresses against the table; links in old mails still stop notifications."""
    plain, config = contact_of(CONTACT), scene.webhooks[0].config
    await scene.desk.use(link_in(mail.received[0]))
    ((keyed, _),) = await rows_of(scene)
    assert keyed.startswith("k")
    assert len(keyed) <= 32
    for twice in (False, True):
        async with scene.store._database.write() as connection:
            if twice:
                copied = text(
                    "INSERT INTO history_contacts SELECT org, sandbox, :plain, status, asks, asked_at, changed_at "
                    "FROM history_contacts"
                )
                await connection.execute(copied, {"plain": plain})
            else:
                await connection.execute(text("UPDATE history_contacts SET contact = :plain"), {"plain": plain})
        await scene.work(60)
        assert len(mail.received) == 1, "not asked again"
        assert [one.status for one in await scene.desk.contacts(config)] == ["confirmed"]
        await scene.notifier.expire()
        assert await rows_of(scene) == [(keyed, "confirmed")]
    assert scene.desk._composer.links is not None
    old_link = scene.desk._composer.links.token(Link(Purpose.STOP, LUMA, plain), scene.clock.now)
    await scene.desk.use(old_link)
    assert await rows_of(scene) == [(keyed, "stopped")]


async def keep_house(scene: Scene, days: int) -> None:
    """Lets days pass, in each of which the worker is started again."""
    for _ in range(days):
        await scene.new_notifier().expire()
        scene.clock.now += 86_400


@pytest.mark.parametrize(("is_stopped", "kept_days"), [(False, 30), (True, 365)])
async def test_a_contact_is_forgotten_some_time_after_no_webhook_names_it(
    scene: Scene, mail: MailServer, is_stopped: bool, kept_days: int
) -> None:
    """The time counts from when it was last named: a webhook that is restored has its contacts, and asks no one again.

    A contact who stopped notifications is not asked again for a year.
    """
    await scene.desk.use(link_in(mail.received[0]))
    if is_stopped:
        await scene.store.set_contact(LUMA, scene.desk._composer.contact_of(CONTACT), "stopped")
    named = scene.webhooks
    await keep_house(scene, 40)
    for _ in range(2):
        scene.webhooks = []
        await keep_house(scene, kept_days)
        assert len(await rows_of(scene)) == 1
        scene.webhooks = named
        await keep_house(scene, 1)
    await scene.work()
    assert len(mail.received) == 1, "not asked again"
    scene.webhooks = []
    await keep_house(scene, kept_days + 2)
    assert await rows_of(scene) == []
    scene.webhooks = named
    await scene.work()
    assert len(mail.received) == 2, "a new contact"
    scene.webhooks = []
    await keep_house(scene, 2)
    assert len(await rows_of(scene)) == 1


async def test_no_contact_is_forgotten_while_its_webhook_can_not_be_used(scene: Scene, mail: MailServer) -> None:
    other, named = webhook_of(TenantKey("other@AdobeOrg", "prod")), scene.webhooks
    await scene.desk.use(link_in(mail.received[0]))
    scene.webhooks, scene.unusable = [other], {LUMA}
    await keep_house(scene, 40)
    scene.webhooks, scene.unusable = named, set()
    assert [one.status for one in await scene.desk.contacts(named[0].config)] == ["confirmed"]
    scene.webhooks, scene.unusable = [other], set()
    await keep_house(scene, 32)
    assert await rows_of(scene) == []


async def test_no_contact_is_forgotten_while_the_key_of_links_is_missing(scene: Scene, mail: MailServer) -> None:
    scene.notifier._composer = replace(scene.notifier._composer, links=None)
    for _ in range(40):
        await scene.notifier.expire()
        scene.clock.now += 86_400
    assert len(await rows_of(scene)) == 1
