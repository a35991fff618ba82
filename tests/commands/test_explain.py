"""The whole decision for one event in words, from a file or a place in a topic, and no secret among them."""

import itertools
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiokafka import AIOKafkaProducer

from dispatcher.auth.jwt_signer import JwtSigner
from dispatcher.config.secrets import Secret
from dispatcher.config.settings import DeliverySettings, HistorySettings
from dispatcher.contract.history import HistoryEntry, HistoryOutcome, HistoryRecord
from dispatcher.contract.records import Origin, RetryState
from dispatcher.delivery.lane_scheduler import LaneScheduler
from dispatcher.flow.decision import eligibility
from dispatcher.flow.explain import MASKED, Limits, Line, explain, rule_answers
from dispatcher.health import describe_lane
from dispatcher.stores.sql import history_search
from dispatcher.stores.sql.database import Database
from dispatcher.stores.sql.history_rows import rows_of
from dispatcher.stores.sql.history_store import HistoryStore
from tests.commands.running import CANARY, a_webhook, called, dispatcher, write_secret, write_settings, write_webhooks
from tests.conftest import Broker
from tests.kafka import topics
from tests.unit.examples import REMOVED, TENANT, email_event, read, record, sms_event, webhook, xdm_spelling

LIMITS = Limits(max_record_bytes=1024 * 1024, max_body=256_000, timeout_s=10)
NOW = 1_753_171_200.0
ANSWERS = {True: "yes", False: "NO", None: "not asked"}


def explained(event: object, *webhooks: Any, **limits: Any) -> dict[str, str]:
    """The facts of an explanation by `section name`."""
    explanation = explain(record(event), webhooks, Limits(**(vars_of(LIMITS) | limits)), NOW)
    rules = {f"rules {one.reason.value}": f"{ANSWERS[one.passes]}: {one.why}" for one in explanation.rules}
    headers = {f"header {name}": value for name, value in explanation.headers}
    return {f"{line.section} {line.name}": line.text for line in explanation.lines} | rules | headers


def vars_of(limits: Limits) -> dict[str, Any]:
    return {"max_record_bytes": limits.max_record_bytes, "max_body": limits.max_body, "timeout_s": limits.timeout_s}


def test_an_event_that_would_be_delivered() -> None:
    lines = explained(email_event(), webhook(headers={"X-Environment": "prod"}))
    assert lines["read spelling"] == "xed, with short keys"
    assert lines["read tenant"].startswith("myImsOrg/prod")
    assert lines["read webhook-id"] == f"{read(email_event()).webhook_id}, made from tenant and the event's _id"
    assert lines["webhook from"] == "luma.yaml:1"
    assert [text[:3] for name, text in lines.items() if name.startswith("rules")] == ["yes"] * 6
    assert lines["header webhook-attempt"] == "1"
    assert lines["header webhook-timestamp"] == "1753171200"
    assert lines["header X-Environment"] == "prod"
    assert '"imsOrg":"myImsOrg"' in lines["request payload"]
    assert lines["verdict would be sent"].startswith("to https://hooks.luma.example, as attempt 1")


def test_values_that_count_as_absent_are_named() -> None:
    odd = {"responseCode": "250 2.0.0 OK", "retryCount": [], "timestamp": 5, "messageID": 5, "messageFailure": "x"}
    identities = {"Email": [{"id": "a@b.c", "primary": True}, {}]}
    for event in (email_event(**odd, identityMap=identities), xdm_spelling(email_event(**odd, identityMap=identities))):
        lines = explained(event, webhook())
        feedback = "body.xdmEntity._experience.customerJourneyManagement.messageDeliveryfeedback"
        assert sorted(lines["read counts as absent"].split(", ")) == [
            f"{feedback}.messageFailure", f"{feedback}.responseCode", f"{feedback}.retryCount",
            "body.xdmEntity.identityMap", "body.xdmEntity.timestamp",
        ]  # fmt: skip
    for event in (email_event(), sms_event(retryCount="5", messageID=5), xdm_spelling(email_event())):
        assert "read counts as absent" not in explained(event, webhook())


def test_the_other_spelling_is_named() -> None:
    assert explained(xdm_spelling(email_event()), webhook())["read spelling"] == "xdm, with URI keys"


def test_an_event_without_an_id_has_one_of_its_place() -> None:
    lines = explained(email_event(_id=REMOVED), webhook())
    assert "the record's first place, delivery-events/3/41, since it has no _id" in lines["read webhook-id"]


def test_every_rule_is_answered_also_behind_the_first_no() -> None:
    lines = explained(email_event(feedbackStatus="read", campaignID=None), webhook(channels=("sms",), enabled=False))
    assert lines["rules webhook_disabled"] == "NO: it is switched off"
    assert lines["rules channel"] == "NO: email; wanted: sms"
    assert lines["rules status"].startswith("NO: read; wanted: sent")
    assert lines["rules campaign"] == "NO: the message belongs to no campaign"
    assert lines["verdict would be skipped"] == "webhook_disabled"
    assert "request payload" not in lines


def test_an_event_of_a_paused_webhook_would_be_held() -> None:
    lines = explained(email_event(), webhook(paused=True))
    assert lines["verdict would be held"] == "the webhook is paused"
    assert "request payload" not in lines


def test_a_tenant_without_a_webhook() -> None:
    lines = explained(email_event(), webhook(TENANT._replace(sandbox="dev")))
    assert lines["webhook none"] == "myImsOrg/prod has no webhook; 1 others are in use"
    assert lines["rules channel"].startswith("not asked")
    assert lines["verdict would be skipped"] == "no_webhook"


def test_other_events_and_large_ones() -> None:
    assert explained(email_event(eventType="message.tracking"))["verdict would be skipped"] == "not_feedback"
    assert "over the limit of 10" in explained(email_event(), max_record_bytes=10)["read unreadable"]
    assert explained(email_event(), webhook(), max_body=10)["verdict would be dead-lettered"].startswith(
        "reason too_large"
    )


def test_the_answers_are_those_of_the_pipeline() -> None:
    """The explanation lists the rules one by one, the pipeline decides: any combination must agree."""
    choices: dict[str, list[object]] = {
        "isTestExecution": [False, True],
        "feedbackStatus": ["bounce", "read"],
        "campaignID": ["c-2", "c-3", None],
        "campaignType": ["ApiTriggered", "RetryState", None],
        "webhooksEnabled": [None, False],
    }
    webhooks = [
        None, webhook(), webhook(enabled=False), webhook(channels=("sms",)), webhook(sandbox_id="another"),
        webhook(campaigns=("c-2",)), webhook(events=("read",)),
    ]  # fmt: skip
    for values in itertools.product(*choices.values()):
        changes = dict(zip(choices, values, strict=True))
        enabled = changes.pop("webhooksEnabled")
        document = email_event(**changes)
        document["header"]["webhooksEnabled"] = enabled
        event = read(document)
        for one in webhooks:
            said = next((answer.reason for answer in rule_answers(event, one) if answer.passes is False), None)
            assert said == eligibility(event, one), (changes, one)


def test_a_dead_letter_is_explained_with_its_reason() -> None:
    journey = RetryState(Origin("events", 1, 2), 1000.0, attempts=9, parks=4, last_status=503, reason="expired")
    headers = dict(journey.headers()) | {"feedback-detail": b"answered 503"}
    explanation = explain(record(email_event(), headers, topic="events.dead"), [webhook()], LIMITS, NOW)
    lines = explanation.lines
    assert Line("read", "first stood at", "events/1/2") in lines
    assert Line("read", "because of", "expired, last answer 503: answered 503") in lines
    assert ("webhook-attempt", "10") in explanation.headers


def secretive(directory: Path, **others: Any) -> dict[str, Any]:
    """A webhook with a secret wherever there can be one."""
    key = write_secret(directory, "key", CANARY * 3)
    whsecs = [
        write_secret(directory, "new", "whsec_" + "Y2FuYXJ5LW5ldmVyLXRvLWJlLXNlZW4h"),
        write_secret(directory, "old", "whsec_" + "Y2FuYXJ5LW5ldmVyLXRvLWJlLXNlZW4g"),
    ]
    return a_webhook(
        url=f"https://hooks.luma.example/{CANARY}?key={CANARY}",
        auth={"type": "jwt", "sign": {"algorithm": "HS256", "key": key, "claims": {"api_key": CANARY}}},
        headers={"X-Api-Key": CANARY, "X-Environment": "prod"},
        signing={"secrets": whsecs},
        **others,
    )


async def test_no_secret_is_printed(tmp_path: Path) -> None:
    settings = write_settings(tmp_path)
    write_webhooks(tmp_path, secretive(tmp_path))
    event = tmp_path / "event.json"
    event.write_text(json.dumps(email_event()))
    ran = await dispatcher("explain", event, "-c", settings)
    assert ran.status == 0, ran
    printed = dict(line.strip().split("  ", 1) for line in ran.out.splitlines() if "  " in line.strip())
    assert printed["header authorization"].strip() == f"Bearer {MASKED}"
    assert printed["header webhook-signature"].strip() == f"{MASKED} {MASKED}"
    assert printed["header X-Api-Key"].strip() == MASKED
    assert printed["header X-Environment"].strip() == "prod"
    assert printed["from"].strip().endswith("webhooks.yaml:4")
    for secret in (CANARY, "Y2FuYXJ5", "v1,", "eyJ"):
        assert secret not in ran.out + ran.err


WAITING_CASES = {
    "unusable": (", url: 'ftp://x'", "", "would be held", "its webhook can't be used: url: must begin with https://"),
    "undecided": ("", "webhooks: {}", "would be held", "a webhook file can't be read"),
}


@pytest.mark.parametrize(("more", "other", "verdict", "why"), WAITING_CASES.values(), ids=WAITING_CASES)
async def test_an_event_whose_webhook_is_unknown_would_be_held(
    tmp_path: Path, more: str, other: str, verdict: str, why: str
) -> None:
    config = write_settings(tmp_path)
    write_webhooks(tmp_path, a_webhook(org="other"), name="good.yaml")
    entry = f"{{name: b, org: {TENANT.org}, sandbox: {TENANT.sandbox}{more}}}"
    text = f"webhooks: [{entry}]" if more else other
    (tmp_path / "webhooks.d" / "z.yaml").write_text(f"apiVersion: dispatcher/v1\n{text}\n")
    (tmp_path / "event.json").write_text(json.dumps(email_event()))
    ran = await called("explain", tmp_path / "event.json", "-c", config)
    assert ran.status == 0
    said = ran.out.partition("Verdict\n")[2].splitlines()[0].split("  ")
    assert said[1] == verdict
    assert why in ran.out
    assert "no_webhook" not in said[-1]
    assert "has no webhook" not in ran.out


async def test_an_event_would_be_read_again_while_the_database_does_not_answer(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/missing/webhooks.db"
    config = write_settings(tmp_path, webhooks={"store": "sql", "url": {"env": "URL"}})
    (tmp_path / "event.json").write_text(json.dumps(email_event()))
    ran = await called("explain", tmp_path / "event.json", "-c", config, env={"URL": url})
    assert "would wait" in ran.out, ran.err
    assert "has no webhook" not in ran.out


async def test_no_token_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JwtSigner, "_make", None)
    assert explained(sms_event(), webhook(payload=2))["request payload"].startswith("version 2")


async def test_an_unreadable_event_is_explained_with_the_exact_mistake(tmp_path: Path) -> None:
    document = email_event(feedbackStatus=REMOVED)
    ran = await dispatcher("explain", "-", "-c", write_settings(tmp_path), stdin=json.dumps(document).encode())
    assert ran.status == 1
    place = "body.xdmEntity._experience.customerJourneyManagement.messageDeliveryfeedback.feedbackStatus"
    assert f"{place}: missing" in ran.out
    assert "would be dead-lettered  reason unreadable" in ran.out


@pytest.fixture
async def ops() -> AsyncIterator[str]:
    """An instance that has a lane for the examples' tenant, and for no other."""
    lanes = LaneScheduler(DeliverySettings())
    described = describe_lane(lanes.lane(TENANT), lanes.now())

    async def lane(request: web.Request) -> web.Response:
        known = (request.match_info["org"], request.match_info["sandbox"]) == TENANT
        return web.json_response(described) if known else web.Response(status=404)

    app = web.Application()
    app.router.add_get("/lanes/{org}/{sandbox}", lane)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_a_record_in_a_topic_and_its_lane(kafka: Broker, tmp_path: Path, ops: str) -> None:
    await topics.create_topic(kafka.bootstrap_servers, "explained", partitions=2)
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as producer:
        for event in (email_event(imsOrgId="a/b@Org"), email_event()):
            await producer.send_and_wait("explained", json.dumps(event).encode(), partition=1)
    config = write_settings(tmp_path, kafka.bootstrap_servers, kafka={"topic": "explained"})
    write_webhooks(tmp_path, a_webhook())
    place = ("explain", "-c", config, "--partition", "1", "--offset")
    ran = await called(*place, "1", "--ops", ops)
    assert ran.status == 0, ran
    assert "explained/1/1, " in ran.out
    assert "concurrency limit" in ran.out.partition("Lane\n")[2]
    ran = await called(*place, "0", "--ops", ops)
    assert "no webhook for a/b@Org/prod" in ran.out
    assert "this instance has lately sent nothing for the tenant" in ran.out
    ran = await called(*place, "2", "--topic", "explained")
    assert (ran.status, ran.err) == (1, "dispatcher: explained/1 has no offset 2: it has 0 to 1\n")


@pytest.mark.parametrize(
    ("topic", "cure"),
    [
        ("delivery-events", "create it, or correct kafka.topic"),
        ("feedback-dispatcher.retry.30s", "create it with `dispatcher topics --create`"),
        ("delivery-event", "correct the name"),
    ],
)
async def test_a_topic_that_does_not_exist_is_named_with_the_cure(
    kafka: Broker, tmp_path: Path, topic: str, cure: str
) -> None:
    config = write_settings(tmp_path, kafka.bootstrap_servers, kafka={"topic": "delivery-events"})
    ran = await called("explain", "-c", config, "--partition", "0", "--offset", "0", "--topic", topic)
    assert (ran.status, ran.err) == (1, f"dispatcher: there is no topic {topic}: {cure}\n")


async def test_past_attempts_are_shown_if_the_history_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be sent is never called delivered; what was delivered is, under a title of its own."""
    url = tmp_path / "history-url"
    url.write_text(f"sqlite+aiosqlite:///{tmp_path / 'history.db'}")
    settings = write_settings(tmp_path, history={"url": {"file": "history-url"}})
    write_webhooks(tmp_path, a_webhook())
    event = tmp_path / "event.json"
    event.write_text(json.dumps(email_event()))
    ran = await called("explain", event, "-c", settings)
    assert (ran.status, "the history store does not answer" in ran.out) == (0, True)

    database = Database(Secret(url.read_bytes()), create=True, setting="history.url")
    store = HistoryStore(database, HistorySettings.model_validate({}))
    await store.prepare()
    ran = await called("explain", event, "-c", settings)
    assert "the history store knows nothing of this event" in ran.out
    at = int(time.time() * 1000)
    webhook_id = read(email_event()).webhook_id
    entries = [
        HistoryEntry(
            at - 40_000 + number * 1000,
            outcome,
            *tenant,
            reason,
            webhook_id=webhook_id,
            attempt=number + 1,
            status=status,
        )
        for number, (outcome, reason, status, tenant) in enumerate(
            (
                (HistoryOutcome.ATTEMPT, "http_5xx", 503, TENANT),
                (HistoryOutcome.DELIVERED, "http_2xx", 200, TENANT),
                (HistoryOutcome.DEAD, "rejected", None, TENANT._replace(sandbox="other")),
            )
        )
    ]
    await store.write(rows_of(HistoryRecord(1, 1, 0, entries))[0])
    old = at - 3 * 86_400_000
    parked = [
        HistoryEntry(old, HistoryOutcome.PARKED, *TENANT, "attempt_failed", name, due_at=due_at)
        for name, due_at in (("msg_waits", at), ("msg_old", old + 30_000))
    ]
    await store.write(rows_of(HistoryRecord(1, 1, 9, parked))[0])
    await database.close()
    for name, is_forgotten in (("msg_waits", False), ("msg_old", True)):
        ran = await called("trace", name, "-c", settings)
        assert ("How it ended is no longer kept: deliveries are kept for 24h" in ran.out) is is_forgotten
    ran = await called("explain", event, "-c", settings)
    decided, _, happened = ran.out.partition("What happened")
    assert "would be sent" in decided
    assert "Delivered" not in decided
    assert [line.split("UTC")[1].strip() for line in happened.splitlines() if "UTC" in line] == [
        "Attempt 1: answered 503", "Delivered by attempt 2: answered 200",
    ]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(history_search, "MAX_TIMELINE", 2)
        ran = await called("explain", event, "-c", settings)
        assert "earlier entries are not shown" in ran.out
        assert "Delivered by attempt 2" in ran.out
        ran = await called("trace", webhook_id, "-c", settings)
        assert "earlier entries are not shown" in ran.out
        assert "Attempt 1" not in ran.out
        assert "Delivered by attempt 2" in ran.out
