"""What the switch in the top bar offers, and what its cookie means."""

from dataclasses import replace

import pytest

from dispatcher.console.pages.scope import Scope
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.records import StoredWebhook
from tests.console.pages.sample_world import LUMA, LUMA_STAGE, NORTHWIND
from tests.console.pages.stage import Stage


def _labels(scope: Scope, webhooks: list[StoredWebhook], orgs: frozenset[str] | None) -> list[str]:
    return [choice.label for choice in scope.choices(webhooks, orgs)]


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
    choices = scope.choices(webhooks, None)
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
