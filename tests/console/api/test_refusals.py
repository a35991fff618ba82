"""503 with Retry-After is for what passes by itself; a refusal that waiting doesn't cure has a status of its own."""

from typing import Any, cast

import pytest

from dispatcher.console.api.openapi import openapi_document
from dispatcher.console.api_errors import api_error_of
from dispatcher.errors import BrokerUnavailable, DispatcherError, NotWritten, StoreUnavailable, ValuesRefused
from dispatcher.notifications.desk import NotificationDesk
from dispatcher.stores.sql.notification_store import NotificationStore
from dispatcher.stores.sql.records import StoredWebhook
from tests.console.api.conftest import Console
from tests.console.api.fakes import LUMA


async def test_events_that_are_being_sent_again_are_a_conflict(console: Console, luma: StoredWebhook) -> None:
    console.dead_events.is_busy = True
    api, tenant = await console.client(), {"org": LUMA.org, "sandbox": LUMA.sandbox}
    for path, body in (
        (f"/api/v1/webhooks/{luma.id}/resend", {"since": "2026-09-21T14:00:00Z", "include": ["dead"]}),
        ("/api/v1/dead-events/redrive", tenant | {"events": {"select": "matching"}}),
    ):
        answer = await api.post(path, json=body)
        assert (answer.status, answer.json["type"]) == (409, "urn:dispatcher:problem:already_running"), path
        assert answer.json["existing"] == "/api/v1/redrives/job-9"
        assert "Retry-After" not in answer.headers


async def test_what_the_operator_has_not_set_up_does_not_come_by_waiting(console: Console, luma: StoredWebhook) -> None:
    desk = NotificationDesk(console.services.settings, cast(NotificationStore, None), None)
    object.__setattr__(console.services, "notifications", desk)
    api = await console.client()
    answer = await api.post(f"/api/v1/webhooks/{luma.id}/contacts/ask", json={"address": "ops@luma.example"})
    assert (answer.status, answer.json["type"]) == (422, "urn:dispatcher:problem:not_set_up")
    assert (answer.json["detail"], "Retry-After" in answer.headers) == (desk.problem, False)


@pytest.mark.parametrize("error", [BrokerUnavailable("b"), NotWritten("t"), StoreUnavailable("d")])
def test_what_passes_by_itself_says_when_to_try_again(error: DispatcherError) -> None:
    answer = api_error_of(error, may_have_changed=False)
    assert (answer.status, int(answer.headers["Retry-After"]) > 0) == (503, True)


@pytest.mark.parametrize(
    ("error", "status"), [(ValuesRefused("db.internal: out of range"), 422), (DispatcherError("of no known kind"), 409)]
)
def test_what_would_fail_again_does_not_ask_to_be_repeated(error: DispatcherError, status: int) -> None:
    answer = api_error_of(error, may_have_changed=True)
    assert (answer.status, "Retry-After" in answer.headers) == (status, False)
    assert "does not answer" not in answer.detail
    assert "internal" not in answer.detail


def test_the_document_says_the_same_as_the_answers() -> None:
    document: Any = openapi_document()
    responses = document["paths"]["/api/v1/webhooks/{id}/resend"]["post"]["responses"]
    for status, words in (("409", "being sent again already"), ("503", "busy"), ("422", "operator has not set up")):
        assert words in responses[status]["description"].replace("  ", " ")
