"""What the script adds, and that nothing essential needs it; what is shown only in between is accessible, too."""

import re
from dataclasses import replace

import pytest
from playwright.async_api import Browser, Dialog, Route, expect

from dispatcher.config.secrets import Secret
from dispatcher.console.model import LaneModel, TierModel
from dispatcher.console.sources.attempt_counts import TenantCounts
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import StoreUnavailable
from dispatcher.stores.sql.records import Role
from tests.console.pages.browsing import PHONE, Window, window
from tests.console.pages.sample_world import CONTOSO, EC_KEY, EXPLAINED_ID, FABRIKAM, LUMA, NORTHWIND, TAILSPIN
from tests.console.pages.stage import Stage

LOOKS = {"light": ("light", None), "dark": ("dark", None), "phone": ("dark", PHONE)}


async def _new(shown: Window, stage: Stage) -> None:
    await shown.sign_in(await stage.token())
    await shown.go("/webhooks/new")


@pytest.mark.parametrize("look", LOOKS)
async def test_transient_states_of_a_page_are_accessible(browser: Browser, stage: Stage, look: str) -> None:
    scheme, size = LOOKS[look]
    async with window(browser, stage.base, scheme=scheme, size=size) as shown:  # type: ignore[arg-type]
        shown.ignored = ("422", "401")
        page, found = shown.page, {}
        await shown.go("/sign-in")
        await page.fill("#token", "fdt_wrong")
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("alert")).to_contain_text("unknown")
        found["sign-in refused"] = await shown.violations()
        await _new(shown, stage)
        await page.locator("details.advanced summary").first.click()
        for method in ("sign", "fetch"):
            await page.check(f"#auth-{method}")
            found[method] = await shown.violations()
        await page.check("#auth-sign")
        await page.fill("#f-auth-sign-key", "no key")
        await page.get_by_role("button", name="Submit").last.click()
        await expect(page.locator("#errors")).to_be_focused()
        found["errors"] = await shown.violations()
        for path in (stage.path(CONTOSO, "/test"), stage.path(LUMA, "/test")):
            await shown.go(path)
            await page.get_by_role("button", name="Send test event").click()
            await page.wait_for_selector("#test-result")
            found[f"tested {path}"] = await shown.violations()
        await shown.go(stage.path(CONTOSO))
        await page.locator("details.as-table summary").click()
        await page.locator("details.account summary").click()
        found["opened"] = await shown.violations()
        await shown.go(stage.path(LUMA, "/audit"))
        await page.locator(".history summary").first.click()
        found["changes"] = await shown.violations()
        await shown.go("/dead-events?reason=rejected")
        await page.locator("details.multi summary").click()
        found["filter"] = await shown.violations()
        await page.locator("details.multi summary").click()
        await page.locator("input[name=id]").first.check()
        await page.get_by_role("button", name="Send again…").click()
        await page.wait_for_selector("h1:has-text('again?')")
        found["confirm"] = await shown.violations()
        await page.get_by_role("button", name="again").click()
        await expect(page.locator("#jobs")).to_contain_text("Done")  # followed without a click
        found["progress"] = await shown.violations()
        assert {where: violations for where, violations in found.items() if violations} == {}


async def test_header_rows_and_reserved_names(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        page = shown.page
        await _new(shown, stage)
        await page.get_by_role("button", name="Add header").click()
        assert await page.evaluate("document.activeElement.id") == "f-headers-1-name"
        await page.keyboard.type("Content-Type")
        await expect(page.locator("#live-headers-1")).to_contain_text("set by the dispatcher")
        await page.fill("#f-headers-1-name", "X-Fine")
        await expect(page.locator("#live-headers-1")).to_be_empty()
        await page.get_by_role("button", name="Remove header 1").click()
        assert await page.input_value("#f-headers-0-name") == "X-Fine"
        for _ in range(19):
            await page.get_by_role("button", name="Add header").click()
        assert await page.get_by_role("button", name="Add header").is_disabled()
        page.on("dialog", _accept)


async def test_the_preview_follows_and_describes_the_key(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        page = shown.page
        await _new(shown, stage)
        await expect(page.locator("#preview")).to_contain_text("Webhook URL")
        for key, value in {"name": "x", "org": "o", "sandbox": "p", "url": "https://hooks.acme.example/in"}.items():
            await page.fill(f"#f-{key}", value)
        await page.check("#auth-sign")
        await page.fill("#f-auth-sign-key", EC_KEY)
        preview = page.locator("#preview")
        await expect(preview).to_contain_text("host: hooks.acme.example")
        await expect(preview).to_contain_text("authorization: Bearer <secret>")
        await expect(page.locator("#f-auth-sign-key-typed")).to_contain_text("EC P-256, 256 bits, fingerprint")
        await page.select_option("#test_status", "bounce")
        await expect(preview).to_contain_text('"bounce"')
        page.on("dialog", _accept)


async def test_leaving_with_changes_asks(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        page, asked = shown.page, list[str]()
        await _new(shown, stage)

        async def stay(dialog: Dialog) -> None:
            asked.append(dialog.type)
            await dialog.dismiss()

        page.on("dialog", stay)
        await page.get_by_role("link", name="Audit").click()
        await page.wait_for_url("**/audit")
        await shown.go("/webhooks/new")
        await page.locator("#f-name").press_sequentially("x")
        await page.get_by_role("link", name="Audit").click()
        await page.wait_for_timeout(200)
        assert (asked, page.url.endswith("/webhooks/new")) == (["beforeunload"], True)


@pytest.mark.parametrize("script", [True, False], ids=["with JavaScript", "without"])
async def test_a_typed_key_survives_another_mistake_and_is_never_shown(
    browser: Browser, stage: Stage, script: bool
) -> None:
    async with window(browser, stage.base, script=script) as shown:
        shown.ignored = ("422",)
        page = shown.page
        await _new(shown, stage)
        await page.check("#auth-sign")
        assert await page.locator(
            "#f-auth-fetch-token_url"
        ).is_hidden()  # only the chosen method's fields, by CSS alone
        await page.fill("#f-auth-sign-key", EC_KEY)
        org = f"sealed-{script}@AdobeOrg"
        for key, value in {"name": "Sealed", "org": org, "url": "nonsense"}.items():
            await page.fill(f"#f-{key}", value)
        await page.get_by_role("button", name="Submit").last.click()
        await expect(page.locator("main")).to_contain_text("Received, not saved yet")
        fingerprint = Secret(EC_KEY.strip().encode()).fingerprint()  # of the file that it was pasted from
        await expect(page.locator("#f-auth-sign-key-typed")).to_contain_text(
            f"EC P-256, 256 bits, fingerprint {fingerprint}"
        )
        assert "MIGHAgEA" not in await page.content()
        await page.fill("#f-url", "https://hooks.acme.example/in")
        await page.get_by_role("button", name="Submit").last.click()
        await expect(page.get_by_role("heading", name="Sealed")).to_be_visible()
        await page.get_by_role("link", name="Edit", exact=True).click()
        await expect(page.locator("main")).to_contain_text(f"Stored, fingerprint {fingerprint}")
        assert "MIGHAgEA" not in await page.content()


async def test_header_rows_without_script(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base, script=False) as shown:
        page = shown.page
        await _new(shown, stage)
        await page.fill("#f-name", "Kept")
        await page.get_by_role("button", name="Add header").click()
        await page.fill("#f-headers-1-name", "X-Second")
        await page.get_by_role("button", name="Remove header 1").click()
        assert await page.input_value("#f-headers-0-name") == "X-Second"
        assert await page.input_value("#f-name") == "Kept"
        await page.fill("#f-org", "o")
        await page.fill("#f-url", "https://hooks.acme.example/in")
        await page.get_by_role("button", name="Refresh the preview").click()
        await expect(page.locator("#preview")).to_contain_text("hooks.acme.example")


@pytest.mark.parametrize("script", [True, False], ids=["with JavaScript", "without"])
async def test_the_switch_filters_what_is_shown(browser: Browser, stage: Stage, script: bool) -> None:
    async with window(browser, stage.base, script=script) as shown:
        page = shown.page
        await shown.sign_in(await stage.token())
        await page.select_option("#scope", label=f"{NORTHWIND.org} / prod")
        if not script:
            await page.get_by_role("button", name="Show").click()
        await expect(page.locator("tbody tr")).to_have_count(1)
        await expect(page.get_by_role("link", name="Open this sandbox's webhook")).to_be_visible()
        for path in ("/deliveries", "/dead-events"):
            await shown.go(path)
            assert "Contoso" not in await page.inner_text("main")
        await page.get_by_text(re.compile(r"All \d+ that match")).click()
        await page.get_by_role("button", name="Send again…").click()
        await expect(page.get_by_role("heading", name=re.compile(r"Send \d+ events again"))).to_be_visible()
        assert await page.locator(".groups li").count() == 1


async def test_an_event_is_explained_and_its_people_hidden_from_viewers(browser: Browser, stage: Stage) -> None:
    for role, number in ((Role.ADMIN, "+4915112345678"), (Role.VIEWER, "+4•••78")):
        async with window(browser, stage.base) as shown:
            page = shown.page
            await shown.sign_in(await stage.token(role))
            await shown.go(stage.path(LUMA, f"/deliveries/{EXPLAINED_ID}"))
            assert await page.locator(".timeline li").count() == 3
            await page.get_by_role("link", name="Explain this event").click()
            await expect(page.locator("#explain")).to_contain_text("Campaign is wanted")
            text = await page.inner_text("#explain")
            assert number in text
            assert ("+4915112345678" in text) == (role is Role.ADMIN)
            assert "X-Api-Key: <secret>" in text
            await shown.go(stage.path(LUMA, "/configuration"))
            text = await page.inner_text("main")
            assert "canary" not in text
            assert ("/feedback" in text) == (role is Role.ADMIN)
            for below, sees in (("/configuration", role is Role.ADMIN), ("/audit", False)):
                await shown.go(stage.path(FABRIKAM, below))
                text = str(await page.text_content("main"))
                for path in ("fabrikam.example/ajo", "oauth2/token"):  # tenants put keys into paths
                    assert (path in text) is sees, below


async def test_an_event_that_is_gone_shows_a_page_that_says_so(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token())
        await shown.go(stage.path(LUMA, "/deliveries"))
        await shown.page.locator("tbody a.code").first.click()
        await shown.page.get_by_role("link", name="Explain this event").click()
        await expect(shown.page.locator("#explain")).to_contain_text("can't be read any more")


async def test_a_source_that_is_away_is_shown_and_nothing_else_fails(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token())
        stage.waiting.is_away, stage.attempts.problem = True, "the broker does not answer"
        try:
            for path in ("/", stage.path(CONTOSO), "/deliveries"):
                assert await shown.go(path) == 200
                await expect(shown.page.locator("main")).to_contain_text("The broker does not answer.")
            await shown.go(stage.path(CONTOSO))
            await expect(shown.page.locator("main")).to_contain_text("the broker doesn't answer")
        finally:
            stage.waiting.is_away, stage.attempts.problem = False, None


async def test_a_refresh_takes_nothing_away(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        page = shown.page
        await page.clock.install()
        await shown.sign_in(await stage.token())
        await shown.go(stage.path(LUMA))

        async def refreshed() -> bool:
            await page.evaluate("document.getElementById('overview').dataset.old = 'yes'")
            async with page.expect_response(lambda one: one.request.headers.get("hx-request") == "true") as answer:
                await page.clock.run_for(16_000)
            await (await answer.value).finished()
            await page.clock.run_for(1_000)
            return await page.locator("#overview[data-old]").count() == 0

        summary = page.get_by_text("As a table")
        await summary.click()
        assert await refreshed()
        await expect(page.locator("details.as-table")).to_have_attribute("open", "")
        await expect(summary).to_be_focused()
        await page.get_by_role("link", name="All deliveries").focus()
        assert await refreshed()
        await expect(page.get_by_role("link", name="All deliveries")).to_be_focused()
        await page.evaluate("getSelection().selectAllChildren(document.getElementById('lane-title'))")
        assert not await refreshed()
        assert await page.evaluate("getSelection().toString()") == "Sending now"
        await page.evaluate("getSelection().removeAllRanges()")
        assert await refreshed()


async def test_mixed_failures_are_counted_as_failures(
    browser: Browser, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant, counts = CONTOSO, TenantCounts()
    for status in (404, 404, 404, 404, 404, 503, 503, 503, 500, 500, 500, 500):
        reason = f"http_{status // 100}xx"
        counts.add(replace(stage.attempts._facts(tenant)[0], status=status, reason=reason, verdict="retry_later"))
    monkeypatch.setattr(stage.attempts, "failing", lambda one, _: counts.failing(0.0) if one == tenant else None)
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token())
        await shown.go(stage.path(tenant))
        await expect(shown.page.locator("main")).to_contain_text(
            "Your server answered 500 to 4 of the last 12 requests. 8 others failed in another way."
        )
        await shown.go("/")
        await expect(shown.page.locator("tr", has_text="Contoso")).to_contain_text("12 of 12 failed")


@pytest.mark.parametrize(
    ("is_answering", "expected"),
    [(False, "no dispatcher answers"), (None, "console.dispatchers"), (True, "has sent anything")],
)
async def test_what_is_sent_now_is_known_only_if_dispatchers_answer(
    browser: Browser, stage: Stage, monkeypatch: pytest.MonkeyPatch, is_answering: bool | None, expected: str
) -> None:
    monkeypatch.setattr(stage.lanes, "is_answering", is_answering)
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token())
        await shown.go(stage.path(TAILSPIN))
        await expect(shown.page.locator("section:has(#lane-title)")).to_contain_text(expected)


async def test_a_stopped_webhook_sends_nothing_and_says_what_waits_for_what(browser: Browser, stage: Stage) -> None:
    tiers = [TierModel("held", 3, None, reason=reason) for reason in ("suspended", "of_a_later_version")]
    real = stage.lanes.of

    async def of(tenant: TenantKey) -> LaneModel | None:
        lane = await real(tenant)
        return lane if lane is None else replace(lane, breaker="closed")

    async def waiting(tenant: TenantKey) -> list[TierModel]:
        return tiers

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stage.lanes, "of", of)
        patched.setattr(stage.waiting, "of", waiting)
        async with window(browser, stage.base) as shown:
            main = shown.page.locator("main")
            await shown.sign_in(await stage.token())
            await shown.go(stage.path(NORTHWIND))
            await expect(main).to_contain_text("Nothing is sent: sending is stopped")
            await expect(main).not_to_contain_text("all is sent")
            await expect(main).to_contain_text("Held: the endpoint asked for no more events")
            await expect(main).to_contain_text("Held: of a later version")


async def test_an_unavailable_database_is_shown_as_a_page(
    browser: Browser, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with window(browser, stage.base) as shown:
        shown.ignored = ("503",)
        await shown.sign_in(await stage.token())

        async def away(*_: object, **__: object) -> None:
            raise StoreUnavailable("postgres at db:5432")

        with monkeypatch.context() as patched:
            patched.setattr("dispatcher.stores.sql.repository.WebhookRepository.search", away)
            assert await shown.go("/") == 503
        text = await shown.page.inner_text("body")
        assert "Deliveries go on with the webhooks that the dispatchers know" in text
        assert "postgres" not in text
        assert await shown.violations() == []


async def test_a_refused_change_by_a_viewer_is_shown_in_the_page_frame(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        shown.ignored = ("403",)
        await shown.sign_in(await stage.token(Role.VIEWER))
        for path in (
            "/webhooks/new",
            stage.path(LUMA, "/edit"),
            stage.path(LUMA, "/delete"),
            stage.path(LUMA, "/test"),
        ):
            assert await shown.go(path) == 403
        assert await shown.page.get_by_role("navigation", name="Main").is_visible()
        assert await shown.violations() == []


async def test_paused_stopped_and_empty_look_different(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        page = shown.page
        await shown.sign_in(await stage.token())
        for state, count in (("off", 1), ("disabled", 1), ("unstable", 1), ("active", 4)):
            await shown.go(f"/?state={state}")
            rows = await page.locator("tbody tr").count()
            assert rows >= count, state
        await shown.go("/?q=nothing+like+this")
        await expect(page.locator("main")).to_contain_text("Nothing matches")
        await shown.go(stage.path(TAILSPIN))
        await expect(page.locator("main")).to_contain_text("Nothing was sent in the last 1h")
        await shown.go(stage.path(NORTHWIND))
        await page.get_by_role("button", name="Reactivate").click()
        await expect(page.locator("main")).to_contain_text("Reactivated")
        assert stage.lanes.enabled == [NORTHWIND]


async def test_what_is_due_is_so_until_it_is_done(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        page = shown.page
        await page.clock.install()
        await shown.sign_in(await stage.token())
        await shown.go(stage.path(FABRIKAM))
        due = page.locator("time[data-due]")
        await expect(due).to_contain_text("in ")
        await page.clock.fast_forward(14_000)  # below the page's own refresh
        await expect(due).to_have_text("now")


async def test_signed_out_meanwhile_leads_to_the_sign_in_page(browser: Browser, stage: Stage) -> None:
    async with window(browser, stage.base) as shown:
        await shown.sign_in(await stage.token())
        page = shown.page
        await shown.context.clear_cookies()
        await page.evaluate(
            "htmx.trigger('#list', 'htmx:abort'); htmx.ajax('GET', '/', {target: '#list', select: '#list'})"
        )
        await expect(page.locator("#token")).to_be_visible()


async def test_the_script_s_absence_is_survived(browser: Browser, stage: Stage) -> None:
    """A proxy that blocks our files leaves plain pages that work."""

    async def refuse(route: Route) -> None:
        await route.fulfill(status=200, content_type="text/javascript", body="")

    async with window(browser, stage.base) as shown:
        await shown.page.route("**/*.js", refuse)
        await _new(shown, stage)
        await shown.page.get_by_role("button", name="Add header").click()
        await expect(shown.page.locator("#f-headers-1-name")).to_be_visible()


async def _accept(dialog: Dialog) -> None:
    await dialog.accept()
