"""Does with OpenAPI Generator's Python client what a person does: URL and token are the arguments."""

import sys
from datetime import UTC, datetime

from openapi_client import (
    AccessApi,
    ApiClient,
    AuditApi,
    ChosenEvents,
    Configuration,
    DeadEventsApi,
    DeliveriesApi,
    DraftHeader,
    DraftJwtAuth,
    DraftSecret,
    DraftSignedToken,
    DraftSigning,
    Duration,
    HistoryApi,
    HistorySearchOrder,
    NewSecret,
    NotificationsApi,
    RedriveOrder,
    RedriveOrderEvents,
    ResendRequest,
    SampleEvent,
    SendingAgainApi,
    WebhookDraft,
    WebhookDraftAuth,
    WebhooksApi,
)
from openapi_client.exceptions import NotFoundException, UnprocessableEntityException

base, token = sys.argv[1:]
api = ApiClient(Configuration(host=base, access_token=token))
webhooks, dead_events, again, history = WebhooksApi(api), DeadEventsApi(api), SendingAgainApi(api), HistoryApi(api)


def secret(text: str) -> DraftSecret:
    return DraftSecret(NewSecret(value=text))


draft = WebhookDraft(
    name="Generated",
    org="luma@AdobeOrg",
    sandbox="prod",
    url="https://hooks.luma.example/f",
    channels=["email"],
    auth=WebhookDraftAuth(DraftJwtAuth(type="jwt", sign=DraftSignedToken(algorithm="HS256", key=secret("k" * 32)))),
    signing=DraftSigning(secrets=[secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]),
    headers={
        "X-Environment": DraftHeader("prod"),
        "X-Api-Key": DraftHeader(NewSecret(value="secret")),
    },
    timeout=Duration("10s"),
)
made = webhooks.create_webhook(draft)
assert made.version == 1, made
read = webhooks.get_webhook_with_http_info(made.id)
changed = WebhookDraft.from_dict(read.data.configuration.to_dict() | {"name": "Edited"})
edited = webhooks.replace_webhook(made.id, read.headers["ETag"], changed)
assert (edited.name, edited.version) == ("Edited", 2), edited
assert edited.configuration.headers["X-Environment"].actual_instance == "prod", edited
assert webhooks.test_webhook(made.id, SampleEvent()).verdict == "delivered"
assert [one.name for one in webhooks.list_webhooks(text="edited", channel="email").items] == ["Edited"]
found = history.search_history(HistorySearchOrder(id="r-1"))
assert [one.request_id for one in found.items] == ["r-1"], found
dead = dead_events.list_dead_events(
    org="luma@AdobeOrg", sandbox="prod", reasons=["rejected"], since=datetime(2026, 1, 2, tzinfo=UTC)
).items
assert dead_events.get_dead_event(dead[0].id).reason == "rejected"
job = again.redrive(
    RedriveOrder(
        org="luma@AdobeOrg", sandbox="prod", events=RedriveOrderEvents(ChosenEvents(select="ids", ids=[dead[0].id]))
    )
)
assert again.get_redrive(job.id).total == 1
resent = again.resend(made.id, ResendRequest(event_ids=["msg_1"])).items[0]
assert again.stop_redrive(resent.id).state == "stopped"
assert {one.id for one in again.list_redrives().items} >= {job.id, resent.id}
assert webhooks.pause_webhook(made.id).paused
deliveries, notifications = DeliveriesApi(api), NotificationsApi(api)
for read in (AccessApi(api).get_me, AuditApi(api).list_audit, notifications.list_notifications):
    assert read()
for read in (
    deliveries.get_outcomes, deliveries.list_attempts, deliveries.get_state, deliveries.get_lane, deliveries.get_waiting,
    deliveries.get_counts, notifications.list_contacts, webhooks.list_signing_secrets, webhooks.list_signing_keys,
):  # fmt: skip
    assert read(made.id)
assert history.get_event_history(made.id, "msg_1").items[0].webhook_id == "msg_1"
try:
    webhooks.get_webhook("00000000-0000-0000-0000-000000000000")
except NotFoundException as error:
    assert error.data.status == 404, error.data
else:
    raise AssertionError("a webhook was found that does not exist")
try:
    webhooks.create_webhook(draft.model_copy(update={"url": "ftp://hooks.luma.example", "sandbox": "dev"}))
except UnprocessableEntityException as error:
    assert [one.pointer for one in error.data.errors] == ["/url"], error.data
else:
    raise AssertionError("a webhook of FTP was created")
print("done")
