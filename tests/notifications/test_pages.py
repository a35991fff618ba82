"""The pages of notifications as people use them: contacts and what they answered, the test button, what was sent."""

import re
from pathlib import Path

import aiohttp
import pytest

from dispatcher.config.webhook_revision import Webhook
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.records import Role
from tests.console.pages.sample_world import LUMA_ORG
from tests.console.pages.stage import staged
from tests.notifications.receivers import Certificates, mail_server
from tests.notifications.scene import CONTACT, OPERATOR, open_scene, settings_for
from tests.notifications.test_notifications import body, link_in


async def signed_in(session: aiohttp.ClientSession, token: str) -> None:
    async with session.post("/sign-in", data={"token": token}) as answer:
        found = re.search(r'name="csrf_token" value="([^"]+)"', await answer.text())
        assert found is not None
        session.headers["X-CSRF-Token"] = found[1]


@pytest.mark.parametrize("empty_url", ["sqlite"], indirect=True)
async def test_contacts_are_shown_sent_another_confirmation_and_tested(
    tmp_path: Path, issued: Certificates, history: Database
) -> None:
    async with (
        mail_server(issued.server, implicit=False) as mail,
        open_scene(settings_for(tmp_path, issued, mail, None), history) as scene,
        staged(tmp_path, is_empty=True, notifications=scene.desk) as stage,
        aiohttp.ClientSession(stage.base, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session,
    ):
        draft = {
            "name": "Luma", "org": LUMA_ORG, "sandbox": "prod", "url": "https://hooks.luma.example/in",
            "notify": {"emails": [CONTACT, "second@luma.example"]},
        }  # fmt: skip
        config = await stage.services.webhooks.resolve(draft, webhook_id=None, orgs=None)
        stored = await stage.services.webhooks.create(config, by="operator", orgs=None)
        page = f"/webhooks/{stored.id}/notifications"

        async def shown(path: str = page, form: dict[str, str] | None = None) -> str:
            async with session.request("GET" if form is None else "POST", path, data=form) as answer:
                assert answer.status == 200
                text = await answer.text()
                # What was done isn't repeated if the page is loaded again.
                assert answer.method == "GET" or "on its way: the history worker" not in text
                return text

        await signed_in(session, await stage.token(Role.ADMIN, None))
        assert (await shown()).count("its confirmation message is on its way") == 2
        scene.webhooks = [Webhook.of(config, f"sql:{stored.id}")]
        await scene.work()
        assert "not confirmed yet" in await shown()
        assert "no contact has confirmed" in (await shown(f"{page}/test", {})).lower()
        first = next(one for one in mail.received if one["To"] == CONTACT)
        await scene.desk.use(link_in(first))
        text = await shown()
        assert re.search(rf"{re.escape(CONTACT)}: confirmed", text)
        assert "It is on its way" in await shown(f"{page}/test", {})
        assert "wait a moment" in await shown(f"{page}/test", {})
        await scene.work()
        assert [one["To"] for one in mail.received if one["Subject"] == "A test of notifications"] == [CONTACT]
        assert "Jana Novák sent this test" in body(mail.received[-1])
        assert "look into the spam folder" in await shown(f"{page}/ask", {"contact": "1"})
        for contact in ("99", "0010", "-1", "9" * 5_000, "\u0661", ""):
            assert "no such contact" in await shown(f"{page}/ask", {"contact": contact})
        text = await shown("/notifications")
        assert "o•••@luma.example: sent" in text
        assert CONTACT not in text
        assert "on its way" in await shown("/notifications/test", {})
        await scene.work()
        assert mail.received[-1]["To"] == OPERATOR

        await signed_in(session, await stage.token(Role.VIEWER, frozenset({LUMA_ORG})))
        text = await shown()
        assert CONTACT not in text
        assert "o•••@luma.example: confirmed" in text
        assert "noc@" not in await shown("/notifications"), "the operator's messages are the operator's"
