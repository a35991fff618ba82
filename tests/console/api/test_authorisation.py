"""Role × organisation × every operation of the OpenAPI document: no caller sees another organisation's resources.

An operation without a line in `REQUESTS` fails the first test: a new route can't be forgotten.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue

from dispatcher.config.secrets import Secret
from dispatcher.console.api import openapi_document
from dispatcher.console.model import DeadQuery
from dispatcher.contract.tenant import TenantKey
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.notification_store import Changes, Message, NotificationStore
from dispatcher.stores.sql.records import Orgs, Role
from tests.auth.keys import pem
from tests.console.api.conftest import Answered, Client, Console
from tests.console.api.fakes import LUMA, LUMAS_CUSTOMER, RIVAL
from tests.console.history_store import KEY, FilledHistory, entry_of, recipient_hash
from tests.stores_sql.examples import plain, plain_draft

LUMAS_NAME = "Luma's very own webhook"
SIGNING = ("whsec_" + "bmV3" * 10, "whsec_" + "b2xk" * 10)
OLD_SECRET = Secret(SIGNING[1].encode()).fingerprint()
NEXT = "n" * 32
NEXT_KEY = Secret(NEXT.encode()).fingerprint()
OPERATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    operation["operationId"]: (method.upper(), path, operation)
    for path, item in openapi_document()["paths"].items()  # type: ignore[union-attr]
    for method, operation in item.items()
}

ACTORS: dict[str, tuple[Role, Orgs] | None] = {
    "nobody": None,
    "rival's viewer": (Role.VIEWER, frozenset({RIVAL.org})),
    "rival's admin": (Role.ADMIN, frozenset({RIVAL.org})),
    "viewer of no organisation": (Role.VIEWER, frozenset()),
    "luma's viewer": (Role.VIEWER, frozenset({LUMA.org})),
    "viewer of all": (Role.VIEWER, None),
    "luma's admin": (Role.ADMIN, frozenset({LUMA.org})),
    "admin of all": (Role.ADMIN, None),
}


@dataclass
class Luma:
    """Luma's objects, created again for each request."""

    sandbox: str
    webhook_id: str
    token_id: str
    job_id: str


@dataclass(frozen=True)
class Request:
    """Request of an operation on one of Luma's resources."""

    path: str
    json: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    is_list: bool = False
    """Others get an answer too, without Luma in it."""
    refused_to_others: int = 404
    is_deleted: bool = False
    """Luma's webhook is deleted before."""


def draft(luma: Luma) -> dict[str, Any]:
    return plain_draft(LUMA.org, luma.sandbox, name=LUMAS_NAME)


REQUESTS: dict[str, Callable[[Luma], Request]] = {
    "getMe": lambda luma: Request("/me", is_list=True),
    "listWebhooks": lambda luma: Request("/webhooks", is_list=True),
    "createWebhook": lambda luma: Request(
        "/webhooks", plain_draft(LUMA.org, luma.sandbox + "-new", name=LUMAS_NAME), refused_to_others=403
    ),
    "testDraft": lambda luma: Request("/webhooks/test", {"webhook": draft(luma)}, refused_to_others=403),
    "previewDraft": lambda luma: Request("/webhooks/preview", {"webhook": draft(luma), "webhook_id": luma.webhook_id}),
    "getWebhook": lambda luma: Request(f"/webhooks/{luma.webhook_id}"),
    "replaceWebhook": lambda luma: Request(f"/webhooks/{luma.webhook_id}", draft(luma), {"If-Match": '"1"'}),
    "deleteWebhook": lambda luma: Request(f"/webhooks/{luma.webhook_id}", None, {"If-Match": '"1"'}),
    "enableWebhook": lambda luma: Request(f"/webhooks/{luma.webhook_id}/enable"),
    "pauseWebhook": lambda luma: Request(f"/webhooks/{luma.webhook_id}/pause"),
    "resumeWebhook": lambda luma: Request(f"/webhooks/{luma.webhook_id}/resume"),
    "generateSigningSecret": lambda luma: Request(f"/webhooks/{luma.webhook_id}/signing-secrets", {}),
    "listSigningSecrets": lambda luma: Request(f"/webhooks/{luma.webhook_id}/signing-secrets"),
    "endSigningSecret": lambda luma: Request(f"/webhooks/{luma.webhook_id}/signing-secrets/{OLD_SECRET}/end", {}),
    "listSigningKeys": lambda luma: Request(f"/webhooks/{luma.webhook_id}/signing-keys"),
    "generateSigningKey": lambda luma: Request(f"/webhooks/{luma.webhook_id}/signing-keys", {}),
    "startSigningKey": lambda luma: Request(f"/webhooks/{luma.webhook_id}/signing-keys/{NEXT_KEY}/start"),
    "removeSigningKey": lambda luma: Request(f"/webhooks/{luma.webhook_id}/signing-keys/{NEXT_KEY}"),
    "listDeletedWebhooks": lambda luma: Request("/deleted-webhooks", is_list=True, is_deleted=True),
    "restoreWebhook": lambda luma: Request(f"/deleted-webhooks/{luma.webhook_id}/restore", is_deleted=True),
    "eraseWebhook": lambda luma: Request(f"/deleted-webhooks/{luma.webhook_id}", is_deleted=True),
    "testWebhook": lambda luma: Request(f"/webhooks/{luma.webhook_id}/test", {}),
    "getOutcomes": lambda luma: Request(f"/webhooks/{luma.webhook_id}/outcomes"),
    "listAttempts": lambda luma: Request(f"/webhooks/{luma.webhook_id}/attempts"),
    "getState": lambda luma: Request(f"/webhooks/{luma.webhook_id}/state"),
    "getLane": lambda luma: Request(f"/webhooks/{luma.webhook_id}/lane"),
    "getWaiting": lambda luma: Request(f"/webhooks/{luma.webhook_id}/waiting"),
    "listDeadEvents": lambda luma: Request(f"/dead-events?org={LUMA.org}&sandbox={LUMA.sandbox}", is_list=True),
    "getDeadEvent": lambda luma: Request("/dead-events/0-1"),
    "getDeadRecord": lambda luma: Request("/dead-events/0-1/record"),
    "redrive": lambda luma: Request(
        "/dead-events/redrive", {"org": LUMA.org, "sandbox": LUMA.sandbox, "events": {"select": "ids", "ids": ["0-1"]}}
    ),
    "checkResend": lambda luma: Request(f"/webhooks/{luma.webhook_id}/resend/check", {"event_ids": ["msg_1"]}),
    "resend": lambda luma: Request(f"/webhooks/{luma.webhook_id}/resend", {"event_ids": ["msg_1"]}),
    "listRedrives": lambda luma: Request("/redrives", is_list=True),
    "stopRedrive": lambda luma: Request(f"/redrives/{luma.job_id}/stop"),
    "getRedrive": lambda luma: Request(f"/redrives/{luma.job_id}"),
    "listAudit": lambda luma: Request(f"/audit?webhook_id={luma.webhook_id}", is_list=True),
    "searchHistory": lambda luma: Request("/history/search", {"org": LUMA.org, "sandbox": luma.sandbox}, is_list=True),
    "eraseHistory": lambda luma: Request("/history/erase", {"recipient_hash": "0" * 32}),
    "getEventHistory": lambda luma: Request(f"/webhooks/{luma.webhook_id}/events/msg_1/history"),
    "getCounts": lambda luma: Request(f"/webhooks/{luma.webhook_id}/counts"),
    "listContacts": lambda luma: Request(f"/webhooks/{luma.webhook_id}/contacts"),
    "askContact": lambda luma: Request(f"/webhooks/{luma.webhook_id}/contacts/ask", {"address": LUMAS_CUSTOMER}),
    "testContacts": lambda luma: Request(f"/webhooks/{luma.webhook_id}/contacts/test"),
    "listNotifications": lambda luma: Request("/notifications", is_list=True),
    "testOperator": lambda luma: Request("/notifications/test"),
    "listTokens": lambda luma: Request("/tokens"),
    "createToken": lambda luma: Request("/tokens", {"name": "new", "role": "viewer", "orgs": None}),
    "revokeToken": lambda luma: Request(f"/tokens/{luma.token_id}"),
}


def test_every_operation_of_the_document_is_tried_here() -> None:
    assert OPERATIONS.keys() == REQUESTS.keys()


async def test_every_route_that_is_served_is_in_the_document(console: Console) -> None:
    served = {
        (route.method, route.resource.canonical)
        for route in console.server.build().router.routes()
        if route.resource is not None and route.resource.canonical.startswith("/api")
    }
    documented = {(method, path) for method, path, _ in OPERATIONS.values()}
    assert served - documented == {("GET", "/api/v1/openapi.json"), ("HEAD", "/api/v1/openapi.json")}
    assert documented <= served


@pytest.mark.parametrize("name", OPERATIONS)
async def test_every_operation_checks_role_and_organisation(
    console: Console, history: FilledHistory, name: str
) -> None:
    if name == "redrive":  # the sandbox of its dead event needs a webhook
        await console.services.webhooks.create(plain(*LUMA, name=LUMAS_NAME), by="test", orgs=None)
    for number, (actor, rights) in enumerate(ACTORS.items()):
        # A key is generated only if none waits already.
        luma = await make(console, f"s{number}", has_next_key=name in ("startSigningKey", "removeSigningKey"))
        await history.add(entry_of(TenantKey(LUMA.org, luma.sandbox)))
        request = REQUESTS[name](luma)
        if request.is_deleted:
            await console.services.webhooks.delete(luma.webhook_id, expected_version=1, by="test", orgs=None)
        answer = await ask(console, name, request, rights)
        assert answer.status == expected(name, request, rights), (actor, answer.text)
        if rights is not None and not sees_luma(rights):
            seen = [word for word in (LUMA.org, LUMAS_NAME, LUMAS_CUSTOMER, luma.webhook_id) if word in answer.text]
            assert seen == [], (actor, answer.text)
        changed = await state(console, luma, is_deleted=request.is_deleted)
        may_change = 200 <= answer.status < 300 and OPERATIONS[name][0] != "GET"
        assert changed == "untouched" or may_change, (actor, changed)


async def test_a_list_without_filters_shows_only_the_callers_organisations(console: Console) -> None:
    luma = await make(console, "prod")
    rival = await console.client(Role.ADMIN, frozenset({RIVAL.org}))
    for path in ("/webhooks", "/webhooks?text=luma", "/dead-events", "/audit", f"/webhooks?org={LUMA.org}"):
        answer = await rival.get("/api/v1" + path)
        assert answer.status == 200
        assert not [word for word in (LUMA.org, LUMAS_NAME, LUMAS_CUSTOMER, luma.webhook_id) if word in answer.text]


async def test_a_refusal_for_other_organisations_reads_like_a_missing_object(console: Console) -> None:
    """Whether there is a webhook, a dead event or a redrive must not show by any difference in the answer."""
    luma = await make(console, "prod")
    rival = await console.client(Role.ADMIN, frozenset({RIVAL.org}))
    for there, not_there in (
        (f"/webhooks/{luma.webhook_id}", f"/webhooks/{luma.webhook_id[:-4]}0000"),
        (f"/webhooks/{luma.webhook_id}/attempts", f"/webhooks/{luma.webhook_id[:-4]}0000/attempts"),
        ("/dead-events/0-1", "/dead-events/0-99"),
        (f"/redrives/{luma.job_id}", "/redrives/job-99"),
    ):
        answers = [await rival.get("/api/v1" + path, headers={"X-Request-ID": "x"}) for path in (there, not_there)]
        assert [answer.status for answer in answers] == [404, 404]
        assert answers[0].text == answers[1].text


async def test_hashes_and_cursors_of_others_show_nothing(
    console: Console, history: FilledHistory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipient's hash is the same for all organisations; the id of a message may be in a forwarded link."""
    await history.add(entry_of(LUMA), entry_of(RIVAL, "2"))
    rival = await console.client(Role.ADMIN, frozenset({RIVAL.org}))
    for number, found in (("1", 0), ("2", 1)):
        address = f"{number}@customer.example"
        for recipient in ({"recipient": address}, {"recipient_hash": recipient_hash(KEY, address)}):
            page = (await rival.post("/api/v1/history/search", json=recipient)).json
            assert [one["org"] for one in page["items"]] == [RIVAL.org] * found
    path = Secret(f"sqlite+aiosqlite:///{tmp_path / 'history.db'}".encode())
    database, times = Database(path, setting="history.url"), iter((1e9, 1e9 + 1, 1e9 + 2, 1e9 + 3))
    try:
        store = NotificationStore(database, lambda: next(times))
        for tenant in (RIVAL, LUMA, RIVAL):
            message = Message(tenant, "notice", ("failing",), "email", LUMAS_CUSTOMER, "{}", LUMAS_NAME)
            await store.add(Changes({}, [], [message]))
        ids = {one.tenant: one.id for one in await store.recent(orgs=None)}  # the oldest of each
        monkeypatch.setattr(console.desk, "recent", store.recent)
        assert len((await rival.get("/api/v1/notifications")).json["items"]) == 2
        of_luma, of_nobody = [await rival.get(f"/api/v1/notifications?before={one}") for one in (ids[LUMA], "0" * 32)]
        assert of_luma.status == of_nobody.status == 404
        assert of_luma.json["detail"] == of_nobody.json["detail"]  # nothing shows that there is such a message
        mine = await console.client(Role.ADMIN, frozenset({LUMA.org, RIVAL.org}))
        assert len((await mine.get(f"/api/v1/notifications?before={ids[LUMA]}")).json["items"]) == 1
    finally:
        await database.close()


async def test_viewers_see_no_recipient(console: Console) -> None:
    for role, shown in ((Role.VIEWER, "j•••@luma-customer.example"), (Role.ADMIN, LUMAS_CUSTOMER)):
        api = await console.client(role, frozenset({LUMA.org}))
        assert (await api.get("/api/v1/dead-events/0-1")).json["recipient"] == shown
        items = (await api.get("/api/v1/dead-events")).json["items"]
        assert [item["recipient"] for item in items] == [shown]


async def make(console: Console, sandbox: str, *, has_next_key: bool = False) -> Luma:
    """Luma's webhook in a sandbox of its own, a token and a redrive."""
    sign: dict[str, JsonValue] = {"algorithm": "ES256", "key": {"value": pem("P-256").decode()}}
    if has_next_key:
        sign["next"] = {"algorithm": "HS256", "key": {"value": NEXT}, "starts": "2100-01-01T00:00:00Z"}
    signing: JsonValue = {"secrets": [{"value": one} for one in SIGNING]}
    config = plain(LUMA.org, sandbox, name=LUMAS_NAME, signing=signing, auth={"type": "jwt", "sign": sign})
    stored = await console.services.webhooks.create(config, by="test", orgs=None)
    token, _ = await console.services.tokens.create("victim", Role.VIEWER, orgs=None, by="test")
    job = await console.dead_events.redrive(LUMA, ids=None, query=DeadQuery(), by="test", orgs=None)
    return Luma(sandbox, stored.id, token.id, job.id)


async def ask(console: Console, name: str, request: Request, rights: tuple[Role, Orgs] | None) -> Answered:
    client: Client = console.stranger() if rights is None else await console.client(*rights)
    options: dict[str, Any] = {} if request.json is None else {"json": request.json}
    return await client(OPERATIONS[name][0], "/api/v1" + request.path, headers=request.headers, **options)


def expected(name: str, request: Request, rights: tuple[Role, Orgs] | None) -> int:
    operation = OPERATIONS[name][2]
    success = next(int(status) for status in operation["responses"] if status.startswith("2"))
    if rights is None:
        return 401
    role, orgs = rights
    if operation["x-role"] == "admin" and role is not Role.ADMIN:
        return 403
    if operation.get("x-all-organisations"):
        return success if orgs is None else 403
    return success if request.is_list or sees_luma(rights) else request.refused_to_others


def sees_luma(rights: tuple[Role, Orgs]) -> bool:
    return rights[1] is None or LUMA.org in rights[1]


async def state(console: Console, luma: Luma, *, is_deleted: bool = False) -> str:
    """Whether anything of Luma's was changed."""
    found = await console.services.webhooks.of_tenant(LUMA._replace(sandbox=luma.sandbox), orgs=None)
    new = await console.services.webhooks.of_tenant(LUMA._replace(sandbox=luma.sandbox + "-new"), orgs=None)
    tokens = {token.id: token.revoked_at for token in await console.services.tokens.list_all()}
    if is_deleted:
        kept = [one.id for one in await console.services.webhooks.list_deleted(orgs=None)]
        is_changed = found is not None or luma.webhook_id not in kept
    else:
        is_changed = found is None or found.version != 1
    if is_changed or new is not None or tokens[luma.token_id] is not None:
        return "changed"
    sent = bool(console.test_events.sent)
    sent = sent or bool(console.desk.sent or console.desk.asked)
    for done in (console.test_events.sent, console.desk.sent, console.desk.asked):
        done.clear()
    redriven = [job for job in console.dead_events.jobs.made.values() if job.by != "test" or job.state == "stopped"]
    console.dead_events.jobs.made.clear()
    made = [token for token in await console.services.tokens.list_all() if token.name == "new"]
    return "changed" if sent or redriven or made else "untouched"
