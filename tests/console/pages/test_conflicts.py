"""Two editors of one webhook: the second sees what the first saved, and chooses for every kind of field."""

from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from dispatcher.config.secrets import Secret
from dispatcher.console.pages.conflicts import field_text, take_saved
from dispatcher.console.pages.fields import LISTS, SECRETS, SWITCHES, TEXTS, HeaderRow, SecretField
from dispatcher.console.pages.form import WebhookForm
from dispatcher.stores.sql.records import StoredWebhook
from tests.auth.keys import pem
from tests.console.pages.browsing import PHONE, Window, window
from tests.console.pages.sample_world import CONTOSO, FABRIKAM, LUMA
from tests.console.pages.stage import Stage, staged

THEIRS, MINE = pem("P-256").decode(), pem("P-256").decode()
CHANGED = {
    "Channels", "Events", "Campaign ids", "Payload version", "Deliveries on", "Contacts", "Signing key",
    "Hash of the body", "Further claims", "Rate limit", "Header X-Environment", "Header X-Api-Key", "Header X-New",
}  # fmt: skip


async def first_editor_saves(stage: Stage, webhook: StoredWebhook, **changes: Any) -> StoredWebhook:
    draft = {**webhook.document, **changes}
    webhooks = stage.services.webhooks
    config = await webhooks.resolve(draft, webhook_id=webhook.id, orgs=None)
    return await webhooks.update(webhook.id, config, expected_version=webhook.version, by="The first", orgs=None)


async def edited_by_both(stage: Stage, shown: Window) -> StoredWebhook:
    """The second loads the form, the first saves a change to each kind of field, the second types and saves, too."""
    webhook, page = stage.webhooks[LUMA], shown.page
    sign: dict[str, Any] = dict(webhook.document["auth"]["sign"])  # type: ignore[index, call-overload]
    await shown.go(stage.path(LUMA, "/edit"))
    saved = await first_editor_saves(
        stage, webhook, channels=["sms"], events=["bounce"], campaigns=["c-1", "c-2"], payload=1, enabled=False,
        notify={"emails": ["ops@luma.example"]}, rate_limit="100/s",
        headers={"X-Environment": "stage", "X-Api-Key": "canary-theirs", "X-New": "new"},
        auth={"type": "jwt", "sign": sign | {"key": {"value": THEIRS}, "body_hash": True, "claims": {"tenant": "two"}}},
    )  # fmt: skip
    await page.fill("#f-headers-0-value", "dev")
    await page.fill("#f-headers-1-value", "canary-mine")
    await page.locator("details.replace", has=page.locator("#f-auth-sign-key")).locator("summary").click()
    await page.fill("#f-auth-sign-key", MINE)
    await page.get_by_role("button", name="Save").last.click()
    await expect(page.locator("main")).to_contain_text("Saved meanwhile, field by field")
    return saved


@pytest.mark.parametrize(("takes", "size"), [(True, None), (False, PHONE)])
async def test_every_kind_of_field_offers_both_values(
    browser: Browser, tmp_path: Path, takes: bool, size: dict[str, int] | None
) -> None:
    async with staged(tmp_path) as stage, window(browser, stage.base, size=size) as shown:
        page, main = shown.page, shown.page.locator("main")
        shown.ignored = ("412",)
        await shown.sign_in(await stage.token())
        saved = await edited_by_both(stage, shown)
        rows = main.locator("section", has_text="Saved meanwhile, field by field").locator("tbody tr")
        assert set(await rows.locator("[data-label=Field]").all_inner_texts()) == CHANGED
        await expect(main.get_by_role("button", name="Take the saved value of")).to_have_count(len(CHANGED))
        before = await rows.locator("[data-label=Before]").all_inner_texts()
        assert len(before) == len(CHANGED)
        assert not [text for text in before if text.startswith(("[", "true", "false"))], "JSON"
        row = rows.filter(has_text="Header X-Environment")
        for text in ("stage", "by The first", "dev"):
            await expect(row).to_contain_text(text)
        await expect(rows.filter(has_text="Signing key")).to_contain_text(f"<secret {fingerprint(THEIRS)}>")
        for name in ("Signing key", "Header X-Api-Key"):
            await expect(rows.filter(has_text=name)).to_contain_text("a new one, not shown")
        table = await main.locator("section", has_text="Saved meanwhile, field by field").inner_text()
        assert "canary" not in table
        assert MINE.splitlines()[1] not in await page.content()
        assert await shown.violations() == []
        for name in sorted(CHANGED) if takes else ():
            await page.get_by_role("button", name=f"Take the saved value of {name}", exact=True).click()
            await expect(rows.filter(has_text=name)).to_have_count(0)
        await page.get_by_role("button", name="Save").last.click()
        await expect(main).to_contain_text("Your changes were saved.")
        stored = await stage.services.webhooks.get(saved.id, orgs=None)
        config = await stage.services.webhooks.for_delivery(saved.id, orgs=None)
        texts = config.header_texts()
        if takes:
            assert stored.document == saved.document
            assert texts == {"X-Environment": "stage", "X-Api-Key": "canary-theirs", "X-New": "new"}
        else:
            assert texts == {"X-Environment": "dev", "X-Api-Key": "canary-mine"}
            assert stored.document["auth"]["sign"]["key"] == {"fingerprint": fingerprint(MINE)}  # type: ignore[index, call-overload]


async def test_another_method_and_a_next_key_are_conflicts_and_a_pause_is_kept(
    browser: Browser, tmp_path: Path
) -> None:
    async with staged(tmp_path) as stage, window(browser, stage.base) as shown:
        page, webhooks = shown.page, stage.services.webhooks
        rows = page.locator("section", has=page.locator("#conflicts-title")).locator("tbody tr")
        shown.ignored = ("412",)
        await shown.sign_in(await stage.token())
        await shown.go(stage.path(FABRIKAM, "/edit"))
        webhook = await webhooks.set_paused(stage.webhooks[FABRIKAM].id, paused=True, by="The first", orgs=None)
        await first_editor_saves(stage, webhook, auth={"type": "none"})  # what is typed lacks its secret then
        await page.get_by_role("button", name="Save").last.click()
        row = rows.filter(has_text="Authentication")
        for name, text in (("Before", "fetch"), ("Saved meanwhile", "none"), ("What you entered", "fetch")):
            await expect(row.locator(f"[data-label='{name}']")).to_contain_text(text)
        await page.get_by_role("button", name="Take the saved value of Authentication").click()
        await expect(page.locator("#auth-none")).to_be_checked()
        await page.get_by_role("button", name="Save").last.click()
        await expect(page.locator("main")).to_contain_text("Your changes were saved.")
        stored = await webhooks.get(webhook.id, orgs=None)
        assert (stored.paused, stored.document["auth"]) == (True, {"type": "none"})

        await shown.go(stage.path(CONTOSO, "/edit"))
        webhook = stage.webhooks[CONTOSO]
        sign: dict[str, Any] = dict(webhook.document["auth"]["sign"])  # type: ignore[index, call-overload]
        following = {"algorithm": "HS256", "key": {"value": "n" * 32}, "starts": "2100-01-01T00:00:00Z"}
        saved = await first_editor_saves(stage, webhook, auth={"type": "jwt", "sign": sign | {"next": following}})
        await page.locator("details.replace", has=page.locator("#f-auth-sign-key")).locator("summary").click()
        await page.fill("#f-auth-sign-key", "m" * 32)
        await page.get_by_role("button", name="Save").last.click()
        await expect(rows).to_have_count(1)
        await expect(rows).to_contain_text(f"auth.sign.next.key: <secret {fingerprint('n' * 32)}>")
        await page.get_by_role("button", name="Take the saved value of Signing key").click()
        await page.get_by_role("button", name="Save").last.click()
        await expect(page.locator("main")).to_contain_text("Your changes were saved.")
        assert (await webhooks.get(webhook.id, orgs=None)).document == saved.document


def fingerprint(text: str) -> str:
    return Secret(text.removesuffix("\n").encode()).fingerprint()


@pytest.mark.parametrize("key", [*TEXTS, "auth", "campaigns", "payload", *LISTS, *SWITCHES, *SECRETS, "signing",
                                 "headers.X-A", "headers.X-Gone", "headers.X-New"])  # fmt: skip
def test_every_field_takes_the_saved_value(key: str) -> None:
    stored = {"fingerprint": "0" * 12}
    saved: dict[str, Any] = {
        "name": "Saved", "org": "o", "sandbox": "s", "signing": {"secrets": [stored]}, "campaigns": ["a"],
        "headers": {"X-A": "saved", "X-New": "new"}, "tls": {"ca": stored},
    }  # fmt: skip
    form = WebhookForm.of_document({})
    form.texts = dict.fromkeys(form.texts, "typed") | {"campaigns": "some"}
    form.lists = {one: ["typed"] for one in LISTS}
    form.switches = {one: one != "enabled" for one in SWITCHES}
    form.secrets = {one: SecretField(typed="canary") for one in SECRETS}
    form.headers = [HeaderRow("x-a", "typed"), HeaderRow("X-Gone", "typed")]
    form.add_error("signing.new" if key == "signing" else key, "is wrong")
    before = field_text(form, key)
    assert before is not None
    assert "canary" not in before
    take_saved(form, key, saved)
    assert field_text(form, key) == field_text(WebhookForm.of_document(saved), key) != before
    assert form.errors == {}


def test_an_unknown_key_takes_nothing() -> None:
    form = WebhookForm.of_document({"name": "Typed"})
    for key in ("", "paused", "auth.sign.next.key", "headers", "headers.", "x" * 1000):
        take_saved(form, key, {"name": "Saved"})
    assert form.texts["name"] == "Typed"
