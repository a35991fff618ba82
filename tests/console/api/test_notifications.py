"""Notifications by the API: contacts, tests, and what was sent."""

import pytest

from dispatcher.stores.sql.records import Role, StoredWebhook
from tests.console.api.conftest import Console
from tests.console.api.fakes import LUMA, LUMAS_CUSTOMER

pytestmark = pytest.mark.parametrize("empty_url", ["sqlite"], indirect=True)


async def test_contacts_are_listed_sent_confirmations_and_tested(console: Console, luma: StoredWebhook) -> None:
    api, path = await console.client(), f"/api/v1/webhooks/{luma.id}/contacts"
    listed = (await api.get(path)).json
    assert (listed["items"][0]["address"], listed["items"][0]["status"]) == (LUMAS_CUSTOMER, "asked")
    viewer = await console.client(Role.VIEWER)
    assert (await viewer.get(path)).json["items"][0]["address"] == "j•••@luma-customer.example"
    assert (await api.post(f"{path}/ask", json={"address": LUMAS_CUSTOMER})).status == 204
    assert (await api.post(f"{path}/ask", json={"address": "other@luma.example"})).status == 404
    tested = await api.post(f"{path}/test")
    assert (tested.status, tested.json, console.desk.sent) == (202, {"messages": 1}, [LUMA])
    assert (await api.post("/api/v1/notifications/test")).status == 202
    entries = (await api.get("/api/v1/audit?action=notify")).json["items"]
    assert [(one["actor"], one["org"], one["changes"]) for one in entries] == [
        ("somebody", None, {"test": True, "messages": 1}), ("somebody", LUMA.org, {"test": True, "messages": 1}),
    ]  # fmt: skip
    console.desk.is_too_soon = True
    refused = await api.post(f"{path}/test")
    assert (refused.status, refused.json["type"]) == (429, "urn:dispatcher:problem:too_soon")
    assert "wait a moment" in refused.json["detail"]


async def test_sent_notifications_are_listed_page_by_page(console: Console) -> None:
    api = await console.client()
    page = (await api.get("/api/v1/notifications?limit=1")).json
    assert [one["title"] for one in page["items"]] == ["Luma fails"]
    assert (await api.get(page["next"])).json == {"items": [], "next": None}
    assert (await api.get(f"/api/v1/notifications?org={LUMA.org}")).status == 422
    assert (await api.post("/api/v1/notifications/test")).status == 202


async def test_without_a_history_store_the_answer_says_why(console: Console, luma: StoredWebhook) -> None:
    object.__setattr__(console.services, "notifications", None)
    api = await console.client()
    for answer in (await api.get("/api/v1/notifications"), await api.get(f"/api/v1/webhooks/{luma.id}/contacts")):
        assert (answer.status, answer.json["type"]) == (404, "urn:dispatcher:problem:no_history")
