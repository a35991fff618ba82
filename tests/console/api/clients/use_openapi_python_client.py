"""Does with openapi-python-client's client what a person does: URL and token are the arguments."""

import sys

from client import AuthenticatedClient
from client.api.dead_events import list_dead_events
from client.api.history import search_history
from client.api.sending_again import get_redrive, list_redrives, redrive, resend, stop_redrive
from client.api.webhooks import create_webhook, get_webhook, list_webhooks, pause_webhook, replace_webhook, test_webhook
from client.models import (
    ChosenEvents,
    HistorySearchOrder,
    RedriveOrder,
    ResendRequest,
    SampleEvent,
    WebhookDraft,
)

base, token = sys.argv[1:]
api = AuthenticatedClient(base, token, raise_on_unexpected_status=True)
draft = WebhookDraft.from_dict({
    "name": "Generated", "org": "luma@AdobeOrg", "sandbox": "prod", "url": "https://hooks.luma.example/f",
    "auth": {"type": "jwt", "sign": {"algorithm": "HS256", "key": {"value": "k" * 32}}},
    "signing": {"secrets": [{"value": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}]},
    "headers": {"X-Environment": "prod", "X-Api-Key": {"value": "secret"}}, "timeout": "10s",
})  # fmt: skip
made = create_webhook.sync(client=api, body=draft)
assert made.version == 1, made
read = get_webhook.sync_detailed(made.id, client=api)
changed = WebhookDraft.from_dict(read.parsed.configuration.to_dict() | {"name": "Edited"})
edited = replace_webhook.sync(made.id, client=api, body=changed, if_match=read.headers["etag"])
assert (edited.name, edited.version) == ("Edited", 2), edited
assert test_webhook.sync(made.id, client=api, body=SampleEvent()).verdict == "delivered"
assert [one.name for one in list_webhooks.sync(client=api, text="edited").items] == ["Edited"]
found = search_history.sync(client=api, body=HistorySearchOrder(id="r-1"))
assert [one.request_id for one in found.items] == ["r-1"], found
dead = list_dead_events.sync(client=api, org="luma@AdobeOrg", sandbox="prod").items
order = RedriveOrder("luma@AdobeOrg", "prod", ChosenEvents("ids", [dead[0].id]))
job = redrive.sync(client=api, body=order)
assert get_redrive.sync(job.id, client=api).total == 1
again = resend.sync(made.id, client=api, body=ResendRequest(event_ids=["msg_1"])).items[0]
assert stop_redrive.sync(again.id, client=api).state == "stopped"
assert {one.id for one in list_redrives.sync(client=api).items} >= {job.id, again.id}
assert pause_webhook.sync(made.id, client=api).paused
problem = get_webhook.sync("00000000-0000-0000-0000-000000000000", client=api)
assert problem.status == 404, problem
print("done")
